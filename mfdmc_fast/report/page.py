"""The report of a model: one HTML page that holds all that it shows and asks the network for nothing."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import mfdmc_fast
from mfdmc_fast.data import Features, Vocabulary, read_features
from mfdmc_fast.errors import ConfigError, DataError
from mfdmc_fast.estimator import MFDMC, RatingEstimator
from mfdmc_fast.files import replacing
from mfdmc_fast.interpret.affinity import ViewPair, view_pairs
from mfdmc_fast.interpret.cards import ClusterCards, cluster_cards
from mfdmc_fast.interpret.explain import Explanation, explain_rows
from mfdmc_fast.model import SIDES, SideName
from mfdmc_fast.report import figures

TEMPLATES = Path(__file__).parent / "templates"
_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pyarrow", "safetensors")
_TOP_MEMBERS = 8
_EXAMPLES, _EXAMPLE_PARTS = 4, 7
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


def write_report(
    model: RatingEstimator,
    out: str | os.PathLike[str],
    *,
    users: Any = None,
    items: Any = None,
    test: Any = None,
    title: str = "Model report",
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Write the report of a fitted model as one HTML file; arguments as in `render_report`."""
    page = render_report(model, users=users, items=items, test=test, title=title, tell=tell)
    with replacing(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render_report(
    model: RatingEstimator,
    *,
    users: Any = None,
    items: Any = None,
    test: Any = None,
    title: str = "Model report",
    tell: Callable[[str], None] = lambda text: None,
) -> str:
    """The report of a fitted model as HTML, with all styles, scripts and pictures in it.

    Models without clusters get the sections that apply to them.

    Args:
        model: a fitted estimator.
        users, items: what is known of users and items: labels and titles, anything `read_features` takes.
        test: test ratings, anything `read_ratings` takes, for errors and calibration.
        title: of the page.
        tell: called with a line of text before each step.

    Raises:
        ConfigError: jinja2 is missing. DataError: metadata or test ratings cannot be used.
    """
    environment = _environment()
    from mfdmc_fast.report.svg import Charts

    state = model._state()
    tell("reading metadata")
    features: dict[SideName, Features | None] = {
        side: None if source is None else read_features(source, labels_needed=False)
        for side, source in zip(SIDES, (users, items), strict=True)
    }
    for side, vocabulary in zip(SIDES, (state.users, state.items), strict=True):
        source = features[side]
        if source is not None:
            tell(_overlap(source, vocabulary, side))
    errors = None
    if test is not None:
        tell("predicting test ratings")
        errors = figures.error_figures(model, test)
    charts = Charts()
    values: dict[str, Any] = {
        "title": title,
        "kind": type(model).__name__,
        "version": mfdmc_fast.__version__,
        "styles": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "script": (TEMPLATES / "report.js").read_text(encoding="utf-8"),
        "headline": _headline(model, errors),
        "training": _training(model, charts),
        "errors": None if errors is None else _errors(errors, charts),
        "data": _data(model, features, charts),
        "settings": _settings(model),
        "versions": _versions(),
        "clusters": None,
        "metadata": [side for side in SIDES if features[side] is not None],
    }
    if isinstance(model, MFDMC):
        tell("describing clusters")
        vocabularies: dict[SideName, Vocabulary] = {"user": state.users, "item": state.items}
        fitted: Any = state.model
        cards = cluster_cards(fitted, vocabularies, features, top=_TOP_MEMBERS)
        titles = {side: _titles(features[side], vocabularies[side]) for side in SIDES}
        values["clusters"] = {
            "sides": [_side(model, side, cards[side], features[side], charts) for side in SIDES[::-1]],
            "cards": [*cards["item"], *cards["user"]],
            "n_views": model.n_views,
            "combine": model.combine,
            "maps": _maps(model, cards, titles),
        }
        tell("explaining predictions")
        names = {(card.side, card.view, card.cluster): card.name for side in SIDES for card in cards[side]}
        meeting = view_pairs(fitted)
        values["examples"] = [_example(model, pair, meeting, names, titles) for pair in _example_pairs(model, errors)]
    tell("writing the page")
    page: str = environment.get_template("report.html.j2").render(values)
    return page


def _environment() -> Any:
    """Jinja's environment, which escapes everything; ConfigError where it is not installed."""
    try:
        import jinja2
    except ImportError as error:
        raise ConfigError("reports need jinja2; install it with: pip install 'mfdmc_fast[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["signed"] = lambda value: f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
    environment.filters["percent"] = lambda value: f"{value:.0%}" if value >= 0.01 or value == 0 else "<1%"
    environment.filters["p_value"] = lambda value: f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
    return environment


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int | np.integer) and not isinstance(value, bool) else str(value)


def _overlap(features: Features, vocabulary: Vocabulary, side: SideName) -> str:
    """How many entities the metadata describe; DataError for none: the wrong file, or the wrong side."""
    rows = vocabulary.encode(features.ids)
    n_described, n_extra = int((rows >= 0).sum()), int((rows < 0).sum())
    if not n_described:
        raise DataError(
            f"none of its ids, such as {features.ids.tolist()[0]!r}, is among the {side}s of the model, such as"
            f" {vocabulary.ids.tolist()[0]!r}; give the table of {side}s, with the ids of the ratings",
            source=features.source,
        )
    extra = f", {n_extra:,} without training ratings are left out" if n_extra else ""
    return f"{features.source}: has {n_described:,} of {len(vocabulary):,} {side}s{extra}"


def _titles(features: Features | None, vocabulary: Any) -> list[str]:
    return [str(raw) for raw in vocabulary.ids.tolist()] if features is None else features.titles_of(vocabulary)


def _headline(model: RatingEstimator, errors: figures.ErrorFigures | None) -> list[dict[str, str]]:
    """The numbers at the top of the page: name, value and what it means."""
    history = model.history_
    found = []
    if errors is not None:
        found.append(("test RMSE", f"{errors.rmse:.4f}", f"MAE {errors.mae:.4f} on {errors.n:,} ratings"))
    n_ratings = int(figures.activity(model, "user").sum())
    entities = f"{len(model.users_):,} users, {len(model.items_):,} items"
    found.append(("training ratings", f"{n_ratings:,}", entities))
    if isinstance(model, MFDMC):
        for side in SIDES:
            left = sum(model.model_.clusters(side) or [])
            started = model.n_views * model.n_clusters
            found.append(
                (f"{side} clusters", str(left), f"of {started} in {model.n_views} views; {started - left} pruned")
            )
        sharp = [float(figures.sharpness(model, side).mean()) for side in SIDES]
        found.append(
            ("normalised entropy", f"{sharp[0]:.2f} / {sharp[1]:.2f}", "users / items; 0: one role each, 1: no roles")
        )
    teacher = f", {history.teacher_seconds:.1f} s of it the teacher" if history.teacher_seconds else ""
    found.append(("training", f"{history.seconds:.1f} s", f"{history.kept_epoch} epochs{teacher}"))
    return [dict(zip(("name", "value", "note"), row, strict=True)) for row in found]


def _training(model: RatingEstimator, charts: Any) -> dict[str, Any]:
    from mfdmc_fast.report.svg import Series

    curves = figures.loss_curves(model.history_)
    small = []
    for term, values in curves.items():
        points = list(enumerate(values, start=1))
        says = f"{term} from {_number(values[0])} in epoch 1 to {_number(values[-1])} in epoch {len(values)}"
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


def _side(model: MFDMC, side: SideName, cards: ClusterCards, features: Features | None, charts: Any) -> dict[str, Any]:
    """Clusters over epochs, usage and label lifts of one side."""
    from mfdmc_fast.report.svg import Series

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


def _maps(model: MFDMC, cards: dict[SideName, ClusterCards], titles: dict[SideName, list[str]]) -> dict[str, Any]:
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


def _example_pairs(model: MFDMC, errors: figures.ErrorFigures | None) -> list[tuple[Any, Any, float | None]]:
    """User, item and rating (None if unknown) of the predictions to explain: from high to low.

    From test ratings of known ids, spread evenly over the predictions; without them the best and the worst items for
    the users of middling and of high activity.
    """
    if errors is not None:
        known = (model.users_.encode(errors.users) >= 0) & (model.items_.encode(errors.items) >= 0)
        order = np.flatnonzero(known)[np.argsort(-errors.predictions[known], kind="stable")]
        places = np.linspace(0.02, 0.98, _EXAMPLES) * (len(order) - 1) if len(order) else np.empty(0)
        chosen = order[np.unique(np.rint(places).astype(int))]
        return [(errors.users[at], errors.items[at], float(errors.ratings[at])) for at in chosen.tolist()]
    pairs: list[tuple[Any, Any, float | None]] = []
    by_activity = np.argsort(figures.activity(model, "user"), kind="stable")
    for row in dict.fromkeys([int(by_activity[len(by_activity) // 2]), int(by_activity[-1])]):
        user = model.users_.ids[row]
        order = np.argsort(-model.predict(user, model.items_.ids), kind="stable")
        pairs += [(user, model.items_.ids[order[0]], None), (user, model.items_.ids[order[-1]], None)]
    return pairs


def _example(
    model: MFDMC,
    pair: tuple[Any, Any, float | None],
    meeting: list[ViewPair],
    names: dict[tuple[SideName, int, int], str],
    titles: dict[SideName, list[str]],
) -> dict[str, Any]:
    """An explained prediction: parts with their values, and where their bars start and end, in shares of the widest."""
    user, item, rating = pair
    fitted: Any = model.model_
    rows = int(model.users_.encode([user])[0]), int(model.items_.encode([item])[0])
    found = explain_rows(fitted, rows, (user, item), model.rating_scale_, centered=meeting)
    parts = _parts(found, names)
    widest = max(abs(part["value"]) for part in parts[1:]) or 1.0
    for part in parts[1:]:
        part["width"] = round(50 * abs(part["value"]) / widest, 1)
    return {
        "user": titles["user"][rows[0]],
        "item": titles["item"][rows[1]],
        "prediction": found.prediction,
        "rating": rating,
        "parts": parts,
    }


def _parts(found: Explanation, names: dict[tuple[SideName, int, int], str]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [
        {"text": "average of all", "note": "", "value": found.global_mean},
        {"text": "this user in general", "note": "bias and clusters", "value": found.user_bias},
        {"text": "this item in general", "note": "bias and clusters", "value": found.item_bias},
    ]
    for c in found.contributions[:_EXAMPLE_PARTS]:
        user, item = names["user", c.user_view, c.user_cluster], names["item", c.item_view, c.item_cluster]
        view = f"view {c.user_view}" if c.user_view == c.item_view else f"views {c.user_view} and {c.item_view}"
        note = f"{view}, clusters {c.user_cluster} and {c.item_cluster};"
        note += f" {c.user_weight:.0%} of the user, {c.item_weight:.0%} of the item"
        parts.append({"text": f"{user} meets {item}", "note": note, "value": c.value})
    rest = found.contributions[_EXAMPLE_PARTS:]
    if rest:
        parts.append({"text": f"{len(rest)} more pairs", "note": "", "value": sum(c.value for c in rest)})
    if found.clipping:
        parts.append({"text": "clipping to the rating scale", "note": "", "value": found.clipping})
    return parts


def _errors(errors: figures.ErrorFigures, charts: Any) -> dict[str, Any]:
    from mfdmc_fast.report.svg import Series

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


def _data(model: RatingEstimator, features: dict[SideName, Features | None], charts: Any) -> dict[str, Any]:
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


def _settings(model: RatingEstimator) -> list[dict[str, Any]]:
    """All settings as they are in the model file, and whether they are the defaults."""
    config, history = model.model_.config, model.history_
    defaults = type(config)().to_dict()
    used = {"(backend used)": history.backend, "(batch size used)": history.batch_size}
    return [
        {"name": name, "value": json.dumps(value), "changed": value != defaults[name]}
        for name, value in sorted(config.to_dict().items())
    ] + [{"name": name, "value": json.dumps(value), "changed": False} for name, value in used.items()]


def _versions() -> dict[str, str]:
    found = {"mfdmc_fast": mfdmc_fast.__version__, "Python": platform.python_version()}
    return found | {name: version(name) for name in _PACKAGES}
