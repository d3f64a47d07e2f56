"""Ratings with planted structure, for tests, demonstrations and benchmarks."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data.ratings import Ratings, ReadReport
from mfdmc_fast.errors import ConfigError

_MEAN = 3.5
# Together the standard deviation of the score before noise is sqrt(0.8**2 + 0.3**2 + 0.3**2) = 0.9.
_INTERACTION_STD = 0.8
_BIAS_STD = 0.3
# The preferred cluster has exp(4) times the weight of the others: a share of about 0.95 among four clusters.
_PREFERENCE = 4.0
# The r-th most popular user or item is drawn with weight r**-exponent, a moderate form of Zipf's law (exponent 1).
_USER_EXPONENT = 0.4
_ITEM_EXPONENT = 0.6


class PlantedRatings(NamedTuple):
    """Ratings and what they were drawn from.

    Attributes:
        ratings: as of `make_planted_ratings`.
        user_groups, item_groups: [n_users, n_views] and [n_items, n_views] int64: the cluster that dominates the
            mixture of user or item id - 1 in each view.
    """

    ratings: Ratings
    user_groups: npt.NDArray[np.int64]
    item_groups: npt.NDArray[np.int64]


def make_planted_ratings(
    n_users: int = 600,
    n_items: int = 400,
    n_ratings: int = 40_000,
    n_views: int = 4,
    n_clusters: int = 4,
    view_dim: int = 3,
    noise: float = 0.7,
    seed: int = 0,
) -> Ratings:
    """Draw ratings from a model of multi-view clusters, the kind of structure that the engine looks for.

    In every view, users and items each have `n_clusters` random centers of `view_dim` numbers, and every user and item
    mixes them with weights that one center dominates. A rating is a mean plus the biases of user and item plus the sum
    over the views of the dot products of the two mixtures, with a standard deviation of about 0.9 in all, plus Gaussian
    noise, rounded and clipped to 1..5.

    Args:
        n_users, n_items: how many users and items there are; ids are 1..n, and rare ones may stay without a rating.
        n_ratings: distinct (user, item) pairs to draw, at most half of all, with moderately skewed popularity.
        n_views, n_clusters, view_dim: size of the planted structure, each at least 1.
        noise: standard deviation of the noise, in rating points.
        seed: non-negative seed; equal arguments give equal ratings.

    Returns:
        `n_ratings` ratings in random order, without timestamps and further columns.

    Raises:
        ConfigError: a wrong argument.
    """
    return plant_ratings(n_users, n_items, n_ratings, n_views, n_clusters, view_dim, noise, seed).ratings


def plant_ratings(
    n_users: int = 600,
    n_items: int = 400,
    n_ratings: int = 40_000,
    n_views: int = 4,
    n_clusters: int = 4,
    view_dim: int = 3,
    noise: float = 0.7,
    seed: int = 0,
) -> PlantedRatings:
    """The ratings of `make_planted_ratings`, of the same arguments, with the clusters that they were drawn from."""
    counts = {"n_users": n_users, "n_items": n_items, "n_ratings": n_ratings}
    counts |= {"n_views": n_views, "n_clusters": n_clusters, "view_dim": view_dim}
    for name, value in counts.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ConfigError(f"{name} must be a positive integer, not {value!r}")
    if n_ratings > 0.5 * n_users * n_items:
        raise ConfigError(f"n_ratings must be at most half of the {n_users * n_items} user-item pairs, not {n_ratings}")
    if not (math.isfinite(noise) and noise >= 0):
        raise ConfigError(f"noise must be a finite number of at least 0, not {noise!r}")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed must be a non-negative integer, not {seed!r}")
    rng = np.random.default_rng(seed)
    users, items = _draw_pairs(rng, n_users, n_items, n_ratings)
    interaction = np.zeros(n_ratings)
    user_groups, item_groups = (np.empty((n, n_views), dtype=np.int64) for n in (n_users, n_items))
    for view in range(n_views):
        user_vectors, user_groups[:, view] = _draw_mixtures(rng, n_users, n_clusters, view_dim)
        item_vectors, item_groups[:, view] = _draw_mixtures(rng, n_items, n_clusters, view_dim)
        interaction += np.einsum("nd,nd->n", user_vectors[users], item_vectors[items])
    spread = interaction.std()
    if spread > 1e-9:  # one cluster, or one rating, has no spread but for rounding
        interaction *= _INTERACTION_STD / spread
    biases = rng.normal(0, _BIAS_STD, n_users)[users] + rng.normal(0, _BIAS_STD, n_items)[items]
    scores = _MEAN + biases + interaction + rng.normal(0, noise, n_ratings)
    ratings = Ratings(
        users=users + 1,
        items=items + 1,
        ratings=np.clip(np.rint(scores), 1.0, 5.0),
        source="planted ratings",
        report=ReadReport(rows=n_ratings),
    )
    return PlantedRatings(ratings, user_groups, item_groups)


def _draw_mixtures(
    rng: np.random.Generator, n: int, n_clusters: int, view_dim: int
) -> tuple[np.ndarray, npt.NDArray[np.int64]]:
    """Mixtures [n, view_dim] of random centers with softmax weights that one center dominates, and that center [n]."""
    centers = rng.normal(size=(n_clusters, view_dim))
    logits = rng.normal(0, 0.5, (n, n_clusters))
    dominant = rng.integers(n_clusters, size=n)
    logits[np.arange(n), dominant] += _PREFERENCE
    weights = np.exp(logits)
    mixtures: np.ndarray = weights / weights.sum(axis=1, keepdims=True) @ centers
    return mixtures, dominant


def _draw_pairs(rng: np.random.Generator, n_users: int, n_items: int, n_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (user, item) pairs, 0-based, int64 [n_pairs] each, in random order."""
    user_weights = _popularity(rng, n_users, _USER_EXPONENT)
    item_weights = _popularity(rng, n_items, _ITEM_EXPONENT)
    pairs = np.empty(0, dtype=np.int64)
    while len(pairs) < n_pairs:
        users = rng.choice(n_users, size=n_pairs, p=user_weights)
        items = rng.choice(n_items, size=n_pairs, p=item_weights)
        pairs = np.union1d(pairs, users * n_items + items)
    pairs = rng.permutation(pairs)[:n_pairs]
    return pairs // n_items, pairs % n_items


def _popularity(rng: np.random.Generator, n: int, exponent: float) -> np.ndarray:
    """Probabilities [n] that fall with a power of the rank; ranks are random, so that ids tell nothing."""
    weights = np.power(rng.permutation(np.arange(1.0, n + 1)), -exponent)
    probabilities: np.ndarray = weights / weights.sum()
    return probabilities
