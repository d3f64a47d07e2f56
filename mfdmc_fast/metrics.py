"""Error measures of predicted ratings, and measures of rankings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mfdmc_fast.errors import DataError


def rmse(predictions: npt.ArrayLike, ratings: npt.ArrayLike) -> float:
    """Root mean squared error, rating points; both [N], N >= 1, accumulated in float64."""
    errors = _errors(predictions, ratings)
    return float(np.sqrt(np.mean(np.square(errors, out=errors))))


def mae(predictions: npt.ArrayLike, ratings: npt.ArrayLike) -> float:
    """Mean absolute error, rating points; both [N], N >= 1, accumulated in float64."""
    errors = _errors(predictions, ratings)
    return float(np.mean(np.abs(errors, out=errors)))


def ndcg_at(hits: npt.ArrayLike, n_relevant: npt.ArrayLike, k: int = 10) -> npt.NDArray[np.float64]:
    """Normalized discounted cumulative gain of rankings, with gain 1 for a relevant item and 0 for any other.

        DCG = sum over ranks r = 1..k of hit_r / log2(r + 1)
        NDCG = DCG / (sum over r = 1..min(k, n_relevant) of 1 / log2(r + 1))

    Args:
        hits: [U, R] bool: whether the item at each rank is relevant, best first; ranks beyond R have no item.
        n_relevant: [U] relevant items of each user, 1 or more, whether ranked or not.
        k: how many ranks count.

    Returns:
        [U] float64 in [0, 1].
    """
    top, relevant = _rankings(hits, n_relevant, k)
    discounts = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discounts)[np.minimum(relevant, k) - 1]
    gains: npt.NDArray[np.float64] = top @ discounts[: top.shape[1]] / ideal
    return gains


def recall_at(hits: npt.ArrayLike, n_relevant: npt.ArrayLike, k: int = 10) -> npt.NDArray[np.float64]:
    """Share of a user's relevant items that are among the first k: (sum over r = 1..k of hit_r) / n_relevant.

    The divisor is not cut at k, so that a user with more than k relevant items stays below 1.

    Args:
        hits: [U, R] bool: whether the item at each rank is relevant, best first; ranks beyond R have no item.
        n_relevant: [U] relevant items of each user, 1 or more, whether ranked or not.
        k: how many ranks count.

    Returns:
        [U] float64 in [0, 1].
    """
    top, relevant = _rankings(hits, n_relevant, k)
    shares: npt.NDArray[np.float64] = top.sum(axis=1) / relevant
    return shares


def _rankings(
    hits: npt.ArrayLike, n_relevant: npt.ArrayLike, k: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The first k ranks [U, <= k] as zeros and ones, and the relevant items [U]."""
    h, n = np.asarray(hits, dtype=bool), np.asarray(n_relevant, dtype=np.int64)
    if k < 1:
        raise DataError(f"k = {k}: must be 1 or more")
    if h.ndim != 2 or n.shape != h.shape[:1]:
        raise DataError(f"hits must be [users, ranks] and n_relevant [users], got {h.shape} and {n.shape}")
    if (n < 1).any() or (h.sum(axis=1) > n).any():
        raise DataError("every user needs a relevant item, and as many of them as there are hits")
    return h[:, :k].astype(np.float64), n


def _errors(predictions: npt.ArrayLike, ratings: npt.ArrayLike) -> npt.NDArray[np.float64]:
    p, r = np.asarray(predictions), np.asarray(ratings)
    if p.shape != r.shape or p.ndim != 1:
        raise DataError(f"predictions and ratings must be equally long vectors, got {p.shape} and {r.shape}")
    if not len(p):
        raise DataError("there are no ratings to evaluate on")
    errors: npt.NDArray[np.float64] = np.subtract(p, r, dtype=np.float64)  # converts p and r piece by piece
    return errors
