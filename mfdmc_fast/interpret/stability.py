"""Are the clusters of two fits the same? Clusters and views have no order, so both are matched first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score

from mfdmc_fast.errors import ConfigError

Floats = npt.NDArray[np.float64]
Views = Sequence[npt.NDArray[np.floating]]


@dataclass(frozen=True, eq=False)
class Stability:
    """How alike two fits are.

    Attributes:
        similarity: mean over matched views of their similarity, in [-1, 1]; 1: the same weights.
        chance: the same where the entities of the other fit are permuted, mean over permutations; matching looks for
            the best, so it is above 0.
        ami: mean AMI of the hard assignments of matched views.
        matches: (view, view of the other fit, similarity), best first.
    """

    similarity: float
    chance: float
    ami: float
    matches: list[tuple[int, int, float]]


def stability_of(views: Views, others: Views, *, permutations: int = 5, seed: int = 0) -> Stability:
    """Compare two fits of the same entities, in the same order.

    The similarity of two clusters is the correlation of their weights over the entities (0 where one is constant):
    unlike an overlap it does not rise for flat weights. Within a pair of views, clusters are matched one to one for the
    greatest sum (Hungarian method), which is divided by the larger number of clusters: a cluster without a partner
    counts as 0. Views are matched the same way, for the greatest sum of similarities, and the mean is over the larger
    number of views.

    Args:
        views: V times [n, K_v] weights of one fit.
        others: W times [n, L_w] weights of the other fit.
        permutations: for `chance`; 1 or more.
        seed: of these.

    Raises:
        ConfigError: no views, no permutations, or not the same number of entities.
    """
    if not views or not others or permutations < 1 or len({len(view) for view in [*views, *others]}) != 1:
        raise ConfigError("stability needs the weights of the same entities in two fits, and 1 permutation or more")
    ours, theirs = _standardised(views), _standardised(others)
    similarities = _view_similarities(views, others, ours, theirs)
    rows, columns = linear_sum_assignment(similarities, maximize=True)
    n_views = max(len(views), len(others))
    generator = np.random.default_rng(seed)
    chance = []
    for _ in range(permutations):
        dealt = _view_similarities(views, others, ours, theirs[generator.permutation(len(theirs))])
        chance.append(dealt[linear_sum_assignment(dealt, maximize=True)].sum() / n_views)
    matches = [(int(a), int(b), float(similarities[a, b])) for a, b in zip(rows, columns, strict=True)]
    amis = [adjusted_mutual_info_score(views[a].argmax(1), others[b].argmax(1)) for a, b, _ in matches]
    return Stability(
        similarity=float(similarities[rows, columns].sum() / n_views),
        chance=float(np.mean(chance)),
        ami=float(np.sum(amis) / n_views),
        matches=sorted(matches, key=lambda match: -match[2]),
    )


def _standardised(views: Views) -> Floats:
    """[n, S] columns of length 1 around 0; constant ones are 0."""
    w = np.concatenate([np.asarray(view, dtype=np.float64) for view in views], axis=1)
    w -= w.mean(0)
    length = np.sqrt((w**2).sum(0))
    found: Floats = np.divide(w, length, out=np.zeros_like(w), where=length > 1e-9)
    return found


def _view_similarities(views: Views, others: Views, ours: Floats, theirs: Floats) -> Floats:
    """[V, W] similarity of every pair of views, clusters matched."""
    correlations = ours.T @ theirs
    of_a = np.cumsum([0, *(view.shape[1] for view in views)])
    of_b = np.cumsum([0, *(view.shape[1] for view in others)])
    found = np.empty((len(views), len(others)))
    for a in range(len(views)):
        for b in range(len(others)):
            block = correlations[of_a[a] : of_a[a + 1], of_b[b] : of_b[b + 1]]
            found[a, b] = block[linear_sum_assignment(block, maximize=True)].sum() / max(block.shape)
    return found
