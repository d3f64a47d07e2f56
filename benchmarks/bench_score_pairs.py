"""Time of `score_pairs`, one group per size, one row per backend: `pytest benchmarks --benchmark-json=out.json`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mfdmc_fast import score_pairs
from mfdmc_fast.ops import dispatch
from mfdmc_fast.testing import make_case

SIZES = {"ml-100k": (943, 1682), "ml-1m": (6040, 3706)}


@pytest.mark.parametrize("backend", list(dispatch.BACKENDS))
@pytest.mark.parametrize("batch_size", [4096, 1_000_000])
@pytest.mark.parametrize("size", list(SIZES))
def bench_score_pairs(benchmark: Any, size: str, batch_size: int, backend: str) -> None:
    n_users, n_items = SIZES[size]
    views = (10,) * 8
    case = make_case(batch_size, views, views, 4, n_users, n_items, dtype=torch.float32)
    reason = dispatch.BACKENDS[backend].why_not("score_pairs", torch.device("cpu"), torch.float32)
    if reason is not None:
        pytest.skip(reason)
    arguments = case[:5]
    expected = score_pairs(*case.to(torch.float64)[:5], backend="reference")
    # a wrong result is not worth a time
    torch.testing.assert_close(score_pairs(*arguments, backend=backend).double(), expected, rtol=1e-5, atol=1e-5)
    benchmark.group = f"score_pairs {size} B={batch_size}"
    benchmark(score_pairs, *arguments, backend=backend)
