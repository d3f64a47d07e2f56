"""Parameter groups, steps of Adam and of row-wise AdaGrad by hand, and the learning-rate schedules."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfdmc_fast.config import FunkMFConfig, MFDMCConfig, with_rates
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.model import FunkMFModel, MFDMCModel, RatingModel
from mfdmc_fast.optim import RowAdaGrad, make_optimizer, rate_factor

RATES = {"learning_rate": 0.1, "learning_rate_centers": 0.2, "learning_rate_biases": 0.3}


def _model(biases: bool = True, **settings: Any) -> MFDMCModel:
    return MFDMCModel(5, 6, MFDMCConfig(n_views=2, n_clusters=3, view_dim=2, biases=biases, **RATES | settings))


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    return {group["name"]: float(group["lr"]) for group in optimizer.param_groups}


def test_rates_of_the_groups() -> None:
    assert _rates(make_optimizer(_model())) == {"assignment_logits": 0.1, "centers": 0.2, "biases": 0.3}
    assert _rates(make_optimizer(_model(biases=False))) == {"assignment_logits": 0.1, "centers": 0.2}
    funkmf = FunkMFModel(5, 6, FunkMFConfig(learning_rate=0.4, learning_rate_biases=0.5))
    assert _rates(make_optimizer(funkmf)) == {"factors": 0.4, "biases": 0.5}


def test_rates_that_are_unset_are_those_of_the_optimizer() -> None:
    for config in (MFDMCConfig(), MFDMCConfig(optimizer="adagrad")):
        filled = with_rates(config)
        assert _rates(make_optimizer(MFDMCModel(12, 12, config))) == {
            "assignment_logits": filled.learning_rate,
            "centers": filled.learning_rate_centers,
            "biases": filled.learning_rate_biases,
        }
    for config in (FunkMFConfig(), FunkMFConfig(optimizer="adagrad", learning_rate=0.4)):
        filled = with_rates(config)
        assert _rates(make_optimizer(FunkMFModel(5, 6, config))) == {
            "factors": filled.learning_rate,
            "biases": filled.learning_rate_biases,
        }


def test_the_setting_chooses_the_optimizer() -> None:
    assert type(make_optimizer(_model())) is torch.optim.Adam
    assert type(make_optimizer(_model(optimizer="adagrad"))) is RowAdaGrad
    assert type(make_optimizer(FunkMFModel(5, 6, FunkMFConfig(optimizer="adagrad")))) is RowAdaGrad


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_steps_of_row_adagrad_by_hand(dtype: torch.dtype) -> None:
    def tensor(values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype)

    close = partial(torch.testing.assert_close, rtol=1e-6 if dtype is torch.float32 else 1e-12, atol=0.0)
    table, bias, alone = (torch.nn.Parameter(tensor(x)) for x in ([[1.0, 2.0], [3.0, 4.0]], [1.0, 2.0], [5.0]))
    optimizer = RowAdaGrad([{"params": [table, alone], "lr": 0.5}, {"params": [bias], "lr": 0.1}])

    # mean squares: of the rows (1 + 49) / 2 = 25 and 0, of the biases 0 and 9
    table.grad, bias.grad = tensor([[1.0, 7.0], [0.0, 0.0]]), tensor([0.0, -3.0])
    optimizer.step()
    rows, biases = (optimizer.state[p]["row_sum"] for p in (table, bias))
    close(rows, tensor([25.0, 0.0]))
    close(biases, tensor([0.0, 9.0]))
    row = [1 - 0.5 * 1 / (5 + 1e-8), 2 - 0.5 * 7 / (5 + 1e-8)]
    other = 2 + 0.1 * 3 / (3 + 1e-8)
    close(table.data, tensor([row, [3.0, 4.0]]))
    close(bias.data, tensor([1.0, other]))

    # 25 + 144 = 169 and 0 + (1 + 1) / 2 = 1; 0 + 16 and 9 + 16
    table.grad, bias.grad = tensor([[12.0, -12.0], [1.0, -1.0]]), tensor([4.0, 4.0])
    optimizer.step()
    close(rows, tensor([169.0, 1.0]))
    close(biases, tensor([16.0, 25.0]))
    row = [row[0] - 0.5 * 12 / (13 + 1e-8), row[1] + 0.5 * 12 / (13 + 1e-8)]
    close(table.data, tensor([row, [3 - 0.5 / (1 + 1e-8), 4 + 0.5 / (1 + 1e-8)]]))
    close(bias.data, tensor([1 - 0.1 * 4 / (4 + 1e-8), other - 0.1 * 4 / (5 + 1e-8)]))
    # a parameter without a gradient stays, and has no state
    assert alone.item() == 5.0
    assert alone not in optimizer.state


def test_a_row_without_gradient_stays_whatever_it_did_before() -> None:
    table = torch.nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    optimizer = RowAdaGrad([table], lr=0.1)
    table.grad = torch.ones(3, 4)
    optimizer.step()
    before = table.detach().clone()
    table.grad[1] = 0.0
    optimizer.step()
    assert torch.equal(table[1], before[1])
    assert (table != before).any(1).tolist() == [True, False, True]
    # rates of any size: 0 times 1e38 / 1e-8 must not be NaN
    fresh = torch.nn.Parameter(torch.ones(2, 2))
    fresh.grad = torch.zeros(2, 2)
    RowAdaGrad([fresh], lr=1e38).step()
    assert fresh.tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("model", [_model(optimizer="adagrad"), FunkMFModel(5, 6, FunkMFConfig(optimizer="adagrad"))])
def test_row_adagrad_has_four_bytes_of_state_a_row(model: RatingModel) -> None:
    optimizer = make_optimizer(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert {key: value.shape for key, value in state.items()} == {"row_sum": (len(parameter),)}
        assert state["row_sum"].untyped_storage().nbytes() == 4 * len(parameter)


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
