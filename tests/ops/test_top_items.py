"""The native top_items against the oracle: order, ties, exclusions, few candidates, any number of threads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mfdmc_fast.ops import functional, native

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason="the C++ module is not built")


@pytest.fixture(autouse=True)
def _restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _case(n_users: int, n_items: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # small integers: sums are exact, so that equal scores are equal on both sides, and there are many of them
    users, items = (torch.randint(-3, 4, (n, dim), generator=generator).float() for n in (n_users, n_items))
    return users, items, torch.randint(-2, 3, (n_items,), generator=generator).float()


def _exclusions(n_users: int, n_items: int, most: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(0, most + 1, (n_users,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return offsets, torch.randint(n_items, (int(offsets[-1]),), generator=generator)


@pytest.mark.parametrize(
    ("n_users", "n_items", "dim", "n"),
    [
        (1, 1, 1, 1),
        (5, 7, 3, 20),
        (130, 333, 8, 10),
        (67, 1000, 33, 1),
        (64, 17, 2, 3),
        (3, 4000, 5, 100),
        (0, 9, 2, 4),
    ],
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_matches_the_oracle(n_users: int, n_items: int, dim: int, n: int, bias: bool) -> None:
    users, items, item_bias = _case(n_users, n_items, dim)
    for most in (0, n_items // 2, 3 * n_items):
        offsets, excluded = _exclusions(n_users, n_items, most)
        found, expected = (
            functional.top_items(
                users,
                items,
                item_bias if bias else None,
                n,
                exclude_offsets=offsets,
                exclude_items=excluded,
                backend=backend,
            )
            for backend in ("cpu", "reference")
        )
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_without_exclusions() -> None:
    users, items, _ = _case(20, 50, 4)
    found, expected = (functional.top_items(users, items, None, 5, backend=b) for b in ("cpu", "reference"))
    assert torch.equal(found[0], expected[0])


def test_the_number_of_threads_does_not_change_the_bits() -> None:
    generator = torch.Generator().manual_seed(2)
    users, items = torch.randn(500, 16, generator=generator), torch.randn(700, 16, generator=generator)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(functional.top_items(users, items, None, 10, backend="cpu"))
    for first, second in itertools.pairwise(results):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
