"""Explained predictions for a report: which ones, and their parts."""

from __future__ import annotations

from typing import Any

import numpy as np

from mfdmc_fast.estimator import MFDMC
from mfdmc_fast.interpret.affinity import ViewPair
from mfdmc_fast.interpret.explain import Explanation, explain_rows
from mfdmc_fast.model import SideName
from mfdmc_fast.report import figures

# predictions to explain, and pairs of clusters to name in each; the others are added up
_EXAMPLES, _EXAMPLE_PARTS = 4, 7


def example_pairs(model: MFDMC, errors: figures.ErrorFigures | None) -> list[tuple[Any, Any, float | None]]:
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


def example(
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
