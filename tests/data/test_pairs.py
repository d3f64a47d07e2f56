"""Reading (user, item) pairs to predict."""

from __future__ import annotations

from pathlib import Path

import pytest

from mfdmc_fast.data import read_pairs
from mfdmc_fast.errors import DataError


@pytest.mark.parametrize(
    ("text", "users", "items"),
    [
        ("user,item\n1,a\n2,b\n", [1, 2], ["a", "b"]),
        ("1\t10\n2\t20\n", [1, 2], [10, 20]),
        ("alice,matrix\nbob,alien\n", ["alice", "bob"], ["matrix", "alien"]),
        ("item_id,user_id,stars\n10,1,5\n20,2,x\n", [1, 2], [10, 20]),
        ("1::10::5::99\n1::20::4::98\n", [1, 1], [10, 20]),
    ],
    ids=["header", "tab", "strings-without-header", "swapped-with-rating", "ratings-file"],
)
def test_pairs_are_read(tmp_path: Path, text: str, users: list[object], items: list[object]) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(text, encoding="utf-8")
    found = read_pairs(path)
    assert [column.tolist() for column in found] == [users, items]


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("when,who,what\n9,1,10\n8,2,20\n", encoding="utf-8")
    users, items = read_pairs(path, user="who", item=2, header=True)
    assert users.tolist() == [1, 2]
    assert items.tolist() == [10, 20]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("user,item\n", "no pairs"),
        ("user,item\n1,2\n,3\n", r"row 3, column user: user '' is missing; mend or remove the row"),
        ("user,item\n1,2\n1,2,3\n", r"row 3: 3 fields where the first line has 2"),
        ("1\n2\n", "no usual delimiter gives 2 fields"),
    ],
    ids=["empty", "header-only", "missing-id", "fields", "one-column"],
)
def test_bad_pairs_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_pairs(path)


def test_a_first_line_without_both_usual_names_is_data(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("user,when\n1,2\n", encoding="utf-8")
    assert read_pairs(path)[0].tolist() == ["user", "1"]
