"""The PyTorch adapter in Gaussian processes and variational inference: the same weights as PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from integrations.pytorch.clients.training import assert_trains_the_same, fit

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own


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

    assert_trains_the_same(train, rtol=1e-9, atol=1e-11)


def test_botorch_fits_the_same_model() -> None:
    botorch, gpytorch = pytest.importorskip("botorch"), pytest.importorskip("gpytorch")

    def train(module: Any) -> Any:
        x = torch.rand(12, 2, dtype=torch.float64)
        model = botorch.models.SingleTaskGP(x, torch.sin(6 * x[:, :1]) + x[:, 1:])
        optimizer = module.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
        evidence = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
        botorch.optim.fit.fit_gpytorch_mll_torch(evidence, step_limit=15, optimizer=optimizer)
        return model.parameters(), [optimizer]

    assert_trains_the_same(train, rtol=1e-9, atol=1e-11)


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

    assert_trains_the_same(train)
