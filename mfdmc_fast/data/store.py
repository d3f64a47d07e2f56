"""Ratings that `mfdmc prepare` has laid out on disk; `mfdmc_fast.data.store_files` has the format."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data.blocks import BLOCK, blocks
from mfdmc_fast.data.dataset import PART, Columns, RatingsDataset
from mfdmc_fast.data.ratings import Ratings, ReadReport
from mfdmc_fast.data.store_files import check_file, dtype_of, read_checked, read_column, read_manifest
from mfdmc_fast.data.vocabulary import Vocabulary, ids_from_arrays
from mfdmc_fast.errors import DataError

# ratings that the native engine deals into batches at a time
DEALT_AT_ONCE = 1 << 24


class Store:
    """A folder of ratings in (user, item) order, no pair twice.

    Opening it reads the manifest and compares the sizes of the files. Checksums are compared where a file is read: of
    ids and offsets at once, of ratings by `load`, `ratings` and `check`.

    Args:
        path: the folder that `mfdmc prepare` wrote.

    Attributes:
        path: the folder.
        scale: lowest and highest rating, rating points.
        report: what reading the sources dropped.

    Raises:
        DataError: no store, damaged, or of a newer format; the message names the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._manifest = read_manifest(self.path)
        self.scale: tuple[float, float] = self._manifest.rating_scale
        self.report: ReadReport = self._manifest.report

    def __len__(self) -> int:
        return self._manifest.ratings

    @property
    def n_users(self) -> int:
        """Users with ratings."""
        return self._manifest.users

    @property
    def n_items(self) -> int:
        """Items with ratings."""
        return self._manifest.items

    @cached_property
    def users(self) -> Vocabulary:
        """Raw user ids of the rows."""
        return self._vocabulary("users", self.n_users)

    @cached_property
    def items(self) -> Vocabulary:
        """Raw item ids of the rows."""
        return self._vocabulary("items", self.n_items)

    @cached_property
    def user_offsets(self) -> npt.NDArray[np.int64]:
        """[n_users + 1] user u has the ratings offsets[u] : offsets[u + 1]."""
        offsets = self._checked("user_offsets.i64")
        if offsets[0] != 0 or offsets[-1] != len(self) or (offsets[1:] <= offsets[:-1]).any():
            raise DataError("damaged: not ascending from 0 to the ratings", source=str(self.path / "user_offsets.i64"))
        return offsets

    @cached_property
    def item_counts(self) -> npt.NDArray[np.int64]:
        """[n_items] ratings of each item."""
        return self._checked("item_counts.i64")

    @property
    def rating_values(self) -> npt.NDArray[np.float64] | None:
        """The distinct ratings that bytes of `ratings.u8` number; None where the file holds ratings."""
        values = self._manifest.rating_values
        return None if values is None else np.array(values)

    @property
    def item_path(self) -> Path:
        """The file of item rows [N] int32."""
        return self.path / "items.i32"

    @property
    def rating_path(self) -> Path:
        """The file of ratings [N]: float32, or uint8 positions in `rating_values`."""
        return self.path / self._manifest.rating_file

    @property
    def fingerprint(self) -> str:
        """A text that two stores share only if their files have the same checksums."""
        found = hashlib.blake2b(digest_size=16)
        for name in sorted(self._manifest.files):
            found.update(f"{name} {self._manifest.files[name]}\n".encode())
        return found.hexdigest()

    def check(self) -> None:
        """Compare the checksums of all files; DataError names the first that is damaged."""
        for name in self._manifest.expected():
            check_file(self.path / name, self._manifest.files[name])

    def load(self) -> RatingsDataset:
        """All ratings encoded in memory, in (user, item) order, without timestamps: 12 bytes a rating."""
        return RatingsDataset(
            np.repeat(np.arange(self.n_users, dtype=np.int32), np.diff(self.user_offsets)),
            self._checked("items.i32"),
            self._decoded(self._checked(self.rating_path.name), np.dtype(np.float32)),
            self.users,
            self.items,
        )

    def ratings(self) -> Ratings:
        """All ratings in memory with raw ids, in the order of the store, with timestamps where there are any."""
        times = self._manifest.timestamps
        users, items = self.pairs()
        return Ratings(
            users,
            items,
            self._decoded(self._checked(self.rating_path.name), np.dtype(np.float64)),
            None if times is None else self._checked(f"timestamps.{times}"),
            source=str(self.path),
            report=self.report,
            distinct=True,
        )

    def pairs(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Raw user and item ids [N] of all ratings, in memory."""
        return np.repeat(self.users.ids, np.diff(self.user_offsets)), self.items.ids[self._checked("items.i32")]

    def ratings_between(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Ratings [start, stop) of the store, rating points."""
        return self._decoded(read_column(self.rating_path, start, stop - start), np.dtype(np.float32))

    def _decoded(self, stored: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        values = self.rating_values
        if values is None:
            return stored.astype(dtype, copy=False)
        table: npt.NDArray[Any] = values.astype(dtype)
        if len(stored) and stored.max() >= len(table):
            raise DataError("damaged: a code stands for no rating", source=str(self.rating_path))
        decoded: npt.NDArray[Any] = table[stored]
        return decoded

    def _vocabulary(self, side: str, n: int) -> Vocabulary:
        names = [name for name in self._manifest.expected() if name.startswith(f"{side}.") and name.count(".") == 2]
        try:
            vocabulary = ids_from_arrays({name.rpartition(".")[0]: self._checked(name) for name in names}, side)
        except (ValueError, KeyError, IndexError) as error:
            raise DataError(f"damaged ids ({error})", source=str(self.path / names[0])) from error
        if len(vocabulary) != n:
            raise DataError(f"{len(vocabulary)} ids instead of {n}", source=str(self.path / names[0]))
        return vocabulary

    def _checked(self, name: str) -> npt.NDArray[Any]:
        """A whole column, its checksum compared."""
        return read_checked(self.path / name, self._manifest.files[name])


def store_at(source: Any) -> Store | None:
    """The store that a source of ratings is: a `Store`, or the path of a folder; None for anything else."""
    if isinstance(source, Store):
        return source
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        return Store(source)
    return None


@dataclass(frozen=True, eq=False)
class StreamedRatings:
    """The ratings of a store as training reads them: piece by piece from the files, again in every epoch.

    Has what training asks of a `RatingsDataset` but the columns in memory.

    Attributes:
        store: where they are.
        dealt_at_once: ratings copied into batches at a time, 12 bytes each; fewer mean more passes over the files.
    """

    store: Store
    dealt_at_once: int = DEALT_AT_ONCE

    def __len__(self) -> int:
        return len(self.store)

    @property
    def users(self) -> Vocabulary:
        """Raw user ids of the rows."""
        return self.store.users

    @property
    def items(self) -> Vocabulary:
        """Raw item ids of the rows."""
        return self.store.items

    @property
    def user_offsets(self) -> npt.NDArray[np.int64]:
        """[n_users + 1] user u has the ratings offsets[u] : offsets[u + 1]."""
        return self.store.user_offsets

    @property
    def item_idx(self) -> npt.NDArray[np.int32]:
        """[N] rows of `items`, mapped: they come from the file when they are looked at."""
        return np.memmap(self.store.item_path, dtype_of(self.store.item_path.name), "c", shape=(len(self),))

    @property
    def counts(self) -> dict[Literal["user", "item"], npt.NDArray[np.int64]]:
        """Ratings of every user and of every item."""
        return {"user": np.diff(self.user_offsets), "item": self.store.item_counts}

    @property
    def scale(self) -> tuple[float, float]:
        """Lowest and highest rating, rating points in single precision."""
        low, high = self.store.scale
        return float(np.float32(low)), float(np.float32(high))

    @property
    def mean(self) -> float:
        """Mean rating, the bits of `RatingsDataset.mean`."""
        parts = (self.store.ratings_between(b.start, b.stop) for b in blocks(len(self), BLOCK))
        return sum(float(part.sum(dtype=np.float64)) for part in parts) / len(self)

    def parts(self) -> Iterator[Columns]:
        """Rows of users, rows of items and ratings, PART at a time, the bits of `RatingsDataset.parts`."""
        offsets = self.user_offsets
        for block in blocks(len(self), PART):
            first, last = np.searchsorted(offsets, [block.start, block.stop - 1], side="right") - 1
            bounds = offsets[first : last + 2].clip(block.start, block.stop)
            counts = bounds[1:] - bounds[:-1]
            users = np.repeat(np.arange(first, last + 1, dtype=np.int32), counts)
            items = read_column(self.store.item_path, block.start, len(users))
            yield users, items, self.store.ratings_between(block.start, block.stop)

    def every(self, step: int) -> Columns:
        """Rows of users, rows of items and ratings of the ratings 0, step, 2 step …"""
        found: list[Columns] = []
        start = 0
        for users, items, ratings in self.parts():
            first = -start % step
            # copies, or they would keep their parts in memory
            found.append((users[first::step].copy(), items[first::step].copy(), ratings[first::step].copy()))
            start += len(users)
        users, items, ratings = (np.concatenate(columns) for columns in zip(*found, strict=True))
        return users, items, ratings

    def sorted(self) -> StreamedRatings:
        """Itself."""
        return self
