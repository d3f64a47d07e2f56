"""Raw ids to row indices and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mfdmc_fast.data import Vocabulary
from mfdmc_fast.errors import DataError

INT64 = st.integers(-(2**63), 2**63 - 1)


def strings(*values: str) -> np.ndarray:
    return np.array(values, dtype=object)


def test_ids_keep_their_order() -> None:
    for ids, kind in ((np.array([7, -3, 5]), "int"), (strings("b", "a", "ß"), "str")):
        vocabulary = Vocabulary(ids)
        assert vocabulary.kind == kind
        assert len(vocabulary) == 3
        assert vocabulary.ids.tolist() == ids.tolist()
        assert vocabulary.encode(ids).tolist() == [0, 1, 2]
        assert vocabulary.encode(ids).dtype == np.int64
        assert vocabulary.decode(np.array([2, 0, 0])).tolist() == ids[[2, 0, 0]].tolist()


def test_from_values_sorts_the_distinct_ids() -> None:
    assert Vocabulary.from_values([30, 4, 30, -1]).ids.tolist() == [-1, 4, 30]
    assert Vocabulary.from_values(np.array([3, 1, 3], dtype=np.uint8)).ids.dtype == np.int64
    assert Vocabulary.from_values(["b", "10", "b", "9"]).ids.tolist() == ["10", "9", "b"]
    assert Vocabulary.from_values(np.array(["y", "x"])).ids.dtype == np.object_


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([12, 999, -5], [0, -1, 1]),
        (["12", "-5", "7"], [0, 1, 2]),
        (["012", "+12", "12.0", " 12", "1_2", "--5", "-", "", "\uff11\uff12"], [-1] * 9),
        ([12.0, 12.5, float("nan"), float("inf"), 1e300], [0, -1, -1, -1, -1]),
        (np.array([12, -5.0, np.nan], dtype=np.float32), [0, 1, -1]),
        (np.array([12, 2**64 - 1], dtype=np.uint64), [0, -1]),
        (np.array([7], dtype=np.int8), [2]),
        ([True, False, None, b"12", (12,), {}, 12 + 0j, pd.NA], [-1] * 8),
        ([12, "7", 7.0, np.int32(-5), np.float64(12), np.str_("12")], [0, 2, 2, 1, 0, 0]),
        ([2**63, -(2**63) - 1, 10**30, "9" * 50], [-1] * 4),
        (np.array([[12, 7], [1, 2]]), [0, 2, -1, -1]),
        (pd.Series([7, 12]), [2, 0]),
        (np.array([True, False]), [-1, -1]),
        (12, [0]),
        ("12", [0]),
        (None, [-1]),
        ([], []),
        (np.array([2.0**63, -(2.0**63)]), [-1, -1]),
    ],
)
def test_whatever_names_an_integer_matches_it(values: Any, expected: list[int]) -> None:
    assert Vocabulary([12, -5, 7, 1_000_000]).encode(values).tolist() == expected
    # The same ids as text, and one that is no number, give the same answers to numbers.
    text = Vocabulary(["12", "-5", "7", "x"])
    if not any(isinstance(value, str) for value in np.ravel(np.array(values, dtype=object))):
        assert text.encode(values).tolist() == expected


def test_strings_match_exactly() -> None:
    vocabulary = Vocabulary(["007", "7", "", "é"])
    assert vocabulary.encode(["007", "7", 7, 7.0, "", "e\u0301", "é"]).tolist() == [0, 1, 1, 1, 2, -1, 3]
    assert vocabulary.encode(np.array(["7", "8"])).tolist() == [1, -1]


def test_extreme_ids() -> None:
    vocabulary = Vocabulary([2**63 - 1, -(2**63), 0])
    assert vocabulary.encode(["9223372036854775807", "-9223372036854775808", 0.0]).tolist() == [0, 1, 2]


def test_an_empty_vocabulary_knows_nothing() -> None:
    for ids in ([], np.array([], dtype=np.int64)):
        vocabulary = Vocabulary(ids)
        assert len(vocabulary) == 0
        assert vocabulary.encode([1, "a", None]).tolist() == [-1, -1, -1]
        assert vocabulary.decode([]).tolist() == []


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([3, 1, 3], "id 3 occurs more than once"),
        (["b", "a", "b"], "id 'b' occurs more than once"),
        ([1, "a"], "ids must be all integers .* or all strings"),
        ([1.5], "ids must be all integers"),
        ([True, False], "ids must be all integers"),
        ([None], "ids must be all integers"),
        ([2**63], "ids must be all integers"),
        (np.array([2**63], dtype=np.uint64), "id 9223372036854775808 is beyond the range of int64"),
    ],
)
def test_other_ids_are_refused(ids: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vocabulary(ids)


@pytest.mark.parametrize("row", [-1, 2])
def test_decoding_an_unknown_index_is_refused(row: int) -> None:
    with pytest.raises(DataError, match=f"row index {row} is outside the vocabulary of 2 ids"):
        Vocabulary([5, 6]).decode([0, row])


@given(st.one_of(st.lists(INT64, unique=True), st.lists(st.text(), unique=True)), st.data())
def test_encode_and_decode_are_inverse(ids: list[Any], data: st.DataObject) -> None:
    vocabulary = Vocabulary(ids)
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1))) if ids else []
    assert vocabulary.encode(vocabulary.decode(rows)).tolist() == rows
    assert vocabulary.decode(vocabulary.encode(ids)).tolist() == ids


@example([-(2**63) + 1, 1.0])  # whose difference is no int64
@given(st.lists(st.one_of(INT64, st.text(max_size=3), st.floats(), st.none(), st.booleans(), st.integers())))
def test_encode_agrees_with_a_dictionary_of_texts(values: list[Any]) -> None:
    def text(value: Any) -> str | None:
        if isinstance(value, bool) or value is None:
            return None
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    integers = sorted({value for value in values if type(value) is int and -(2**63) <= value < 2**63})
    vocabulary = Vocabulary(np.array(integers, dtype=np.int64))
    known = {str(number): row for row, number in enumerate(integers)}
    assert vocabulary.encode(values).tolist() == [known.get(text(value), -1) for value in values]
