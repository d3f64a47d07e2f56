"""Which labels the entities of a fitted model have: one table for each family of labels, such as genres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data import Features, Vocabulary
from mfdmc_fast.data.labels import LabelBlock
from mfdmc_fast.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class LabelTable:
    """The labels of one family. Entities without a label of it are left out, so that every row has at least one.

    Attributes:
        name: of the column or columns that the labels come from.
        labels: their L texts.
        rows: [m] int64, ascending: which rows of the vocabulary are here.
        indicator: [m, L] bool: who has which label.
        first: [m] int64: the first label of each, in the order of the source; the label where each has one.
        n_eligible: entities with enough ratings, with or without a label.
    """

    name: str
    labels: tuple[str, ...]
    rows: npt.NDArray[np.int64]
    indicator: npt.NDArray[np.bool_]
    first: npt.NDArray[np.int64]
    n_eligible: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_multi_label(self) -> bool:
        """Whether some entity has several labels."""
        return bool((self.indicator.sum(1) > 1).any())

    @property
    def labelled(self) -> float:
        """Share of the eligible entities that have a label, in (0, 1]."""
        return len(self) / self.n_eligible

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """[m, L]: every entity's labels in equal parts; rows sum to 1."""
        shares: npt.NDArray[np.float64] = self.indicator / self.indicator.sum(1, keepdims=True)
        return shares


def label_tables(
    features: Features,
    vocabulary: Vocabulary,
    rating_counts: npt.NDArray[np.int64] | None = None,
    *,
    min_ratings: int = 0,
    min_entities: int = 5,
) -> list[LabelTable]:
    """Label tables of the entities of a vocabulary, one for each block of features that has two labels left.

    Args:
        features: of the same side; entities that they do not name are left out, names without an entity ignored.
        vocabulary: raw id ↔ row.
        rating_counts: [n] training ratings of every entity; needed where `min_ratings` is not 0.
        min_ratings: entities with fewer are left out: little is known of them, so their clusters are arbitrary.
        min_entities: labels that fewer of the remaining entities have are dropped; 1 or more.

    Raises:
        ConfigError: a wrong setting. DataError: no id of the features is known, or nothing is left to compare.
    """
    if min_entities < 1 or min_ratings < 0:
        raise ConfigError(f"min_entities = {min_entities}, min_ratings = {min_ratings}: must be at least 1 and 0")
    if min_ratings and rating_counts is None:
        raise ConfigError(f"min_ratings = {min_ratings} needs rating_counts, the training ratings of every entity")
    row_of = vocabulary.encode(features.ids)
    if not (row_of >= 0).any():
        raise DataError(
            "none of its ids is among the ids of the ratings; give the table of the same side, with the same ids",
            source=features.source,
        )
    eligible = np.ones(len(vocabulary), dtype=bool) if rating_counts is None else rating_counts >= min_ratings
    tables = [_table(block, row_of, eligible, min_entities) for block in features.blocks]
    found = [table for table in tables if table is not None]
    if not found:
        raise DataError(
            f"no column has two labels that {min_entities} entities with {min_ratings} or more training ratings have;"
            " lower min_entities or min_ratings",
            source=features.source,
        )
    return found


def _table(
    block: LabelBlock, row_of: npt.NDArray[np.int64], eligible: npt.NDArray[np.bool_], min_entities: int
) -> LabelTable | None:
    entities = row_of[block.rows]
    usable = entities >= 0
    usable[usable] = eligible[entities[usable]]
    entities, label_idx = entities[usable], block.label_idx[usable]
    n_labels = len(block.labels)
    # an entity that names a label twice counts once
    pairs = np.unique(entities * n_labels + label_idx)
    kept = np.flatnonzero(np.bincount(pairs % n_labels, minlength=n_labels) >= min_entities)
    if len(kept) < 2:
        return None
    is_kept = np.isin(label_idx, kept)
    entities, label_idx = entities[is_kept], np.searchsorted(kept, label_idx[is_kept])
    rows, at_first, at_row = np.unique(entities, return_index=True, return_inverse=True)
    indicator = np.zeros((len(rows), len(kept)), dtype=bool)
    indicator[at_row, label_idx] = True
    names = tuple(block.labels[k] for k in kept.tolist())
    return LabelTable(block.name, names, rows, indicator, label_idx[at_first].astype(np.int64), int(eligible.sum()))
