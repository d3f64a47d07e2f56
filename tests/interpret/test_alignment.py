"""Mutual information with labels: hand-worked joints, scikit-learn's values, and p-values that are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score, normalized_mutual_info_score

from mfdmc_fast.errors import ConfigError
from mfdmc_fast.interpret import hard_scores, label_alignment, labelwise_ami, mutual_information
from mfdmc_fast.interpret.alignment import add_one_p_values, hardened


def one_hot(clusters: np.ndarray) -> np.ndarray:
    return np.eye(int(clusters.max()) + 1)[clusters]


@pytest.fixture
def related() -> tuple[np.ndarray, np.ndarray]:
    """Clusters and labels of 300 entities that agree for about half of them."""
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 4, 300)
    clusters = np.where(generator.random(300) < 0.5, labels, generator.integers(0, 5, 300))
    return clusters, labels


def test_mutual_information_by_hand() -> None:
    # a fair coin that the cluster tells exactly, one that it does not, and one that it tells in 3 of 4 cases
    joints = np.array([[[0.5, 0], [0, 0.5]], [[0.25, 0.25], [0.25, 0.25]], [[0.375, 0.125], [0.125, 0.375]]])
    told = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    np.testing.assert_allclose(mutual_information(joints), [math.log(2), 0, told], atol=1e-15)


def test_one_hot_weights_give_the_usual_scores(related: tuple[np.ndarray, np.ndarray]) -> None:
    clusters, labels = related
    found = label_alignment([one_hot(clusters)], one_hot(labels), permutations=3000)
    joint = one_hot(clusters).T @ one_hot(labels) / len(labels)
    assert float(mutual_information(joint)) == pytest.approx(mutual_info_score(labels, clusters), rel=1e-12)
    assert found.nmi[0] == pytest.approx(normalized_mutual_info_score(labels, clusters), rel=1e-12)
    # the mean over permutations estimates scikit-learn's exact expectation
    assert found.ami[0] == pytest.approx(adjusted_mutual_info_score(labels, clusters), abs=1e-3)
    assert found.p_values[0] == 1 / 3001
    assert hard_scores(clusters, labels) == {
        "ami": adjusted_mutual_info_score(labels, clusters),
        "nmi": normalized_mutual_info_score(labels, clusters),
    }


def test_soft_weights_by_hand() -> None:
    # two labels, weights .75 and .25 for one's own: p(k, l) = .375 and .125
    weights = np.array([[0.75, 0.25]] * 50 + [[0.25, 0.75]] * 50)
    shares = np.repeat(np.eye(2), 50, axis=0)
    told = 1 + 0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)
    assert label_alignment([weights], shares, permutations=5).nmi[0] == pytest.approx(told, rel=1e-12)
    flat = label_alignment([np.full((100, 2), 0.5)], shares, permutations=20)
    assert (flat.nmi[0], flat.ami[0], flat.p_values[0]) == (0, 0, 1)


def test_several_labels_share_an_entity() -> None:
    # a|b in cluster 0, c in cluster 1: p = (1/4, 1/4, 0; 0, 0, 1/2); MI = ln 2, H(k) = ln 2, H(l) = 1.5 ln 2
    shares = np.array([[0.5, 0.5, 0], [0, 0, 1.0]] * 20)
    found = label_alignment([np.array([[1.0, 0], [0, 1]] * 20)], shares, permutations=5)
    assert found.nmi[0] == pytest.approx(1 / 1.25, rel=1e-12)


def test_blocks_of_permutations_do_not_change_what_is_measured(
    related: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    views = [one_hot(related[0]), one_hot(related[0] % 2), np.full((300, 3), 1 / 3)]
    whole = label_alignment(views, one_hot(related[1]), permutations=400)
    monkeypatch.setattr("mfdmc_fast.interpret.alignment._BLOCK_NUMBERS", 10_000)
    parts = label_alignment(views, one_hot(related[1]), permutations=400)
    np.testing.assert_allclose(parts.nmi, whole.nmi, rtol=1e-12)
    np.testing.assert_allclose(parts.ami, whole.ami, atol=3e-3)
    np.testing.assert_array_equal(whole.p_values[[0, 2]], [1 / 401, 1])


def test_p_values_of_meaningless_clusters_are_uniform_and_the_best_view_is_not_favoured() -> None:
    generator = np.random.default_rng(7)
    single, best, mean = [], [], []
    for seed in range(150):
        labels = one_hot(generator.integers(0, 3, 60))
        views = [hardened(generator.random((60, 4))) for _ in range(6)]
        found = label_alignment(views, labels, permutations=99, seed=seed)
        single.append(found.p_values[0])
        best.append(found.best_p_value)
        mean.append(found.mean_p_value)
        assert found.best_ami == found.ami.max()
    for p in (single, best, mean):
        assert np.mean(p) == pytest.approx(0.5, abs=0.1)
        assert np.mean(np.array(p) <= 0.1) < 0.2
        assert np.std(p) == pytest.approx(1 / np.sqrt(12), abs=0.05)  # not merely cautious


def test_one_good_view_among_many() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 200)
    views = [hardened(generator.random((200, 3))) for _ in range(5)] + [one_hot(labels)]
    found = label_alignment(views, one_hot(labels), permutations=199)
    assert found.ami[-1] == pytest.approx(1)
    assert found.best_p_value == found.p_values[-1] == 1 / 200
    assert found.mean_ami == pytest.approx(found.ami.mean())
    again = label_alignment(views, one_hot(labels), permutations=199)
    np.testing.assert_array_equal(again.p_values, found.p_values)


def test_add_one_p_values() -> None:
    chance = np.array([[0.1, 3.0], [0.2, 2.0], [0.3, 1.0 + 1e-15]])
    np.testing.assert_allclose(add_one_p_values(np.array([0.25, 1.0]), chance), [2 / 4, 4 / 4])


def test_labelwise_ami() -> None:
    generator = np.random.default_rng(5)
    indicator = generator.random((240, 3)) < [0.5, 0.2, 0.7]
    told = indicator @ [1, 2, 4]  # the cluster of every set of labels
    assert labelwise_ami(told, indicator) == pytest.approx(1)
    assert labelwise_ami(np.zeros(240, dtype=np.int64), indicator) == 0
    assert labelwise_ami(generator.integers(0, 6, 240), np.ones((240, 2), dtype=bool)) == 0
    random = [labelwise_ami(generator.integers(0, 6, 240), indicator) for _ in range(200)]
    assert np.mean(random) == pytest.approx(0, abs=0.002)
    # one label, half of all, and two clusters of half of all: then every normaliser is ln 2, as in the usual AMI
    label = np.repeat([True, False], 60)
    clusters = np.array([0] * 45 + [1] * 15 + [1] * 45 + [0] * 15)
    assert labelwise_ami(clusters, label[:, None]) == pytest.approx(adjusted_mutual_info_score(label, clusters))


def test_hardened_takes_the_first_of_equal_weights() -> None:
    assert hardened(np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]])).tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("views", "permutations"), [([], 9), ([np.ones((3, 1))], 9), ([np.ones((4, 1))], 0)], ids=["none", "rows", "zero"]
)
def test_what_cannot_be_compared_is_refused(views: list[np.ndarray], permutations: int) -> None:
    with pytest.raises(ConfigError, match="alignment needs"):
        label_alignment(views, np.ones((4, 1)), permutations=permutations)
