"""The pictures of a report as matplotlib axes, for papers and notebooks. Needs matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np

from mfdmc_fast.data import read_features
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.estimator import MFDMC, RatingEstimator
from mfdmc_fast.interpret.explain import Explanation
from mfdmc_fast.model import SideName
from mfdmc_fast.report import figures

# pairs of clusters that a picture of a prediction shows; the others are added up
_SHOWN = 8


def plot_losses(model: RatingEstimator, ax: Any = None) -> Any:
    """Every loss term over the epochs, each divided by its largest value; returns the axes."""
    ax = _axes(ax)
    for term, values in figures.loss_curves(model.history_).items():
        ax.plot(np.arange(1, len(values) + 1), np.array(values) / max(map(abs, values)), label=term)
    ax.set(xlabel="epoch", ylabel="loss term / its largest value")
    ax.legend()
    return ax


def plot_clusters(model: MFDMC, side: SideName, ax: Any = None) -> Any:
    """Active clusters of each view over the epochs, with prune events as dots; returns the axes."""
    ax = _axes(ax)
    counts = figures.cluster_counts(figures.fitted_mfdmc(model).history_, side)
    for view, line in enumerate(counts.T):
        ax.step(np.arange(1, len(line) + 1), line, where="post", label=f"view {view}")
    events = [event for event in model.history_.prune_events if event.side == side]
    ax.plot([e.epoch for e in events], [counts[e.epoch - 1, e.view] for e in events], "k.", label="pruned")
    ax.set(xlabel="epoch", ylabel=f"active {side} clusters")
    ax.legend()
    return ax


def plot_usage(model: MFDMC, side: SideName, ax: Any = None) -> Any:
    """Mean membership by view and original cluster, blank where pruned; returns the axes."""
    ax = _axes(ax)
    image = ax.imshow(figures.usage_grid(model, side), aspect="auto", vmin=0.0, cmap="Blues")
    ax.figure.colorbar(image, ax=ax, label="mean weight")
    ax.set(xlabel="cluster", ylabel=f"{side} view")
    return ax


def plot_map(model: MFDMC, side: SideName, view: int, ax: Any = None, *, n: int = 1000) -> Any:
    """Roles of the n most active entities in a view, colored by their largest cluster, and the centers with their
    original numbers, on two principal components; returns the axes.
    """
    ax = _axes(ax)
    drawn = figures.view_map(model, side, view, n=n)
    ax.scatter(*drawn.points.T, c=drawn.heaviest, s=6, alpha=0.5, cmap="tab10", vmin=0, vmax=9)
    ax.scatter(*drawn.centers.T, c=np.arange(len(drawn.centers)), s=150, marker="s", cmap="tab10", vmin=0, vmax=9)
    for (x, y), cluster in zip(drawn.centers, model.model_.prunable_sides()[side].cluster_ids[view], strict=True):
        ax.annotate(str(cluster), (x, y), ha="center", va="center", color="white", weight="bold")
    ax.set(title=f"{side} view {view}: {drawn.share:.0%} of the variance", aspect="equal")
    return ax


def plot_label_lift(model: MFDMC, side: SideName, view: int, features: Any, ax: Any = None) -> Any:
    """Smoothed lift of the most frequent labels in the clusters of a view, on a log scale; returns the axes.

    `features` is anything `read_features` takes, of the same side.
    """
    ax = _axes(ax)
    grid = figures.label_lift_grids(model, side, read_features(features))[view]
    image = ax.imshow(np.log2(grid.lift), aspect="auto", cmap="RdBu", vmin=-1.6, vmax=1.6)
    ax.figure.colorbar(image, ax=ax, label="log2 lift")
    ax.set_xticks(range(len(grid.labels)), grid.labels, rotation=90)
    ax.set_yticks(range(len(grid.clusters)), list(map(str, grid.clusters)))
    ax.set(ylabel=f"{side} clusters of view {view}")
    return ax


def plot_calibration(model: RatingEstimator, test: Any, ax: Any = None) -> Any:
    """Mean rating by mean prediction in groups of equally many test ratings; returns the axes."""
    ax = _axes(ax)
    groups = figures.error_figures(model, test).calibration
    ends = [min(g.predicted for g in groups), max(g.predicted for g in groups)]
    ax.plot(ends, ends, "--", color="gray", label="perfect")
    ax.plot([g.predicted for g in groups], [g.rated for g in groups], "o-", label=type(model).__name__)
    ax.set(xlabel="mean prediction", ylabel="mean rating")
    ax.legend()
    return ax


def plot_explanation(explanation: Explanation, ax: Any = None) -> Any:
    """Parts of a predicted rating as bars, without the global mean; returns the axes."""
    ax = _axes(ax)
    parts = [("user", explanation.user_bias), ("item", explanation.item_bias)]
    parts += [
        (f"{c.user_view}.{c.user_cluster} - {c.item_view}.{c.item_cluster}", c.value)
        for c in explanation.contributions[:_SHOWN]
    ]
    parts.append(("other pairs", sum(c.value for c in explanation.contributions[_SHOWN:])))
    if explanation.clipping:
        parts.append(("clipping", explanation.clipping))
    names, values = zip(*parts, strict=True)
    ax.barh(range(len(parts)), values, color=["tab:blue" if value >= 0 else "tab:orange" for value in values])
    ax.set_yticks(range(len(parts)), names)
    ax.invert_yaxis()
    ax.set(xlabel=f"rating points beside the mean of {explanation.global_mean:.2f}")
    return ax


def _axes(ax: Any) -> Any:
    """The axes, or new ones; ConfigError where matplotlib is not installed."""
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib; install it with: pip install 'mfdmc_fast[report]'") from error
    # not by pyplot, which would keep every figure and choose a window system
    return Figure(layout="constrained").subplots()
