"""Explained predictions: the parts sum to the prediction, for all kinds of models and ids."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mfdmc_fast import MFDMC
from mfdmc_fast.data import make_planted_ratings
from mfdmc_fast.interpret.affinity import memberships_of, usages, view_pairs
from mfdmc_fast.interpret.explain import explain_rows

RATINGS = make_planted_ratings(n_users=120, n_items=90, n_ratings=5000, seed=2)
SETTINGS = {"n_views": 3, "n_clusters": 5, "epochs": 6, "prune_start": 2, "prune_threshold": 0.19, "seed": 1}


@pytest.fixture(params=["concat", "sum", "unbiased"], scope="module")
def model(request: pytest.FixtureRequest) -> MFDMC:
    """A fitted model with pruned clusters; not to be changed."""
    combine = "concat" if request.param == "unbiased" else request.param
    fitted = MFDMC(combine=combine, biases=request.param != "unbiased", **SETTINGS).fit(RATINGS)
    assert fitted.history_.prune_events
    return fitted


@pytest.mark.parametrize("centered", [False, True])
def test_the_parts_sum_to_the_unclipped_prediction_on_1000_pairs(model: MFDMC, centered: bool) -> None:
    generator = np.random.default_rng(5)
    users, items = generator.choice(model.users_.ids, 1000), generator.choice(model.items_.ids, 1000)
    rows = [torch.from_numpy(v.encode(ids)) for v, ids in ((model.users_, users), (model.items_, items))]
    unclipped = model.model_.score_pairs(*rows).numpy()
    predictions = model.predict(users, items)
    for user, item, score, prediction in zip(users, items, unclipped, predictions, strict=True):
        found = model.explain(user, item, centered=centered)
        parts = [found.global_mean, found.user_bias, found.item_bias, *(c.value for c in found.contributions)]
        assert sum(parts) == pytest.approx(score, abs=1e-5)
        assert found.unclipped == pytest.approx(score, abs=1e-5)
        assert found.prediction == pytest.approx(prediction, abs=1e-5)
        assert sum(row["value"] for row in found.table()) == pytest.approx(prediction, abs=1e-5)


def test_contributions_are_weights_times_products_of_centers(model: MFDMC) -> None:
    user, item = model.users_.ids[3], model.items_.ids[7]
    found = model.explain(user, item)
    weights = {
        "user": [w[0] for w in model.memberships("user", [user])],
        "item": [w[0] for w in model.memberships("item", [item])],
    }
    sides = model.model_.prunable_sides()
    centers = {name: side.centers.detach().split(side.n_clusters) for name, side in sides.items()}
    c = found.contributions[0]
    k = sides["user"].cluster_ids[c.user_view].index(c.user_cluster)
    j = sides["item"].cluster_ids[c.item_view].index(c.item_cluster)
    assert c.user_weight == pytest.approx(weights["user"][c.user_view][k], abs=1e-6)
    assert c.item_weight == pytest.approx(weights["item"][c.item_view][j], abs=1e-6)
    assert c.affinity == pytest.approx(
        float(centers["user"][c.user_view][k] @ centers["item"][c.item_view][j]), abs=1e-5
    )
    assert c.value == pytest.approx(c.user_weight * c.item_weight * c.affinity)
    meeting = {(c.user_view, c.item_view) for c in found.contributions}
    assert len(meeting) == (9 if model.combine == "sum" else 3)
    assert sum(found.by_view().values()) == pytest.approx(sum(c.value for c in found.contributions))
    assert [abs(c.value) for c in found.contributions] == sorted(
        (abs(c.value) for c in found.contributions), reverse=True
    )


def test_unknown_ids_are_explained_by_the_fallback(model: MFDMC) -> None:
    user, item = model.users_.ids[0], model.items_.ids[0]
    for pair in ((-5, item), (user, -5), (-5, -5)):
        found = model.explain(*pair)
        assert (found.known_user, found.known_item, found.contributions) == (pair[0] != -5, pair[1] != -5, ())
        assert found.prediction == pytest.approx(model.predict([pair[0]], [pair[1]])[0], abs=1e-5)
        assert "had no training rating" in str(found)
    if model.biases:
        assert model.explain(-5, item).item_bias != 0
        assert model.explain(-5, item).user_bias == 0


def test_clipping_has_a_line_of_its_own_only_where_it_acts() -> None:
    model = MFDMC(**SETTINGS).fit(RATINGS, rating_scale=(-50, 50))
    user, item = model.users_.ids[0], model.items_.ids[0]
    free = model.explain(user, item)
    top = free.unclipped - 0.25
    clipped = explain_rows(model.model_, (0, 0), (user, item), (top - 1, top))
    assert (clipped.unclipped, clipped.prediction) == (free.unclipped, top)
    assert clipped.clipping == pytest.approx(-0.25)
    assert clipped.table()[-1] == {"part": "clipping", "value": clipped.clipping}
    assert "-0.250  clipping to the rating scale" in str(clipped)
    assert free.clipping == 0
    assert free.table()[-1]["part"] == "clusters"
    assert "clipping" not in str(free)


def test_the_printed_form_and_the_plain_values() -> None:
    model = MFDMC(**SETTINGS).fit(RATINGS)
    found = model.explain(model.users_.ids[0], model.items_.ids[0])
    lines = str(found).splitlines()
    assert lines[0].endswith(f"predicted {found.prediction:.3f}")
    assert "more pairs of clusters" in str(found)
    shown = sum(float(line.split()[0]) for line in lines[1:])
    assert shown == pytest.approx(found.prediction, abs=0.001 * len(lines))
    values = json.loads(json.dumps({**found.to_dict(), "user": int(found.user), "item": int(found.item)}))
    assert values["contributions"][0]["value"] == found.contributions[0].value
    assert values["clipping"] == found.clipping


def test_centered_affinities_have_no_mean_left_in_rows_and_columns(model: MFDMC) -> None:
    sides = model.model_.prunable_sides()
    user_usage, item_usage = usages(sides["user"]), usages(sides["item"])
    for pair in view_pairs(model.model_):
        np.testing.assert_allclose(pair.centered @ item_usage[pair.item_view], 0, atol=1e-12)
        np.testing.assert_allclose(user_usage[pair.user_view] @ pair.centered, 0, atol=1e-12)
        whole = pair.mean + pair.user_effect[:, None] + pair.item_effect[None, :] + pair.centered
        np.testing.assert_allclose(whole, pair.gram, atol=1e-12)


def test_memberships_of_one_row_are_those_of_the_estimator(model: MFDMC) -> None:
    row = memberships_of(model.model_.prunable_sides()["item"], 4)
    for one, all_rows in zip(row, model.memberships("item"), strict=True):
        np.testing.assert_allclose(one, all_rows[4], atol=1e-6)
