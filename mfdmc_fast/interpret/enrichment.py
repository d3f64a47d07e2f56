"""Which labels stand out in which clusters: purity, lift, tests with control of multiple comparisons, coverage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import false_discovery_control, hypergeom

from mfdmc_fast.errors import ConfigError
from mfdmc_fast.interpret.labels import LabelTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class LabelInCluster(NamedTuple):
    """A label that stands out in a cluster.

    Attributes:
        label: its text.
        entities: of the cluster that have it.
        lift: its share in the cluster over its share among all; above 1.
        p_value: hypergeometric, controlled over all clusters and labels of all views (Benjamini and Hochberg).
    """

    label: str
    entities: int
    lift: float
    p_value: float


class ClusterLabels(NamedTuple):
    """What the labels say of one cluster, each entity counted in the cluster with its largest weight.

    Attributes:
        view, cluster: column `cluster` of that view's weights.
        size: labelled entities in it.
        commonest: the most frequent first label, or None in an empty cluster.
        purity: share of the entities whose first label that is, in [0, 1]; 0 in an empty cluster.
        labels: the labels that stand out, greatest lift first.
    """

    view: int
    cluster: int
    size: int
    commonest: str | None
    purity: float
    labels: list[LabelInCluster]


def purity(clusters: Ints, labels: Ints) -> float:
    """Share of entities whose label is the most frequent one of their cluster, in (0, 1].

    It grows with the number of clusters and with the share of the most frequent label: compare it with that of random
    clusters of the same sizes.

    Args:
        clusters, labels: [m], from 0 on.
    """
    table = np.zeros((int(clusters.max()) + 1, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(table, (clusters, labels), 1)
    return float(table.max(1).sum() / len(clusters))


def lift(weights: npt.NDArray[np.floating], indicator: npt.NDArray[np.bool_]) -> Floats:
    """p(l | k) / p(l) with p(l | k) = Σ_e w_ek y_el / Σ_e w_ek: 1 where a cluster says nothing of a label, 0 or more.

    Args:
        weights: [m, K]; one-hot rows for hard clusters.
        indicator: [m, L].

    Returns:
        [K, L]; NaN for clusters without weight and for labels that nobody has.
    """
    values = np.asarray(weights, dtype=np.float64)
    with_label = values.T @ indicator
    expected = values.sum(0)[:, None] * indicator.mean(0)[None, :]
    found: Floats = np.divide(with_label, expected, out=np.full_like(with_label, np.nan), where=expected > 0)
    return found


class LabelCounts(NamedTuple):
    """How many entities of each cluster have each label.

    Attributes:
        held: [K, L] int64, entities of the cluster with the label.
        sizes: [K] int64, entities of the cluster.
        totals: [L] int64, entities with the label.
        n: entities in all.
    """

    held: Ints
    sizes: Ints
    totals: Ints
    n: int

    @property
    def expected(self) -> Floats:
        """[K, L] of `held` if clusters said nothing of labels: sizes · totals / n."""
        found: Floats = self.sizes[:, None] * self.totals[None, :] / max(1, self.n)
        return found

    def p_values(self) -> Floats:
        """[K, L], hypergeometric: at least `held` of a label among `sizes` entities drawn without replacement."""
        p = np.ones(self.held.shape)
        # none or more is certain; most pairs are of this kind where labels are many, and the function is slow
        k, label = np.nonzero(self.held)
        p[k, label] = hypergeom.sf(self.held[k, label] - 1, self.n, self.totals[label], self.sizes[k])
        return np.clip(p, 0.0, 1.0)


def count_labels(clusters: Ints, n_clusters: int, entities: Ints, label_idx: Ints, n_labels: int) -> LabelCounts:
    """Count the labels in clusters.

    Args:
        clusters: [n] cluster of each entity, from 0 on; below 0: not counted.
        entities, label_idx: [P] pairs of an entity and a label that it has, each once.
    """
    is_counted = clusters >= 0
    at_cluster = clusters[entities]
    known = at_cluster >= 0
    cells = np.bincount(at_cluster[known] * n_labels + label_idx[known], minlength=n_clusters * n_labels)
    held = cells.reshape(n_clusters, n_labels)
    sizes = np.bincount(clusters[is_counted], minlength=n_clusters)
    return LabelCounts(held, sizes, held.sum(0), int(is_counted.sum()))


def over_representation(clusters: Ints, indicator: npt.NDArray[np.bool_], n_clusters: int) -> Floats:
    """[K, L] p-values, hypergeometric: at least so many of a label among as many entities drawn without replacement."""
    entities, label_idx = np.nonzero(indicator)
    return count_labels(clusters, n_clusters, entities, label_idx, indicator.shape[1]).p_values()


def adjusted_together(p_values: Sequence[Floats]) -> list[Floats]:
    """The p-values of all views, V times [K_v, L], adjusted together by Benjamini and Hochberg."""
    adjusted = benjamini_hochberg(np.concatenate(p_values))
    return np.split(adjusted, np.cumsum([len(of_view) for of_view in p_values])[:-1])


def holm(p_values: npt.ArrayLike) -> Floats:
    """p-values adjusted by Holm (1979): rejecting those up to α errs somewhere with a probability of α at most.

    Sorted p_(1) ≤ … ≤ p_(n) become max over j ≤ i of min(1, (n - j + 1) p_(j)). Same shape as given.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, axis=None)
    adjusted = np.empty(p.size)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p.ravel()[order] * np.arange(p.size, 0, -1)))
    return adjusted.reshape(p.shape)


def benjamini_hochberg(p_values: npt.ArrayLike) -> Floats:
    """p-values adjusted by Benjamini and Hochberg (1995), over all of them: a share of α of those up to α is wrong."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted: Floats = np.reshape(false_discovery_control(p, axis=None), p.shape)
    return adjusted


def cluster_labels(
    views: Sequence[npt.NDArray[np.floating]],
    table: LabelTable,
    *,
    alpha: float = 0.05,
    min_lift: float = 1.2,
    min_count: int = 3,
) -> list[ClusterLabels]:
    """What the labels say of every cluster.

    Args:
        views: V times [m, K_v] weights of the entities of `table`.
        table: m entities with their labels.
        alpha: greatest adjusted p-value of a label that stands out.
        min_lift: least lift of such a label.
        min_count: fewest entities with it in the cluster.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha = {alpha}: must lie between 0 and 1")
    hard = [view.argmax(1).astype(np.int64) for view in views]
    n_labels = len(table.labels)
    entities, label_idx = np.nonzero(table.indicator)
    counted = [count_labels(c, v.shape[1], entities, label_idx, n_labels) for c, v in zip(hard, views, strict=True)]
    adjusted = adjusted_together([counts.p_values() for counts in counted])
    found = []
    for view, (clusters, counts, p_values) in enumerate(zip(hard, counted, adjusted, strict=True)):
        firsts = count_labels(clusters, len(p_values), np.arange(len(table)), table.first, n_labels).held
        expected = counts.expected
        for k, size in enumerate(counts.sizes.tolist()):
            lifts = counts.held[k] / np.maximum(expected[k], 1e-12)
            chosen = np.flatnonzero((p_values[k] <= alpha) & (lifts >= min_lift) & (counts.held[k] >= min_count))
            labels = [
                LabelInCluster(table.labels[at], int(counts.held[k, at]), float(lifts[at]), float(p_values[k, at]))
                for at in chosen[np.argsort(-lifts[chosen], kind="stable")].tolist()
            ]
            commonest = table.labels[int(firsts[k].argmax())] if size else None
            share = float(firsts[k].max() / size) if size else 0.0
            found.append(ClusterLabels(view, k, size, commonest, share, labels))
    return found


def coverage(found: Sequence[ClusterLabels], table: LabelTable) -> dict[str, float]:
    """How far clusters and labels explain each other.

    Returns:
        `labels`: share of the labels that stand out in some cluster; `clusters`: share of the clusters in which some
        label stands out; `entities`: share of the pairs of an entity and a view that lie in such a cluster; all in
        [0, 1].
    """
    named = [one for one in found if one.labels]
    total = sum(one.size for one in found)
    return {
        "labels": len({label.label for one in named for label in one.labels}) / len(table.labels),
        "clusters": len(named) / len(found),
        "entities": sum(one.size for one in named) / total,
    }
