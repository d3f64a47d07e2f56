"""The numbers of a report, against the model and hand-worked groups."""

from __future__ import annotations

import numpy as np
import pytest
from report_tools import SETTINGS, fitted

from mfdmc_fast import MFDMC, ConfigError, FunkMF
from mfdmc_fast.data import Ratings, make_planted_ratings, read_features, read_ratings
from mfdmc_fast.report import figures


@pytest.fixture(scope="module")
def model_and_test() -> tuple[MFDMC, Ratings]:
    """A fitted model and test ratings; not to be changed."""
    return fitted()


def test_usage_is_blank_exactly_where_pruned(model_and_test: tuple[MFDMC, Ratings]) -> None:
    model, _ = model_and_test
    for side in ("user", "item"):
        grid = figures.usage_grid(model, side)
        gone = {(e.view, e.cluster) for e in model.history_.prune_events if e.side == side}
        assert {tuple(at) for at in np.argwhere(np.isnan(grid)).tolist()} == gone
        np.testing.assert_allclose(np.nansum(grid, axis=1), 1.0)
        assert figures.cluster_counts(model.history_, side)[-1].tolist() == (~np.isnan(grid)).sum(1).tolist()


def test_loss_curves_leave_out_terms_without_values(model_and_test: tuple[MFDMC, Ratings]) -> None:
    model, test = model_and_test
    curves = figures.loss_curves(model.history_)
    assert curves["mse"] == [record.loss["mse"] for record in model.history_.epochs]
    assert "validation RMSE" not in curves
    watched = MFDMC(**{**SETTINGS, "epochs": 2, "biases": False}).fit(test, validation=test)
    assert figures.loss_curves(watched.history_)["validation RMSE"][-1] == watched.history_.epochs[-1].valid_rmse
    assert "bias_l2" not in figures.loss_curves(watched.history_)


def test_sharpness_by_hand(model_and_test: tuple[MFDMC, Ratings]) -> None:
    model, _ = model_and_test
    w = model.memberships("user")[1].astype(float)
    expected = np.mean([-(row * np.log(row)).sum() for row in w]) / np.log(w.shape[1])
    assert figures.sharpness(model, "user")[1] == pytest.approx(expected, abs=1e-5)


def test_a_map_of_two_dimensions_keeps_all_distances() -> None:
    ratings = make_planted_ratings(n_users=60, n_items=50, n_ratings=1500, seed=3)
    model = MFDMC(**{**SETTINGS, "view_dim": 2}).fit(ratings)
    drawn = figures.view_map(model, "item", 1, n=20)
    assert drawn.share == pytest.approx(1.0)
    counts = figures.activity(model, "item")
    assert counts[drawn.rows].min() >= np.sort(counts)[-20]
    weights = model.memberships("item")[1][drawn.rows].astype(float)
    # a role is the weighted mean of the centers, on the map as well
    np.testing.assert_allclose(weights @ drawn.centers, drawn.points, atol=1e-5)
    start = sum(model.model_.item.n_clusters[:1])
    centers = model.model_.item.centers.detach().numpy()[start : start + len(drawn.centers)]
    for k in range(1, len(centers)):
        distance = np.linalg.norm(drawn.centers[k] - drawn.centers[0])
        assert distance == pytest.approx(np.linalg.norm(centers[k] - centers[0]), abs=1e-5)


def test_a_map_of_one_dimension_lies_on_a_line() -> None:
    model = MFDMC(**{**SETTINGS, "view_dim": 1, "epochs": 2}).fit(make_planted_ratings(30, 30, 400, seed=3))
    drawn = figures.view_map(model, "user", 0)
    assert (drawn.points[:, 1] == 0).all()
    assert (drawn.centers[:, 1] == 0).all()


def test_label_lift_by_hand(model_and_test: tuple[MFDMC, Ratings]) -> None:
    model, _ = model_and_test
    ids = model.users_.ids.tolist()
    features = read_features({k: ["even"] if k % 2 == 0 else ["odd"] for k in ids[:100]})
    grid = figures.label_lift_grids(model, "user", features)[1]
    assert grid.labels == ["even", "odd"]
    heaviest = model.memberships("user", ids[:100])[1].argmax(1)
    even = np.array([k % 2 == 0 for k in ids[:100]])
    for k in range(len(grid.clusters)):
        expected = (heaviest == k).sum() * even.mean()
        assert grid.lift[k, 0] == pytest.approx(((even & (heaviest == k)).sum() + 5) / (expected + 5))


def test_errors_in_groups(model_and_test: tuple[MFDMC, Ratings]) -> None:
    model, test = model_and_test
    found = figures.error_figures(model, test)
    scores = model.evaluate(test)
    assert (found.rmse, found.mae, found.n) == (pytest.approx(scores["rmse"]), pytest.approx(scores["mae"]), len(test))
    for groups in (found.calibration, found.by_rating, found.by_user_activity, found.by_item_activity):
        assert sum(g.n for g in groups) == len(test)
        assert sum(g.n * g.rmse**2 for g in groups) / len(test) == pytest.approx(found.rmse**2, rel=1e-5)
    assert [g.name for g in found.by_rating] == [f"{r:g}" for r in np.unique(test.ratings)]
    assert [g.rated for g in found.by_rating] == pytest.approx(np.unique(test.ratings))
    assert [g.predicted for g in found.calibration] == sorted(g.predicted for g in found.calibration)


def test_unknown_ids_have_no_activity(model_and_test: tuple[MFDMC, Ratings]) -> None:
    model, _ = model_and_test
    test = read_ratings(([99999, int(model.users_.ids[0])], [int(model.items_.ids[0]), 88888], [4.0, 2.0]))
    found = figures.error_figures(model, test)
    assert found.unknown == 2
    assert found.by_user_activity[0].name == "0"
    assert found.by_item_activity[0].name == "0"


def test_models_without_clusters_are_refused() -> None:
    funk = FunkMF(epochs=1).fit(make_planted_ratings(20, 20, 200, seed=1))
    with pytest.raises(ConfigError, match="FunkMF has no clusters to show"):
        figures.usage_grid(funk, "user")  # type: ignore[arg-type]
