"""Labels that stand out in clusters: hand-worked counts, exact tests, and the control of multiple comparisons."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from scipy.stats import fisher_exact

from mfdmc_fast.data import Vocabulary, read_features
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.interpret import (
    LabelTable,
    benjamini_hochberg,
    cluster_labels,
    coverage,
    holm,
    label_tables,
    lift,
    over_representation,
    purity,
)
from mfdmc_fast.interpret.enrichment import adjusted_together, count_labels

CLUSTERS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
IS_WAR = np.array([[1, 1, 1, 0, 1, 0, 0, 0, 0, 0]], dtype=bool).T


def test_purity_by_hand() -> None:
    assert purity(CLUSTERS, np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])) == (3 + 4) / 10
    assert purity(np.zeros(5, dtype=np.int64), np.array([0, 1, 1, 2, 2])) == 0.4


def test_lift_by_hand() -> None:
    # 4 of 10 have the label; 3 of 4 in one cluster, 1 of 6 in the other
    found = lift(np.eye(3)[CLUSTERS], IS_WAR)
    np.testing.assert_allclose(found[:2, 0], [0.75 / 0.4, (1 / 6) / 0.4])
    assert np.isnan(found[2, 0])  # nobody is in it
    half = lift(np.full((10, 2), 0.5), IS_WAR)
    np.testing.assert_allclose(half, 1)
    weights = np.array([[0.9, 0.1], [0.2, 0.8]])
    np.testing.assert_allclose(lift(weights, np.array([[True], [False]]))[:, 0], [0.9 / 1.1 / 0.5, 0.1 / 0.9 / 0.5])


def test_over_representation_is_fishers_exact_test() -> None:
    found = over_representation(CLUSTERS, IS_WAR, 3)
    by_hand = (comb(4, 3) * comb(6, 1) + comb(4, 4)) / comb(10, 4)
    assert found[0, 0] == pytest.approx(by_hand)
    assert found[0, 0] == pytest.approx(fisher_exact([[3, 1], [1, 5]], alternative="greater").pvalue)
    assert found[2, 0] == 1


def test_multiple_comparisons_by_hand() -> None:
    p = np.array([[0.01, 0.04], [0.03, 0.5]])
    np.testing.assert_allclose(holm(p), [[0.04, 0.09], [0.09, 0.5]])
    np.testing.assert_allclose(benjamini_hochberg(p), [[0.04, 0.16 / 3], [0.16 / 3, 0.5]])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1, 1])


@pytest.fixture
def table() -> LabelTable:
    """40 entities: the first half War, the second Drama, and every fourth a Musical too."""
    labels = {e: ["War" if e < 20 else "Drama", *(["Musical"] if e % 4 == 0 else [])] for e in range(40)}
    return label_tables(read_features(labels), Vocabulary(range(40)))[0]


def test_clusters_get_the_labels_that_stand_out(table: LabelTable) -> None:
    sharp = np.eye(3)[np.repeat([0, 1], 20)]
    other = np.eye(2)[np.arange(40) % 2]
    found = cluster_labels([sharp, other], table)
    assert [(one.view, one.cluster, one.size, one.commonest) for one in found] == [
        (0, 0, 20, "War"),
        (0, 1, 20, "Drama"),
        (0, 2, 0, None),
        (1, 0, 20, "Drama"),
        (1, 1, 20, "Drama"),
    ]
    assert [one.purity for one in found] == [1, 1, 0, 0.5, 0.5]
    assert [[(x.label, x.entities, x.lift) for x in one.labels] for one in found] == [
        [("War", 20, 2.0)],
        [("Drama", 20, 2.0)],
        [],
        [("Musical", 10, 2.0)],
        [],
    ]
    assert coverage(found, table) == {"labels": 1, "clusters": 3 / 5, "entities": 60 / 80}
    assert all(label.p_value <= 0.05 for one in found for label in one.labels)


def test_random_clusters_get_none(table: LabelTable) -> None:
    generator = np.random.default_rng(1)
    found = cluster_labels([generator.dirichlet(np.ones(5), 40) for _ in range(10)], table)
    assert sum(bool(one.labels) for one in found) <= 1


def test_settings_narrow_what_stands_out(table: LabelTable) -> None:
    views = [np.eye(2)[np.repeat([0, 1], 20)]]
    assert not any(one.labels for one in cluster_labels(views, table, min_lift=2.1))
    assert not any(one.labels for one in cluster_labels(views, table, min_count=21))
    assert not any(one.labels for one in cluster_labels(views, table, alpha=1e-12))
    with pytest.raises(ConfigError, match="alpha = 1"):
        cluster_labels(views, table, alpha=1)


def test_counts_by_hand() -> None:
    """Five entities, the last of which is not counted; labels are held by 0 and 1, and by 1, 2 and 4."""
    found = count_labels(np.array([0, 0, 1, 1, -1]), 3, np.array([0, 1, 1, 2, 4]), np.array([0, 0, 1, 1, 1]), 2)
    assert found.held.tolist() == [[2, 1], [0, 1], [0, 0]]
    assert (found.sizes.tolist(), found.totals.tolist(), found.n) == ([2, 2, 0], [2, 2], 4)
    assert found.expected.tolist() == [[1, 1], [1, 1], [0, 0]]
    # 2 of 2 with the label of 4 with 2: 1 / C(4, 2); at least 1 of 2: all but the pair without it
    np.testing.assert_allclose(found.p_values(), [[1 / 6, 5 / 6], [1, 5 / 6], [1, 1]])


def test_p_values_of_all_views_are_adjusted_together() -> None:
    p = [np.array([[0.01, 0.04]]), np.array([[0.03, 0.5], [0.2, 1.0]])]
    found = adjusted_together(p)
    assert [view.shape for view in found] == [(1, 2), (2, 2)]
    np.testing.assert_allclose(np.concatenate(found), benjamini_hochberg(np.concatenate(p)))
