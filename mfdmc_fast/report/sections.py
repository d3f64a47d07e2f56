"""The sections of a report as values for its template: training, clusters, maps, errors, data, settings."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np

import mfdmc_fast
from mfdmc_fast.data import Features
from mfdmc_fast.estimator import MFDMC, RatingEstimator
from mfdmc_fast.interpret.cards import ClusterCards
from mfdmc_fast.model import SIDES, SideName
from mfdmc_fast.report import figures
from mfdmc_fast.report.svg import Charts, Series, number

_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pyarrow", "safetensors")
# the lowest numbers of training ratings of the groups in the data section
_ACTIVITY_GROUPS = (1, 5, 10, 20, 50, 100, 200, 500, 1000)
# clusters between the lines of two views
_LINE_SHIFT = 0.05
_TERMS = {
    "total": "weighted sum of all terms",
    "mse": "squared error, rating points²",
    "spread": "centers nearer than the margin",
    "proximity": "distance of embeddings to their centers",
    "entropy": "normalised entropy, users plus items",
    "l2": "size of embeddings",
    "bias_l2": "size of biases",
    "validation RMSE": "rating points",
}


def training(model: RatingEstimator, charts: Charts) -> dict[str, Any]:
    """Loss terms over the epochs, as charts and as a table."""
    curves = figures.loss_curves(model.history_)
    small = []
    for term, values in curves.items():
        points = list(enumerate(values, start=1))
        says = f"{term} from {number(values[0])} in epoch 1 to {number(values[-1])} in epoch {len(values)}"
        small.append(
            {
                "term": term,
                "meaning": _TERMS.get(term, ""),
                "last": values[-1],
                "chart": charts.lines([Series(points, term)], f"{term} over epochs", says, x_label="epoch"),
            }
        )
    epochs = len(model.history_.epochs)
    shown = sorted({*range(1, epochs + 1, max(1, epochs // 12)), epochs} - {0})
    return {
        "curves": small,
        "table": [[epoch, *(values[epoch - 1] for values in curves.values())] for epoch in shown],
        "terms": list(curves),
        "stop_reason": model.history_.stop_reason,
    }


def side_of_clusters(
    model: MFDMC, side: SideName, cards: ClusterCards, features: Features | None, charts: Charts
) -> dict[str, Any]:
    """Clusters over epochs, usage and label lifts of one side."""
    counts = figures.cluster_counts(model.history_, side)
    events = [event for event in model.history_.prune_events if event.side == side]
    # lines of equal counts lie side by side, not one on the other
    shift = [_LINE_SHIFT * (v - (model.n_views - 1) / 2) for v in range(model.n_views)]
    series = [Series(_steps(counts[:, v].tolist(), shift[v]), f"view {v}", v) for v in range(model.n_views)]
    marks = [
        (
            e.epoch,
            float(counts[e.epoch - 1, e.view]) + shift[e.view],
            f"epoch {e.epoch}: view {e.view} lost cluster {e.cluster}",
        )
        for e in events
    ]
    left = ", ".join(map(str, counts[-1].tolist()))
    says = f"Active clusters of each {side} view over {len(counts)} epochs; {len(events)} were pruned. Left: {left}."
    usage = figures.usage_grid(model, side)
    most = float(np.nanmax(usage))
    names = {(card.view, card.cluster): card.name for card in cards}
    grids = [] if features is None else figures.label_lift_grids(model, side, features)
    return {
        "side": side,
        "chart": charts.lines(series, f"{side} clusters over epochs", says, x_label="epoch", marks=marks),
        "views": [f"view {v}" for v in range(model.n_views)],
        "events": [event.to_dict() for event in events],
        "usage": [[None if np.isnan(x) else {"value": x, "shade": x / most} for x in row] for row in usage.tolist()],
        "sharpness": figures.sharpness(model, side).tolist(),
        "lifts": [
            {
                "view": view,
                "labels": grid.labels,
                "rows": [
                    {"cluster": k, "name": names[view, k], "cells": [_lift_cell(x) for x in row]}
                    for k, row in zip(grid.clusters, grid.lift.tolist(), strict=True)
                ],
            }
            for view, grid in enumerate(grids)
            if grid.labels
        ],
    }


def _steps(counts: list[int], shift: float) -> list[tuple[float, float]]:
    """Corners of a line that changes at once from epoch to epoch."""
    points: list[tuple[float, float]] = []
    for epoch, n in enumerate(counts, start=1):
        if points and points[-1][1] != n + shift:
            points.append((epoch, points[-1][1]))
        if not points or points[-1][1] != n + shift or epoch == len(counts):
            points.append((epoch, n + shift))
    return points


def _lift_cell(lift: float) -> dict[str, Any]:
    """A lift with its shade: full where a label is held three times, or a third, as often as expected."""
    shade = min(1.0, abs(np.log(max(lift, 1e-9))) / np.log(3))
    return {"value": lift, "shade": round(float(shade), 2), "more": lift >= 1}


def maps(model: MFDMC, cards: dict[SideName, ClusterCards], titles: dict[SideName, list[str]]) -> dict[str, Any]:
    """Maps of all views for the script: coordinates are integers from 0 to 1000, the same scale for both."""
    found: dict[str, Any] = {}
    for side in ("item", "user"):
        name: SideName = "item" if side == "item" else "user"
        views, rows = [], np.empty(0, dtype=np.int64)
        by_view: list[list[Any]] = [[card for card in cards[name] if card.view == v] for v in range(model.n_views)]
        for view in range(model.n_views):
            drawn = figures.view_map(model, name, view)
            rows = drawn.rows
            everything = np.concatenate([drawn.points, drawn.centers])
            low = everything.min(0)
            size = float((everything.max(0) - low).max()) or 1.0
            # in the middle of the square
            shift = (1.0 - (everything.max(0) - low) / size) / 2
            points, centers = (((xy - low) / size + shift) * 1000 for xy in (drawn.points, drawn.centers))
            views.append(
                {
                    "share": round(drawn.share, 3),
                    "xy": np.rint(points).astype(int).reshape(-1).tolist(),
                    "of": drawn.heaviest.tolist(),
                    "centers": [
                        {"xy": np.rint(xy).astype(int).tolist(), "cluster": card.cluster, "name": card.name}
                        for xy, card in zip(centers, by_view[view], strict=True)
                    ],
                }
            )
        found[side] = {"titles": [titles[name][row] for row in rows.tolist()], "views": views}
    return found


def errors_on_test(errors: figures.ErrorFigures, charts: Charts) -> dict[str, Any]:
    """Calibration and errors by rating and activity, as charts and as tables."""
    calibration = [(group.predicted, group.rated) for group in errors.calibration]
    worst = max(errors.calibration, key=lambda group: abs(group.predicted - group.rated))
    says = (
        f"Mean rating against mean prediction in {len(calibration)} groups; the largest difference is"
        f" {worst.rated - worst.predicted:+.3f} at a prediction of {worst.predicted:.2f}."
    )
    bars = []
    for title, x_label, groups in (
        ("Error by rating", "rating", errors.by_rating),
        ("Error by activity of the user", "training ratings of the user", errors.by_user_activity),
        ("Error by activity of the item", "training ratings of the item", errors.by_item_activity),
    ):
        spoken = "; ".join(f"{g.name}: {g.rmse:.3f}" for g in groups)
        chart = charts.bars([(g.name, g.rmse) for g in groups], title, f"RMSE by {x_label}: {spoken}.", x_label=x_label)
        bars.append({"title": title, "x_label": x_label, "groups": groups, "chart": chart})
    calibration_chart = charts.lines(
        [Series(calibration, "mean rating")], "Calibration", says, x_label="mean prediction", dots=True, diagonal=True
    )
    return {
        "calibration": calibration_chart,
        "groups": [("prediction", errors.calibration), *((bar["x_label"], bar["groups"]) for bar in bars)],
        "bars": bars,
        "rmse": errors.rmse,
        "mae": errors.mae,
        "n": errors.n,
        "unknown": errors.unknown,
    }


def data_profile(model: RatingEstimator, features: dict[SideName, Features | None], charts: Charts) -> dict[str, Any]:
    """How many ratings users and items have, and what the metadata hold."""
    sides = []
    for side, vocabulary in zip(SIDES, (model.users_, model.items_), strict=True):
        counts = figures.activity(model, side)
        edges = [*_ACTIVITY_GROUPS, np.inf]
        names = [f"{a:g}+" if b == np.inf else str(a) if b == a + 1 else f"{a}-{b - 1:g}" for a, b in pairwise(edges)]
        sizes = [float(((counts >= low) & (counts < high)).sum()) for low, high in pairwise(edges)]
        bars = list(zip(names, sizes, strict=True))
        low, middle, high = np.percentile(counts, [10, 50, 90], method="nearest")
        says = f"Half of the {side}s have {middle:g} training ratings or more;"
        says += f" a tenth has {low:g} or fewer, a tenth {high:g} or more."
        source = features[side]
        found: dict[str, Any] = {
            "side": side,
            "n": len(vocabulary),
            "text": says,
            "chart": charts.bars(bars, f"{side}s by training ratings", says, x_label=f"training ratings of the {side}"),
            "metadata": None,
        }
        if source is not None:
            rows = vocabulary.encode(source.ids)
            found["metadata"] = {
                "described": len(np.unique(rows[rows >= 0])),
                "extra": int((rows < 0).sum()),
                "labels": [{"column": b.name, "n": len(b.labels)} for b in source.blocks],
                "ignored": {k: why for k, why in source.ignored.items() if source.titles is None or "title" not in k},
            }
        sides.append(found)
    n_ratings = int(figures.activity(model, "user").sum())
    low_rating, high_rating = model.rating_scale_
    return {
        "sides": sides,
        "density": n_ratings / max(1, len(model.users_) * len(model.items_)),
        "mean": model.model_.train_mean,
        "scale": [low_rating, high_rating],
    }


def settings(model: RatingEstimator) -> list[dict[str, Any]]:
    """All settings as they are in the model file, and whether they are the defaults."""
    config, history = model.model_.config, model.history_
    defaults = type(config)().to_dict()
    used = {"(backend used)": history.backend, "(batch size used)": history.batch_size}
    return [
        {"name": name, "value": json.dumps(value), "changed": value != defaults[name]}
        for name, value in sorted(config.to_dict().items())
    ] + [{"name": name, "value": json.dumps(value), "changed": False} for name, value in used.items()]


def versions() -> dict[str, str]:
    """What made the page."""
    found = {"mfdmc_fast": mfdmc_fast.__version__, "Python": platform.python_version()}
    return found | {name: version(name) for name in _PACKAGES}
