"""Sharpness, redundancy and consensus of views, for cases known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score

from mfdmc_fast.errors import ConfigError
from mfdmc_fast.interpret import consensus, k_means_clusters, normalised_entropy, redundancy


def test_entropy_by_hand() -> None:
    views = [np.eye(4), np.full((4, 5), 0.2), np.ones((4, 1)), np.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0]] * 2)]
    np.testing.assert_allclose(normalised_entropy(views), [0, 1, 0, 0.5 * math.log(2) / math.log(4)], atol=1e-12)


def test_redundancy_is_the_mean_ami_of_pairs() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 3, (2, 200))
    views = [np.eye(3)[a], np.eye(3)[(a + 1) % 3], np.eye(3)[b]]
    assert redundancy(views[:2]) == pytest.approx(1)
    assert redundancy(views) == pytest.approx((1 + 2 * adjusted_mutual_info_score(a, b)) / 3)
    assert redundancy(views[:1]) == 0


def test_consensus_joins_what_the_views_say_apart() -> None:
    groups = np.repeat(np.arange(4), 25)
    views = [np.eye(2)[groups // 2] * 0.8 + 0.1, np.eye(2)[groups % 2] * 0.8 + 0.1]
    assert adjusted_mutual_info_score(groups, consensus(views, 4, seed=1)) == 1
    assert np.array_equal(consensus(views, 4, seed=1), consensus(views, 4, seed=1))


def test_more_starts_find_tighter_clusters() -> None:
    points = np.random.default_rng(4).normal(size=(300, 6))

    def scatter(starts: int, seed: int) -> float:
        clusters = k_means_clusters(points, 12, seed, starts=starts)
        return sum(float(((points[clusters == k] - points[clusters == k].mean(0)) ** 2).sum()) for k in range(12))

    assert np.mean([scatter(10, s) for s in range(5)]) < np.mean([scatter(1, s) for s in range(5)])


@pytest.mark.parametrize("n_clusters", [0, 6])
def test_k_means_needs_a_point_for_each_cluster(n_clusters: int) -> None:
    with pytest.raises(ConfigError, match=f"n_clusters = {n_clusters}: must be at least 1 and at most the 5 entities"):
        k_means_clusters(np.arange(10.0).reshape(5, 2), n_clusters)
