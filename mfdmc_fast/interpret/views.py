"""What views are like by themselves: how sharp, how alike, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score

from mfdmc_fast.errors import ConfigError

Floats = npt.NDArray[np.float64]
Views = Sequence[npt.NDArray[np.floating]]


def normalised_entropy(views: Views) -> Floats:
    """[V]: mean over entities of H(w) / ln K, H(w) = -Σ_k w_k ln w_k; 0: one cluster each, 1: flat; 0 where K = 1."""
    found = np.zeros(len(views))
    for at, view in enumerate(views):
        if view.shape[1] > 1:
            w = np.asarray(view, dtype=np.float64)
            logs = np.log(w, out=np.zeros_like(w), where=w > 0)
            found[at] = -(w * logs).sum(1).mean() / np.log(view.shape[1])
    return np.clip(found, 0.0, 1.0)


def redundancy(views: Views) -> float:
    """Mean over the pairs of views of the AMI (arithmetic) of their hard assignments.

    About 0: every view sorts entities in a way of its own; 1: all say the same; 0 for a single view.
    """
    hard = [view.argmax(1) for view in views]
    pairs = [float(adjusted_mutual_info_score(a, b)) for a, b in combinations(hard, 2)]
    return float(np.mean(pairs)) if pairs else 0.0


def k_means_clusters(
    points: npt.NDArray[np.floating], n_clusters: int, seed: int = 0, *, starts: int = 10
) -> npt.NDArray[np.int64]:
    """[n] clusters by k-means, the best of several starts.

    Args:
        points: [n, D].
        n_clusters: at most n.
        seed: of the starts.
        starts: how many, 1 or more.

    Raises:
        ConfigError: more clusters than points, or less than one.
    """
    if not 1 <= n_clusters <= len(points):
        raise ConfigError(f"n_clusters = {n_clusters}: must be at least 1 and at most the {len(points)} entities")
    k_means = KMeans(n_clusters, n_init=starts, random_state=seed)
    found: npt.NDArray[np.int64] = k_means.fit_predict(np.asarray(points, dtype=np.float64)).astype(np.int64)
    return found


def consensus(views: Views, n_clusters: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """[n] one partition from all views: k-means on the weights of all views side by side.

    Every view alone sees a part of what is known of an entity; this is what they say together, as a partition of the
    same kind as k-means on other vectors. Sharp views weigh more than flat ones.
    """
    return k_means_clusters(np.concatenate(list(views), axis=1), n_clusters, seed)
