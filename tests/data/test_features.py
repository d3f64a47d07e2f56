"""Labels of users and items from the files that people have."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mfdmc_fast.data import Vocabulary, read_features
from mfdmc_fast.errors import DataError
from mfdmc_fast.testing import data_folder

MOVIES = (
    "1::Toy Story (1995)::Animation|Comedy\n2::Heat (1995)::Action\n3::Babe (1995)::Comedy\n9::Seven (1995)::Action\n"
)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def labels_of(source: Any, ids: list[Any]) -> list[list[list[Any]]]:
    """For each block, the ids that share a label, label by label."""
    vocabulary = Vocabulary.from_values(np.array(ids))
    blocks = read_features(source).bags(vocabulary)
    for offsets, entities in blocks:
        assert (offsets.dtype, entities.dtype) == (np.int64, np.int32)
    return [[vocabulary.decode(entities[a:b]).tolist() for a, b in pairwise(offsets)] for offsets, entities in blocks]


def test_genres_are_split_and_rare_labels_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "movies.dat", MOVIES)
    assert labels_of(path, [1, 2, 3, 9]) == [[[2, 9], [1, 3]]]
    # the only comedy left has no company
    assert labels_of(path, [2, 3, 9]) == [[[2, 9]]]


def test_what_says_nothing_is_ignored_with_the_reason(tmp_path: Path) -> None:
    features = read_features(write(tmp_path / "movies.dat", MOVIES))
    assert list(features.ignored) == ["column 2"]
    assert "value of its own" in features.ignored["column 2"]


def test_csv_pandas_and_mappings_mean_the_same(tmp_path: Path) -> None:
    frame = pd.DataFrame({"item_id": [4, 5, 6, 7], "kind": ["a", "b", "a", "b"]})
    frame.to_csv(tmp_path / "items.csv", index=False)
    frame.to_parquet(tmp_path / "items.parquet")
    expected = [[[4, 6], [5, 7]]]
    mapping = dict(zip(frame["item_id"].tolist(), frame["kind"].tolist(), strict=True))
    for source in (tmp_path / "items.csv", tmp_path / "items.parquet", frame, mapping):
        assert labels_of(source, [4, 5, 6, 7]) == expected


def test_numbers_of_many_values_become_bins() -> None:
    frame = pd.DataFrame({"id": range(100), "price": np.linspace(1, 50, 100)})
    blocks = labels_of(frame, list(range(100)))
    assert len(blocks[0]) == 10
    assert all(9 <= len(label) <= 11 for label in blocks[0])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("id,kind\n1,a\n1,b\n", "occurs again, first in row 2"),
        ("id,kind\n", "no features"),
        ("", "empty"),
        ("id,title\n1,abc\n2,def\n3,ghi\n", "no column has labels"),
    ],
)
def test_unusable_tables_are_refused(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        read_features(write(tmp_path / "items.csv", text))


def test_ids_of_another_side_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "movies.dat", MOVIES)
    with pytest.raises(DataError, match="none of its ids"):
        labels_of(path, [100, 200])


@pytest.mark.data
def test_the_published_metadata_of_movielens() -> None:
    folder = data_folder()
    if folder is None:
        pytest.skip("the rating datasets are not here (MFDMC_DATA)")
    sizes = {}
    for name, n in (
        ("ml-100k/u.item", 1682),
        ("ml-100k/u.user", 943),
        ("ml-1m/movies.dat", 3952),
        ("ml-1m/users.dat", 6040),
    ):
        features = read_features(folder / name)
        sizes[name] = {block.name: len(block.labels) for block in features.blocks}
        assert len(features) <= n
        assert features.bags(Vocabulary.from_values(features.ids))
    assert sorted(sizes["ml-100k/u.user"].values()) == [2, 10, 21]
    assert 18 in sizes["ml-1m/movies.dat"].values()
