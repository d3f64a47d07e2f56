"""What the tests of the ways to run epochs share: models by their settings, and when two runs are the same."""

from __future__ import annotations

from typing import Any

import pytest

from mfdmc_fast.config import FunkMFConfig, MFDMCConfig, TrainingConfig
from mfdmc_fast.data import RatingsDataset, StreamedRatings
from mfdmc_fast.model import FunkMFModel, MFDMCModel, RatingModel
from mfdmc_fast.training import TrainingHistory, fit

CONFIGS: dict[str, TrainingConfig] = {
    "concat": MFDMCConfig(n_views=3, n_clusters=5, view_dim=3, epochs=6, prune_start=3, prune_threshold=0.19),
    "sum": MFDMCConfig(n_views=3, n_clusters=4, view_dim=5, epochs=6, combine="sum", prune=False, center_scale=0.5),
    "plain": MFDMCConfig(n_views=2, n_clusters=3, view_dim=17, epochs=4, biases=False),
    "small-batches": MFDMCConfig(n_views=2, n_clusters=3, view_dim=2, epochs=3, batch_size=37),
    "rows-that-miss-many-steps": MFDMCConfig(n_views=2, n_clusters=3, view_dim=2, epochs=4, batch_size=6),
    "one-rating-a-batch": MFDMCConfig(n_views=2, n_clusters=2, view_dim=2, epochs=1, batch_size=1),
    "adagrad": MFDMCConfig(
        n_views=3, n_clusters=5, view_dim=4, epochs=6, optimizer="adagrad", prune_start=3, prune_threshold=0.19
    ),
    "funkmf": FunkMFConfig(n_factors=19, epochs=6),
    "funkmf-adagrad": FunkMFConfig(n_factors=19, epochs=6, optimizer="adagrad"),
    "l2-by-count": MFDMCConfig(n_views=2, n_clusters=3, view_dim=3, epochs=6, l2_count_power=0.7),
    "funkmf-l2-by-count": FunkMFConfig(n_factors=9, epochs=5, l2_count_power=0.5, optimizer="adagrad"),
    "funkmf-plain": FunkMFConfig(n_factors=8, epochs=4, biases=False, batch_size=100),
}


def new_model(config: TrainingConfig, data: RatingsDataset | StreamedRatings, **changes: Any) -> RatingModel:
    """An untrained model for the ratings."""
    kind = MFDMCModel if isinstance(config, MFDMCConfig) else FunkMFModel
    changed = type(config)(**{**config.to_dict(), **changes})
    return kind(len(data.users), len(data.items), changed, data.mean)  # type: ignore[arg-type]


def trained(
    config: TrainingConfig, data: RatingsDataset | StreamedRatings, **changes: Any
) -> tuple[RatingModel, TrainingHistory]:
    """A model and its history."""
    model = new_model(config, data, **changes)
    return model, fit(model, data)


def assert_same_run(mine: tuple[RatingModel, TrainingHistory], expected: tuple[RatingModel, TrainingHistory]) -> None:
    """Two backends followed the same trajectory within rounding."""
    history, expected_history = mine[1], expected[1]
    assert [(e.epoch, e.side, e.view, e.cluster) for e in history.prune_events] == [
        (e.epoch, e.side, e.view, e.cluster) for e in expected_history.prune_events
    ]
    for record, expected_record in zip(history.epochs, expected_history.epochs, strict=True):
        assert record.loss == pytest.approx(expected_record.loss, rel=1e-4, abs=1e-6)
    for (key, parameter), expected_parameter in zip(mine[0].named_parameters(), expected[0].parameters(), strict=True):
        theirs = expected_parameter.detach().double().cpu()
        # rounding differs, and Adam divides by small numbers: single entries drift, the whole may not
        error = (parameter.detach().double().cpu() - theirs).square().mean().sqrt()
        assert error <= 1e-4 * theirs.square().mean().sqrt(), key
