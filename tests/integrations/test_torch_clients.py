"""The PyTorch adapter in libraries that train with PyTorch: the same weights as with PyTorch's own optimizers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours  # noqa: E402

nn = torch.nn
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own
has_exchange = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")  # or every step is slow
Train = Callable[[Any], tuple[Iterable[Any], Iterable[Any]]]  # of a module of optimizers


@pytest.fixture(autouse=True)
def _one_thread_and_no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_both(train: Train, rtol: float = 2e-5, atol: float = 1e-6) -> None:
    """Assert that training ends at the same tensors with onepass's module and with PyTorch's module.

    The function that trains returns tensors and the optimizers that stepped them, all but one of whose steps were fast.
    """
    ends = []
    for module in (ours, torch.optim):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 (the libraries draw from it)
        random.seed(0)
        tensors, optimizers = train(module)
        ends.append([tensor.detach().clone() for tensor in tensors])
        for optimizer in optimizers:
            assert type(optimizer) is getattr(module, type(optimizer).__name__)
            if module is ours and has_exchange:
                assert optimizer.slow_steps == 1
    assert len(ends[0]) > 0
    torch.testing.assert_close(*ends, rtol=rtol, atol=atol)


def network() -> Any:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def batch() -> tuple[Any, Any]:
    return torch.randn(32, 8), torch.randn(32, 4)


def loss(model: Any, data: tuple[Any, Any]) -> Any:
    return nn.functional.mse_loss(model(data[0]), data[1])


def fit(objective: Callable[[], Any], optimizer: Any, steps: int = 10) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        objective().backward()
        optimizer.step()


# ---- Trainers ----


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

    assert_both(train)


def test_stable_baselines_dqn_learns_the_same_values_and_goes_on_from_a_file(tmp_path: Path) -> None:
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

    assert_both(train)


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

    assert_both(train)


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

    assert_both(train)


def test_hugging_faces_trainer_trains_the_same_low_rank_adapters(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def train(module: Any) -> Any:
        low_rank = peft.LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights="gaussian", fan_in_fan_out=True)
        model = peft.get_peft_model(gpt2(), low_rank)
        trainer = hugging_faces_trainer(model, tmp_path, optimizer_cls_and_kwargs=(module.AdamW, OPTIONS))
        trainer.train()
        return model.parameters(), [trainer.optimizer.optimizer]

    assert_both(train)


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

    assert_both(train)


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

    assert_both(train)


# ---- Gaussian processes and variational inference ----


@pytest.mark.parametrize("name", ["Adam", "RMSprop"])
def test_gpytorch_fits_the_same_exact_process(name: str) -> None:
    gpytorch = pytest.importorskip("gpytorch")

    class Process(gpytorch.models.ExactGP):
        def __init__(self, *data: Any) -> None:
            super().__init__(*data)
            self.mean_module = gpytorch.means.ConstantMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=2))

        def forward(self, x: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    def train(module: Any) -> Any:
        x = torch.rand(20, 2, dtype=torch.float64)
        y = torch.sin(6 * x[:, 0])
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        model = Process(x, y, likelihood).double().train()
        optimizer = getattr(module, name)(model.parameters(), lr=0.05)
        evidence = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
        fit(lambda: -evidence(model(x), y), optimizer, steps=15)
        return model.parameters(), [optimizer]

    assert_both(train, rtol=1e-9, atol=1e-11)


def test_botorch_fits_the_same_model() -> None:
    botorch, gpytorch = pytest.importorskip("botorch"), pytest.importorskip("gpytorch")

    def train(module: Any) -> Any:
        x = torch.rand(12, 2, dtype=torch.float64)
        model = botorch.models.SingleTaskGP(x, torch.sin(6 * x[:, :1]) + x[:, 1:])
        optimizer = module.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
        evidence = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
        botorch.optim.fit.fit_gpytorch_mll_torch(evidence, step_limit=15, optimizer=optimizer)
        return model.parameters(), [optimizer]

    assert_both(train, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scheduled", [False, True])
def test_pyro_infers_the_same_posterior(scheduled: bool) -> None:
    pyro = pytest.importorskip("pyro")
    import pyro.distributions as dist
    from pyro.infer.autoguide import AutoDiagonalNormal

    def model(x: Any, y: Any) -> None:
        weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ weights, scale), obs=y)

    def train(module: Any) -> Any:
        pyro.clear_param_store()
        x = torch.randn(30, 3)
        y = x @ torch.tensor([1.0, 2.0, -1.0])
        optimizer = pyro.optim.PyroOptim(module.Adam, {"lr": 0.02}, {"clip_norm": 10.0})
        if scheduled:
            options = {"optimizer": module.Adam, "optim_args": {"lr": 0.02}, "gamma": 0.9}
            optimizer = pyro.optim.ExponentialLR(options)
        inference = pyro.infer.SVI(model, AutoDiagonalNormal(model), optimizer, pyro.infer.Trace_ELBO())
        for _ in range(15):
            inference.step(x, y)
            if scheduled:
                optimizer.step()
        each = list(optimizer.optim_objs.values())
        assert len(each) == 3  # one optimizer for each parameter
        return pyro.get_param_store().values(), [one.optimizer if scheduled else one for one in each]

    assert_both(train)


# ---- PyTorch's own tools, and optimizers around an optimizer ----


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_stochastic_weight_averaging_ends_at_the_same_average(name: str) -> None:
    from torch.optim import swa_utils

    def train(module: Any) -> Any:
        model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4))
        data = batch()
        optimizer = getattr(module, name)(model.parameters(), lr=0.05)
        average = swa_utils.AveragedModel(model)
        scheduler = swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=5)
        for step in range(20):
            fit(lambda: loss(model, data), optimizer, steps=1)
            if step > 10:
                average.update_parameters(model)
                scheduler.step()
        swa_utils.update_bn([data[0]], average)
        return [*model.parameters(), *average.parameters(), *average.buffers()], [optimizer]

    assert_both(train, rtol=1e-4, atol=1e-5)  # a normalised batch enlarges differences


@pytest.mark.parametrize("normalization", ["weight_norm", "orthogonal"])
def test_parametrized_weights_are_trained_the_same(normalization: str) -> None:
    def train(module: Any) -> Any:
        model, data = network(), batch()
        getattr(nn.utils.parametrizations, normalization)(model[0])
        optimizer = module.NAdam(model.parameters(), lr=0.01)
        fit(lambda: loss(model, data), optimizer, steps=15)
        return [*model.parameters(), model[0].weight], [optimizer]

    assert_both(train)


def test_pruned_weights_stay_zero_and_the_others_are_trained_the_same() -> None:
    from torch.nn.utils import prune

    def train(module: Any) -> Any:
        model, data = network(), batch()
        optimizer = module.AdamW(model.parameters(), lr=0.01)
        fit(lambda: loss(model, data), optimizer, steps=5)
        prune.l1_unstructured(model[0], "weight", 0.5)
        prune.ln_structured(model[2], "weight", 0.3, n=2, dim=0)
        fit(lambda: loss(model, data), optimizer, steps=10)
        assert (model[0].weight == 0).sum() == 64
        prune.remove(model[0], "weight")
        prune.remove(model[2], "weight")
        return model.parameters(), [optimizer]

    assert_both(train)


def test_a_distributed_checkpoint_goes_on_the_same(tmp_path: Path) -> None:
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    from torch.distributed.checkpoint import state_dict

    def train(module: Any) -> Any:
        data, models = batch(), [network(), network()]
        optimizers = [module.AdamW(model.parameters(), lr=0.01, amsgrad=True) for model in models]
        fit(lambda: loss(models[0], data), optimizers[0])
        saved, loaded = (
            dict(zip(("model_state_dict", "optim_state_dict"), state_dict.get_state_dict(*both)))
            for both in zip(models, optimizers)
        )
        checkpoint.save(saved, checkpoint_id=tmp_path / module.__name__, no_dist=True)
        checkpoint.load(loaded, checkpoint_id=tmp_path / module.__name__, no_dist=True)
        state_dict.set_state_dict(models[1], optimizers[1], **loaded)
        fit(lambda: loss(models[1], data), optimizers[1])
        return models[1].parameters(), optimizers[:1]

    assert_both(train)


class SharpnessAware(torch.optim.Optimizer):
    """Steps along the gradient at the worst point nearby."""

    def __init__(self, base: Any, radius: float = 0.05) -> None:
        super().__init__(base.param_groups, {"radius": radius})
        self.base, self.param_groups = base, base.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> None:
        params = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        for p in params:
            self.state[p]["before"] = p.data.clone()
            p.add_(p.grad * (self.param_groups[0]["radius"] / norm))
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for p in params:
            p.data = self.state[p]["before"]
        self.base.step()


class Lookahead(torch.optim.Optimizer):
    """Goes half of the way that the other optimizer has gone in five steps; keeps its weights in the other's state."""

    def __init__(self, base: Any) -> None:
        super().__init__(base.param_groups, {})
        self.base, self.param_groups, self.state, self.count = base, base.param_groups, base.state, 0
        self.weights = {p: p.detach().clone() for group in base.param_groups for p in group["params"]}

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        self.base.step(closure)
        self.count += 1
        for p, weights in self.weights.items() if self.count % 5 == 0 else ():
            self.state[p]["slow_weights"] = weights.lerp_(p.data, 0.5)
            p.data = weights.clone()


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_sharpness_aware_minimization_ends_at_the_same_weights(name: str) -> None:
    def train(module: Any) -> Any:
        model, data = network(), batch()
        optimizer = SharpnessAware(getattr(module, name)(model.parameters(), lr=0.02))
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 15)
        for _ in range(15):
            optimizer.zero_grad()
            loss(model, data).backward()
            optimizer.step(lambda: loss(model, data).backward())
            scheduler.step()
        return model.parameters(), [optimizer.base]

    assert_both(train)


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_lookahead_ends_at_the_same_weights(name: str) -> None:
    def train(module: Any) -> Any:
        model, data = network(), batch()
        options = {} if name == "Adam" else {"momentum": 0.9}
        optimizer = Lookahead(getattr(module, name)(model.parameters(), lr=0.01, **options))
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        for _ in range(4):
            fit(lambda: loss(model, data), optimizer, steps=5)
            scheduler.step()
        return model.parameters(), [optimizer.base]

    assert_both(train)
