"""Encoded ratings: vocabularies, unknown ids, the rating scale, and the refusal of what cannot be factorized."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from mfdmc_fast.data import Ratings, RatingsDataset, Vocabulary
from mfdmc_fast.errors import DataError


def make_ratings(users: list[Any], items: list[Any], ratings: list[float] | None = None) -> Ratings:
    def ids(values: list[Any]) -> np.ndarray:
        return np.array(values, dtype=object if values and isinstance(values[0], str) else np.int64)

    numbers = np.array(ratings if ratings is not None else [3.0] * len(users), dtype=np.float64)
    return Ratings(ids(users), ids(items), numbers, source="some.csv")


def test_from_ratings_numbers_the_ids_in_sorted_order() -> None:
    dataset = RatingsDataset.from_ratings(make_ratings([30, 10, 30, 20], ["b", "a", "c", "b"], [1.0, 2.5, 4.0, 5.0]))
    assert dataset.users.ids.tolist() == [10, 20, 30]
    assert dataset.items.ids.tolist() == ["a", "b", "c"]
    assert dataset.user_idx.tolist() == [2, 0, 2, 1]
    assert dataset.item_idx.tolist() == [1, 0, 2, 1]
    assert dataset.ratings.tolist() == [1.0, 2.5, 4.0, 5.0]
    assert (dataset.user_idx.dtype, dataset.item_idx.dtype, dataset.ratings.dtype) == (np.int64, np.int64, np.float32)
    assert len(dataset) == 4
    assert dataset.known.all()
    assert dataset.scale == (1.0, 5.0)


def test_decoding_gives_the_raw_ids_back() -> None:
    ratings = make_ratings([5, -3, 5, 8], ["x", "y", "x", ""])
    dataset = RatingsDataset.from_ratings(ratings)
    assert dataset.users.decode(dataset.user_idx).tolist() == ratings.users.tolist()
    assert dataset.items.decode(dataset.item_idx).tolist() == ratings.items.tolist()


def test_encode_marks_unknown_ids() -> None:
    users, items = Vocabulary([10, 20]), Vocabulary(["a", "b"])
    dataset = RatingsDataset.encode(make_ratings([20, 11, 10, 12], ["c", "a", "b", "c"]), users, items)
    assert dataset.user_idx.tolist() == [1, -1, 0, -1]
    assert dataset.item_idx.tolist() == [-1, 0, 1, -1]
    assert dataset.known.tolist() == [False, False, True, False]
    assert dataset.users is users
    assert dataset.items is items


@pytest.mark.parametrize(
    "rows", [np.array([2, 0, 0]), np.array([True, False, True, False])], ids=["rows-with-repeats", "mask"]
)
def test_take(rows: np.ndarray) -> None:
    dataset = RatingsDataset.from_ratings(make_ratings([30, 10, 30, 20], [1, 2, 3, 1], [1.0, 2.0, 4.0, 5.0]))
    part = dataset.take(rows)
    for name in ("user_idx", "item_idx", "ratings"):
        assert getattr(part, name).tolist() == getattr(dataset, name)[rows].tolist()
    assert part.users is dataset.users
    assert part.items is dataset.items
    assert part.scale == (1.0, 4.0)


@pytest.mark.parametrize("name", ["user", "item"])
def test_a_single_user_or_item_is_refused(name: str) -> None:
    same, different = ["only"] * 3, [1, 2, 3]
    ratings = make_ratings(same, different) if name == "user" else make_ratings(different, same)
    with pytest.raises(DataError) as caught:
        RatingsDataset.from_ratings(ratings)
    message = str(caught.value)
    assert message.startswith(f"some.csv: only one {name} ('only') in 3 ratings")
    assert f"--{name}-column" in message
    assert caught.value.source == "some.csv"


def test_no_ratings_at_all_are_refused() -> None:
    with pytest.raises(DataError):
        RatingsDataset.from_ratings(make_ratings([], []))


def test_ratings_beyond_float32_are_refused() -> None:
    with pytest.raises(DataError):
        RatingsDataset.from_ratings(make_ratings([1, 2], [1, 2], [1e300, 1.0]))


def test_encoding_no_ratings_gives_an_empty_dataset() -> None:
    dataset = RatingsDataset.encode(make_ratings([], []), Vocabulary([1, 2]), Vocabulary([1, 2]))
    assert len(dataset) == 0
    assert dataset.known.shape == (0,)


def test_datasets_compare_by_identity() -> None:
    first, second = (RatingsDataset.from_ratings(make_ratings([1, 2], [1, 2])) for _ in range(2))
    assert first != second
    assert len({first, second, first}) == 2


def test_datasets_are_frozen() -> None:
    dataset = RatingsDataset.from_ratings(make_ratings([1, 2], [1, 2]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.ratings = dataset.ratings[:1]  # type: ignore[misc]


def test_the_ratings_are_a_copy() -> None:
    ratings = make_ratings([1, 2], [1, 2], [1.0, 2.0])
    dataset = RatingsDataset.from_ratings(ratings)
    dataset.ratings[:] = 0
    assert ratings.ratings.tolist() == [1.0, 2.0]
