"""Why a rating is predicted as it is: an exact sum of biases and of pairs of clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from mfdmc_fast.interpret.affinity import ViewPair, grams, memberships_of
from mfdmc_fast.model import MFDMCModel

# pairs that the printed form shows; the others are added up
_SHOWN = 8


class Contribution(NamedTuple):
    """What one user cluster and one item cluster add to a prediction.

    Attributes:
        user_view, user_cluster, item_view, item_cluster: which; clusters by their original number.
        user_weight, item_weight: memberships of the user and of the item, in [0, 1].
        affinity: <c_k, c_l> of the two centers, or its centered form, rating points.
        value: user_weight · item_weight · affinity, rating points.
    """

    user_view: int
    user_cluster: int
    item_view: int
    item_cluster: int
    user_weight: float
    item_weight: float
    affinity: float
    value: float


@dataclass(frozen=True)
class Explanation:
    """A predicted rating and its parts: global_mean + user_bias + item_bias + Σ contributions = unclipped.

    Attributes:
        user, item: raw ids.
        known_user, known_item: whether they were in training. With an unknown id there are no contributions, and the
            parts are those of the fallback that `predict` uses.
        centered: whether what a cluster adds on average is part of mean and biases; see `explain`.
        global_mean, user_bias, item_bias: rating points; 0 where they do not apply.
        contributions: of all pairs of clusters that meet, the largest by absolute value first.
        unclipped: the sum of all parts, float64.
        prediction: `unclipped` clipped to the rating scale, as `predict` gives it.
    """

    user: Any
    item: Any
    known_user: bool
    known_item: bool
    centered: bool
    global_mean: float
    user_bias: float
    item_bias: float
    contributions: tuple[Contribution, ...]
    unclipped: float
    prediction: float

    @property
    def clipping(self) -> float:
        """What clipping to the rating scale adds, rating points; 0 inside the scale."""
        return self.prediction - self.unclipped

    def by_view(self) -> dict[tuple[int, int], float]:
        """Sum of the contributions of each (user view, item view), rating points."""
        sums: dict[tuple[int, int], float] = {}
        for c in sorted(self.contributions, key=lambda c: (c.user_view, c.item_view)):
            key = (c.user_view, c.item_view)
            sums[key] = sums.get(key, 0.0) + c.value
        return sums

    def table(self) -> list[dict[str, Any]]:
        """The parts as rows with the keys `part`, `value` and those of `Contribution`; values sum to `prediction`.

        A row `clipping` is there only where clipping acts.
        """
        rows: list[dict[str, Any]] = [
            {"part": part, "value": getattr(self, part)} for part in ("global_mean", "user_bias", "item_bias")
        ]
        rows += [{"part": "clusters", **c._asdict()} for c in self.contributions]
        if self.clipping:
            rows.append({"part": "clipping", "value": self.clipping})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON where the ids are."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "contributions": [c._asdict() for c in self.contributions], "clipping": self.clipping}

    def __str__(self) -> str:
        lines = [f"user {self.user}, item {self.item}: predicted {self.prediction:.3f}"]
        unknown = [
            f"this {what}" for what, known in (("user", self.known_user), ("item", self.known_item)) if not known
        ]
        if unknown:
            lines.append(f"  {' and '.join(unknown)} had no training rating, so clusters say nothing")
        general = " and clusters in general" if self.centered else ""
        lines += [
            f"  {self.global_mean:+8.3f}  global mean",
            f"  {self.user_bias:+8.3f}  user: bias{general}",
            f"  {self.item_bias:+8.3f}  item: bias{general}",
        ]
        for c in self.contributions[:_SHOWN]:
            lines.append(
                f"  {c.value:+8.3f}  user view {c.user_view} cluster {c.user_cluster} ({c.user_weight:.0%})"
                f" with item view {c.item_view} cluster {c.item_cluster} ({c.item_weight:.0%})"
            )
        rest = self.contributions[_SHOWN:]
        if rest:
            lines.append(f"  {sum(c.value for c in rest):+8.3f}  {len(rest)} more pairs of clusters")
        if self.clipping:
            lines.append(f"  {self.clipping:+8.3f}  clipping to the rating scale")
        return "\n".join(lines)


def explain_rows(
    model: MFDMCModel,
    rows: tuple[int, int],
    ids: tuple[Any, Any],
    scale: tuple[float, float],
    *,
    centered: Sequence[ViewPair] | None = None,
) -> Explanation:
    """Split the predicted rating of a user and an item; `MFDMC.explain` has the meaning.

    Args:
        model: trained parameters.
        rows: of user and item; -1 for an unknown one.
        ids: their raw ids, for the result.
        scale: lowest and highest rating.
        centered: `view_pairs` of the model, to put what clusters add on average into mean and biases; or None.
    """
    user_row, item_row = rows
    known_user, known_item = user_row >= 0, item_row >= 0
    sides = model.prunable_sides()
    biases = [
        float(side.bias.detach()[row]) if side.bias is not None and row >= 0 else 0.0
        for side, row in zip((sides["user"], sides["item"]), rows, strict=True)
    ]
    mean = model.global_mean if (known_user and known_item) or model.config.biases else model.train_mean
    contributions: list[Contribution] = []
    if known_user and known_item:
        user_weights, item_weights = (memberships_of(sides[name], row) for name, row in zip(sides, rows, strict=True))
        user_ids, item_ids = sides["user"].cluster_ids, sides["item"].cluster_ids
        for pair in centered or ():
            mean += pair.mean
            biases[0] += float(user_weights[pair.user_view] @ pair.user_effect)
            biases[1] += float(item_weights[pair.item_view] @ pair.item_effect)
        affinities = grams(model) if centered is None else [(p.user_view, p.item_view, p.centered) for p in centered]
        for user_view, item_view, affinity in affinities:
            w_user, w_item = user_weights[user_view], item_weights[item_view]
            values = w_user[:, None] * w_item[None, :] * affinity
            for k, l in np.ndindex(*values.shape):  # noqa: E741 - the letters of the formula
                contributions.append(
                    Contribution(
                        user_view,
                        user_ids[user_view][k],
                        item_view,
                        item_ids[item_view][l],
                        float(w_user[k]),
                        float(w_item[l]),
                        float(affinity[k, l]),
                        float(values[k, l]),
                    )
                )
    contributions.sort(key=lambda c: -abs(c.value))
    unclipped = mean + sum(biases) + sum(c.value for c in contributions)
    return Explanation(
        user=ids[0],
        item=ids[1],
        known_user=known_user,
        known_item=known_item,
        centered=centered is not None,
        global_mean=mean,
        user_bias=biases[0],
        item_bias=biases[1],
        contributions=tuple(contributions),
        unclipped=unclipped,
        prediction=float(np.clip(unclipped, *scale)),
    )
