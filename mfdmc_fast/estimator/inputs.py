"""The many forms in which people hand over ratings and ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data import Ratings, Store, read_ratings
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


def scale_within(store: Store, given: tuple[float, float] | None) -> tuple[float, float]:
    """The rating scale of a store, or the given one, within which it must lie."""
    if given is None:
        return store.scale
    low, high = float(given[0]), float(given[1])
    if not low <= store.scale[0] <= store.scale[1] <= high:
        raise DataError(
            f"ratings from {store.scale[0]:g} to {store.scale[1]:g} are outside the rating scale {low:g}..{high:g};"
            " prepare it with that scale and on_bad_row='skip' (--rating-scale, --on-bad-row skip) to drop them",
            source=str(store.path),
        )
    return low, high
