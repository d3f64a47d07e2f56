"""The many forms in which people hand over ratings and ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data import Ratings, read_ratings
from mfdmc_fast.errors import DataError


def as_ratings(source: Any, y: npt.ArrayLike | None, scale: tuple[float, float] | None) -> Ratings:
    """Ratings from what `fit` takes."""
    if y is not None:
        source = (*id_columns(source), np.asarray(y))
    return read_ratings(source, rating_scale=scale)


def id_columns(pairs: Any) -> tuple[Any, Any]:
    """User and item ids of a two-column array, list of pairs or data frame, each with its own dtype."""
    if hasattr(pairs, "iloc"):
        columns = [pairs.iloc[:, k].to_numpy() for k in range(pairs.shape[1])]
    elif hasattr(pairs, "get_columns"):
        columns = [column.to_numpy() for column in pairs.get_columns()]
    else:
        array = np.asarray(pairs)
        columns = list(array.T) if array.ndim == 2 else []
    if len(columns) != 2:
        raise DataError("X must have two columns, user ids and item ids; or pass predict(users, items)")
    return columns[0], columns[1]


def paired(users: Any, items: Any) -> tuple[Any, Any]:
    """Two equally long id vectors; a single id is repeated to the length of the other."""
    n_users, n_items = (1 if np.ndim(x) == 0 else len(x) for x in (users, items))
    if n_users == n_items:
        return users, items
    if np.ndim(users) == 0:
        return [users] * n_items, items
    if np.ndim(items) == 0:
        return users, [items] * n_users
    raise DataError(f"users and items must be equally long, got {n_users} and {n_items}")
