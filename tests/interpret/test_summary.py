"""All measures of a model at once: of planted clusters, of random ones, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_mutual_info_score

from mfdmc_fast.data import Ratings, Vocabulary, read_features
from mfdmc_fast.errors import ConfigError, DataError
from mfdmc_fast.estimator import MFDMC, FunkMF
from mfdmc_fast.interpret import Interpretability, interpretability, label_aucs, label_tables, measure


@pytest.fixture(scope="module")
def groups() -> dict[int, str]:
    """Of every item: two tastes."""
    return {item: "left" if item % 2 else "right" for item in range(1, 41)}


@pytest.fixture(scope="module")
def model() -> MFDMC:
    """Users love the items of their own taste and dislike the others."""
    users, items = (grid.ravel() for grid in np.meshgrid(np.arange(1, 61), np.arange(1, 41)))
    kept = np.random.default_rng(0).random(len(users)) < 0.5
    users, items = users[kept], items[kept]
    ratings = np.where(users % 2 == items % 2, 5.0, 1.0)
    return MFDMC(n_views=2, n_clusters=3, view_dim=2, epochs=60, weight_l2=0.01, seed=1).fit(
        Ratings(users, items, ratings)
    )


@pytest.fixture(scope="module")
def found(model: MFDMC, groups: dict[int, str]) -> Interpretability:
    return interpretability(model, "item", groups, permutations=99, consensus_clusters=2)


def test_planted_tastes_are_found(found: Interpretability, model: MFDMC, groups: dict[int, str]) -> None:
    (family,) = found.families
    assert (family.entities, family.labels, family.labelled, family.commonest) == (40, 2, 1, 0.5)
    assert family.consensus_ami == pytest.approx(1)
    assert family.consensus_p_value == family.best_p_value == 0.01
    assert family.best_ami > 0.5
    assert family.mean_auc["memberships"] == pytest.approx(1)
    assert set(family.auc) == {"memberships", "hard", "kmeans", "embeddings"}
    assert family.coverage["labels"] == 1
    labels = [groups[item] for item in model.items_.ids.tolist()]
    for weights, view in zip(model.memberships("item"), family.views, strict=True):
        assert view.ami == pytest.approx(adjusted_mutual_info_score(labels, weights.argmax(1)))
        assert view.p_value <= view.p_bh <= view.p_holm
    assert found.n_clusters == model.model_.clusters("item")
    assert 0 <= found.mean_entropy <= 1
    assert found.mean_entropy == pytest.approx(np.mean(found.entropy))


def test_the_result_is_plain(found: Interpretability) -> None:
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["families"][0]["clusters"][0]["view"] == 0
    assert plain == found.to_dict()


def test_vectors_are_those_of_the_side(model: MFDMC) -> None:
    generator = np.random.default_rng(2)
    labels = {item: "ab"[generator.integers(2)] for item in range(1, 41)}  # no vectors tell these, but all in their way
    (table,) = label_tables(read_features(labels), model.items_)
    (family,) = interpretability(model, "item", labels, permutations=9).families
    assert family.auc["embeddings"] == label_aucs(model.model_.embeddings("item").numpy(), table)
    assert family.auc["memberships"] == label_aucs(np.concatenate(model.memberships("item"), axis=1), table)
    assert family.auc["embeddings"] != family.auc["memberships"]


def test_the_same_twice(found: Interpretability, model: MFDMC, groups: dict[int, str]) -> None:
    assert interpretability(model, "item", groups, permutations=99, consensus_clusters=2) == found


def test_random_clusters_are_not_significant() -> None:
    generator = np.random.default_rng(3)
    tables = label_tables(read_features({e: "abc"[e % 3] for e in range(300)}), Vocabulary(range(300)))
    views = [np.eye(4)[generator.integers(0, 4, 300)] for _ in range(3)]
    (family,) = measure("item", views, tables, permutations=99).families
    assert family.mean_p_value > 0.05
    assert abs(family.mean_ami) < 0.02
    assert family.mean_auc["memberships"] == pytest.approx(0.5, abs=0.08)
    assert list(family.auc) == ["memberships", "hard"]
    assert family.auc["hard"] == family.auc["memberships"]  # they are one-hot
    single = measure("item", views[:1], tables, permutations=9).families[0]
    assert single.consensus_ami == single.mean_ami == single.best_ami


def test_few_ratings_and_users(model: MFDMC) -> None:
    ages: dict[Any, Any] = {user: "odd" if user % 2 else "even" for user in range(1, 61)}
    counts = np.diff(model._state().seen.offsets)
    least = int(np.median(counts))
    (family,) = interpretability(model, "user", ages, min_ratings=least, permutations=9).families
    assert family.entities == (counts >= least).sum() < 60
    assert family.mean_auc["memberships"] == pytest.approx(1)
    with pytest.raises(DataError, match="no column has two labels"):
        interpretability(model, "user", ages, min_ratings=1000)


def test_what_cannot_be_measured_is_refused(model: MFDMC, groups: dict[int, str]) -> None:
    ratings = Ratings(np.array([1, 2, 3]), np.array([1, 2, 3]), np.array([1.0, 2.0, 3.0]))
    with pytest.raises(ConfigError, match="FunkMF has no clusters"):
        interpretability(FunkMF(n_factors=2, epochs=1).fit(ratings), "item", groups)
    with pytest.raises(ConfigError, match="side = 'view'"):
        interpretability(model, "view", groups)  # type: ignore[arg-type]
    with pytest.raises(NotFittedError):
        interpretability(MFDMC(), "item", groups)
