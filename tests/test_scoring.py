"""Predictions for known and unknown rows: the fallback rules, clipping, and scoring in blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mfdmc_fast import scoring
from mfdmc_fast.config import FunkMFConfig, MFDMCConfig
from mfdmc_fast.model import SIDES, FunkMFModel, MFDMCModel, RatingModel
from mfdmc_fast.scoring import predict_rows

N_USERS, N_ITEMS, MEAN = 5, 6, 3.25
KINDS = ["mfdmc", "funkmf"]


def make_model(kind: str, biases: bool = True) -> RatingModel:
    """A model with random numbers everywhere."""
    model: RatingModel
    if kind == "mfdmc":
        config = MFDMCConfig(n_views=2, n_clusters=3, view_dim=2, center_scale=1.0, logit_scale=2.0, biases=biases)
        model = MFDMCModel(N_USERS, N_ITEMS, config, train_mean=MEAN)
    else:
        model = FunkMFModel(N_USERS, N_ITEMS, FunkMFConfig(n_factors=4, factor_scale=1.0, biases=biases), MEAN)
    generator = torch.Generator().manual_seed(3)
    for side in SIDES:
        bias = model.bias(side)
        if bias is not None:
            bias.copy_(torch.randn(bias.shape, generator=generator))
    return model


def all_pairs() -> tuple[np.ndarray, np.ndarray]:
    users, items = np.meshgrid(np.arange(-1, N_USERS), np.arange(-1, N_ITEMS), indexing="ij")
    return users.ravel(), items.ravel()


@pytest.mark.parametrize("biases", [True, False], ids=["biases", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_known_and_unknown_rows(kind: str, biases: bool) -> None:
    model = make_model(kind, biases)
    users, items = all_pairs()
    predictions = predict_rows(model, users, items)
    assert predictions.shape == users.shape
    assert predictions.dtype == np.float32
    user_bias, item_bias = (model.bias(side).numpy() if biases else np.zeros(9) for side in SIDES)
    for user, item, prediction in zip(users.tolist(), items.tolist(), predictions.tolist(), strict=True):
        if user >= 0 and item >= 0:
            expected = model.score_pairs(torch.tensor([user]), torch.tensor([item])).item()
        else:
            expected = MEAN + (user_bias[user] if user >= 0 else 0) + (item_bias[item] if item >= 0 else 0)
        assert prediction == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_also_of_the_fallback(kind: str) -> None:
    model = make_model(kind)
    users, items = all_pairs()
    free, clipped = predict_rows(model, users, items), predict_rows(model, users, items, (2.5, 3.4))
    fallback = (users < 0) | (items < 0)
    for part in (fallback, ~fallback):
        assert (free[part] < 2.5).any()
        assert (free[part] > 3.4).any()
    assert np.array_equal(clipped, np.clip(free, 2.5, 3.4))
    assert clipped.dtype == np.float32


@pytest.mark.parametrize(
    ("users", "items"),
    [([], []), ([-1], [-1]), ([-1, -1], [0, -1]), ([2], [3])],
    ids=["none", "unknown", "two-unknown", "one"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_few_pairs(kind: str, users: list[int], items: list[int]) -> None:
    model = make_model(kind)
    predictions = predict_rows(model, np.array(users, dtype=np.int64), np.array(items, dtype=np.int64))
    assert predictions.shape == (len(users),)
    assert np.isfinite(predictions).all()
    if users == [-1]:
        assert predictions[0] == np.float32(MEAN)


@pytest.mark.parametrize("block", [1, 7, 30, 31], ids=lambda n: f"block-{n}")
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_change_nothing_and_bound_the_pairs_scored_at_a_time(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(kind)
    users, items = all_pairs()  # 42, of which 30 are known
    expected = predict_rows(model, users, items)
    sizes: list[int] = []
    score_pairs = model.score_pairs

    def counted(*arguments: Any) -> torch.Tensor:
        sizes.append(len(arguments[0]))
        return score_pairs(*arguments)

    monkeypatch.setattr(model, "score_pairs", counted)
    monkeypatch.setattr(scoring, "_PAIRS_PER_BLOCK", block)
    np.testing.assert_allclose(predict_rows(model, users, items), expected, rtol=1e-6, atol=1e-6)
    assert sum(sizes) == N_USERS * N_ITEMS
    assert max(sizes) <= block
    assert len(sizes) == -(-42 // block)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_pairs_is_kept(kind: str) -> None:
    model = make_model(kind)
    users, items = all_pairs()
    order = np.random.default_rng(0).permutation(len(users))
    shuffled = predict_rows(model, users[order], items[order])
    np.testing.assert_allclose(shuffled, predict_rows(model, users, items)[order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_and_parameters_stay_as_they_are(kind: str) -> None:
    model = make_model(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    users, items = all_pairs()
    predict_rows(model, users, items, (2.5, 4.0))
    assert (users.min(), items.min()) == (-1, -1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert model.get_parameter(name).grad is None
