"""Which roles a user or an item has in each view, in numbers and in words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from mfdmc_fast.interpret.affinity import memberships_of
from mfdmc_fast.interpret.cards import ClusterCard
from mfdmc_fast.model import MFDMCModel, SideName

# normalised entropy up to which a membership is called clear, and from which it is called spread out
_CLEAR, _SPREAD_OUT = 0.35, 0.8
_SHOWN = 3


class Role(NamedTuple):
    """A cluster that an entity belongs to.

    Attributes:
        cluster, name: which.
        weight: membership, in [0, 1].
        usage: mean membership over the side; weight / usage says how special the role is.
        attracts, repels: names of the clusters of the other side that go best and worst with it.
    """

    cluster: int
    name: str
    weight: float
    usage: float
    attracts: list[str]
    repels: list[str]


@dataclass(frozen=True)
class ViewProfile:
    """An entity in one view.

    Attributes:
        view: its number.
        entropy: of the memberships, divided by ln K_v: 0 for a single role, 1 for none in particular.
        roles: all clusters of the view, the largest membership first.
    """

    view: int
    entropy: float
    roles: list[Role]


@dataclass(frozen=True)
class Profile:
    """The roles of a user or of an item.

    Attributes:
        side, entity, title: whose; the title is the id as text without metadata.
        known: whether it was in training; if not, there are no views.
        bias: rating points; None for models without biases and unknown entities.
        ratings: in training.
        views: one for each view.
    """

    side: SideName
    entity: Any
    title: str
    known: bool
    bias: float | None
    ratings: int
    views: list[ViewProfile]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        views = [{**asdict(v), "roles": [r._asdict() for r in v.roles]} for v in self.views]
        return {**asdict(self), "views": views}

    def __str__(self) -> str:
        who = f"{self.side} {self.title}"
        if not self.known:
            return f"{who}: had no training rating, so nothing is known"
        bias = (
            "" if self.bias is None else f", {abs(self.bias):.2f} {'above' if self.bias >= 0 else 'below'} the average"
        )
        lines = [f"{who}: {self.ratings:,} training rating{'s' if self.ratings != 1 else ''}{bias}"]
        for view in self.views:
            lines.append(f"  view {view.view}, {_in_words(view.entropy)} (normalised entropy {view.entropy:.2f})")
            for role in view.roles[:_SHOWN]:
                verb = "likes" if self.side == "user" else "liked by"
                # a role without labels is named by what it attracts most
                others = [name for name in role.attracts[:2] if not role.name.endswith(name)]
                attracted = f"; {verb} {'; '.join(others)}" if others else ""
                lines.append(f"    {role.weight:5.0%} {role.name} (average {role.usage:.0%}){attracted}")
        return "\n".join(lines)


def profile_row(
    model: MFDMCModel, side: SideName, row: int, entity: Any, title: str, ratings: int, cards: list[ClusterCard]
) -> Profile:
    """The profile of one entity.

    Args:
        model: trained parameters.
        side: `user` or `item`.
        row: of the entity; -1 if it is unknown.
        entity, title: its raw id, and what people call it.
        ratings: that it has in training.
        cards: of all clusters of the side.
    """
    if row < 0:
        return Profile(side, entity, title, False, None, 0, [])
    bias = model.bias(side)
    card_of = {(card.view, card.cluster): card for card in cards}
    module = model.prunable_sides()[side]
    views = []
    for view, (ids, weights) in enumerate(zip(module.cluster_ids, memberships_of(module, row), strict=True)):
        # w ln w tends to 0
        positive = weights[weights > 0]
        entropy = float(-(positive * np.log(positive)).sum()) / math.log(len(ids)) if len(ids) > 1 else 0.0
        roles = []
        for k in np.argsort(-weights, kind="stable").tolist():
            card = card_of[view, ids[k]]
            attracts, repels = ([found.name for found in xs] for xs in (card.attracts, card.repels))
            roles.append(Role(card.cluster, card.name, float(weights[k]), card.usage, attracts, repels))
        views.append(ViewProfile(view, entropy, roles))
    return Profile(side, entity, title, True, None if bias is None else float(bias[row]), ratings, views)


def _in_words(entropy: float) -> str:
    if entropy <= _CLEAR:
        return "a clear role"
    return "no role in particular" if entropy >= _SPREAD_OUT else "a mix of roles"
