"""Encoded ratings: vocabularies, unknown ids, types, order, the scale, and the refusal of what cannot be factorized."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from mfdmc_fast.data import Ratings, RatingsDataset, Vocabulary
from mfdmc_fast.data.blocks import BLOCK
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
    assert (dataset.user_idx.dtype, dataset.item_idx.dtype, dataset.ratings.dtype) == (np.int32, np.int32, np.float32)
    assert len(dataset) == 4
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
    assert dataset.sorted() is dataset
    assert dataset.user_offsets.tolist() == [0, 0, 0]


VOCABULARIES = Vocabulary(range(3)), Vocabulary(range(4))


def columns_of(dataset: RatingsDataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return dataset.user_idx, dataset.item_idx, dataset.ratings


def test_arrays_of_the_right_type_are_taken_as_they_are() -> None:
    columns = np.array([0, 2, -1], np.int32), np.array([3, -1, 0], np.int32), np.array([1, 2, 3], np.float32)
    dataset = RatingsDataset(*columns, *VOCABULARIES)
    assert all(mine is given for mine, given in zip(columns_of(dataset), columns, strict=True))


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.int8])
def test_other_arrays_are_converted(kind: type[np.generic]) -> None:
    table = np.array([[0, 3], [2, 0], [1, 1]], dtype=kind)  # its columns are not contiguous
    dataset = RatingsDataset(table[:, 0], table[:, 1], table[:, 1], *VOCABULARIES)  # type: ignore[arg-type]
    assert [column.tolist() for column in columns_of(dataset)] == [[0, 2, 1], [3, 0, 1], [3.0, 0.0, 1.0]]
    assert [column.dtype for column in columns_of(dataset)] == [np.int32, np.int32, np.float32]
    assert all(column.flags.c_contiguous for column in columns_of(dataset))


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        ([0, 3], [0, 0], "user_idx must hold integers from -1 to 2, not int64 from 0 to 3"),
        ([0, 0], [-2, 0], "item_idx must hold integers from -1 to 3, not int64 from -2 to 0"),
        ([0, 2**32], [0, 0], "user_idx must hold integers"),
        ([0, 1], [0.0, 1.0], "item_idx must hold integers from -1 to 3, not float64"),
        ([0, 1, 2], [0, 1], r"2 ratings, but user_idx has the shape \(3,\)"),
        ([0, 1], [[0, 1]], r"2 ratings, but item_idx has the shape \(1, 2\)"),
    ],
)
def test_rows_that_fit_no_vocabulary_are_refused(users: list[Any], items: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        RatingsDataset(np.array(users), np.array(items), np.ones(2, np.float32), *VOCABULARIES)


def test_vocabularies_beyond_int32_are_refused() -> None:
    class Huge(Vocabulary):
        def __len__(self) -> int:
            return 2**31

    rows = np.zeros(2, np.int32)
    with pytest.raises(DataError, match="item_idx cannot number a vocabulary of 2147483648 ids in int32"):
        RatingsDataset(rows, rows, np.ones(2, np.float32), VOCABULARIES[0], Huge(range(3)))


@pytest.mark.parametrize(
    ("n_users", "n_items"),
    [(3, 4), (70_000, 20), (40, 70_000), (2, 2)],
    ids=["few", "many-users", "many-items", "long-rows"],
)
@pytest.mark.parametrize("n", [1, 50, 2 * BLOCK + 17])
def test_sorting_is_stable(n: int, n_users: int, n_items: int) -> None:
    rng = np.random.default_rng(n)
    users, items = rng.integers(n_users, size=n), rng.integers(n_items, size=n)
    whole = Vocabulary(np.arange(n_users)), Vocabulary(np.arange(n_items))
    dataset = RatingsDataset(users, items, np.arange(n, dtype=np.float32), *whole)  # ratings tell the rows apart
    before = [column.copy() for column in columns_of(dataset)]
    result = dataset.sorted()
    order = np.lexsort((items, users))
    for mine, given, untouched in zip(columns_of(result), columns_of(dataset), before, strict=True):
        assert np.array_equal(mine, given[order])
        assert mine.dtype == given.dtype
        assert np.array_equal(given, untouched)
    assert (result.users, result.items) == whole
    assert result.sorted() is result
    assert np.array_equal(result.user_offsets, np.searchsorted(result.user_idx, np.arange(n_users + 1)))


@pytest.mark.parametrize("at", [0, BLOCK - 2, BLOCK - 1, BLOCK, 2 * BLOCK])
@pytest.mark.parametrize("column", ["user_idx", "item_idx"])
def test_one_step_down_is_noticed_wherever_it_is(column: str, at: int) -> None:
    rows = np.zeros(2 * BLOCK + 2, dtype=np.int32)
    dataset = RatingsDataset(rows, rows.copy(), np.arange(len(rows), dtype=np.float32), *VOCABULARIES)
    assert dataset.sorted() is dataset
    getattr(dataset, column)[at] = 1
    result = dataset.sorted()
    assert getattr(result, column).argmax() == len(rows) - 1
    assert result.ratings[-1] == at


def test_sorting_needs_known_ids() -> None:
    dataset = RatingsDataset(np.array([0, -1, 1]), np.array([-1, -1, 0]), np.ones(3, np.float32), *VOCABULARIES)
    with pytest.raises(DataError, match="2 ratings have ids that are not in the vocabularies"):
        dataset.sorted()


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
