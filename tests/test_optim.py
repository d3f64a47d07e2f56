"""Adam's groups and first step by hand, and the learning-rate schedules."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfdmc_fast.config import FunkMFConfig, MFDMCConfig
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.model import FunkMFModel, MFDMCModel, RatingModel
from mfdmc_fast.optim import make_optimizer, rate_factor

RATES = {"learning_rate": 0.1, "learning_rate_centers": 0.2, "learning_rate_biases": 0.3}


def _model(biases: bool = True) -> MFDMCModel:
    return MFDMCModel(5, 6, MFDMCConfig(n_views=2, n_clusters=3, view_dim=2, biases=biases, **RATES))


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    return {group["name"]: float(group["lr"]) for group in optimizer.param_groups}


def test_rates_of_the_groups() -> None:
    assert _rates(make_optimizer(_model())) == {"assignment_logits": 0.1, "centers": 0.2, "biases": 0.3}
    assert _rates(make_optimizer(_model(biases=False))) == {"assignment_logits": 0.1, "centers": 0.2}
    funkmf = FunkMFModel(5, 6, FunkMFConfig(learning_rate=0.4, learning_rate_biases=0.5))
    assert _rates(make_optimizer(funkmf)) == {"factors": 0.4, "biases": 0.5}


@pytest.mark.parametrize(
    "model", [_model(), _model(biases=False), FunkMFModel(5, 6, FunkMFConfig())], ids=["mfdmc", "plain", "funkmf"]
)
def test_every_parameter_is_in_one_group(model: RatingModel) -> None:
    grouped = [id(p) for group in make_optimizer(model).param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_two_steps_of_adam_by_hand() -> None:
    model = _model()
    optimizer = make_optimizer(model)
    parameter = model.user.centers
    before = parameter.detach().clone().double()
    others = [p.detach().clone() for p in model.parameters() if p is not parameter]
    gradients = [torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)) for k in (1, 2)]
    first, second, expected = torch.zeros_like(before), torch.zeros_like(before), before
    for step, gradient in enumerate(gradients, start=1):
        parameter.grad = gradient
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        expected = expected - 0.2 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)
    # a parameter without a gradient stays
    unchanged = [p.detach() for p in model.parameters() if p is not parameter]
    assert all(torch.equal(a, b) for a, b in zip(others, unchanged, strict=True))


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        ("constant", 0, 1.0),
        ("constant", 100, 1.0),
        ("cosine", 0, 1.0),
        ("cosine", 25, 0.5 * (1 + math.cos(math.pi / 4))),
        ("cosine", 50, 0.5),
        ("cosine", 100, 0.0),
        ("cosine", 150, 0.0),
        ("one-cycle", 0, 1 / 25),
        ("one-cycle", 15, (1 + 1 / 25) / 2),
        ("one-cycle", 30, 1.0),
        ("one-cycle", 65, 0.5),
        ("one-cycle", 100, 0.0),
        ("one-cycle", 101, 0.0),
    ],
)
def test_rate_factor(schedule: str, step: int, factor: float) -> None:
    assert rate_factor(schedule, step, 100) == pytest.approx(factor, abs=1e-12)


@given(
    schedule=st.sampled_from(["cosine", "constant", "one-cycle"]),
    total_steps=st.integers(0, 500),
    step=st.integers(0, 600),
)
def test_rate_factor_stays_between_0_and_1(schedule: str, total_steps: int, step: int) -> None:
    assert 0 <= rate_factor(schedule, step, total_steps) <= 1


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match="learning_rate_schedule = 'linear'"):
        rate_factor("linear", 0, 10)
