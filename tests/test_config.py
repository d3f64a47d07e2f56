"""Settings: what is accepted, what is refused and how, plain values there and back, and weight schedules."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfdmc_fast.config import (
    PRESETS,
    BayesianMFConfig,
    FunkMFConfig,
    MFDMCConfig,
    TrainingConfig,
    config_from_dict,
    l2_at,
    preset,
    weight_at,
    with_l2,
    with_rank,
    with_rates,
)
from mfdmc_fast.errors import ConfigError

KINDS = [TrainingConfig, MFDMCConfig, FunkMFConfig]

REFUSED: dict[str, tuple[str, Any, str]] = {
    "epochs-0": ("epochs", 0, "must be 1 or more"),
    "epochs-fraction": ("epochs", 2.5, "must be an integer"),
    "epochs-text": ("epochs", "3", "must be an integer"),
    "epochs-none": ("epochs", None, "must be an integer"),
    "epochs-bool": ("epochs", True, "must be a number"),
    "epochs-nan": ("epochs", math.nan, "must be an integer"),
    "epochs-array": ("epochs", np.array([1, 2]), "must be a single value"),
    "batch-size-0": ("batch_size", 0, "must be 1 or more"),
    "batch-size-text": ("batch_size", "all", "must be an integer or unset"),
    "schedule": ("learning_rate_schedule", "linear", "must be one of 'cosine', 'constant', 'one-cycle'"),
    "validation-1": ("validation_fraction", 1.0, r"must be in \[0, 1\)"),
    "validation-negative": ("validation_fraction", -0.1, r"must be in \[0, 1\)"),
    "validation-nan": ("validation_fraction", math.nan, "must be finite"),
    "patience-0": ("patience", 0, "must be 1 or more"),
    "keep": ("keep", "first", "must be one of 'last', 'best'"),
    "keep-none": ("keep", None, "must be one of 'last', 'best'"),
    "seed-negative": ("seed", -1, r"must be in \[0, 2\*\*63\)"),
    "seed-large": ("seed", 2**63, r"must be in \[0, 2\*\*63\)"),
    "backend-number": ("backend", 3, "must be a text"),
    "device-bool": ("device", False, "must be a text"),
    "n-views-0": ("n_views", 0, "must be 1 or more"),
    "n-clusters-0": ("n_clusters", 0, "must be 1 or more"),
    "view-dim-0": ("view_dim", 0, "must be 1 or more"),
    "combine": ("combine", "product", "must be one of 'concat', 'sum'"),
    "combine-list": ("combine", ["concat"], "must be one of 'concat', 'sum'"),
    "biases-number": ("biases", 1, "must be true or false"),
    "biases-text": ("biases", "yes", "must be true or false"),
    "center-scale": ("center_scale", -1.0, "must be 0 or more"),
    "logit-scale": ("logit_scale", math.inf, "must be finite"),
    "learning-rate-0": ("learning_rate", 0.0, "must be above 0"),
    "learning-rate-centers": ("learning_rate_centers", -0.1, "must be above 0"),
    "learning-rate-biases": ("learning_rate_biases", 0, "must be above 0"),
    "learning-rate-text": ("learning_rate", "0.1", "must be a number or unset"),
    "learning-rate-nan": ("learning_rate_biases", math.nan, "must be finite"),
    "optimizer": ("optimizer", "sgd", "must be one of 'adam', 'adagrad'"),
    "optimizer-none": ("optimizer", None, "must be one of 'adam', 'adagrad'"),
    "spread-margin": ("spread_margin", -0.5, "must be 0 or more"),
    "prune-threshold-1": ("prune_threshold", 1.0, r"must be in \[0, 1\)"),
    "prune-start-0": ("prune_start", 0, "must be 1 or more"),
    "min-clusters-0": ("min_clusters", 0, "must be 1 or more"),
    "weight-negative": ("weight_spread", -0.1, "write a number of 0 or more, or start:end:epochs"),
    "weight-words": ("weight_entropy", "much", "write a number of 0 or more, or start:end:epochs"),
    "weight-bool": ("weight_l2", True, "must be a number"),
    "weight-none": ("weight_entropy", None, "must be a number or a text"),
    "weight-infinite": ("weight_bias_l2", math.inf, "must be finite"),
}


@pytest.mark.parametrize(("name", "value", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_values_are_refused_with_name_and_reason(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        MFDMCConfig(**{name: value})
    assert str(caught.value).startswith(f"{name} = ")
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "value"),
    [("combine", np.array(["concat", "sum"])), ("learning_rate", 10**400)],
    ids=["array-for-a-choice", "integer-beyond-floats"],
)
def test_odd_values_are_refused_too(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} = "):
        MFDMCConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_factors", 0), ("factor_scale", -0.1), ("learning_rate", 0), ("learning_rate_biases", 0), ("weight_l2", "0:1")],
)
def test_funkmf_refuses_bad_values(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} = "):
        FunkMFConfig(**{name: value})


COERCED: dict[str, tuple[str, Any, Any]] = {
    "numpy-int": ("epochs", np.int32(3), 3),
    "numpy-float": ("learning_rate", np.float32(0.5), 0.5),
    "numpy-bool": ("biases", np.bool_(False), False),
    "numpy-0d": ("epochs", np.array(4), 4),
    "torch-scalar": ("view_dim", torch.tensor(5), 5),
    "whole-float": ("epochs", 3.0, 3),
    "int-for-float": ("learning_rate", 1, 1.0),
    "int-for-weight": ("weight_l2", 1, 1.0),
    "optional-int": ("batch_size", np.int64(64), 64),
    "optional-none": ("batch_size", None, None),
    "optional-rate": ("learning_rate_centers", np.float64(0.25), 0.25),
    "zero-weight": ("weight_l2", 0, 0.0),
}


@pytest.mark.parametrize(("name", "value", "stored"), COERCED.values(), ids=COERCED)
def test_numbers_become_plain_python_numbers(name: str, value: Any, stored: Any) -> None:
    actual = getattr(MFDMCConfig(**{name: value}), name)
    assert actual == stored
    assert type(actual) is type(stored)


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_survive_json(kind: type[TrainingConfig]) -> None:
    config = kind()
    assert config_from_dict(kind, json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_has_a_help_text(kind: type[TrainingConfig]) -> None:
    for f in dataclasses.fields(kind):
        assert f.metadata["help"].strip(), f.name


def test_changed_values_survive_json() -> None:
    config = MFDMCConfig(
        epochs=3, batch_size=np.int64(5), weight_l2="0:0.1:4", combine="sum", biases=False, patience=2, keep="best"
    )
    again = config_from_dict(MFDMCConfig, json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.weight_l2 == "0:0.1:4"
    assert again != MFDMCConfig()


def test_missing_settings_take_their_defaults() -> None:
    assert config_from_dict(MFDMCConfig, {"epochs": 3}) == MFDMCConfig(epochs=3)
    assert config_from_dict(FunkMFConfig, {}) == FunkMFConfig()


def test_unknown_settings_are_named_beside_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown setting n_viewz, zeal; known are: .*epochs, .*n_views, .*min_clusters"
    ):
        config_from_dict(MFDMCConfig, {"zeal": 1, "n_viewz": 2, "epochs": 3})
    # a setting of another model is unknown too
    with pytest.raises(ConfigError, match="unknown setting n_views"):
        config_from_dict(FunkMFConfig, {"n_views": 3})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_choice_of_settings(name: str) -> None:
    settings = preset(name)
    config = config_from_dict(MFDMCConfig, settings)
    assert {key: getattr(config, key) for key in settings} == settings
    settings["seed"] = -1  # the caller's own copy
    assert "seed" not in preset(name)


def test_fast_is_what_the_defaults_are() -> None:
    assert config_from_dict(MFDMCConfig, preset("fast")) == MFDMCConfig()
    assert len({str(settings) for settings in PRESETS.values()}) == len(PRESETS)


def test_an_unknown_preset_is_named_beside_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'best'; known are: fast, accurate, balanced"):
        preset("best")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"rank = 0: must be in \[1, 126\]"),
        ({"rank": 127}, r"rank = 127: must be in \[1, 126\]"),
        ({"sweeps": 0}, "sweeps = 0: must be 1 or more"),
        ({"burn_in": 400}, r"burn_in = 400: must be in \[0, sweeps = 400\)"),
        ({"n_draws": 0}, "n_draws = 0: must be 1 or more"),
        ({"epochs": 3}, "unknown setting epochs"),
    ],
    ids=str,
)
def test_wrong_settings_of_the_sampler_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_dict(BayesianMFConfig, settings)


def test_configs_are_frozen_and_replaced_ones_are_checked() -> None:
    config = MFDMCConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3  # type: ignore[misc]
    assert dataclasses.replace(config, epochs=3).epochs == 3
    with pytest.raises(ConfigError, match="epochs = 0"):
        dataclasses.replace(config, epochs=0)


@pytest.mark.parametrize(
    ("schedule", "epoch", "weight"),
    [
        (0.3, 1, 0.3),
        (0.3, 1000, 0.3),
        ("0.25", 7, 0.25),
        ("0:1:5", 1, 0.0),
        ("0:1:5", 2, 0.25),
        ("0:1:5", 5, 1.0),
        ("0:1:5", 50, 1.0),
        ("2:1:3", 2, 1.5),
        ("0.5:0:2", 2, 0.0),
        ("0:1:1", 1, 1.0),
        ("0:1:0", 1, 1.0),
        ("1e-2:1e-1:2", 1, 0.01),
    ],
)
def test_weight_at(schedule: float | str, epoch: int, weight: float) -> None:
    assert weight_at(schedule, epoch) == pytest.approx(weight, abs=1e-15)


@pytest.mark.parametrize(
    "schedule",
    [
        "",
        "a",
        "0:1",
        "0:1:2:3",
        "0::3",
        "-1:1:3",
        "0:-1:3",
        "0:1:-3",
        "nan",
        "0:inf:3",
        "0:1:nan",
        -0.1,
        math.nan,
        None,
    ],
    ids=repr,
)
def test_bad_schedules_are_refused(schedule: Any) -> None:
    with pytest.raises(ConfigError, match=r"^weight_x = .*write a number of 0 or more, or start:end:epochs such as"):
        weight_at(schedule, 1, "weight_x")


@given(start=st.floats(0, 10), end=st.floats(0, 10), epochs=st.integers(1, 50))
def test_a_schedule_goes_straight_from_start_to_end(start: float, end: float, epochs: int) -> None:
    values = [weight_at(f"{start!r}:{end!r}:{epochs}", epoch) for epoch in range(1, epochs + 3)]
    low, high = min(start, end), max(start, end)
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in values)
    steps = np.diff(values[:epochs])
    np.testing.assert_allclose(steps, steps[0] if len(steps) else 0.0, atol=1e-9)
    assert values[-3:] == pytest.approx([end] * 3)
    if epochs > 1:
        assert values[0] == start


@pytest.mark.parametrize(
    ("kind", "on_u1_base"), [(MFDMCConfig, 0.1297), (FunkMFConfig, 0.0729)], ids=["mfdmc", "funkmf"]
)
def test_an_unset_l2_weight_falls_with_the_ratings_of_an_entity(
    kind: type[MFDMCConfig] | type[FunkMFConfig], on_u1_base: float
) -> None:
    assert with_l2(kind(), 80_000, 2_593).weight_l2 == pytest.approx(on_u1_base, abs=1e-4)
    assert l2_at(kind(), 1) == pytest.approx(on_u1_base, abs=1e-4)
    dense, sparse = with_l2(kind(), 20_000, 100), with_l2(kind(), 2_000, 100)
    assert isinstance(dense.weight_l2, float)
    assert sparse.weight_l2 == pytest.approx(10 * dense.weight_l2)
    for fixed in (0.0, 0.3, "0:0.2:5"):
        assert with_l2(kind(weight_l2=fixed), 20_000, 100).weight_l2 == fixed


@pytest.mark.parametrize(
    ("kind", "adam"),
    [
        (MFDMCConfig, {"learning_rate": 0.03, "learning_rate_centers": 0.0094, "learning_rate_biases": 0.0075}),
        (FunkMFConfig, {"learning_rate": 0.0016, "learning_rate_biases": 0.023}),
    ],
    ids=["mfdmc", "funkmf"],
)
def test_unset_learning_rates_are_filled_in_by_optimizer(
    kind: type[MFDMCConfig] | type[FunkMFConfig], adam: dict[str, float]
) -> None:
    config = kind(optimizer="adagrad")
    assert {name: getattr(with_rates(kind()), name) for name in adam} == adam
    adagrad = {name: getattr(with_rates(config), name) for name in adam}
    assert all(adagrad[name] > adam[name] for name in adam)
    # nothing else changes, what is set stays, and the help texts tell both
    assert dataclasses.replace(with_rates(config), **dict.fromkeys(adam)) == config
    mixed = with_rates(dataclasses.replace(config, learning_rate=7.0))
    assert (mixed.learning_rate, mixed.learning_rate_biases) == (7.0, adagrad["learning_rate_biases"])
    assert with_rates(mixed) == mixed
    for name in adam:
        unset = f"unset: {adam[name]:g} with adam, {adagrad[name]:g} with adagrad"
        assert kind.__dataclass_fields__[name].metadata["help"].endswith(unset)


def test_the_shared_settings_have_no_rates_to_fill_in() -> None:
    assert with_rates(TrainingConfig()) == TrainingConfig()


@pytest.mark.parametrize(
    ("n_ratings", "n_entities", "rank"),
    [
        (80_000, 2_593, 16),
        (499, 100, 8),
        (500, 100, 16),
        (499_999, 9_000, 16),
        (500_000, 9_000, 32),
        (783_000, 63_000, 16),
        (700_000, 180_000, 8),
    ],
)
def test_rank_follows_the_ratings(n_ratings: int, n_entities: int, rank: int) -> None:
    config = BayesianMFConfig(seed=3)
    assert with_rank(config, n_ratings, n_entities) == BayesianMFConfig(seed=3, rank=rank)
    given = BayesianMFConfig(rank=5)
    assert with_rank(given, n_ratings, n_entities) is given
