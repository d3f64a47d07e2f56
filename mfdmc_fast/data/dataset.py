"""Encoded ratings: row indices instead of raw ids. Below this module nobody sees a raw id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data.blocks import BLOCK, blocks, count_rows
from mfdmc_fast.data.ratings import Ratings
from mfdmc_fast.data.vocabulary import Vocabulary
from mfdmc_fast.errors import DataError

# ratings that are looked at together where they need not be in memory
PART = 1 << 20

# rows of users and rows of items, [n] int32 each, and [n] float32 ratings
Columns = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class RatingsDataset:
    """Ratings as index triples with their vocabularies: 12 bytes a rating.

    Attributes:
        user_idx: [N] int32 rows of `users`; -1 only where `encode` met an unknown id.
        item_idx: [N] int32 rows of `items`, likewise.
        ratings: [N] float32, rating points.
        users, items: vocabularies, raw id ↔ row.

    Arrays of other integers or floats are copied into these types.

    Raises:
        DataError: arrays of different lengths, row numbers that are not in the vocabularies, or vocabularies that int32
            cannot number.
    """

    user_idx: npt.NDArray[np.int32]
    item_idx: npt.NDArray[np.int32]
    ratings: npt.NDArray[np.float32]
    users: Vocabulary
    items: Vocabulary

    def __post_init__(self) -> None:
        columns = {
            "user_idx": _as_rows("user_idx", self.user_idx, len(self.users)),
            "item_idx": _as_rows("item_idx", self.item_idx, len(self.items)),
            "ratings": np.ascontiguousarray(self.ratings, dtype=np.float32),
        }
        for name, column in columns.items():
            if column.shape != (len(self.ratings),):
                raise DataError(f"{len(self.ratings)} ratings, but {name} has the shape {column.shape}")
            object.__setattr__(self, name, column)

    @classmethod
    def from_ratings(cls, ratings: Ratings) -> RatingsDataset:
        """Build the vocabularies from the ratings themselves (ids in sorted order) and encode.

        Raises:
            DataError: no ratings, or fewer than two users or two items: nothing can be factorized.
        """
        if not len(ratings):
            raise DataError("there are no ratings", source=ratings.source)
        users, items = Vocabulary.from_values(ratings.users), Vocabulary.from_values(ratings.items)
        for name, vocabulary in (("user", users), ("item", items)):
            check_factorizable(name, vocabulary.ids, len(ratings), ratings.source)
        return cls.encode(ratings, users, items)

    @classmethod
    def encode(cls, ratings: Ratings, users: Vocabulary, items: Vocabulary) -> RatingsDataset:
        """Encode with given vocabularies; unknown ids become -1."""
        check_single_precision(max(ratings.ratings.max(initial=0.0), -ratings.ratings.min(initial=0.0)), ratings.source)
        return cls(
            _encoded(ratings.users, users),
            _encoded(ratings.items, items),
            ratings.ratings.astype(np.float32),
            users,
            items,
        )

    def __len__(self) -> int:
        return len(self.ratings)

    def sorted(self) -> RatingsDataset:
        """The ratings in (user, item) order, repeats in their own order: the dataset itself where it is in that order.

        What sorting needs besides the copy is small.

        Raises:
            DataError: ids that are not in the vocabularies.
        """
        unknown = sum(np.count_nonzero((self.user_idx[b] < 0) | (self.item_idx[b] < 0)) for b in blocks(len(self)))
        if unknown:
            raise DataError(f"{unknown} ratings have ids that are not in the vocabularies")
        return self if self._is_sorted() else self._sorted_copy()

    @property
    def user_offsets(self) -> npt.NDArray[np.int64]:
        """[n_users + 1] in user order, user u has the ratings offsets[u] : offsets[u + 1]; needs every user known."""
        return np.concatenate([[0], np.cumsum(count_rows(self.user_idx, len(self.users)))])

    @property
    def counts(self) -> dict[Literal["user", "item"], npt.NDArray[np.int64]]:
        """Ratings of every user and of every item, where all are known."""
        return {
            "user": count_rows(self.user_idx, len(self.users)),
            "item": count_rows(self.item_idx, len(self.items)),
        }

    @property
    def mean(self) -> float:
        """Mean rating, summed block by block, as a store is read."""
        return sum(float(self.ratings[block].sum(dtype=np.float64)) for block in blocks(len(self))) / len(self)

    @property
    def scale(self) -> tuple[float, float]:
        """Lowest and highest rating, rating points."""
        return float(self.ratings.min()), float(self.ratings.max())

    def parts(self) -> Iterator[Columns]:
        """Rows of users, rows of items and ratings, PART at a time."""
        return ((self.user_idx[b], self.item_idx[b], self.ratings[b]) for b in blocks(len(self), PART))

    def every(self, step: int) -> Columns:
        """Rows of users, rows of items and ratings of the ratings 0, step, 2 step …"""
        return self.user_idx[::step], self.item_idx[::step], self.ratings[::step]

    def _is_sorted(self) -> bool:
        for block in blocks(len(self) - 1):
            following = slice(block.start + 1, block.stop + 1)
            users, next_users = self.user_idx[block], self.user_idx[following]
            items_fall = self.item_idx[following] < self.item_idx[block]
            if ((next_users < users) | ((next_users == users) & items_fall)).any():
                return False
        return True

    def _sorted_copy(self) -> RatingsDataset:
        """Moves every rating to its user's, then sorts a few users at a time: no order of all the ratings is held."""
        offsets = self.user_offsets
        users = np.repeat(np.arange(len(self.users), dtype=np.int32), np.diff(offsets))
        items, ratings = np.empty_like(self.item_idx), np.empty_like(self.ratings)
        free = offsets[:-1].copy()  # the next place of each user
        for block in blocks(len(self)):
            order = _stable_order(self.user_idx[block])
            by_user = self.user_idx[block][order]
            first = np.flatnonzero(np.diff(by_user, prepend=-1))  # of each user in the block
            present, counts = by_user[first], np.diff(first, append=len(by_user))
            places = np.repeat(free[present] - first, counts) + np.arange(len(by_user))
            items[places] = self.item_idx[block][order]
            ratings[places] = self.ratings[block][order]
            free[present] += counts
        start = 0
        while start < len(self):
            stop = int(offsets[min(int(np.searchsorted(offsets, start + BLOCK)), len(self.users))])
            order = _stable_order(items[start:stop])
            order = order[_stable_order(users[start:stop][order] - users[start])]
            items[start:stop] = items[start:stop][order]
            ratings[start:stop] = ratings[start:stop][order]
            start = stop
        return RatingsDataset(users, items, ratings, self.users, self.items)

    def take(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> RatingsDataset:
        """The given rows, with the same vocabularies."""
        return RatingsDataset(self.user_idx[rows], self.item_idx[rows], self.ratings[rows], self.users, self.items)


def check_factorizable(name: str, ids: Any, n_ratings: int, source: str) -> None:
    """DataError for fewer than two distinct ids of a side, "user" or "item"."""
    if len(ids) < 2:
        raise DataError(
            f"only one {name} ({ids[:1].tolist()[0]!r}) in {n_ratings} ratings; matrix factorization needs at"
            f" least two. Check which column holds the {name} ids (--{name}-column)",
            source=source,
        )


def check_single_precision(largest: float, source: str) -> None:
    """DataError for ratings up to a size that float32 does not hold."""
    if largest > float(np.finfo(np.float32).max):
        raise DataError(f"ratings reach {largest:g}, beyond single precision; rescale them", source=source)


def _as_rows(name: str, idx: npt.NDArray[Any], n: int) -> npt.NDArray[np.int32]:
    """Row numbers -1 … n - 1 as contiguous int32; no copy where they are that already."""
    if n > np.iinfo(np.int32).max:
        raise DataError(f"{name} cannot number a vocabulary of {n} ids in int32")
    lowest, highest = (int(idx.min()), int(idx.max())) if idx.size else (0, -1)
    if idx.dtype.kind not in "iu" or lowest < -1 or highest >= n:
        raise DataError(f"{name} must hold integers from -1 to {n - 1}, not {idx.dtype} from {lowest} to {highest}")
    return np.ascontiguousarray(idx, dtype=np.int32)


def _encoded(ids: npt.NDArray[Any], vocabulary: Vocabulary) -> npt.NDArray[np.int32]:
    """[N] int32 rows of raw ids [N], -1 for unknown ones."""
    rows = np.empty(len(ids), dtype=np.int32)
    for block in blocks(len(ids)):
        rows[block] = vocabulary.encode(ids[block])
    return rows


def _stable_order(values: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Stable argsort of [N] numbers of 0 or more, 16 bits at a time, for which numpy has a radix sort."""
    order = np.argsort(values.astype(np.uint16), kind="stable")
    shift = 16
    while len(values) and int(values.max()) >> shift:
        order = order[np.argsort((values[order] >> shift).astype(np.uint16), kind="stable")]
        shift += 16
    return order
