"""How well clusters agree with labels: mutual information, hard and soft, with permutation tests.

Mutual information is in nats. Of a joint distribution p(k, l) of clusters k and labels l:

    MI = Σ_kl p(k, l) ln(p(k, l) / (p(k) p(l)))        NMI = MI / ((H(k) + H(l)) / 2)
    AMI = (MI - E) / ((H(k) + H(l)) / 2 - E)           E: the mean of MI where labels are dealt to entities at random

NMI lies in [0, 1] and grows with the number of clusters even where they mean nothing; AMI is 0 on average then, 1 at
most, and may be slightly negative (Vinh, Epps and Bailey, 2010). Where an entropy is 0 both are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from sklearn.metrics.cluster import expected_mutual_information

from mfdmc_fast.data.blocks import blocks
from mfdmc_fast.errors import ConfigError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Views = Sequence[npt.NDArray[np.floating]]
# numbers in the largest array that a block of permutations needs
_BLOCK_NUMBERS = 4_000_000


@dataclass(frozen=True, eq=False)
class Alignment:
    """Agreement of V views with one family of labels.

    Attributes:
        nmi, ami: [V] of each view.
        p_values: [V] one-sided: how often random labels agree at least as well.
        mean_ami, mean_p_value: mean over the views; random labels are dealt to all views alike.
        best_ami, best_p_value: best view; the p-value asks how often the best of V views does so well, and thereby
            allows for V.
    """

    nmi: Floats
    ami: Floats
    p_values: Floats
    mean_ami: float
    mean_p_value: float
    best_ami: float
    best_p_value: float


def hardened(view: npt.NDArray[np.floating]) -> Floats:
    """[n, K] one-hot rows: the cluster with the largest weight, the first of equal ones."""
    one_hot = np.zeros(view.shape)
    one_hot[np.arange(len(view)), view.argmax(1)] = 1.0
    return one_hot


def mutual_information(joint: Floats) -> Floats:
    """MI of joint distributions [..., K, L] that sum to 1 each; shape [...]."""
    expected = joint.sum(-1, keepdims=True) * joint.sum(-2, keepdims=True)
    positive = joint > 0
    logs = np.log(np.divide(joint, expected, out=np.ones_like(joint), where=positive))
    found: Floats = np.maximum((joint * logs).sum((-1, -2)), 0.0)
    return found


def hard_scores(clusters: Ints, labels: Ints) -> dict[str, float]:
    """`ami`, exactly adjusted, and `nmi` of two partitions [m], by scikit-learn with arithmetic means."""
    return {
        "ami": float(adjusted_mutual_info_score(labels, clusters)),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
    }


def labelwise_ami(clusters: Ints, indicator: npt.NDArray[np.bool_]) -> float:
    """Adjusted mutual information of clusters with labels of which an entity may have several.

    Each label is a yes or no: Σ_l (MI_l - E_l) / Σ_l (H_l - E_l), with MI_l between cluster and label l, E_l its exact
    expectation where both partitions keep their sizes, and H_l the label's entropy, its greatest possible value.
    So a label weighs as much as there is to know about it; 1 where clusters determine all labels, 0 on average where
    they say nothing, slightly negative at worst. Normalised by the entropy of the labels alone, it is lower for many
    labels than AMI is, and to be compared with itself only.

    Args:
        clusters: [m].
        indicator: [m, L].
    """
    m = len(clusters)
    _, of = np.unique(clusters, return_inverse=True)
    having = np.zeros((int(of.max()) + 1, indicator.shape[1]), dtype=np.int64)
    np.add.at(having, of, indicator)
    sizes = np.bincount(of)
    above = possible = 0.0
    for with_label in having.T:
        table = np.stack([with_label, sizes - with_label], axis=1)
        if not table.sum(0).all():  # all or none: there is nothing to know
            continue
        chance = expected_mutual_information(csr_matrix(table), m)
        p = table.sum(0) / m
        above += float(mutual_information(table / m)) - chance
        possible += float(-(p * np.log(p)).sum()) - chance
    return above / possible if possible > 0 else 0.0


def label_alignment(views: Views, shares: Floats, *, permutations: int = 999, seed: int = 0) -> Alignment:
    """Soft agreement: p(k, l) = mean over entities e of w_ek · y_el, with weights w and shares y of labels.

    With one-hot weights and labels these are the usual NMI and AMI, with E as the mean over permutations. Flat weights
    have low scores by nature: a soft cluster of everybody says nothing. Labels are permuted among entities, jointly
    for all views; p = (1 + permutations at least as good) / (1 + permutations).

    Args:
        views: V times [m, K_v] weights; rows sum to 1.
        shares: [m, L], rows sum to 1: `LabelTable.shares`, or one-hot labels.
        permutations: how many; 1 or more. The smallest possible p-value is 1 / (1 + permutations).
        seed: of the permutations.

    Raises:
        ConfigError: no views, no permutations, or not as many rows everywhere.
    """
    m = len(shares)
    if not views or permutations < 1 or m == 0 or any(len(view) != m for view in views):
        raise ConfigError(
            "alignment needs one view or more, 1 permutation or more, and as many rows of labels as of weights"
        )
    weights = np.concatenate([np.asarray(view, dtype=np.float64) for view in views], axis=1)
    edges = np.cumsum([view.shape[1] for view in views])[:-1]
    generator = np.random.default_rng(seed)

    def mi_of(joint: Floats) -> Floats:  # [..., S, L] → [..., V]
        return np.stack([mutual_information(part) for part in np.split(joint, edges, axis=-2)], axis=-1)

    observed = mi_of(weights.T @ shares / m)
    chance = np.empty((permutations, len(views)))
    per_block = max(1, _BLOCK_NUMBERS // (max(m, weights.shape[1]) * shares.shape[1]))
    for block in blocks(permutations, per_block):
        n = block.stop - block.start
        orders = np.argsort(generator.random((m, n)), axis=0)
        dealt = shares[orders].reshape(m, -1)  # [m, n * L]
        joint = (weights.T @ dealt / m).reshape(weights.shape[1], n, -1).transpose(1, 0, 2)
        chance[block] = mi_of(np.ascontiguousarray(joint))
    label_entropy = _entropy(shares.mean(0))
    bound = np.array([(_entropy(part) + label_entropy) / 2 for part in np.split(weights.mean(0), edges)])
    expected = chance.mean(0)
    ami, ami_chance = (_ratio(mi - expected, bound - expected) for mi in (observed, chance))
    return Alignment(
        nmi=_ratio(observed, bound),
        ami=ami,
        p_values=add_one_p_values(observed, chance),
        mean_ami=float(ami.mean()),
        mean_p_value=float(add_one_p_values(ami.mean(), ami_chance.mean(1))),
        best_ami=float(ami.max()),
        best_p_value=float(add_one_p_values(ami.max(), ami_chance.max(1))),
    )


def add_one_p_values(observed: npt.ArrayLike, chance: Floats) -> Floats:
    """(1 + values of chance [P, ...] that are at least as great) / (1 + P); never 0 (Phipson and Smyth, 2010).

    Values that differ by rounding alone count as equal.
    """
    slack = 1e-12 * (1 + np.abs(observed))
    found: Floats = (1 + (chance >= np.asarray(observed) - slack).sum(0)) / (1 + len(chance))
    return found


def _entropy(p: Floats) -> float:
    positive = p[p > 0]
    return float(-(positive * np.log(positive)).sum())


def _ratio(above: Floats, below: Floats) -> Floats:
    """Quotients; 0 where there is nothing to share."""
    possible = np.broadcast_to(below, above.shape) > 1e-12
    return np.divide(above, below, out=np.zeros_like(above), where=possible)
