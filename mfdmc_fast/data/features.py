"""What is known of users or items besides their ratings: labels such as genres, occupations or decades."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data.columns import SourceTable, ids_from_table
from mfdmc_fast.data.labels import LabelBlock, block_of_texts, label_blocks, split_labels
from mfdmc_fast.data.published import with_published_codes, with_published_names
from mfdmc_fast.data.readers import is_number, load_object, load_path, usual_roles
from mfdmc_fast.data.titles import titles_in
from mfdmc_fast.data.vocabulary import Vocabulary
from mfdmc_fast.errors import DataError

# a label says something only where it makes entities alike
_FEWEST_ENTITIES = 2


@dataclass(frozen=True, eq=False)
class Features:
    """Labels of entities, in blocks.

    Attributes:
        ids: [n] distinct raw ids, int64 or an object array of str.
        blocks: labels of the rows 0 … n - 1, one block for each column that has some.
        ignored: the columns that are left out, and why.
        source: path or description of the source, for messages.
        titles: [n] object, what people call an entity, None where that is missing; or None if no column has titles.
    """

    ids: npt.NDArray[Any]
    blocks: tuple[LabelBlock, ...]
    ignored: dict[str, str] = field(default_factory=dict)
    source: str = "features"
    titles: npt.NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def titles_of(self, vocabulary: Vocabulary) -> list[str]:
        """[n] titles of a vocabulary's entities; the id as text where there is none."""
        found = [str(raw) for raw in vocabulary.ids.tolist()]
        if self.titles is not None:
            for row, title in zip(vocabulary.encode(self.ids).tolist(), self.titles.tolist(), strict=True):
                if row >= 0 and title is not None:
                    found[row] = title
        return found

    def bags(self, vocabulary: Vocabulary) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]]:
        """Which entities of a vocabulary have which label.

        Ids match as in `Vocabulary.encode`. Entities that are not in the table have no labels, and labels that fewer
        than two entities of the vocabulary have are dropped.

        Returns:
            For each block that is left: offsets [F + 1] int64 and entities int32; label f belongs to the rows
            entities[offsets[f] : offsets[f + 1]], which ascend.

        Raises:
            DataError: no id of the vocabulary is in the table, or no label is left.
        """
        entity_of = vocabulary.encode(self.ids)
        if not (entity_of >= 0).any():
            raise DataError(
                f"none of its ids, such as {_example(self.ids)}, is among the ids of the ratings, such as"
                f" {_example(vocabulary.ids)}; give the table of the same side, with the same ids",
                source=self.source,
            )
        found = []
        for block in self.blocks:
            entities = entity_of[block.rows]
            known = entities >= 0
            # label by label, and a label that a row has twice counts once
            pairs = np.unique(block.label_idx[known] * len(vocabulary) + entities[known])
            labels, entities = np.divmod(pairs, max(1, len(vocabulary)))
            sizes = np.bincount(labels, minlength=len(block.labels))
            kept = sizes >= _FEWEST_ENTITIES
            if kept.any():
                offsets = np.concatenate([[0], np.cumsum(sizes[kept])]).astype(np.int64)
                found.append((offsets, entities[kept[labels]].astype(np.int32)))
        if not found:
            raise DataError(
                f"no label is held by {_FEWEST_ENTITIES} of the {int((entity_of >= 0).sum())} ids that have ratings",
                source=self.source,
            )
        return found


def read_features(source: Any, *, labels_needed: bool = True) -> Features:
    """Read labels and titles of users or of items; `mfdmc_fast.data.labels` has the rules for columns.

    Titles are those of the first text column with a usual name for them, such as title or name. The files of MovieLens
    have no column names and get those of its README, by their own name and
    number of columns; so do its codes of ages and occupations.

    Args:
        source: a path to delimited text, Parquet or Arrow, each also gzipped, or an object with `__arrow_c_stream__`
            (pyarrow, pandas, polars), with one row for each entity: a column of ids (the first one with a usual name
            such as id, user_id or movieId, else the first) and columns of labels; a mapping {raw id: labels}, where
            a text `a|b` is two labels; or `Features`, which are returned as they are. Text files start with column
            names if the first line has a usual name for ids, or text where all other lines have numbers.
        labels_needed: whether a source without labels is an error.

    Raises:
        DataError: the source cannot be read, has a bad row, an id twice, no rows, or no column of labels where some are
            needed. Rows count
            from 1; in text files they are line numbers.
    """
    if isinstance(source, Features):
        return source
    if isinstance(source, Mapping):
        return _from_mapping(source)
    if isinstance(source, str | os.PathLike):
        table = load_path(Path(source), None, lambda fields: _id_position(fields) is not None, min_fields=2)
        table = with_published_names(_with_first_row_as_names(table), Path(source).name)
    elif hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__"):
        table = load_object(source)
    else:
        raise DataError(
            f"{type(source).__name__} is not a source of features; give a path, a table (pyarrow, pandas, polars), or a"
            " mapping {id: labels}"
        )
    if len(table.columns) < 2:
        raise DataError(
            f"{len(table.columns)} columns; a column of ids and at least one of labels are needed", source=table.source
        )
    position = _id_position(table.names or ()) or 0
    ids = ids_from_table(table, position)
    if not len(ids):
        raise DataError("no features: there are no data rows", source=table.source)
    blocks, ignored = label_blocks(table, position)
    if isinstance(source, str | os.PathLike):
        blocks = [with_published_codes(block, table, Path(source).name) for block in blocks]
    if labels_needed and not blocks:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in ignored.items())
        raise DataError(f"no column has labels ({reasons})", source=table.source)
    return Features(ids, tuple(blocks), ignored, table.source, titles_in(table))


def _from_mapping(labels: Mapping[Any, Any]) -> Features:
    name = "mapping of features"
    if not labels:
        raise DataError("no features: the mapping is empty", source=name)
    ids = Vocabulary(list(labels)).ids
    texts = []
    for raw, of_id in labels.items():
        if not isinstance(of_id, Iterable) or isinstance(of_id, bytes):
            raise DataError(f"id {raw!r} has {of_id!r} where an iterable of labels is wanted", source=name)
        texts.append(split_labels(of_id) if isinstance(of_id, str) else [str(label) for label in of_id])
    return Features(ids, (block_of_texts("labels", texts),), source=name)


def _id_position(names: Sequence[str]) -> int | None:
    """The first column with a usual name for ids."""
    plain = [re.sub(r"[\s_-]", "", name).lower() for name in names]
    found = [at for role, at in usual_roles(names).items() if role in ("user", "item")]
    return min(found + [at for at, name in enumerate(plain) if name == "id"], default=None)


def _with_first_row_as_names(table: SourceTable) -> SourceTable:
    """The table with its first row as column names if that has text where all other rows have numbers."""
    if table.names is not None or table.row_numbers.size < 2:
        return table
    for column in table.columns:
        first, *others = column.to_pylist()
        filled = [text for text in others if text]
        if filled and first and not is_number(first) and all(map(is_number, filled)):
            names = [column[0].as_py() for column in table.columns]
            rest = [column.slice(1) for column in table.columns]
            return replace(table, columns=rest, names=names, row_numbers=table.row_numbers[1:])
    return table


def _example(ids: npt.NDArray[Any]) -> str:
    return repr(ids[:1].tolist()[0]) if len(ids) else "none"
