"""Error and ranking measures by hand, their accumulation in double precision, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mfdmc_fast.errors import DataError
from mfdmc_fast.metrics import mae, ndcg_at, recall_at, rmse


def test_by_hand() -> None:
    predictions, ratings = [3.0, 4.0, 1.0, 2.5], [4.0, 2.0, 1.0, 3.0]
    assert rmse(predictions, ratings) == pytest.approx((5.25 / 4) ** 0.5, rel=1e-15)
    assert mae(predictions, ratings) == pytest.approx(3.5 / 4, rel=1e-15)


@pytest.mark.parametrize("measure", [rmse, mae])
def test_perfect_predictions_have_no_error(measure: Callable[..., float]) -> None:
    assert measure([1.5, 2.0], np.array([1.5, 2.0], dtype=np.float32)) == 0.0


@pytest.mark.parametrize("measure", [rmse, mae])
def test_one_rating(measure: Callable[..., float]) -> None:
    value = measure(np.array([2], dtype=np.int64), [5])
    assert value == 3.0
    assert type(value) is float


def test_accumulation_in_double_precision() -> None:
    # in float32, adding 1e-4 to a sum of 1e4 is rounded by several percent
    errors = np.full(1_000_000, 1e-4, dtype=np.float32)
    errors[0] = 1e4
    zeros = np.zeros_like(errors)
    assert mae(errors, zeros) == pytest.approx((1e4 + 999_999 * float(np.float32(1e-4))) / 1e6, rel=1e-12)
    small = np.full(10, 1e-30, dtype=np.float32)  # its square is 0 in float32
    assert rmse(small, np.zeros(10, dtype=np.float32)) == pytest.approx(1e-30, rel=1e-6)


def test_integers_do_not_wrap() -> None:
    assert mae(np.array([0], dtype=np.uint8), np.array([5], dtype=np.uint8)) == 5.0


@pytest.mark.parametrize("measure", [rmse, mae])
@pytest.mark.parametrize(
    ("predictions", "ratings", "message"),
    [
        ([1.0, 2.0], [1.0], r"equally long vectors, got \(2,\) and \(1,\)"),
        ([[1.0]], [[1.0]], r"equally long vectors, got \(1, 1\) and \(1, 1\)"),
        (1.0, 1.0, r"equally long vectors, got \(\) and \(\)"),
        ([], [], "there are no ratings to evaluate on"),
    ],
    ids=["lengths", "matrix", "scalar", "empty"],
)
def test_refusals(predictions: Any, ratings: Any, message: str, measure: Callable[..., float]) -> None:
    with pytest.raises(DataError, match=message):
        measure(predictions, ratings)


def test_rankings_by_hand() -> None:
    hits = [[True, False, True], [False, False, False], [True, True, False]]
    relevant = [3, 1, 2]
    # discounts of the ranks 1, 2, 3: 1, 1 / log2(3) = 0.63093, 1 / 2
    three = 1 + 0.6309297535714575 + 0.5
    np.testing.assert_allclose(ndcg_at(hits, relevant, 3), [1.5 / three, 0.0, 1.0], rtol=1e-15)
    np.testing.assert_allclose(ndcg_at(hits, relevant, 2), [1 / 1.6309297535714575, 0.0, 1.0], rtol=1e-15)
    np.testing.assert_allclose(recall_at(hits, relevant, 3), [2 / 3, 0.0, 1.0], rtol=1e-15)
    np.testing.assert_allclose(recall_at(hits, relevant, 1), [1 / 3, 0.0, 1 / 2], rtol=1e-15)


def test_fewer_ranks_than_k_and_more_relevant_items_than_k() -> None:
    assert ndcg_at([[True]], [1], 10) == 1.0
    assert recall_at([[True]], [4], 10) == 0.25
    assert ndcg_at([[True, True]], [7], 2) == 1.0
    assert recall_at([[True, True]], [8], 2) == 0.25
    assert ndcg_at(np.empty((0, 10), dtype=bool), np.empty(0, dtype=int)).shape == (0,)


@pytest.mark.parametrize("measure", [ndcg_at, recall_at])
@pytest.mark.parametrize(
    ("hits", "relevant", "k", "message"),
    [
        ([[True]], [1], 0, "k = 0: must be 1 or more"),
        ([True], [1], 10, r"got \(1,\) and \(1,\)"),
        ([[True]], [1, 1], 10, r"got \(1, 1\) and \(2,\)"),
        ([[False]], [0], 10, "every user needs a relevant item"),
        ([[True, True]], [1], 10, "as many of them as there are hits"),
    ],
    ids=["k", "vector", "lengths", "none-relevant", "too-many-hits"],
)
def test_refusals_of_rankings(measure: Callable[..., Any], hits: Any, relevant: Any, k: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure(hits, relevant, k)
