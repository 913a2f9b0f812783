"""The PyTorch adapter with PyTorch's own training tools and inside other optimizers: the same weights as PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from integrations.pytorch.clients.training import assert_trains_the_same, batch, fit, loss, network

nn = torch.nn
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own


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

    assert_trains_the_same(train, rtol=1e-4, atol=1e-5)  # a normalised batch enlarges differences


@pytest.mark.parametrize("normalization", ["weight_norm", "orthogonal"])
def test_parametrized_weights_are_trained_the_same(normalization: str) -> None:
    def train(module: Any) -> Any:
        model, data = network(), batch()
        getattr(nn.utils.parametrizations, normalization)(model[0])
        optimizer = module.NAdam(model.parameters(), lr=0.01)
        fit(lambda: loss(model, data), optimizer, steps=15)
        return [*model.parameters(), model[0].weight], [optimizer]

    assert_trains_the_same(train)


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

    assert_trains_the_same(train)


def test_training_resumes_the_same_from_a_distributed_checkpoint(tmp_path: Path) -> None:
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

    assert_trains_the_same(train)


class SharpnessAware(torch.optim.Optimizer):
    """Optimizer that steps along the gradient at the worst nearby point."""

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
    """Optimizer that takes half of every five steps of another optimizer, in whose state it keeps its own weights."""

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

    assert_trains_the_same(train)


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

    assert_trains_the_same(train)
