"""The PyTorch adapter in libraries that run the training: the same weights as with PyTorch's own optimizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.clients.training import assert_trains_the_same, batch, loss, network

nn = torch.nn
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own


def test_stable_baselines_ppo_learns_the_same_policy_with_a_schedule() -> None:
    library = pytest.importorskip("stable_baselines3")

    def train(module: Any) -> Any:
        own = {"optimizer_class": ours.Adam, "optimizer_kwargs": {"eps": 1e-5}} if module is ours else {}
        model = library.PPO(
            "MlpPolicy", "CartPole-v1", learning_rate=lambda remaining: 3e-3 * remaining, n_steps=64, batch_size=32,
            n_epochs=3, policy_kwargs={"net_arch": [16], **own}, seed=0, device="cpu",
        )  # fmt: skip
        model.learn(192)
        assert model.policy.optimizer.param_groups[0]["eps"] == 1e-5
        return model.policy.parameters(), [model.policy.optimizer]

    assert_trains_the_same(train)


def test_stable_baselines_dqn_learns_the_same_values_and_resumes_from_a_file(tmp_path: Path) -> None:
    library = pytest.importorskip("stable_baselines3")

    def train(module: Any) -> Any:
        model = library.DQN(
            "MlpPolicy", "CartPole-v1", learning_starts=20, train_freq=2, buffer_size=500,
            policy_kwargs={"net_arch": [16], "optimizer_class": module.Adam}, seed=0, device="cpu",
        )  # fmt: skip
        model.learn(100)
        model.save(tmp_path / "model")
        loaded = library.DQN.load(tmp_path / "model", env=model.get_env(), device="cpu")
        loaded.set_random_seed(1)
        loaded.learn(60, reset_num_timesteps=False)
        return loaded.q_net.parameters(), [model.policy.optimizer, loaded.policy.optimizer]

    assert_trains_the_same(train)


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_lightning_trains_clips_and_resumes_the_same(name: str, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module, self.network = module, network()

        def training_step(self, data: Any, index: int) -> Any:
            return loss(self.network, data)

        def configure_optimizers(self) -> Any:
            options = {"momentum": 0.9} if name == "SGD" else {}
            optimizer = getattr(self.module, name)(self.parameters(), lr=0.01, **options)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=100)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train(module: Any) -> Any:
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch()), batch_size=8)
        optimizers = []
        for epochs in (2, 4):
            model = Model(module)
            trainer = lightning.Trainer(
                max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=0.5,
                default_root_dir=tmp_path,
            )  # fmt: skip
            trainer.fit(model, data, ckpt_path=tmp_path / "checkpoint" if optimizers else None)
            trainer.save_checkpoint(tmp_path / "checkpoint")
            optimizers += trainer.optimizers
        return model.parameters(), optimizers

    assert_trains_the_same(train)


def gpt2() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def hugging_faces_trainer(model: Any, folder: Path, **given: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=8, num_train_epochs=2, learning_rate=5e-3, adam_epsilon=1e-5,
        use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 40, (32, 8))]
    return transformers.Trainer(model, arguments, train_dataset=data, **given)


# The gradient of the keys' biases is zero but for rounding, which Adam with a smaller epsilon turns into steps.
OPTIONS = {"lr": 5e-3, "eps": 1e-5, "weight_decay": 0.0}


def test_hugging_faces_trainer_trains_gpt2_the_same(tmp_path: Path) -> None:
    def train(module: Any) -> Any:
        model = gpt2()
        own = ours.AdamW(model.parameters(), **OPTIONS) if module is ours else None
        trainer = hugging_faces_trainer(model, tmp_path, optimizers=(own, None))
        trainer.train()
        return model.parameters(), [trainer.optimizer.optimizer]

    assert_trains_the_same(train)


def test_hugging_faces_trainer_trains_the_same_low_rank_adapters(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def train(module: Any) -> Any:
        low_rank = peft.LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights="gaussian", fan_in_fan_out=True)
        model = peft.get_peft_model(gpt2(), low_rank)
        trainer = hugging_faces_trainer(model, tmp_path, optimizer_cls_and_kwargs=(module.AdamW, OPTIONS))
        trainer.train()
        return model.parameters(), [trainer.optimizer.optimizer]

    assert_trains_the_same(train)


def test_accelerate_accumulates_clips_and_resumes_the_same(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")

    def train(module: Any) -> Any:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = network()
        optimizer = module.AdamW(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch()), batch_size=8)
        model, wrapped, data, scheduler = accelerator.prepare(model, optimizer, data, scheduler)
        for epoch in range(3):
            for part in data:
                with accelerator.accumulate(model):
                    accelerator.backward(loss(model, part))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 0.5)
                    wrapped.step()
                    scheduler.step()
                    wrapped.zero_grad()
            if epoch == 0:
                accelerator.save_state(str(tmp_path / module.__name__))
        before = [p.detach().clone() for p in model.parameters()]
        accelerator.load_state(str(tmp_path / module.__name__))
        return [*before, *model.parameters(), *optimizer.state_dict()["state"][0].values()], [optimizer]

    assert_trains_the_same(train)


def test_skorch_finds_the_same_learning_rate_in_a_grid_search() -> None:
    skorch, selection = pytest.importorskip("skorch"), pytest.importorskip("sklearn.model_selection")

    def train(module: Any) -> Any:
        inputs = np.random.standard_normal((60, 8)).astype(np.float32)  # noqa: NPY002
        net = skorch.NeuralNetRegressor(
            nn.Linear, module__in_features=8, module__out_features=1, optimizer=module.AdamW, batch_size=10,
            max_epochs=2, optimizer__weight_decay=0.1, verbose=0,
        )  # fmt: skip
        search = selection.GridSearchCV(net, {"lr": [1e-3, 1e-1]}, cv=2, scoring="neg_mean_squared_error")
        search.fit(inputs, inputs[:, :1])
        assert search.best_params_ == {"lr": 0.1}
        return search.best_estimator_.module_.parameters(), [search.best_estimator_.optimizer_]

    assert_trains_the_same(train)
