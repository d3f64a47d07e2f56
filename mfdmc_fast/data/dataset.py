"""Encoded ratings: row indices instead of raw ids. Below this module nobody sees a raw id."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data.ratings import Ratings
from mfdmc_fast.data.vocabulary import Vocabulary
from mfdmc_fast.errors import DataError


@dataclass(frozen=True, eq=False)
class RatingsDataset:
    """Ratings as index triples with their vocabularies.

    Attributes:
        user_idx: [N] int64 rows of `users`; -1 only where `encode` met an unknown id.
        item_idx: [N] int64 rows of `items`, likewise.
        ratings: [N] float32, rating points.
        users, items: vocabularies, raw id ↔ row.
    """

    user_idx: npt.NDArray[np.int64]
    item_idx: npt.NDArray[np.int64]
    ratings: npt.NDArray[np.float32]
    users: Vocabulary
    items: Vocabulary

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
            if len(vocabulary) < 2:
                raise DataError(
                    f"only one {name} ({vocabulary.ids[0]!r}) in {len(ratings)} ratings; matrix factorization needs at"
                    f" least two. Check which column holds the {name} ids (--{name}-column)",
                    source=ratings.source,
                )
        return cls.encode(ratings, users, items)

    @classmethod
    def encode(cls, ratings: Ratings, users: Vocabulary, items: Vocabulary) -> RatingsDataset:
        """Encode with given vocabularies; unknown ids become -1."""
        largest = float(np.abs(ratings.ratings).max(initial=0.0))
        if largest > float(np.finfo(np.float32).max):
            raise DataError(f"ratings reach {largest:g}, beyond single precision; rescale them", source=ratings.source)
        return cls(
            users.encode(ratings.users),
            items.encode(ratings.items),
            ratings.ratings.astype(np.float32),
            users,
            items,
        )

    def __len__(self) -> int:
        return len(self.ratings)

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """[N] the ratings by (user, item), repeats in their own order; needs every id to be known."""
        by_item = _stable_order(self.item_idx)
        return by_item[_stable_order(self.user_idx[by_item])]

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """[N] True where both ids are in the vocabularies."""
        return (self.user_idx >= 0) & (self.item_idx >= 0)

    @property
    def scale(self) -> tuple[float, float]:
        """Lowest and highest rating, rating points."""
        return float(self.ratings.min()), float(self.ratings.max())

    def take(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> RatingsDataset:
        """The given rows, with the same vocabularies."""
        return RatingsDataset(self.user_idx[rows], self.item_idx[rows], self.ratings[rows], self.users, self.items)


def _stable_order(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Stable argsort of [N] numbers of 0 or more, 16 bits at a time, for which numpy has a radix sort."""
    order = np.argsort(values.astype(np.uint16), kind="stable")
    shift = 16
    while len(values) and int(values.max()) >> shift:
        order = order[np.argsort((values[order] >> shift).astype(np.uint16), kind="stable")]
        shift += 16
    return order
