"""Planted ratings: the promised form, reproducible, with structure to find."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mfdmc_fast.data import make_planted_ratings, plant_ratings
from mfdmc_fast.errors import ConfigError


def test_form_of_the_defaults() -> None:
    ratings = make_planted_ratings()
    assert len(ratings) == ratings.report.rows == 40_000
    assert ratings.users.dtype == ratings.items.dtype == np.int64
    assert (ratings.users.min(), ratings.users.max()) == (1, 600)
    assert (ratings.items.min(), ratings.items.max()) == (1, 400)
    assert len(np.unique(ratings.users * 1000 + ratings.items)) == 40_000
    assert np.unique(ratings.ratings).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert ratings.timestamps is None
    assert ratings.columns == {}


def test_planted_groups_explain_the_ratings() -> None:
    planted = plant_ratings(200, 100, 9000, n_views=1, n_clusters=3, noise=0.1, seed=5)
    ratings = make_planted_ratings(200, 100, 9000, n_views=1, n_clusters=3, noise=0.1, seed=5)
    assert np.array_equal(planted.ratings.ratings, ratings.ratings)
    assert (planted.user_groups.shape, planted.item_groups.shape) == ((200, 1), (100, 1))
    pair = planted.user_groups[ratings.users - 1, 0] * 3 + planted.item_groups[ratings.items - 1, 0]
    means = np.array([ratings.ratings[pair == k].mean() for k in range(9)])
    explained = 1 - np.var(ratings.ratings - means[pair]) / np.var(ratings.ratings)
    mixed = np.random.default_rng(0).permutation(pair)
    means = np.array([ratings.ratings[mixed == k].mean() for k in range(9)])
    assert explained > 0.5
    assert 1 - np.var(ratings.ratings - means[mixed]) / np.var(ratings.ratings) < 0.01


def test_equal_seeds_give_equal_ratings() -> None:
    first, again, other = (make_planted_ratings(n_ratings=1000, seed=seed) for seed in (1, 1, 2))
    for name in ("users", "items", "ratings"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.users, other.users)


def test_signal_and_noise_have_the_promised_size() -> None:
    signal, noisy = (make_planted_ratings(noise=noise, seed=3).ratings for noise in (0.0, 0.7))
    # Rounding adds a variance of 1/12, clipping takes some away.
    assert signal.std() == pytest.approx(0.9, abs=0.12)
    assert noisy.std() > signal.std() + 0.1


@pytest.mark.parametrize("seed", range(3))
def test_there_is_low_rank_structure_beyond_biases(seed: int) -> None:
    ratings = make_planted_ratings(200, 150, 15_000, noise=0.0, seed=seed)
    matrix = np.full((200, 150), np.nan)
    matrix[ratings.users - 1, ratings.items - 1] = ratings.ratings
    residual = matrix - np.nanmean(matrix, axis=1, keepdims=True)
    residual -= np.nanmean(residual, axis=0, keepdims=True)
    rated = ~np.isnan(residual)
    shuffled = np.zeros_like(residual)
    shuffled[rated] = np.random.default_rng(0).permutation(residual[rated])
    structured, unstructured = (np.linalg.norm(x, ord=2) for x in (np.nan_to_num(residual), shuffled))
    assert structured > 1.5 * unstructured


def test_popularity_is_skewed_but_independent_of_the_id() -> None:
    counts = np.bincount(make_planted_ratings().items)[1:]
    assert counts.max() > 3 * np.median(counts)
    assert abs(np.corrcoef(np.arange(400), counts)[0, 1]) < 0.2


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 2, 1), (20, 10, 100)])
def test_small_and_dense_sizes(sizes: tuple[int, int, int]) -> None:
    ratings = make_planted_ratings(*sizes, n_views=1, n_clusters=1, view_dim=1)
    assert len(ratings) == sizes[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_ratings": 120_001}, "n_ratings must be at most half of the 240000 user-item pairs, not 120001"),
        ({"n_users": 0}, "n_users must be a positive integer, not 0"),
        ({"view_dim": 1.5}, "view_dim must be a positive integer, not 1.5"),
        ({"noise": -1.0}, "noise must be a finite number of at least 0"),
        ({"noise": float("nan")}, "noise must be a finite number of at least 0"),
        ({"seed": -1}, "seed must be a non-negative integer"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_planted_ratings(**arguments)
