"""Long arrays worked off block by block, so that temporaries stay small however many ratings there are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

# ratings at a time: temporaries of a few megabytes
BLOCK = 1 << 16


def blocks(n: int, size: int = BLOCK) -> Iterator[slice]:
    """0 … n - 1 in slices of at most `size`."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def count_rows(idx: npt.NDArray[np.int32], n: int) -> npt.NDArray[np.int64]:
    """How often each of the rows 0 … n - 1 occurs in `idx` [N]; [n] int64."""
    counts = np.zeros(n, dtype=np.int64)
    for block in blocks(len(idx), max(BLOCK, n)):  # bincount copies its argument to int64
        counts += np.bincount(idx[block], minlength=n)
    return counts
