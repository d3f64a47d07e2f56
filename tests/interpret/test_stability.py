"""Matching of views and clusters between fits."""

from __future__ import annotations

import numpy as np
import pytest

from mfdmc_fast.errors import ConfigError
from mfdmc_fast.interpret import stability_of


def test_renamed_clusters_and_views_are_the_same() -> None:
    generator = np.random.default_rng(0)
    views = [generator.dirichlet(np.full(4, 0.3), 300) for _ in range(3)]
    others = [view[:, generator.permutation(4)] for view in (views[2], views[0], views[1])]
    found = stability_of(views, others)
    assert found.similarity == pytest.approx(1)
    assert found.ami == pytest.approx(1)
    assert {(a, b) for a, b, _ in found.matches} == {(0, 1), (1, 2), (2, 0)}
    assert 0 < found.chance < 0.15


def test_unrelated_fits_are_as_similar_as_chance() -> None:
    generator = np.random.default_rng(1)
    views, others = ([generator.dirichlet(np.full(4, 0.3), 300) for _ in range(3)] for _ in range(2))
    found = stability_of(views, others, permutations=20)
    assert found.similarity == pytest.approx(found.chance, abs=0.03)
    assert found.ami == pytest.approx(0, abs=0.02)


def test_what_has_no_partner_counts_as_nothing() -> None:
    view = np.eye(2)[np.arange(100) % 2]
    split = np.concatenate([view, np.zeros((100, 1))], axis=1)
    assert stability_of([view], [split]).similarity == pytest.approx(2 / 3)
    halves = stability_of([view], [view, np.eye(2)[np.arange(100) // 50]])
    assert halves.similarity == pytest.approx(1 / 2)
    assert halves.matches == [(0, 0, pytest.approx(1))]


def test_flat_weights_are_not_stable() -> None:
    flat = np.full((50, 3), 1 / 3)
    assert stability_of([flat], [flat]).similarity == 0


def test_opposite_weights_correlate_negatively() -> None:
    weights = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.5, 0.5, 0.0]])
    found = stability_of([weights[:, :2]], [weights[:, :2]])
    assert found.matches == [(0, 0, pytest.approx(1))]
    # a third column that is constant takes one of the two: the other pair still matches
    assert stability_of([weights], [weights[:, :2]]).similarity == pytest.approx(2 / 3)


@pytest.mark.parametrize(("ours", "theirs", "permutations"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_what_cannot_be_compared_is_refused(ours: int, theirs: int, permutations: int) -> None:
    with pytest.raises(ConfigError, match="the same entities in two fits"):
        stability_of([np.ones((4, 2))] * ours, [np.ones((4, 2))] * theirs, permutations=permutations)
    with pytest.raises(ConfigError, match="the same entities in two fits"):
        stability_of([np.ones((4, 2))], [np.ones((5, 2))])
