"""Error measures of predicted ratings."""

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


def _errors(predictions: npt.ArrayLike, ratings: npt.ArrayLike) -> npt.NDArray[np.float64]:
    p, r = np.asarray(predictions), np.asarray(ratings)
    if p.shape != r.shape or p.ndim != 1:
        raise DataError(f"predictions and ratings must be equally long vectors, got {p.shape} and {r.shape}")
    if not len(p):
        raise DataError("there are no ratings to evaluate on")
    errors: npt.NDArray[np.float64] = np.subtract(p, r, dtype=np.float64)  # converts p and r piece by piece
    return errors
