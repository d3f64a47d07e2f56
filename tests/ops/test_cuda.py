"""The backend `cuda` against the oracle: on a device where there is one, and everywhere compiled for the host."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from test_batch_loss import CASES, _check
from torch import Tensor

from mfdmc_fast.config import MFDMCConfig
from mfdmc_fast.data import RatingsDataset, make_planted_ratings
from mfdmc_fast.errors import BackendUnavailable
from mfdmc_fast.model import MFDMCModel
from mfdmc_fast.ops import cuda, functional, native, reference
from mfdmc_fast.ops.types import LossTerms, SideTensors
from mfdmc_fast.testing import ALL_WEIGHTS, Case, both_combines, make_case
from mfdmc_fast.training import fit

ALL_CASES = CASES | {"rows-of-many-chunks": {"batch_size": 5000, "n_users": 3, "n_items": 170}}


def _integer_case(n_users: int, n_items: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    # small integers: sums are exact, so that equal scores are equal on both sides, and there are many of them
    users, items = (torch.randint(-3, 4, (n, dim), generator=generator).float() for n in (n_users, n_items))
    bias = torch.randint(-2, 3, (n_items,), generator=generator).float()
    return users.to(device), items.to(device), bias.to(device)


def _exclusions(n_users: int, n_items: int, most: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(0, most + 1, (n_users,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return offsets.to(device), torch.randint(n_items, (int(offsets[-1]),), generator=generator).to(device)


@pytest.mark.parametrize(
    ("n_users", "n_items", "dim", "n"),
    [
        (1, 1, 1, 1),
        (5, 7, 3, 20),
        (130, 333, 8, 10),
        (67, 1000, 33, 1),
        (64, 64, 70, 3),
        (3, 4000, 5, 100),
        (2, 700, 2, 300),
        (0, 9, 2, 4),
        (4, 0, 2, 4),
    ],
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_top_items_match_the_oracle(
    n_users: int, n_items: int, dim: int, n: int, bias: bool, cuda_backend: torch.device
) -> None:
    users, items, item_bias = _integer_case(n_users, n_items, dim, cuda_backend)
    for most in (0, n_items // 2, 3 * n_items):
        offsets, excluded = _exclusions(n_users, max(n_items, 1), most, cuda_backend)
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
            for backend in ("cuda", "reference")
        )
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_top_items_without_exclusions(cuda_backend: torch.device) -> None:
    users, items, _ = _integer_case(20, 500, 4, cuda_backend)
    found, expected = (functional.top_items(users, items, None, 5, backend=b) for b in ("cuda", "reference"))
    assert torch.equal(found[0], expected[0])


def test_items_that_score_minus_infinity_are_none(cuda_backend: torch.device) -> None:
    users, items, bias = _integer_case(3, 90, 2, cuda_backend)
    bias[5:] = -torch.inf
    found, expected = (functional.top_items(users, items, bias, 7, backend=b) for b in ("cuda", "reference"))
    assert torch.equal(found[0], expected[0])
    assert (found[0][:, 5:] == -1).all()


def _case_on(device: torch.device, **shape: Any) -> Case:
    return make_case(**shape).to(torch.float32, str(device))


def _compare(case: Case, **arguments: Any) -> None:
    """Terms and gradients of the backend `cuda` against those of the oracle in float64."""
    exact = case.to(torch.float64)
    mine = functional.batch_loss(*case, **arguments, backend="cuda")
    expected = functional.batch_loss(*exact, **arguments, backend="reference")
    (3 * mine.total).backward()
    (3 * expected.total).backward()
    gradients = [p.grad.cpu() for p in case.parameters() if p.grad is not None]
    _check(LossTerms(*(t.cpu() for t in mine)), expected, gradients, [p.grad for p in exact.parameters()])


@pytest.mark.parametrize("combine", both_combines())
@pytest.mark.parametrize("name", list(ALL_CASES))
def test_batch_loss_matches_the_oracle(name: str, combine: str, cuda_backend: torch.device) -> None:
    case = _case_on(cuda_backend, **ALL_CASES[name])
    _compare(case, combine=combine, weights=ALL_WEIGHTS, spread_margin=2.0)


@pytest.mark.parametrize("combine", both_combines())
@pytest.mark.parametrize("name", list(ALL_CASES))
def test_score_pairs_match_the_oracle(name: str, combine: str, cuda_backend: torch.device) -> None:
    case = _case_on(cuda_backend, **ALL_CASES[name])
    mine = functional.score_pairs(*case[:5], combine=combine, backend="cuda")
    expected = reference.score_pairs(*case.to(torch.float64)[:5], combine=combine)
    torch.testing.assert_close(mine.double().cpu(), expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_rows", [0, 1, 127, 1000])
@pytest.mark.parametrize(("columns", "kept"), [(1, 1), (80, 79), (80, 3), (9, 9), (1024, 700), (40, 0)])
def test_compaction_matches_the_reference(n_rows: int, columns: int, kept: int, cuda_backend: torch.device) -> None:
    generator = torch.Generator().manual_seed(columns + kept)
    keep = torch.randperm(columns, generator=generator)[:kept].sort().values.to(cuda_backend)
    table = torch.arange(float(n_rows * columns), device=cuda_backend).view(n_rows, columns)
    expected = table.index_select(1, keep)
    compacted = functional.compact_columns(table, keep, backend="cuda")
    assert torch.equal(compacted, expected)
    assert compacted.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()
    assert (compacted.storage_offset(), compacted.is_contiguous()) == (0, True)


@pytest.mark.parametrize("kept", [1, 40, 60, 79, 80])
@pytest.mark.parametrize("seed", range(5))
def test_compaction_is_right_in_any_order_that_its_waiting_allows(seed: int, kept: int, emulated: ModuleType) -> None:
    """Blocks overtake one another and write as early as they may; what is lost would show in the table."""
    table = torch.arange(3000.0 * 80).view(3000, 80)
    keep = torch.randperm(80, generator=torch.Generator().manual_seed(seed))[:kept].sort().values
    expected = table.index_select(1, keep)
    compaction = emulated.Compaction(
        table=table.data_ptr(), keep=keep.data_ptr(), n_rows=len(table), columns=80, kept=kept
    )
    assert compaction.tiles > 20
    compaction.run_in_any_order(seed)
    assert torch.equal(table.view(-1)[: expected.numel()].view_as(expected), expected)


def test_all_gradients_are_the_same_bits_again(cuda_backend: torch.device) -> None:
    results = []
    for _ in range(2):
        case = _case_on(cuda_backend, batch_size=5000, n_users=3, n_items=170)
        terms = functional.batch_loss(*case, weights=ALL_WEIGHTS, backend="cuda")
        terms.total.backward()
        results.append([*terms, *(p.grad for p in case.parameters())])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_tasks_do_not_depend_on_one_another(emulated_in_order: Callable[[bool], None]) -> None:
    """The bits are the same whatever the order of the threads of a block."""
    results = []
    for descending in (False, True):
        emulated_in_order(descending)
        case = make_case(5000, n_users=300, n_items=20, l2_scales=True, dtype=torch.float32)
        terms = functional.batch_loss(*case, weights=ALL_WEIGHTS, backend="cuda", combine="sum")
        terms.total.backward()
        results.append([*terms, *(p.grad for p in case.parameters())])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_rows_outside_the_batch_get_no_gradient(cuda_backend: torch.device) -> None:
    case = _case_on(cuda_backend, batch_size=5, n_users=40, n_items=40)
    functional.batch_loss(*case, weights=ALL_WEIGHTS, backend="cuda").total.backward()
    absent = torch.ones(40, dtype=torch.bool, device=cuda_backend)
    absent[case.user_idx] = False
    assert (case.user.assignment_logits.grad[absent] == 0).all()
    assert (case.user.assignment_logits.grad[~absent] != 0).any(dim=1).all()


def test_inputs_may_be_frozen_or_strided_and_a_batch_empty(cuda_backend: torch.device) -> None:
    case = _case_on(cuda_backend)
    turned = case.user.assignment_logits.T.contiguous().T
    frozen = case._replace(
        user=case.user._replace(assignment_logits=turned),
        item=case.item._replace(centers=case.item.centers.detach()),
    )
    total = functional.batch_loss(*frozen, weights=ALL_WEIGHTS, backend="cuda").total
    total.backward()
    assert total == functional.batch_loss(*case, weights=ALL_WEIGHTS, backend="cuda").total
    assert case.item.centers.grad is None
    assert case.user.assignment_logits.grad is not None
    empty = (*case[:3], *(t[:0] for t in case[3:]))
    assert functional.batch_loss(*empty, backend="cuda").total == 0
    assert functional.score_pairs(*empty[:5], backend="cuda").shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.double(), TypeError, r"user.assignment_logits must be torch.float32, not torch.float64"),
        (lambda t: t.T.contiguous().T, ValueError, "user.assignment_logits must be contiguous"),
        (lambda t: t[:, :-1].contiguous(), ValueError, r"user.assignment_logits must be \[11, 15\], not \[11, 14\]"),
        (lambda t: t.to("meta"), ValueError, "user.assignment_logits must be on .*, not on meta"),
    ],
    ids=["dtype", "layout", "shape", "device"],
)
def test_no_wrong_tensor_reaches_a_kernel(
    change: Callable[[Tensor], Tensor], error: type[Exception], message: str, cuda_backend: torch.device
) -> None:
    case = _case_on(cuda_backend)
    user = case.user._replace(assignment_logits=change(case.user.assignment_logits.detach()))
    with pytest.raises(error, match=message):
        cuda.score_pairs(user, *case[1:5], combine="concat")


def test_tensors_of_the_cpu_are_refused() -> None:
    with pytest.raises(ValueError, match="tensors must be on a CUDA device, not on cpu"):
        cuda._stream(torch.device("cpu"))
    with pytest.raises(BackendUnavailable, match="it serves cuda tensors, not cpu"):
        functional.top_items(torch.ones(2, 3), torch.ones(4, 3), None, 1, backend="cuda")


def test_shapes_beyond_the_kernels_are_refused(cuda_backend: torch.device) -> None:
    case = _case_on(cuda_backend, batch_size=3, user_clusters=(2, 2), item_clusters=(2, 2), view_dim=513)
    for call in (functional.batch_loss, functional.score_pairs):
        arguments = case if call is functional.batch_loss else case[:5]
        with pytest.raises(BackendUnavailable, match="at most 1024 clusters or embedding numbers"):
            call(*arguments, backend="cuda")


@pytest.mark.parametrize(("user_clusters", "view_dim"), [((1000, 24), 3), ((2, 1), 512)], ids=["clusters", "numbers"])
def test_the_largest_shapes_fit(user_clusters: tuple[int, ...], view_dim: int, cuda_backend: torch.device) -> None:
    case = _case_on(cuda_backend, batch_size=40, user_clusters=user_clusters, item_clusters=(2, 3), view_dim=view_dim)
    _compare(case, weights=ALL_WEIGHTS, spread_margin=2.0)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (
            "no CUDA-capable device is detected",
            "finds no device to run on .no CUDA-capable device is detected.; it needs",
        ),
        ("", "sees no CUDA device; install a build of torch with CUDA"),
    ],
    ids=["no-device", "torch-without-cuda"],
)
def test_a_module_that_cannot_run_says_why(problem: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(device_problem=lambda: problem)
    monkeypatch.setattr(native, "load_compiled", lambda *_: module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loaded = cuda._load.__wrapped__()
    assert re.search(message, loaded)


@pytest.mark.parametrize("n", [1, 37, 2500])
def test_cluster_usage_matches_the_oracle(n: int, cuda_backend: torch.device) -> None:
    generator = torch.Generator().manual_seed(n)
    logits = (torch.randn(n, 13, generator=generator) * 20).to(cuda_backend)
    side = SideTensors(logits, torch.zeros(13, 2, device=cuda_backend), (1, 5, 7))
    exact = side._replace(assignment_logits=logits.double(), centers=side.centers.double())
    among = (torch.rand(n, generator=generator) < 0.7).to(cuda_backend)
    for counted in (among, torch.ones_like(among), torch.zeros_like(among)):
        usage, expected = (
            functional.cluster_usage(tensors, counted, backend=backend)
            for tensors, backend in ((side, "cuda"), (exact, "reference"))
        )
        torch.testing.assert_close(usage, expected, rtol=1e-5, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("combine", both_combines())
def test_a_fit_follows_the_reference(combine: str, cuda_backend: torch.device) -> None:
    """Whole training, with pruning and its compaction of tables and moments."""
    data = RatingsDataset.from_ratings(make_planted_ratings(60, 45, 1300, seed=5))
    results = {}
    for backend in ("reference", "cuda"):
        config = MFDMCConfig(
            n_views=3,
            n_clusters=5,
            view_dim=3,
            epochs=6,
            combine=combine,
            prune_start=3,
            prune_threshold=0.19,
            backend=backend,
        )
        model = MFDMCModel(len(data.users), len(data.items), config, float(data.ratings.mean())).to(cuda_backend)
        results[backend] = fit(model, data), [p.detach().double() for p in model.parameters()]
    (expected, theirs), (history, mine) = results.values()
    assert (expected.backend, history.backend) == ("reference", "cuda")
    assert history.prune_events
    assert [(e.epoch, e.side, e.view, e.cluster) for e in history.prune_events] == [
        (e.epoch, e.side, e.view, e.cluster) for e in expected.prune_events
    ]
    for found, wanted in zip(mine, theirs, strict=True):
        # rounding differs, and Adam divides by small numbers: single entries drift, the whole may not
        assert (found - wanted).square().mean().sqrt() <= 1e-4 * wanted.square().mean().sqrt()
