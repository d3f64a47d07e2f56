"""All measures of interpretability of one side of a model, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data import read_features
from mfdmc_fast.data.blocks import count_rows
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.interpret.alignment import hard_scores, hardened, label_alignment, labelwise_ami
from mfdmc_fast.interpret.enrichment import benjamini_hochberg, cluster_labels, coverage, holm, purity
from mfdmc_fast.interpret.labels import LabelTable, label_tables
from mfdmc_fast.interpret.probes import label_aucs
from mfdmc_fast.interpret.views import Views, consensus, k_means_clusters, normalised_entropy, redundancy
from mfdmc_fast.model import SideName


@dataclass(frozen=True)
class ViewScores:
    """One view against one family of labels; see `mfdmc_fast.interpret.alignment` for formulas and ranges.

    Attributes:
        ami, nmi: of the hard assignment with the first labels.
        labelwise_ami: of the hard assignment with all labels.
        p_value, p_holm, p_bh: of `ami` by permutation; by itself, and adjusted over the views by Holm and by Benjamini
            and Hochberg.
        soft_ami, soft_nmi, soft_p_value: of the weights with all labels.
        purity: share of entities whose first label is the most frequent of their cluster.
    """

    ami: float
    nmi: float
    labelwise_ami: float
    p_value: float
    p_holm: float
    p_bh: float
    soft_ami: float
    soft_nmi: float
    soft_p_value: float
    purity: float


@dataclass(frozen=True)
class LabelScores:
    """All views against one family of labels.

    Attributes:
        name: of the family.
        entities, labels: how many were compared.
        labelled: share of the entities with enough ratings that have a label.
        commonest: share of the most frequent first label: what `purity` is for a single cluster.
        views: each view.
        mean_ami, mean_p_value, best_ami, best_p_value: over the views, hard; `best_p_value` allows for their number.
        mean_soft_ami, mean_soft_p_value, best_soft_ami, best_soft_p_value: the same with the weights.
        consensus_clusters, consensus_ami, consensus_nmi, consensus_labelwise_ami, consensus_p_value: one partition
            from all views together, see `consensus`.
        auc: vectors → label → cross-validated AUC; `memberships` of all views side by side, `hard` (the same one-hot)
            and, where there are embeddings, `kmeans` (one-hot, as many clusters as all views together) and
            `embeddings`. One-hot clusters are to be compared with `hard`: weights say more by being soft.
        mean_auc: vectors → mean over the labels.
        coverage: see `mfdmc_fast.interpret.enrichment.coverage`.
        clusters: what the labels say of each cluster, see `ClusterLabels`.
    """

    name: str
    entities: int
    labels: int
    labelled: float
    commonest: float
    views: list[ViewScores]
    mean_ami: float
    mean_p_value: float
    best_ami: float
    best_p_value: float
    mean_soft_ami: float
    mean_soft_p_value: float
    best_soft_ami: float
    best_soft_p_value: float
    consensus_clusters: int
    consensus_ami: float
    consensus_nmi: float
    consensus_labelwise_ami: float
    consensus_p_value: float
    auc: dict[str, dict[str, float]]
    mean_auc: dict[str, float]
    coverage: dict[str, float]
    clusters: list[dict[str, Any]]


@dataclass(frozen=True)
class Interpretability:
    """What can be said of the clusters of one side.

    Attributes:
        side: `user` or `item`.
        n_clusters: surviving clusters of each view.
        entropy: normalised entropy of each view, in [0, 1]: 0 sharp, 1 flat.
        mean_entropy: its mean.
        redundancy: mean AMI of pairs of views.
        families: scores by family of labels.
    """

    side: str
    n_clusters: list[int]
    entropy: list[float]
    mean_entropy: float
    redundancy: float
    families: list[LabelScores]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def interpretability(
    model: Any,
    side: SideName,
    features: Any,
    *,
    min_ratings: int = 0,
    min_entities: int = 5,
    consensus_clusters: int | None = None,
    permutations: int = 999,
    folds: int = 5,
    seed: int = 0,
) -> Interpretability:
    """Measure how well the clusters of a fitted MFDMC agree with labels, and what they are like by themselves.

    Args:
        model: a fitted MFDMC.
        side: `user` or `item`.
        features: labels of that side; anything `read_features` takes.
        min_ratings: entities with fewer training ratings are left out of the comparison with labels.
        min_entities: labels that fewer of the others have are left out.
        consensus_clusters: of the partition from all views; unset: the clusters of a view before pruning.
        permutations: of the labels, for p-values.
        folds: of the cross-validated AUC.
        seed: of permutations, folds and k-means.

    Raises:
        ConfigError: a model without clusters, or a wrong setting. DataError: the features cannot be used.
        NotFittedError: not fitted.
    """
    if side not in ("user", "item"):
        raise ConfigError(f"side = {side!r}: must be 'user' or 'item'")
    state = model._state()
    sides = state.model.prunable_sides()
    if side not in sides:
        raise ConfigError(f"{type(model).__name__} has no clusters; measure a fitted MFDMC")
    vocabulary = state.users if side == "user" else state.items
    seen = state.seen
    counts = np.diff(seen.offsets) if side == "user" else count_rows(seen.items, len(vocabulary))
    tables = label_tables(
        read_features(features), vocabulary, counts, min_ratings=min_ratings, min_entities=min_entities
    )
    return measure(
        side,
        [weights.cpu().numpy() for weights in sides[side].assignment_weights()],
        tables,
        embeddings=state.model.embeddings(side).cpu().numpy(),
        consensus_clusters=consensus_clusters or state.model.config.n_clusters,
        permutations=permutations,
        folds=folds,
        seed=seed,
    )


def measure(
    side: str,
    views: Views,
    tables: Sequence[LabelTable],
    *,
    embeddings: npt.NDArray[np.floating] | None = None,
    consensus_clusters: int = 10,
    permutations: int = 999,
    folds: int = 5,
    seed: int = 0,
) -> Interpretability:
    """The measures of any soft or hard clusterings of n entities, for baselines beside a model.

    Args:
        side: for the result.
        views: V times [n, K_v] weights; rows sum to 1.
        tables: labels of some of the n entities.
        embeddings: [n, D], to be compared with the memberships as predictors of labels, or None.
        consensus_clusters: of the partition from all views; a single view is its own consensus.
        permutations, folds, seed: as for `interpretability`.
    """
    entropy = normalised_entropy(views)
    n_clusters = [view.shape[1] for view in views]
    vectors: dict[str, npt.NDArray[np.floating]] = {
        "memberships": np.concatenate(list(views), axis=1),
        "hard": np.concatenate([hardened(view) for view in views], axis=1),
    }
    if embeddings is not None:
        clusters = k_means_clusters(embeddings, min(sum(n_clusters), len(embeddings)), seed)
        vectors |= {"kmeans": np.eye(int(clusters.max()) + 1)[clusters], "embeddings": embeddings}
    agreed = views[0].argmax(1) if len(views) == 1 else consensus(views, consensus_clusters, seed)
    return Interpretability(
        side,
        n_clusters,
        entropy.tolist(),
        float(entropy.mean()),
        redundancy(views),
        [_family(views, vectors, agreed, table, permutations, folds, seed) for table in tables],
    )


def _family(
    views: Views,
    vectors: dict[str, npt.NDArray[np.floating]],
    agreed: npt.NDArray[np.int64],
    table: LabelTable,
    permutations: int,
    folds: int,
    seed: int,
) -> LabelScores:
    soft_views = [view[table.rows] for view in views]
    hard_views = [hardened(view) for view in soft_views]
    partition = agreed[table.rows]
    firsts = np.eye(len(table.labels))[table.first]
    hard = label_alignment(hard_views, firsts, permutations=permutations, seed=seed)
    soft = label_alignment(soft_views, table.shares, permutations=permutations, seed=seed)
    one_hot = np.eye(int(partition.max()) + 1)[partition]
    together = label_alignment([one_hot], firsts, permutations=permutations, seed=seed)
    hard_clusters = [view.argmax(1) for view in soft_views]
    exact = [hard_scores(clusters, table.first) for clusters in hard_clusters]
    adjusted = (holm(hard.p_values), benjamini_hochberg(hard.p_values))
    scores = [
        ViewScores(
            ami=exact[v]["ami"],
            nmi=exact[v]["nmi"],
            labelwise_ami=labelwise_ami(hard_clusters[v], table.indicator),
            p_value=float(hard.p_values[v]),
            p_holm=float(adjusted[0][v]),
            p_bh=float(adjusted[1][v]),
            soft_ami=float(soft.ami[v]),
            soft_nmi=float(soft.nmi[v]),
            soft_p_value=float(soft.p_values[v]),
            purity=purity(hard_clusters[v], table.first),
        )
        for v in range(len(views))
    ]
    aucs = {name: label_aucs(values[table.rows], table, folds=folds, seed=seed) for name, values in vectors.items()}
    of_clusters = cluster_labels(soft_views, table)
    of_partition = hard_scores(partition, table.first)
    return LabelScores(
        name=table.name,
        entities=len(table),
        labels=len(table.labels),
        labelled=table.labelled,
        commonest=float(firsts.mean(0).max()),
        views=scores,
        mean_ami=float(np.mean([one.ami for one in scores])),
        mean_p_value=hard.mean_p_value,
        best_ami=max(one.ami for one in scores),
        best_p_value=hard.best_p_value,
        mean_soft_ami=soft.mean_ami,
        mean_soft_p_value=soft.mean_p_value,
        best_soft_ami=soft.best_ami,
        best_soft_p_value=soft.best_p_value,
        consensus_clusters=int(partition.max()) + 1,
        consensus_ami=of_partition["ami"],
        consensus_nmi=of_partition["nmi"],
        consensus_labelwise_ami=labelwise_ami(partition, table.indicator),
        consensus_p_value=float(together.p_values[0]),
        auc=aucs,
        mean_auc={name: float(np.mean(list(by_label.values()))) for name, by_label in aucs.items()},
        coverage=coverage(of_clusters, table),
        clusters=[{**one._asdict(), "labels": [label._asdict() for label in one.labels]} for one in of_clusters],
    )
