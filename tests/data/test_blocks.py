"""Blocks cover everything once, and counting in them is counting."""

from __future__ import annotations

import numpy as np
import pytest

from mfdmc_fast.data.blocks import BLOCK, blocks, count_rows


@pytest.mark.parametrize(("n", "lengths"), [(-1, []), (0, []), (1, [1]), (3, [3]), (4, [3, 1]), (9, [3, 3, 3])])
def test_blocks(n: int, lengths: list[int]) -> None:
    cut = list(blocks(n, 3))
    assert [len(range(n)[block]) for block in cut] == lengths
    assert [i for block in cut for i in range(n)[block]] == list(range(n))


@pytest.mark.parametrize("n", [4, BLOCK + 5])
def test_count_rows(n: int) -> None:
    idx = np.random.default_rng(0).integers(4, size=3 * BLOCK + 1, dtype=np.int32)
    counts = count_rows(idx, n)
    assert counts.dtype == np.int64
    assert counts[:4].tolist() == [(idx == row).sum() for row in range(4)]
    assert counts.shape == (n,)
    assert not counts[4:].any()
    assert count_rows(idx[:0], 2).tolist() == [0, 0]
