"""Every tensor of a checkpoint is looked at before a run continues from it; tests/fuzz has whole files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import MFDMC_SETTINGS, Ended, Listener, fit, planted, read

from mfdmc_fast import MFDMCConfig, MFDMCModel
from mfdmc_fast.checkpoints import Checkpoint
from mfdmc_fast.config import with_rates
from mfdmc_fast.content_checks import check_run
from mfdmc_fast.epochs import _NativeState
from mfdmc_fast.training import TrainingHistory

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensors, dict[str, Any]]:
    """Of a run that has pruned, after its fifth epoch."""
    folder = tmp_path_factory.mktemp("saved")
    with pytest.raises(Ended):
        fit("cpu", folder, Listener(end_after=6))
    _, tensors, state = read(folder / "epoch-00005.safetensors")
    return tensors, state


def check(tensors: Tensors, state: dict[str, Any], **settings: Any) -> None:
    """As a run with these settings would before its first epoch."""
    ratings = planted()
    config = with_rates(MFDMCConfig(**MFDMC_SETTINGS | settings))
    model = MFDMCModel(len(set(ratings.users)), len(set(ratings.items)), config, 3.0)
    history = TrainingHistory.from_dict(state["history"])
    begun = TrainingHistory(backend=history.backend, batch_size=history.batch_size)
    check_run(Checkpoint(Path("x"), state, tensors), history, begun, model, _NativeState(model), n_batches=1, rows={})


def test_what_a_run_has_written_fits(saved: tuple[Tensors, dict[str, Any]]) -> None:
    check(*saved)


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "gone": lambda tensor: None,
    "shorter": lambda tensor: tensor[:-1],
    "deeper": lambda tensor: tensor[None],
    "of 64 bits": lambda tensor: tensor.double(),
    "not finite": lambda tensor: tensor / 0,
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_tensor_that_does_not_fit_is_named(saved: tuple[Tensors, dict[str, Any]], change: str) -> None:
    tensors, state = saved
    assert {name.partition(".")[0] for name in tensors} == {"model", "optimizer"}
    for name, tensor in tensors.items():
        rest = {other: t for other, t in tensors.items() if other != name}
        changed = CHANGES[change](tensor)
        with pytest.raises((KeyError, ValueError), match=name.removeprefix("model.")):
            check(rest if changed is None else rest | {name: changed}, state)


@pytest.mark.parametrize("name", ["model.x", "optimizer.user.centers.x", "optimizer.x", "best.user.centers", "x"])
def test_a_foreign_tensor_is_named(saved: tuple[Tensors, dict[str, Any]], name: str) -> None:
    tensors, state = saved
    with pytest.raises(ValueError, match=name):
        check(tensors | {name: torch.ones(1)}, state)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 4}, "its epochs are not 1, 2, … up to 4"),
        ({"epochs": 5}, "no reason why it ended"),
        ({"n_views": 2}, "do not fit n_views"),
        ({"n_clusters": 3}, "below n_clusters"),
        ({"view_dim": 3}, "user.centers is"),
        ({"optimizer": "adagrad"}, "missing|row_sum"),
    ],
    ids=str,
)
def test_a_run_of_other_settings(saved: tuple[Tensors, dict[str, Any]], settings: dict[str, Any], said: str) -> None:
    with pytest.raises((KeyError, ValueError), match=said):
        check(*saved, **settings)
