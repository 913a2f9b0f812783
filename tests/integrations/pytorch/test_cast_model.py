"""`cast_model`: bfloat16 weights with norms in float32."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.helpers import assert_fast


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 8)
        self.body = torch.nn.Sequential(
            torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.BatchNorm1d(8), torch.nn.GroupNorm(2, 8)
        )
        self.head = torch.nn.Linear(8, 11, bias=False)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: Any) -> Any:
        return self.head(self.body(self.embedding(x))) * self.scale


def dtypes(model: Any) -> dict[str, Any]:
    return {name: param.dtype for name, param in model.named_parameters()}


def test_cast_model_keeps_norms_and_named_layers_in_float32() -> None:
    model = Model()
    params = list(model.parameters())
    assert ours.cast_model(model) is model
    wide = {name for name, dtype in dtypes(model).items() if dtype == torch.float32}
    norms = {f"body.{i}.{name}" for i in (1, 2, 3) for name in ("weight", "bias")}
    assert wide == norms and all(a is b for a, b in zip(params, model.parameters(), strict=True))
    assert model.body[2].running_mean.dtype == torch.float32
    model = ours.cast_model(Model(), keep_float32=("head", "*.bias", "scale", torch.nn.Embedding))
    wide = {name for name, dtype in dtypes(model).items() if dtype == torch.float32}
    assert wide == norms | {"head.weight", "body.0.bias", "scale", "embedding.weight"}


def test_cast_model_keeps_a_shared_parameter_and_converts_gradients() -> None:
    model = Model()
    model.head.weight = model.embedding.weight
    model.body[0].weight.grad = torch.ones(8, 8)
    ours.cast_model(model, keep_float32=("head",))
    assert model.embedding.weight.dtype == torch.float32
    assert model.body[0].weight.dtype == model.body[0].weight.grad.dtype == torch.bfloat16


def test_cast_model_refuses_patterns_without_a_match() -> None:
    model = Model()
    with pytest.raises(ValueError, match="keep_float32: expected the name of a module or parameter, got 'heads'"):
        ours.cast_model(model, keep_float32=("scale", "heads"))
    with pytest.raises(TypeError, match="keep_float32: expected module types and name patterns, got 3"):
        ours.cast_model(model, keep_float32=(3,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got list"):
        ours.cast_model([model])  # type: ignore[type-var]
    assert set(dtypes(model).values()) == {torch.float32}


def test_cast_model_trains() -> None:
    torch.manual_seed(0)
    model = ours.cast_model(Model())
    optimizer = ours.AdamW(model.parameters(), lr=0.02, state_dtype="float8")
    x = torch.arange(11).repeat(4)
    losses = []
    for _ in range(60):
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(x).float(), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert_fast(optimizer)
