"""The pictures as matplotlib axes: they show the numbers of the figures."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from report_tools import fitted

from mfdmc_fast import MFDMC, ConfigError
from mfdmc_fast.data import Ratings
from mfdmc_fast.report import figures, plots


@pytest.fixture(scope="module")
def model_and_test() -> tuple[MFDMC, Ratings]:
    """A fitted model and test ratings; not to be changed."""
    return fitted()


def test_axes_show_the_numbers(model_and_test: tuple[MFDMC, Ratings]) -> None:
    model, test = model_and_test
    losses = plots.plot_losses(model)
    assert len(losses.lines) == len(figures.loss_curves(model.history_))
    clusters = plots.plot_clusters(model, "user")
    counts = figures.cluster_counts(model.history_, "user")
    np.testing.assert_array_equal(clusters.lines[1].get_ydata(), counts[:, 1])
    assert len(clusters.lines[-1].get_xdata()) == sum(e.side == "user" for e in model.history_.prune_events)
    usage = plots.plot_usage(model, "item").images[0].get_array()
    np.testing.assert_allclose(np.ma.filled(usage, np.nan), figures.usage_grid(model, "item"))
    drawn = plots.plot_map(model, "item", 0, n=10)
    np.testing.assert_allclose(drawn.collections[0].get_offsets(), figures.view_map(model, "item", 0, n=10).points)
    features = {k: f"g{k % 3}" for k in model.items_.ids.tolist()}
    lift = plots.plot_label_lift(model, "item", 1, features)
    assert [t.get_text() for t in lift.get_xticklabels()] == ["g0", "g1", "g2"]
    calibration = plots.plot_calibration(model, test)
    groups = figures.error_figures(model, test).calibration
    np.testing.assert_allclose(calibration.lines[1].get_ydata(), [g.rated for g in groups])
    explained = model.explain(model.users_.ids[0], model.items_.ids[0])
    bars = [patch.get_width() for patch in plots.plot_explanation(explained).patches]
    assert sum(bars) + explained.global_mean == pytest.approx(explained.prediction)
    losses.figure.canvas.draw()


def test_given_axes_are_used_and_a_missing_package_is_named(
    model_and_test: tuple[MFDMC, Ratings], monkeypatch: pytest.MonkeyPatch
) -> None:
    ax = plots.plot_usage(model_and_test[0], "user")
    assert plots.plot_losses(model_and_test[0], ax=ax) is ax
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'mfdmc_fast\[report\]'"):
        plots.plot_losses(model_and_test[0])
