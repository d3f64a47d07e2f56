"""What people call an entity: the titles in a table."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data.columns import SourceTable, decoded

# in this order; compared in lower case and without blanks, "_" and "-"
_USUAL = ("title", "name", "movietitle", "booktitle", "productname", "originaltitle", "fullname", "username")


def titles_in(table: SourceTable) -> npt.NDArray[Any] | None:
    """[n] object: titles of a table's rows, None for empty ones; None without a text column of a usual name."""
    from pyarrow import types

    plain = [re.sub(r"[\s_-]", "", name).lower() for name in table.names or ()]
    for name in _USUAL:
        if name in plain:
            column = decoded(table.columns[plain.index(name)])
            if types.is_large_string(column.type):
                texts = [None if text is None or not text.strip() else text.strip() for text in column.to_pylist()]
                return np.array([*texts, None], dtype=object)[:-1]
    return None
