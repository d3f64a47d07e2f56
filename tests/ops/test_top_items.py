"""top_items of C++ and Triton against the oracle: order, ties, exclusions, few candidates, any number of threads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mfdmc_fast.ops import functional, native, triton_backend

CUDA = torch.cuda.is_available()
WHY_NOT = {"cpu": native.why_unavailable(), "triton": triton_backend.why_unavailable()}
BACKENDS = [pytest.param(n, marks=pytest.mark.skipif(why is not None, reason=str(why))) for n, why in WHY_NOT.items()]


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
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_the_oracle(backend: str, n_users: int, n_items: int, dim: int, n: int, bias: bool) -> None:
    users, items, item_bias = _case(n_users, n_items, dim)
    device = "cuda" if backend == "triton" and CUDA else "cpu"
    for most in (0, n_items // 2, 3 * n_items):
        offsets, excluded = _exclusions(n_users, n_items, most)
        found, expected = (
            functional.top_items(
                users.to(place),
                items.to(place),
                item_bias.to(place) if bias else None,
                n,
                exclude_offsets=offsets.to(place),
                exclude_items=excluded.to(place),
                backend=name,
            )
            for name, place in ((backend, device), ("reference", "cpu"))
        )
        assert torch.equal(found[0].cpu(), expected[0])
        assert torch.equal(found[1].cpu(), expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_exclusions(backend: str) -> None:
    users, items, _ = _case(20, 50, 4)
    device = "cuda" if backend == "triton" and CUDA else "cpu"
    found = functional.top_items(users.to(device), items.to(device), None, 5, backend=backend)
    expected = functional.top_items(users, items, None, 5, backend="reference")
    assert torch.equal(found[0].cpu(), expected[0])


@pytest.mark.skipif(WHY_NOT["triton"] is not None, reason=str(WHY_NOT["triton"]))
def test_triton_orders_negative_scores_zeros_and_infinities() -> None:
    scores = torch.tensor(
        [0.0, -0.0, -1.5, 2.5, -torch.inf, -1e-30, 1e-30, 2.5, -3e38], device="cuda" if CUDA else "cpu"
    )
    one = torch.ones(1, 1, device=scores.device)
    found, best = functional.top_items(one, torch.zeros_like(scores)[:, None], scores, 9, backend="triton")
    assert found.tolist() == [[3, 7, 6, 0, 1, 5, 2, 8, -1]]
    assert best.tolist() == [pytest.approx([2.5, 2.5, 1e-30, 0.0, 0.0, -1e-30, -1.5, -3e38, -torch.inf])]


@pytest.mark.skipif(WHY_NOT["triton"] is not None, reason=str(WHY_NOT["triton"]))
def test_triton_works_off_users_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("mfdmc_fast.ops.triton_kernels.top_items")
    monkeypatch.setattr(kernels, "_KEYS_AT_ONCE", 120)
    users, items, bias = (t.to("cuda" if CUDA else "cpu") for t in _case(5, 50, 4))
    offsets, excluded = (t.to(users.device) for t in _exclusions(5, 50, 30))
    arguments = {"exclude_offsets": offsets, "exclude_items": excluded}
    found, expected = (
        functional.top_items(users, items, bias, 7, **arguments, backend=b) for b in ("triton", "reference")
    )
    assert torch.equal(found[0], expected[0])


@pytest.mark.skipif(WHY_NOT["cpu"] is not None, reason=str(WHY_NOT["cpu"]))
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
