"""Labels of users and items: which columns become labels, which are left out, and which entities have them."""

from __future__ import annotations

import datetime
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mfdmc_fast.data import Features, Vocabulary, make_planted_ratings, read_features
from mfdmc_fast.errors import DataError
from mfdmc_fast.estimator import BayesianMF

U_ITEM = (
    "1|Toy Story (1995)|01-Jan-1995||http://x/1|0|0|1\n"
    "2|Café Noir (1995)|02-Feb-1995||http://x/2|0|1|1\n"
    "3|Four Rooms (1960)|03-Mar-1960||http://x/3|0|1|0\n"
    "4|unknown|||http://x/4|1|0|0\n"
    "5|Get Shorty (1960)|04-Apr-1960||http://x/5|0|0|1\n"
)
U_USER = "1|24|M|technician|85711\n2|53|F|other|94043\n3|24|M|writer|T8H1N\n4|53|F|writer|43537\n5|33|F|other|15213\n"
U_USER += "6|24|M|other|01234\n"
MOVIES = (
    "1::Toy Story (1995)::Animation|Comedy\n2::Jumanji (1960)::Adventure\n3::Waiting, to (1995)::Comedy|Drama\n"
    "7::Sabrina (1960)::Comedy\n"
)
USERS = "1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::16::55117-1234\n4::M::25::10::02460\n"


def held(features: Features, vocabulary: Vocabulary | None = None) -> dict[str, set[Any]]:
    """The ids that hold each label, as `block: label`; with a vocabulary what `bags` gives for it."""
    if vocabulary is None:
        found: dict[str, set[Any]] = {}
        for block in features.blocks:
            for row, label in zip(block.rows.tolist(), block.label_idx.tolist(), strict=True):
                found.setdefault(f"{block.name}: {block.labels[label]}", set()).add(features.ids[row])
        return found
    return {
        f"{k}.{f}": set(vocabulary.decode(entities[offsets[f] : offsets[f + 1]]).tolist())
        for k, (offsets, entities) in enumerate(features.bags(vocabulary))
        for f in range(len(offsets) - 1)
    }


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode("latin-1") if isinstance(content, str) else content)
    return path


class TestPublishedFormats:
    """The metadata of MovieLens, in their layouts."""

    def test_items_of_100k(self, tmp_path: Path) -> None:
        features = read_features(write(tmp_path / "u.item", U_ITEM))
        assert features.ids.tolist() == [1, 2, 3, 4, 5]
        assert held(features) == {
            "column 3 year: 1995": {1, 2},
            "column 3 year: 1960": {3, 5},
            "flags: column 6": {4},
            "flags: column 7": {2, 3},
            "flags: column 8": {1, 2, 5},
        }
        assert set(features.ignored) == {"column 2", "column 4", "column 5"}
        assert "nearly every row has a value of its own" in features.ignored["column 2"]
        assert features.ignored["column 4"] == "is empty"

    def test_users_of_100k(self, tmp_path: Path) -> None:
        features = read_features(write(tmp_path / "u.user", U_USER))
        assert held(features) == {
            "age: 24": {1, 3, 6},
            "age: 53": {2, 4},
            "age: 33": {5},
            "gender: M": {1, 3, 6},
            "gender: F": {2, 4, 5},
            "occupation: technician": {1},
            "occupation: other": {2, 5, 6},
            "occupation: writer": {3, 4},
        }
        assert list(features.ignored) == ["zip code"]

    def test_movies_of_1m(self, tmp_path: Path) -> None:
        features = read_features(write(tmp_path / "movies.dat", MOVIES))
        assert held(features) == {
            "genres: Animation": {1},
            "genres: Comedy": {1, 3, 7},
            "genres: Adventure": {2},
            "genres: Drama": {3},
            "title year: 1995": {1, 3},
            "title year: 1960": {2, 7},
        }

    def test_users_of_1m(self, tmp_path: Path) -> None:
        features = read_features(write(tmp_path / "users.dat", USERS))
        assert [block.name for block in features.blocks] == ["gender", "age", "occupation"]
        assert "zip code" in features.ignored
        assert held(features)["occupation: self-employed"] == {2, 3}
        assert held(features)["age: 56+"] == {2}

    @pytest.mark.data
    @pytest.mark.parametrize(
        ("name", "n", "labels", "ignored"),
        [
            (
                "ml-100k/u.item",
                1682,
                {"release date year": 8, "flags": 19},
                {"title", "video release date", "IMDb URL"},
            ),
            ("ml-100k/u.user", 943, {"age": 10, "gender": 2, "occupation": 21}, {"zip code"}),
            ("ml-1m/movies.dat", 3883, {"genres": 18, "title year": 10}, {"title"}),
            ("ml-1m/users.dat", 6040, {"gender": 2, "age": 7, "occupation": 21}, {"zip code"}),
        ],
        ids=["100k-items", "100k-users", "1m-items", "1m-users"],
    )
    def test_the_files_as_published(
        self, data: Path, name: str, n: int, labels: dict[str, int], ignored: set[str]
    ) -> None:
        features = read_features(data / name)
        assert len(features) == n
        assert {block.name: len(block.labels) for block in features.blocks} == labels
        assert set(features.ignored) == ignored
        bags = features.bags(Vocabulary(np.arange(1, 101)))
        assert len(bags) == len(labels)


class TestColumns:
    """What becomes of a column, by its type and values."""

    TABLE: pd.DataFrame = pd.DataFrame(
        {
            "item_id": np.arange(100),
            "title": [f"title {k}" for k in range(100)],
            "brandId": np.arange(100) % 40,
            "imdb_id": np.arange(100) + 5_000,
            "price": np.arange(100) / 7,
            "stars": np.arange(100) % 3,
            "sold": [k % 2 == 0 for k in range(100)],
            "tags": [f"t{k}|common" for k in range(100)],
            "country": ["de"] * 100,
            "nothing": [None] * 100,
            "made": [datetime.date(1990 + k % 5, 2, 1) for k in range(100)],
        }
    )

    @pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "parquet", "pandas", "polars", "arrow"])
    def test_every_kind_of_source_gives_the_same(self, tmp_path: Path, kind: str) -> None:
        sources = {"pandas": self.TABLE, "polars": pl.DataFrame(self.TABLE.to_dict("list"))}
        sources["arrow"] = pa.Table.from_pandas(self.TABLE)
        text = self.TABLE.to_csv(index=False, sep="\t" if kind == "tsv" else ",")
        files = {"csv": text.encode(), "tsv": text.encode(), "csv.gz": gzip.compress(text.encode())}
        source: Any = sources.get(kind)
        if kind in files:
            source = write(tmp_path / f"items.{kind}", files[kind])
        elif kind == "parquet":
            source = tmp_path / "items.parquet"
            pq.write_table(sources["arrow"], source)
        features = read_features(source)
        assert features.ids.tolist() == list(range(100))
        assert {block.name: len(block.labels) for block in features.blocks} == {
            "brandId": 40,
            "price": 10,
            "stars": 3,
            "tags": 101,
            "made year": 5,
            "sold": 1,
        }
        assert set(features.ignored) == {"title", "imdb_id", "country", "nothing"}
        assert features.ignored["country"] == "is the same in every row"
        assert "is empty" in features.ignored["nothing"]
        labels = held(features)
        assert labels["sold: sold"] == set(range(0, 100, 2))
        assert labels["tags: common"] == set(range(100))
        assert labels["made year: 1991"] == set(range(1, 100, 5))

    def test_bins_hold_equally_many(self) -> None:
        block = read_features(self.TABLE[["item_id", "price"]]).blocks[0]
        assert np.bincount(block.label_idx).tolist() == [10] * 10
        assert block.labels[0] == "0 to 1.28571"
        # in ascending order: the bins cut the line
        assert (np.diff(block.label_idx[np.argsort(block.rows)]) >= 0).all()

    def test_equal_numbers_share_a_bin(self) -> None:
        skewed = np.where(np.arange(200) < 150, 7.0, np.arange(200) / 3)
        block = read_features(pd.DataFrame({"id": np.arange(200), "x": skewed})).blocks[0]
        assert len(set(block.label_idx[:150].tolist())) == 1

    def test_missing_numbers_have_no_label(self) -> None:
        values = np.arange(100.0)
        values[::2] = np.nan
        block = read_features(pd.DataFrame({"id": np.arange(100), "x": values})).blocks[0]
        assert sorted(block.rows.tolist()) == list(range(1, 100, 2))

    def test_lists_are_several_labels(self) -> None:
        table = pa.table({"id": ["x", "y", "z"], "genres": [["a", "b"], ["a"], None]})
        assert held(read_features(table)) == {"genres: a": {"x", "y"}, "genres: b": {"x"}}

    def test_codes_with_leading_zeros_are_text(self, tmp_path: Path) -> None:
        text = "id,region\n1,01\n2,01\n3,1\n4,1\n"
        labels = held(read_features(write(tmp_path / "users.csv", text)))
        assert labels == {"region: 01": {1, 2}, "region: 1": {3, 4}}

    def test_types_that_are_not_read_are_told(self) -> None:
        table = pa.table({"id": [1, 2], "raw": [b"x", b"y"], "kind": ["a", "a"], "which": ["p", None]})
        with pytest.raises(DataError, match=r"no column has labels \(raw: values of type binary are not read; kind"):
            read_features(table.select(["id", "raw", "kind"]))


class TestIds:
    """Which column has the ids, and which entities of a vocabulary they name."""

    @pytest.mark.parametrize(
        ("header", "where"),
        [
            ("movieId,kind,n", 0),
            ("kind,User ID,n", 1),
            ("kind,n,id", 2),
            ("who,kind,n", 0),
        ],
    )
    def test_the_column_of_ids(self, tmp_path: Path, header: str, where: int) -> None:
        columns = [["a", "a", "b"], ["4", "4", "6"]]
        columns.insert(where, ["7", "8", "9"])
        lines = [header, *(",".join(row) for row in zip(*columns, strict=True))]
        features = read_features(write(tmp_path / "x.csv", "\n".join(lines)))
        assert features.ids.tolist() == [7, 8, 9]
        assert {frozenset(ids) for ids in held(features).values()} == {frozenset({7, 8}), frozenset({9})}

    @pytest.mark.parametrize("ids", [[1, 2, 3], ["1", "2", "3"]], ids=["int", "str"])
    def test_ids_match_as_those_of_ratings_do(self, tmp_path: Path, ids: list[Any]) -> None:
        features = read_features(write(tmp_path / "x.csv", "id,kind\n3,b\n1,a\n9,a\n2,a\n"))
        assert held(features, Vocabulary(ids)) == {"0.0": {ids[0], ids[1]}}
        offsets, entities = features.bags(Vocabulary(ids))[0]
        assert (offsets.dtype, entities.dtype) == (np.int64, np.int32)
        assert (offsets.tolist(), entities.tolist()) == ([0, 2], [0, 1])

    def test_only_labels_that_two_entities_share_are_left(self) -> None:
        features = read_features({1: ["a", "b"], 2: ["b", "c"], 3: ["a"], 4: ["d"], 5: ["d"]})
        assert held(features, Vocabulary([3, 2, 1])) == {"0.0": {1, 3}, "0.1": {1, 2}}

    def test_a_label_twice_in_a_row_counts_once(self) -> None:
        features = read_features({1: ["a", "a"], 2: ["a"]})
        assert features.bags(Vocabulary([2, 1]))[0][1].tolist() == [0, 1]
        with pytest.raises(DataError, match="no label is held by 2 of the 1 ids that have ratings"):
            features.bags(Vocabulary([1, 7]))

    def test_blocks_without_labels_are_left_out(self) -> None:
        table = pd.DataFrame({"id": [1, 2, 3, 4], "kind": list("aabb"), "place": list("xyxy")})
        features = read_features(table)
        assert len(features.bags(Vocabulary([1, 2, 3, 4]))) == 2
        assert held(features, Vocabulary([1, 2])) == {"0.0": {1, 2}}

    def test_no_common_id_is_told_with_examples(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.csv", "id,kind\nu3,b\nu1,b\nu2,c\nu4,c\n")
        with pytest.raises(DataError, match=r"x\.csv: none of its ids, such as 'u3', .* of the ratings, such as 5;"):
            read_features(path).bags(Vocabulary([5, 6]))

    def test_mappings(self) -> None:
        features = read_features({"x": "a|b", "y": {"b"}, "z": (), "w": [1]})
        assert held(features) == {"labels: a": {"x"}, "labels: b": {"x", "y"}, "labels: 1": {"w"}}
        assert read_features(features) is features


class TestRefusals:
    """Unusable sources are told with file, row, column and what to do."""

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "x.csv: the file is empty"),
            ("id,kind\n", "no features: there are no data rows"),
            ("id,kind\n1,a\n,b\n", r"row 3, column id: id '' is missing; mend or remove the row"),
            ("id,kind\n1,a\n2\n", r"row 3: 2?1? ?fields where the first line has 2"),
            ("id,kind\n1,a\n2,b\n1,c\n", r"row 4, column id: id 1 occurs again, first in row 2; give every id one row"),
            ("1::a\n2::b\n2::b\n", r"row 3, column 1: id 2 occurs again"),
            ("id\n1\n2\n", "no usual delimiter gives 2 fields per line"),
            ("id,title\n1,a\n2,b\n3,c\n", r"no column has labels \(title: nearly every row has a value of its own"),
        ],
        ids=["empty", "header-only", "no-id", "fields", "twice", "twice-bare", "one-column", "titles"],
    )
    def test_bad_text(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            read_features(write(tmp_path / "x.csv", text))

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ([1, 2], "list is not a source of features; give a path, a table"),
            ({}, "the mapping is empty"),
            ({1: 5}, "id 1 has 5 where an iterable of labels is wanted"),
            ({1: ["a"], "b": ["a"]}, "ids must be all integers"),
            (pd.DataFrame({"id": [1, 2]}), "1 columns; a column of ids and at least one of labels"),
            (pd.DataFrame({"id": [1.5, 2], "x": ["a", "a"]}), "row 1, column id"),
            (pd.DataFrame({"id": [], "x": []}), "no data rows"),
        ],
        ids=["list", "empty", "number", "mixed", "one-column", "fraction", "no-rows"],
    )
    def test_bad_objects(self, source: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            read_features(source)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"none\.csv: no such file"):
            read_features(tmp_path / "none.csv")


def test_features_change_what_the_sampler_draws() -> None:
    """End to end: labels that tell the clusters of users apart arrive in the model."""
    ratings = make_planted_ratings(40, 30, 300, seed=1)
    settings = {"rank": 2, "sweeps": 6, "burn_in": 2, "n_draws": 2, "implicit": False}
    labels = {user: [f"k{user % 3}"] for user in range(1, 41)}
    plain = BayesianMF(**settings).fit(ratings).predict(1, 1)  # type: ignore[arg-type]
    with_users = BayesianMF(**settings).fit(ratings, user_features=labels).predict(1, 1)  # type: ignore[arg-type]
    again = BayesianMF(**settings).fit(ratings, user_features=labels).predict(1, 1)  # type: ignore[arg-type]
    assert with_users == again != plain


class TestTitles:
    def test_of_published_files(self, tmp_path: Path) -> None:
        movies = read_features(write(tmp_path / "movies.dat", MOVIES.replace("Waiting", "Café")))
        assert movies.titles_of(Vocabulary([7, 3, 99])) == ["Sabrina (1960)", "Café, to (1995)", "99"]

    @pytest.mark.data
    def test_of_movielens(self, data: Path) -> None:
        features = read_features(data / "ml-100k" / "u.item")
        assert features.titles_of(Vocabulary([1, 543])) == ["Toy Story (1995)", "Misérables, Les (1995)"]
        assert {"Sci-Fi", "Children's"} <= set(features.blocks[-1].labels)

    def test_of_a_csv_file_with_missing_ones(self, tmp_path: Path) -> None:
        path = write(tmp_path / "items.csv", "item_id,Name,genre\na,Tick & <b>,x\nb,,x\nc,Übung,y\nd,e,y\n")
        features = read_features(path)
        assert features.titles_of(Vocabulary(["c", "b", "a", "z"])) == ["Übung", "b", "Tick & <b>", "z"]

    def test_of_a_frame_and_of_none(self) -> None:
        named = read_features(
            pd.DataFrame({"id": [1, 2], "g": ["x", "y"], "title": ["one", None]}), labels_needed=False
        )
        assert named.titles_of(Vocabulary([1, 2])) == ["one", "2"]
        assert read_features({1: "a", 2: "a"}).titles_of(Vocabulary([2, 1])) == ["2", "1"]

    def test_titles_without_labels(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.csv", "id,title\n1,a\n2,b\n3,c\n")
        features = read_features(path, labels_needed=False)
        assert features.blocks == ()
        assert features.titles_of(Vocabulary([1, 3])) == ["a", "c"]

    def test_names_are_only_given_where_the_number_of_columns_fits(self, tmp_path: Path) -> None:
        features = read_features(write(tmp_path / "movies.dat", "1::a::x::5\n2::b::x::5\n3::c::y::6\n4::d::y::6\n"))
        assert [block.name for block in features.blocks] == ["column 3", "column 4"]
        assert features.titles is None
