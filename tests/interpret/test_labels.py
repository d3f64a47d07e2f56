"""Label tables: who has which label, in the order of the source, and who is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mfdmc_fast.data import Vocabulary, read_features
from mfdmc_fast.errors import ConfigError, DataError
from mfdmc_fast.interpret import label_tables

GENRES = {1: "War|Drama", 2: ["Drama"], 3: "War", 4: ["Drama", "Drama", "War"], 5: "", 6: "Rare|Drama", 99: "War"}


def test_rows_labels_and_first_labels() -> None:
    vocabulary = Vocabulary([6, 5, 4, 3, 2, 1, 7])
    (table,) = label_tables(read_features(GENRES), vocabulary, min_entities=2)
    assert table.labels == ("Drama", "War")  # a single entity has Rare
    assert vocabulary.decode(table.rows).tolist() == [6, 4, 3, 2, 1]
    assert table.indicator.tolist() == [[True, False], [True, True], [False, True], [True, False], [True, True]]
    assert table.first.tolist() == [0, 0, 1, 0, 1]  # 1 is War|Drama; Rare is no label of 6 any more
    assert table.shares.tolist() == [[1, 0], [0.5, 0.5], [0, 1], [1, 0], [0.5, 0.5]]
    assert table.is_multi_label
    assert (len(table), table.n_eligible, table.labelled) == (5, 7, 5 / 7)


def test_entities_with_few_ratings_are_left_out_before_labels_are_counted() -> None:
    features = read_features({1: "a", 2: "a", 3: "b", 4: "b", 5: "c", 6: "c"})
    counts = np.array([9, 9, 9, 9, 9, 1])
    (table,) = label_tables(features, Vocabulary([1, 2, 3, 4, 5, 6]), counts, min_ratings=5, min_entities=2)
    assert table.labels == ("a", "b")
    assert table.rows.tolist() == [0, 1, 2, 3]
    assert not table.is_multi_label
    assert table.n_eligible == 5


def test_a_table_for_every_column(tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    path.write_bytes("1|24|M|caf\xe9\n2|24|F|other\n3|30|M|caf\xe9\n4|30|F|other\n".encode("latin-1"))
    tables = label_tables(read_features(path), Vocabulary([4, 3, 2, 1]), min_entities=2)
    assert [table.labels for table in tables] == [("24", "30"), ("F", "M"), ("café", "other")]
    assert tables[1].first.tolist() == [0, 1, 0, 1]


def test_what_cannot_be_used_is_said() -> None:
    features = read_features(GENRES)
    with pytest.raises(DataError, match="none of its ids is among the ids of the ratings"):
        label_tables(features, Vocabulary(["x"]))
    with pytest.raises(DataError, match="no column has two labels that 5 entities with 0 or more"):
        label_tables(features, Vocabulary([1, 2, 3, 4]))
    with pytest.raises(ConfigError, match="min_ratings = 3 needs rating_counts"):
        label_tables(features, Vocabulary([1, 2]), min_ratings=3)
    with pytest.raises(ConfigError, match="min_entities = 0"):
        label_tables(features, Vocabulary([1, 2]), min_entities=0)
