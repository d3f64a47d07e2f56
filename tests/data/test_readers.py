"""Reading text files: layouts, columns, bad rows; any bytes either read or raise an error of the package."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfdmc_fast.data import Ratings, ReadReport, read_ratings
from mfdmc_fast.errors import DataError, MFDMCError

DATA = Path(os.environ.get("MFDMC_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))

TextFile = Callable[[str | bytes], Path]


@pytest.fixture
def text_file(tmp_path: Path) -> TextFile:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "ratings.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def triples(ratings: Ratings) -> list[tuple[Any, Any, float]]:
    return list(zip(ratings.users.tolist(), ratings.items.tolist(), ratings.ratings.tolist(), strict=True))


EXPECTED = [(1, 10, 4.0), (1, 20, 3.5), (2, 10, 1.0)]


# ---- Text ----


@pytest.mark.parametrize("delimiter", ["::", "\t", ",", ";", "|", " "])
@pytest.mark.parametrize("header", ["", "user_id,item_id,rating,timestamp"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_delimiter_and_header_are_detected(text_file: TextFile, delimiter: str, header: str, newline: str) -> None:
    rows = [header] * bool(header) + ["1,10,4,100", "1,20,3.5,90", "2,10,1,80"]
    ratings = read_ratings(text_file(newline.join(rows).replace(",", delimiter)))
    assert triples(ratings) == EXPECTED
    assert ratings.users.dtype == ratings.items.dtype == np.int64
    assert ratings.timestamps is not None
    assert ratings.timestamps.dtype == np.int64
    assert ratings.timestamps.tolist() == [100, 90, 80]
    assert ratings.report == ReadReport(rows=3)


def test_blank_lines_byte_order_mark_and_blanks_around_fields_are_tolerated(text_file: TextFile) -> None:
    content = b"\xef\xbb\xbf\r\n \t\r\nuser , item,rating\r\n1, 10 ,4\r\n\r\n1,20, 3.5\r\n   \r\n2,10,1\r\n,,\r\n\r\n"
    ratings = read_ratings(text_file(content))
    assert triples(ratings) == EXPECTED
    assert ratings.report.rows == 3


def test_runs_of_spaces_and_tabs_count_as_one_delimiter(text_file: TextFile) -> None:
    assert triples(read_ratings(text_file("  1   10 4  \n  1 \t 20 3.5\n2 10    1\n"))) == EXPECTED


def test_quoted_fields_may_hold_delimiters_quotes_and_line_breaks(text_file: TextFile) -> None:
    content = 'user,item,rating,note\n"a, b","say ""x""",4,"two\nlines"\nc,d,2,plain\n'
    ratings = read_ratings(text_file(content), keep="note")
    assert triples(ratings) == [("a, b", 'say "x"', 4.0), ("c", "d", 2.0)]
    assert ratings.columns["note"].tolist() == ["two\nlines", "plain"]


def test_a_single_line_needs_no_line_end(text_file: TextFile) -> None:
    assert triples(read_ratings(text_file("1,10,4"))) == [(1, 10, 4.0)]
    with pytest.raises(DataError, match="no ratings: there are no data rows"):
        read_ratings(text_file("user,item,rating"))


def test_quotes_mean_nothing_with_a_long_delimiter(text_file: TextFile) -> None:
    assert triples(read_ratings(text_file('"a::b::3\nc::d"::4\n'))) == [('"a', "b", 3.0), ("c", 'd"', 4.0)]


def test_text_that_is_not_utf8_is_latin1(text_file: TextFile) -> None:
    assert read_ratings(text_file(b"Andr\xe9,b,3\n")).users.tolist() == ["André"]
    assert read_ratings(text_file("André,b,3\n")).users.tolist() == ["André"]


def test_explicit_delimiter_and_header(text_file: TextFile) -> None:
    assert triples(read_ratings(text_file("a-b~1~2~3\nc~3~4~5"), delimiter="~", user=0, item=1, rating=3)) == [
        ("a-b", 1, 3.0),
        ("c", 3, 5.0),
    ]
    assert len(read_ratings(text_file("1,2,3\n1,3,4\n"), header=True)) == 1
    with pytest.raises(DataError, match="row 1, column 3: rating 'r' is not a finite number"):
        read_ratings(text_file("u,i,r\n1,3,4\n"), header=False)
    assert read_ratings(text_file("1éé2éé3\n"), delimiter="éé").items.tolist() == [2]


def test_a_first_line_with_a_bad_rating_is_not_taken_for_a_header(text_file: TextFile) -> None:
    for first in ("1,2,", "1,2,abc", "a,b,"):
        with pytest.raises(DataError, match="row 1, column 3: rating"):
            read_ratings(text_file(f"{first}\n3,4,5\n"))


def test_gzip_is_read_with_or_without_its_suffix(tmp_path: Path) -> None:
    content = gzip.compress(b"1::10::4\n1::20::3.5\n2::10::1\n")
    for name in ("ratings.dat.gz", "ratings.dat"):
        (tmp_path / name).write_bytes(content)
        assert triples(read_ratings(tmp_path / name)) == EXPECTED


def test_a_path_may_be_text(text_file: TextFile) -> None:
    path = text_file("1,10,4\n1,20,3.5\n2,10,1\n")
    assert triples(read_ratings(str(path))) == EXPECTED
    assert read_ratings(str(path)).source == str(path)


# ---- Columns ----


@pytest.mark.parametrize(
    "header",
    [
        "userId,movieId,rating,timestamp",
        "UID,IID,Stars,ts",
        "user,Book ID,score,time",
        "User-ID,product_id,RATING,date",
    ],
)
def test_usual_names_are_found_in_any_order(text_file: TextFile, header: str) -> None:
    user, item, rating, time = header.split(",")
    ratings = read_ratings(text_file(f"{time},{rating},{user},{item}\n7,4,1,10\n8,3.5,1,20\n9,1,2,10\n"))
    assert triples(ratings) == EXPECTED
    assert ratings.timestamps is not None


def test_unusual_names_fall_back_to_positions(text_file: TextFile) -> None:
    ratings = read_ratings(text_file("who,what,how,when\n1,10,4,7\n"))
    assert triples(ratings) == [(1, 10, 4.0)]
    assert ratings.timestamps is not None
    assert read_ratings(text_file("who,what,how,note\n1,10,4,x\n")).timestamps is None


def test_a_half_usual_header_is_not_guessed(text_file: TextFile) -> None:
    path = text_file("user_id,helpful,item_id,points\n1,0,10,4\n")
    with pytest.raises(DataError, match=r"no rating column found; .* 'user_id', 'helpful', 'item_id', 'points'"):
        read_ratings(path)
    assert triples(read_ratings(path, rating="points")) == [(1, 10, 4.0)]
    assert triples(read_ratings(path, rating=3)) == [(1, 10, 4.0)]


def test_columns_by_position_and_by_name_agree(text_file: TextFile) -> None:
    path = text_file("when,points,what,who,fold\n7.5,4,10,1,a\n8,3.5,20,1,b\n9,1,10,2,a\n")
    by_name = read_ratings(path, user="who", item="what", rating="points", timestamp="when", keep=["fold"])
    by_position = read_ratings(path, user=3, item=2, rating=1, timestamp=0, keep=[4])
    for ratings in (by_name, by_position):
        assert triples(ratings) == EXPECTED
        assert ratings.timestamps is not None
        assert ratings.timestamps.tolist() == [7.5, 8.0, 9.0]
        assert ratings.columns["fold"].tolist() == ["a", "b", "a"]


def test_a_column_with_a_role_is_not_also_found_by_its_usual_name(text_file: TextFile) -> None:
    ratings = read_ratings(text_file("date,item,rating\n1999,10,4\n"), user="date")
    assert triples(ratings) == [(1999, 10, 4.0)]
    assert ratings.timestamps is None
    with pytest.raises(DataError, match="no item column found"):
        read_ratings(text_file("date,item,rating\n1999,10,4\n"), user="item")


def test_kept_columns_without_a_header_are_named_by_position(text_file: TextFile) -> None:
    columns = read_ratings(text_file("1,2,3,4,05\n1,3,3,4,6\n"), keep=(3, 4)).columns
    assert columns["3"].dtype == np.int64
    assert columns["4"].tolist() == ["05", "6"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rating": "points"}, "there is no column 'points'. The columns are 'user', 'item', 'rating'"),
        ({"user": 3}, "there is no column 3. The columns are"),
        ({"user": -1}, "there is no column -1"),
        ({"keep": ["fold"]}, "there is no column 'fold'. The columns are 'user', 'item', 'rating'"),
        ({"user": "item", "item": "item"}, "column item is both user and item"),
        ({"timestamp": "rating", "rating": 2}, "column rating is both rating and timestamp"),
    ],
)
def test_unknown_columns_are_refused(text_file: TextFile, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_ratings(text_file("user,item,rating\n1,2,3\n"), **options)


def test_too_few_columns_are_refused(text_file: TextFile) -> None:
    with pytest.raises(DataError, match=r"there is no column 2\. The source has 2 columns without names"):
        read_ratings(text_file("1,2\n3,4\n"), delimiter=",")
    with pytest.raises(DataError, match="no usual delimiter gives 3 fields per line"):
        read_ratings(text_file("1,2\n3,4\n"))
    with pytest.raises(DataError, match=r"there is no column 'user'\. The source has 3 columns without names"):
        read_ratings(text_file("1,2,3\n3,4,5\n"), header=False, user="user")


# ---- Bad rows ----


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (",10,4", "row 4, column user: user '' is missing"),
        ("1,,4", "row 4, column item: item '' is missing"),
        ("1,10,", "row 4, column rating: rating '' is missing"),
        ("1,10,good", "row 4, column rating: rating 'good' is not a finite number"),
        ("1,10,nan", "row 4, column rating: rating 'nan' is not a finite number"),
        ("1,10,-inf", "row 4, column rating: rating '-inf' is not a finite number"),
        ("1,10,1e999", "row 4, column rating: rating '1e999' is not a finite number"),
        ("1,10,1_0", "row 4, column rating: rating '1_0' is not a finite number"),
        ("1,10,٣", "row 4, column rating: rating '٣' is not a finite number"),
        ("1,10,6", r"row 4, column rating: rating '6' is outside the rating scale 0.5\.\.5"),
        ("1,10", "row 4: 2 fields where the first line has 3"),
        ("1,10,4,5", "row 4: 4 fields where the first line has 3"),
    ],
)
def test_bad_rows_are_named_or_skipped(text_file: TextFile, line: str, message: str) -> None:
    path = text_file(f"user,item,rating\n\n5,6,3\n{line}\n7,8,2\n,,x\n")
    with pytest.raises(DataError, match=message) as caught:
        read_ratings(path, rating_scale=(0.5, 5))
    assert caught.value.source == str(path)
    assert caught.value.row == 4
    assert str(path) in str(caught.value)
    assert "use on_bad_row='skip' (--on-bad-row skip) to drop such rows" in str(caught.value)
    ratings = read_ratings(path, rating_scale=(0.5, 5), on_bad_row="skip")
    assert triples(ratings) == [(5, 6, 3.0), (7, 8, 2.0)]
    assert ratings.report == ReadReport(rows=4, bad_rows_skipped=2, on_bad_row="skip")


def test_line_numbers_hold_across_blocks(text_file: TextFile) -> None:
    lines = [f"{row},{row},3" for row in range(1, 300_001)]
    lines[99_999] = ""
    lines[199_999] = "1,2"
    lines[249_999] = "1,2,x"
    path = text_file("\n".join(lines))
    with pytest.raises(DataError, match="row 200000: 2 fields"):
        read_ratings(path)
    lines[199_999] = ""
    with pytest.raises(DataError, match="row 250000, column 3: rating 'x'"):
        read_ratings(text_file("\n".join(lines)))


def test_a_requested_timestamp_must_be_a_number_others_only_disappear(text_file: TextFile) -> None:
    path = text_file("user,item,rating,time\n1,2,3,100\n1,3,3,noon\n")
    assert read_ratings(path).timestamps is None
    with pytest.raises(DataError, match="row 3, column time: timestamp 'noon' is not a finite number"):
        read_ratings(path, timestamp="time")
    ratings = read_ratings(path, timestamp="time", on_bad_row="skip")
    assert ratings.timestamps is not None
    assert ratings.timestamps.tolist() == [100]


def test_long_values_are_cut_in_messages(text_file: TextFile) -> None:
    with pytest.raises(DataError) as caught:
        read_ratings(text_file("1,2," + "x" * 10_000 + "\n1,2,3\n"), header=False)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "content", ["", "\n\n \n", "user,item,rating\n", "user,item,rating\n\n,,\n", b"\xef\xbb\xbf", ",,\n,,\n"]
)
def test_sources_without_rows_are_refused(text_file: TextFile, content: str | bytes) -> None:
    with pytest.raises(DataError, match=r"no ratings|file is empty"):
        read_ratings(text_file(content))


def test_sources_with_only_bad_rows_are_refused(text_file: TextFile) -> None:
    with pytest.raises(DataError, match="no ratings: all 2 rows are bad"):
        read_ratings(text_file("1,2,x\n1,2\n"), on_bad_row="skip")
    with pytest.raises(DataError, match="no ratings"):
        read_ratings(([], [], []))


# ---- Properties ----

ids = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8),
)
rows = st.lists(
    st.tuples(ids, ids, st.floats(allow_nan=False, allow_infinity=False)),
    min_size=1,
    max_size=30,
    unique_by=lambda row: (str(row[0]), str(row[1])),
)


def expected_ids(values: list[Any]) -> list[Any]:
    texts = [str(value) for value in values]
    try:
        integers = [int(text) for text in texts]
    except ValueError:
        return texts
    fits = all(-(2**63) <= number < 2**63 for number in integers)
    return integers if fits and [str(number) for number in integers] == texts else texts


@settings(deadline=None, max_examples=100)
@given(rows, st.sampled_from(["\t", ",", ";", "|", " "]), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_a_written_table_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    table: list[tuple[Any, Any, float]],
    delimiter: str,
    header: bool,
    newline: str,
) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=newline)
    if header:
        writer.writerow(["user", "item", "rating"])
    writer.writerows([user, item, repr(rating)] for user, item, rating in table)
    path = tmp_path_factory.getbasetemp() / "table.txt"
    path.write_bytes(buffer.getvalue().encode())
    ratings = read_ratings(path, delimiter=delimiter, header=header)
    assert ratings.users.tolist() == expected_ids([user for user, _, _ in table])
    assert ratings.items.tolist() == expected_ids([item for _, item, _ in table])
    assert ratings.ratings.tolist() == [rating for _, _, rating in table]


near_text = st.text(st.sampled_from('0123456789.-eanu,;|:\t "\r\n\x1f_é'), max_size=80).map(str.encode)
names = st.sampled_from(["r.csv", "r.csv.gz", "r.parquet", "r.arrow"])


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.binary(max_size=80), near_text), names, st.sampled_from(["error", "skip"]))
def test_any_bytes_either_read_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str, on_bad_row: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        assert len(read_ratings(path, on_bad_row=on_bad_row)) > 0
    except MFDMCError as error:
        assert str(path) in str(error)  # noqa: PT017 - success is allowed too


# ---- Real data ----


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not in MFDMC_DATA ({DATA})")
    return DATA / name


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "n_rows", "n_repeated", "scale", "timed"),
    [
        ("ml-100k/u1.base", 80_000, 0, (1, 5), True),
        ("filmtrust/ratings.txt", 35_497, 3, (0.5, 4), False),
        ("goodbooks-10k-v1/ratings.parquet", 981_756, 2_278, (1, 5), False),
        ("ml-1m/ratings_first487650.dat.gz", 487_650, 0, (1, 5), True),
        ("amazon-hin/ratings.parquet", 195_791, 0, (1, 5), True),
    ],
)
def test_published_files(name: str, n_rows: int, n_repeated: int, scale: tuple[float, float], timed: bool) -> None:
    ratings = read_ratings(real(name))
    assert ratings.report == ReadReport(rows=n_rows, repeated_pairs=n_repeated)
    assert len(ratings) == n_rows - n_repeated
    assert ratings.scale == scale
    assert (ratings.timestamps is not None) == timed
    assert ratings.users.dtype == ratings.items.dtype == np.int64


@pytest.mark.data
def test_published_fold_and_probe_columns() -> None:
    ratings = read_ratings(real("ml-1m/ratings.parquet"), keep=["fold", "probe"])
    assert len(ratings) == 1_000_209
    assert np.unique(ratings.columns["fold"]).tolist() == [1, 2, 3, 4, 5]
    assert ratings.columns["probe"].sum() == 100_209


@pytest.mark.data
@pytest.mark.parametrize("name", ["ml-100k/u.item", "ml-100k/u.user", "ml-1m/movies.dat"])
def test_published_files_without_ratings_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="row 1, column 3: rating"):
        read_ratings(real(name))
