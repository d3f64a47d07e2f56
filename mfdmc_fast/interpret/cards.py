"""Cards of clusters: members, labels that are over-represented, what a cluster attracts on the other side, a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mfdmc_fast.data import Features, Vocabulary
from mfdmc_fast.data.labels import FLAGS
from mfdmc_fast.interpret.affinity import view_pairs
from mfdmc_fast.interpret.enrichment import LabelCounts, adjusted_together, count_labels
from mfdmc_fast.model import SIDES, MFDMCModel, SideName

# a label must be held by this many members of a cluster, or chance and rarity say more than the cluster does
MIN_COUNT = 5
# false discoveries that are accepted among all labels of all clusters of a side
MAX_Q = 0.05
# as if so many more members held a label exactly as often as expected: takes the edge off the lift of rare labels
LIFT_PRIOR = 5.0
# labels, and clusters of the other side, that a card names
_N_LABELS, _N_AFFINITIES = 6, 3
# blocks of labels that are not those of one column
_NAMELESS = (FLAGS, "labels")
# how the name of a user cluster, and that of an item cluster, says what it attracts
_LIKING = ("likes", "liked by")


class LabelLift(NamedTuple):
    """A label that the members of a cluster hold more often than the side at large.

    Attributes:
        label: with the name of its column where it would not be understood alone.
        held: members of the cluster with the label.
        share, base_share: of the cluster's members, and of all entities of the side, that hold it; of those with
            metadata.
        lift: share / base_share.
        smoothed_lift: (held + LIFT_PRIOR) / (expected count + LIFT_PRIOR), nearer to 1 where counts are small.
        p_value: P(X >= held) for X hypergeometric: the cluster's members drawn from the side without regard to the
            label.
        q_value: p_value after Benjamini and Hochberg (1995) over all clusters of the side and all labels that MIN_COUNT
            of its entities hold.
    """

    label: str
    held: int
    share: float
    base_share: float
    lift: float
    smoothed_lift: float
    p_value: float
    q_value: float


class Affinity(NamedTuple):
    """A cluster of the other side, and what its meeting with this one adds to a rating beyond what both add on
    average: <c_k, c_l> less the means by usage of its row and column plus the mean of all, rating points.
    """

    view: int
    cluster: int
    value: float
    name: str


@dataclass(frozen=True)
class ClusterCard:
    """One surviving cluster.

    A member of a cluster is an entity whose largest weight in the view is this cluster's.

    Attributes:
        side, view, cluster: where it is; `cluster` is its original number, which pruning never changes.
        name: made of its labels; where none stands out of its first member's title, where that is known; else of what
            it attracts; else of its view and number.
        usage: mean assignment weight over the side's entities; the clusters of a view sum to 1.
        size: number of members.
        top_ids, top_weights, top_titles: the entities with the largest weights, these weights, and their titles, or ids
            as text without metadata.
        labels: over-represented ones with q_value <= MAX_Q, the highest smoothed lift first; empty without metadata.
        attracts, repels: clusters of the other side with the highest and the lowest affinity, as far as these are
            positive and negative.
    """

    side: SideName
    view: int
    cluster: int
    name: str
    usage: float
    size: int
    top_ids: list[Any]
    top_weights: list[float]
    top_titles: list[str]
    labels: list[LabelLift]
    attracts: list[Affinity]
    repels: list[Affinity]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        named: dict[str, Any] = {key: [x._asdict() for x in getattr(self, key)] for key in _NESTED}
        return {**asdict(self), **named}


_NESTED = ("labels", "attracts", "repels")


class ClusterCards(list[ClusterCard]):
    """Cards of one side, by view and cluster."""

    def to_table(self) -> list[dict[str, Any]]:
        """A row for each cluster, plain values: lists of members, labels and names; ready for pandas or pyarrow."""
        return [
            {
                **{key: getattr(card, key) for key in ("side", "view", "cluster", "name", "usage", "size")},
                **{key: getattr(card, key) for key in ("top_ids", "top_weights", "top_titles")},
                "labels": [found.label for found in card.labels],
                "lifts": [found.lift for found in card.labels],
                "q_values": [found.q_value for found in card.labels],
                "attracts": [found.name for found in card.attracts],
                "repels": [found.name for found in card.repels],
            }
            for card in self
        ]


class SideLabels(NamedTuple):
    """Which entities of a side hold which label.

    Attributes:
        labels: [L] texts.
        entities, label_idx: [P] int64 pairs, each once.
        described: [n] bool, whether the metadata have the entity.
    """

    labels: list[str]
    entities: npt.NDArray[np.int64]
    label_idx: npt.NDArray[np.int64]
    described: npt.NDArray[np.bool_]


def side_labels(features: Features | None, vocabulary: Vocabulary) -> SideLabels:
    """Labels of a vocabulary's entities; none without features."""
    n = len(vocabulary)
    described = np.zeros(n, dtype=bool)
    labels: list[str] = []
    pairs = [np.empty(0, dtype=np.int64)]
    if features is not None:
        entity_of = vocabulary.encode(features.ids)
        described[entity_of[entity_of >= 0]] = True
        for block in features.blocks:
            entities = entity_of[block.rows]
            known = entities >= 0
            pairs.append((block.label_idx[known] + len(labels)) * n + entities[known])
            labels += [_readable(block.name, label) for label in block.labels]
    label_idx, entities = np.divmod(np.unique(np.concatenate(pairs)), max(1, n))
    return SideLabels(labels, entities, label_idx, described)


def label_counts(weights: npt.NDArray[np.floating], table: SideLabels) -> LabelCounts:
    """How many members of each cluster of a view hold each label; members without metadata do not count.

    Args:
        weights: [n, K] of the view; an entity is a member of the cluster with its largest one.
        table: labels of the n entities.
    """
    clusters = np.where(table.described, weights.argmax(1), -1)
    return count_labels(clusters, weights.shape[1], table.entities, table.label_idx, len(table.labels))


def label_lifts(views: Sequence[npt.NDArray[np.floating]], table: SideLabels) -> list[list[LabelLift]]:
    """For each cluster of each view its over-represented labels: held >= MIN_COUNT, lift > 1 and q_value <= MAX_Q.

    Args:
        views: V times [n, K_v] weights.
        table: labels of the n entities.
    """
    # a label that too few hold cannot be on a card, and would only make the others less certain
    frequent = np.flatnonzero(np.bincount(table.label_idx, minlength=len(table.labels)) >= MIN_COUNT)
    if not len(frequent):
        return [[] for view in views for _ in range(view.shape[1])]
    is_frequent = np.isin(table.label_idx, frequent)
    table = table._replace(
        labels=[table.labels[at] for at in frequent.tolist()],
        entities=table.entities[is_frequent],
        label_idx=np.searchsorted(frequent, table.label_idx[is_frequent]),
    )
    counted = [label_counts(view, table) for view in views]
    p_values = [counts.p_values() for counts in counted]
    found = []
    for counts, p, q in zip(counted, p_values, adjusted_together(p_values), strict=True):
        expected = counts.expected
        stands_out = (counts.held >= MIN_COUNT) & (counts.held > expected) & (q <= MAX_Q)
        for k, size in enumerate(counts.sizes.tolist()):
            lifts = [
                LabelLift(
                    table.labels[at],
                    int(counts.held[k, at]),
                    float(counts.held[k, at] / size),
                    float(counts.totals[at] / counts.n),
                    float(counts.held[k, at] / expected[k, at]),
                    float((counts.held[k, at] + LIFT_PRIOR) / (expected[k, at] + LIFT_PRIOR)),
                    float(p[k, at]),
                    float(q[k, at]),
                )
                for at in np.flatnonzero(stands_out[k]).tolist()
            ]
            found.append(sorted(lifts, key=lambda lift: -lift.smoothed_lift))
    return found


def cluster_cards(
    model: MFDMCModel,
    vocabularies: dict[SideName, Vocabulary],
    features: dict[SideName, Features | None],
    *,
    top: int,
) -> dict[SideName, ClusterCards]:
    """Cards of both sides, as the names of one need the other.

    Args:
        model: trained parameters.
        vocabularies: raw ids of both sides.
        features: what is known of users and of items.
        top: members to name on a card.
    """
    affinities = _affinities(model)
    drafts = {side: _drafts(model, side, vocabularies[side], features.get(side), top) for side in SIDES}
    names: dict[SideName, dict[_Key, str]] = {}
    for side in SIDES:
        source = features.get(side)
        has_titles = source is not None and source.titles is not None
        names[side] = {(d.view, d.cluster): _own_name(d, has_titles) for d in drafts[side]}
    borrowed: dict[SideName, dict[_Key, str]] = {"user": {}, "item": {}}
    for side, other in (SIDES, SIDES[::-1]):
        own = {key for key, name in names[other].items() if name}
        for key, name in names[side].items():
            best = [meets for meets, _ in _extreme(affinities[side][key], 1) if meets in own]
            if not name and best:
                borrowed[side][key] = f"{_LIKING[SIDES.index(side)]} {names[other][best[0]]}"
    for side in SIDES:
        for key, name in names[side].items():
            names[side][key] = name or borrowed[side].get(key) or f"view {key[0]}, cluster {key[1]}"
    found: dict[SideName, ClusterCards] = {}
    for side, other in (SIDES, SIDES[::-1]):
        cards = ClusterCards()
        for d in drafts[side]:
            of_cluster = affinities[side][d.view, d.cluster]
            named = [
                [Affinity(*key, value, names[other][key]) for key, value in _extreme(of_cluster, sign)]
                for sign in (1, -1)
            ]
            cards.append(
                ClusterCard(
                    side, d.view, d.cluster, names[side][d.view, d.cluster], d.usage, d.size,
                    d.top_ids[:top], d.top_weights[:top], d.top_titles[:top], d.labels[:_N_LABELS], named[0], named[1],
                )
            )  # fmt: skip
        found[side] = cards
    return found


class _Draft(NamedTuple):
    view: int
    cluster: int
    usage: float
    size: int
    top_ids: list[Any]
    top_weights: list[float]
    top_titles: list[str]
    labels: list[LabelLift]


def _drafts(
    model: MFDMCModel, side_name: SideName, vocabulary: Vocabulary, features: Features | None, top: int
) -> list[_Draft]:
    side = model.prunable_sides()[side_name]
    titles = [str(raw) for raw in vocabulary.ids.tolist()] if features is None else features.titles_of(vocabulary)
    table = side_labels(features, vocabulary)
    drafts: list[_Draft] = []
    views = side.assignment_weights()
    for view, (ids, weights) in enumerate(zip(side.cluster_ids, views, strict=True)):
        sizes = weights.argmax(1).bincount(minlength=len(ids)).tolist()
        usage = weights.mean(0, dtype=torch.float64).tolist()
        top_weights, top_rows = weights.topk(min(max(top, 1), len(weights)), dim=0)
        for k, cluster in enumerate(ids):
            rows = top_rows[:, k].cpu().numpy()
            drafts.append(
                _Draft(
                    view,
                    cluster,
                    usage[k],
                    sizes[k],
                    vocabulary.decode(rows).tolist(),
                    top_weights[:, k].tolist(),
                    [titles[row] for row in rows.tolist()],
                    [],
                )
            )
    lifts = label_lifts([weights.detach().cpu().numpy() for weights in views], table)
    return [draft._replace(labels=found) for draft, found in zip(drafts, lifts, strict=True)]


_Key = tuple[int, int]


def _affinities(model: MFDMCModel) -> dict[SideName, dict[_Key, dict[_Key, float]]]:
    """For each cluster of a side, by view and original number, its affinity to those of the other side it meets."""
    user, item = (side.cluster_ids for side in model.prunable_sides().values())
    found: dict[SideName, dict[_Key, dict[_Key, float]]] = {
        "user": {(v, k): {} for v, ids in enumerate(user) for k in ids},
        "item": {(v, k): {} for v, ids in enumerate(item) for k in ids},
    }
    for pair in view_pairs(model):
        for row, k in enumerate(user[pair.user_view]):
            for column, j in enumerate(item[pair.item_view]):
                value = float(pair.centered[row, column])
                found["user"][pair.user_view, k][pair.item_view, j] = value
                found["item"][pair.item_view, j][pair.user_view, k] = value
    return found


def _extreme(affinities: dict[_Key, float], sign: int) -> list[tuple[_Key, float]]:
    """The highest positive (sign 1) or lowest negative (sign -1) affinities."""
    ordered = sorted(affinities.items(), key=lambda entry: -sign * entry[1])
    return [(key, value) for key, value in ordered[:_N_AFFINITIES] if sign * value > 0]


def _own_name(draft: _Draft, has_titles: bool) -> str:
    """A name from a cluster's own labels, else from its first member's title, else nothing."""
    if draft.labels:
        return " · ".join(lift.label for lift in draft.labels[:2])
    return f"e.g. {draft.top_titles[0]}" if has_titles and draft.top_titles else ""


def _readable(column: str, label: str) -> str:
    """A label as it is read alone: numbers and single letters need the name of their column, years a word."""
    plain = label.replace(" to ", " ")
    is_year = column.endswith("year") and all(re.fullmatch(r"\d{4}", part) for part in plain.split())
    if is_year:
        return f"from {label}"
    alone = column in _NAMELESS or re.search(r"[^\W\d]{2}", plain)
    return label if alone else f"{column} {label}"
