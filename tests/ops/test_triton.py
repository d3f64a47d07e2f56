"""The Triton kernels beyond the shared grid of test_batch_loss.py: gradients in float64, 16 bits, optimizers, bits.

Without a GPU they run in Triton's interpreter, with larger tiles than a GPU gets; one test takes the GPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mfdmc_fast.ops import functional, reference, triton_backend
from mfdmc_fast.ops.native import SideParameters
from mfdmc_fast.ops.types import SideTensors
from mfdmc_fast.optim import RowAdaGrad
from mfdmc_fast.testing import ALL_WEIGHTS, Case, both_combines, make_case

if triton_backend.why_unavailable() is not None:
    pytest.skip(str(triton_backend.why_unavailable()), allow_module_level=True)

from mfdmc_fast.ops.triton_kernels import batch_loss, entity_backward, launch
from mfdmc_fast.ops.triton_kernels.grouping import CHUNK, Groups, group

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL: dict[str, Any] = {"batch_size": 9, "user_clusters": (3, 1), "item_clusters": (2, 3), "view_dim": 2}
ARGUMENTS: dict[str, Any] = {"weights": ALL_WEIGHTS, "spread_margin": 2.0}
EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _nan_in_new_tensors() -> Iterator[None]:
    """Memory that no kernel writes is NaN, so that whoever reads it is found out."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _case(dtype: torch.dtype = torch.float32, **sizes: Any) -> Case:
    return make_case(**sizes).to(dtype, DEVICE)


def _loss(case: Case, **arguments: Any) -> Any:
    return functional.batch_loss(*case, **ARGUMENTS, backend="triton", **arguments)


@pytest.mark.parametrize("parts", [{}, {"biases": False}, {"l2_scales": True, "n_users": 40}], ids=str)
@pytest.mark.parametrize("combine", both_combines())
def test_float64_is_the_oracle_but_for_rounding(combine: str, parts: dict[str, Any]) -> None:
    case = _case(torch.float64, **SMALL | parts)
    exact = case.to(torch.float64)
    mine, expected = _loss(case, combine=combine), reference.batch_loss(*exact, **ARGUMENTS, combine=combine)
    torch.testing.assert_close(torch.stack(mine).cpu(), torch.stack(expected), **EXACT)
    mine.total.backward()
    expected.total.backward()
    for parameter, true in zip(case.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.cpu(), true.grad, **EXACT)


@pytest.mark.parametrize("combine", both_combines())
def test_gradients_are_those_of_finite_differences(combine: str) -> None:
    case = _case(torch.float64, batch_size=2, user_clusters=(2,), item_clusters=(2,), view_dim=1, n_users=2, n_items=1)

    def total(*parameters: Tensor) -> Tensor:
        user, item = (
            side._replace(assignment_logits=logits, centers=centers, bias=bias)
            for side, (logits, centers, bias) in zip(
                (case.user, case.item), (parameters[:3], parameters[3:]), strict=True
            )
        )
        return _loss(case._replace(user=user, item=item), combine=combine).total

    assert torch.autograd.gradcheck(total, tuple(case.parameters()), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("combine", both_combines())
def test_16_bit_tables_are_at_most_twice_as_far_off_as_plain_torch(combine: str, dtype: torch.dtype) -> None:
    case = _case(dtype, batch_size=200)
    plain, exact = case.to(dtype), case.to(torch.float64)
    results = [_loss(case, combine=combine)]
    results += [reference.batch_loss(*other, **ARGUMENTS, combine=combine) for other in (plain, exact)]
    for terms in results:
        terms.total.backward()
    values = [torch.stack(terms).detach().double().cpu() for terms in results]
    assert (values[0] - values[2]).abs().max() <= 2 * (values[1] - values[2]).abs().max() + 1e-5
    assert all(term.dtype == torch.float32 for term in results[0])
    for mine, other, true in zip(*(c.parameters() for c in (case, plain, exact)), strict=True):
        assert mine.grad.dtype == dtype
        error = (mine.grad.double().cpu() - true.grad).abs().max()
        assert error <= 2 * (other.grad.double() - true.grad).abs().max() + 1e-5


@pytest.mark.parametrize(
    "sizes",
    [
        {"batch_size": 12, "n_users": 3, "n_items": 2, "user_clusters": (3, 1, 4), "item_clusters": (2, 3, 2)},
        {"batch_size": 12, "n_users": 3, "n_items": 2, "user_clusters": (3,), "item_clusters": (2,), "view_dim": 17},
    ],
    ids=["sums", "dots"],
)
def test_the_tiles_of_a_gpu(sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "INTERPRETED", False)
    case = _case(**sizes)
    exact = case.to(torch.float64)
    mine, expected = _loss(case), reference.batch_loss(*exact, **ARGUMENTS, combine="concat")
    torch.testing.assert_close(torch.stack(mine).double().cpu(), torch.stack(expected), rtol=1e-5, atol=1e-6)
    mine.total.backward()
    expected.total.backward()
    for parameter, true in zip(case.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.double().cpu(), true.grad, rtol=1e-5, atol=1e-6)


def test_several_tiles_a_program_and_several_chunks_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MAX_PROGRAMS", 2)
    tile = launch.EntityTile(rows=2, clusters=4, dim=2, use_dot=False, warps=4)
    monkeypatch.setattr(launch, "entity_tile", lambda *_: tile)
    case = _case(**SMALL | {"batch_size": 2 * CHUNK + 300, "n_users": 9, "n_items": 1})
    exact = case.to(torch.float64)
    _loss(case).total.backward()
    reference.batch_loss(*exact, **ARGUMENTS, combine="concat").total.backward()
    for parameter, true in zip(case.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.double().cpu(), true.grad, rtol=1e-5, atol=1e-6)


def test_twice_the_same_input_gives_the_same_bits() -> None:
    runs = []
    for _ in range(2):
        case = _case(batch_size=700, n_users=30, n_items=20)
        terms = _loss(case)
        terms.total.backward()
        runs.append([*terms, *(p.grad for p in case.parameters())])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_the_order_of_the_batch_is_only_that_of_sums() -> None:
    case = _case(torch.float64, **SMALL)
    order = torch.arange(len(case.ratings) - 1, -1, -1, device=DEVICE)
    turned = case._replace(user_idx=case.user_idx[order], item_idx=case.item_idx[order], ratings=case.ratings[order])
    torch.testing.assert_close(_loss(turned).total, _loss(case).total, **EXACT)


def test_an_empty_batch_gives_zeros() -> None:
    case = _case(**SMALL | {"batch_size": 0})
    terms = _loss(case)
    terms.total.backward()
    assert all(term == 0 for term in terms)
    assert all((p.grad == 0).all() for p in case.parameters())


@pytest.mark.parametrize("wrong", [-1, 11])
def test_no_wrong_index_reaches_a_kernel(wrong: int) -> None:
    case = _case()
    idx = case.user_idx.clone()
    idx[7] = wrong
    with pytest.raises(IndexError, match=rf"user_idx\[7\] is {wrong}, but there are 11 rows"):
        _loss(case._replace(user_idx=idx))


def _plain(side: SideTensors) -> SideParameters:
    centers = side.centers.detach().clone()
    bias = None if side.bias is None else side.bias.detach().clone()
    return SideParameters(side.assignment_logits.detach().clone(), bias, centers, side.n_clusters, side.l2_scale)


RATES = {"assignment_logits": 0.03, "biases": 0.01, "centers": 0.06}


def _steps_of_torch(case: Case, optimizer: str, n_steps: int, batches: Callable[[int], Case], combine: str) -> None:
    sides = case.user, case.item
    groups = [
        {"params": [p for s in sides for p in (getattr(s, field),) if p is not None], "lr": RATES[name]}
        for name, field in (("assignment_logits", "assignment_logits"), ("biases", "bias"), ("centers", "centers"))
    ]
    made = torch.optim.Adam(groups) if optimizer == "adam" else RowAdaGrad(groups)
    for step in range(n_steps):
        batch = batches(step)
        made.zero_grad()
        reference.batch_loss(*case[:3], *batch[3:], **ARGUMENTS, combine=combine).total.backward()
        made.step()


def _steps_of_triton(
    case: Case,
    optimizer: str,
    n_steps: int,
    batches: Callable[[int], Case],
    combine: str,
    listed: bool,
) -> list[SideParameters]:
    sides = [_plain(side) for side in (case.user, case.item)]
    acc = launch.accumulator(case.ratings.dtype)
    adam = optimizer == "adam"
    keys = ("exp_avg", "exp_avg_sq") if adam else ("row_sum",)
    state = [
        {
            name: {key: torch.zeros(t.shape if adam else t.shape[:1], dtype=acc, device=DEVICE) for key in keys}
            for name, t in side.tensors().items()
        }
        for side in sides
    ]
    rates = {name: np.full(n_steps, rate) for name, rate in RATES.items()}
    if adam:
        schedule = batch_loss.adam_steps(rates, betas=(0.9, 0.999), epsilon=1e-8)
    else:
        schedule = batch_loss.adagrad_steps(rates, epsilon=1e-8)
    loss = batch_loss.loss_constants(
        ALL_WEIGHTS, spread_margin=2.0, global_mean=case.global_mean, dtype=acc, device=torch.device(DEVICE)
    )
    for step in range(n_steps):
        batch = batches(step)
        idx = [batch.user_idx.to(DEVICE), batch.item_idx.to(DEVICE)]
        rows: list[Tensor | None] = [None, None]
        if listed:
            for own in range(2):
                rows[own], idx[own] = torch.unique(idx[own], return_inverse=True)
        n = [len(s.table if r is None else r) for s, r in zip(sides, rows, strict=True)]
        both = [
            batch_loss.BatchSide(
                sides[own], group(idx[own], n[own], idx[1 - own], batch.ratings.to(DEVICE)), rows[own], state[own]
            )
            for own in range(2)
        ]
        constants = torch.tensor(schedule[step], dtype=acc, device=DEVICE)
        update = entity_backward.Update(optimizer, constants, torch.tensor([step], device=DEVICE))
        batch_loss.batch_pass(*both, loss, combine, update)
    return sides


@pytest.mark.parametrize(
    ("optimizer", "listed"), [("adam", False), ("adagrad", False), ("adagrad", True)], ids=["adam", "adagrad", "listed"]
)
@pytest.mark.parametrize("combine", both_combines())
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, {"rtol": 1e-5, "atol": 1e-5}), (torch.float64, EXACT)], ids=["f32", "f64"]
)
def test_several_steps_follow_torch(
    dtype: torch.dtype, bound: dict[str, float], combine: str, optimizer: str, listed: bool
) -> None:
    sizes: dict[str, Any] = SMALL | {"n_users": 6, "n_items": 4, "l2_scales": True}
    start = make_case(**sizes).to(dtype, DEVICE)
    expected = start.to(torch.float64)
    first = [parameter.detach().clone() for parameter in start.parameters()]

    def batches(step: int) -> Case:
        # some rows have no rating in some batches
        return make_case(**sizes, seed=step).to(torch.float64)

    def own_batches(step: int) -> Case:
        return batches(step).to(dtype)

    sides = _steps_of_triton(start, optimizer, 3, own_batches, combine, listed)
    _steps_of_torch(expected, optimizer, 3, batches, combine)
    mine = [tensor for side in sides for tensor in (side.table, side.centers, side.bias)]
    for number, begun, true in zip(mine, first, expected.parameters(), strict=True):
        assert number is not None
        assert not torch.equal(number, begun)
        torch.testing.assert_close(number.double().cpu(), true.detach(), **bound)


def test_adam_with_listed_rows_leaves_the_others_alone() -> None:
    start = _case(**SMALL | {"n_users": 50, "n_items": 4})
    user = _steps_of_triton(start, "adam", 2, lambda _: start, "concat", listed=True)[0]
    absent = torch.ones(50, dtype=torch.bool)
    absent[start.user_idx.cpu()] = False
    moved = (user.table != start.user.assignment_logits).any(1).cpu()
    assert torch.equal(moved, ~absent)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_16_bit_tables_round_up_or_down_by_chance(optimizer: str, dtype: torch.dtype) -> None:
    start = _case(dtype, batch_size=600, n_users=40, n_items=30)
    exact = start.to(torch.float64)
    sides = _steps_of_triton(start, optimizer, 1, lambda _: start, "concat", listed=False)
    _steps_of_torch(exact, optimizer, 1, lambda _: exact, "concat")
    true = exact.user.assignment_logits.detach()
    mine = sides[0].table.double().cpu()
    assert (mine - true).abs().max() <= 1.01 * torch.finfo(dtype).eps * true.abs().max()
    assert not torch.equal(mine, true.to(dtype).double())  # not to the nearest
    # in standard errors; cutting off would make it 20
    excess = mine.abs() - true.abs()
    assert (excess.mean() / excess.square().mean().sqrt() * len(excess.view(-1)) ** 0.5).abs() < 4
    again = _steps_of_triton(start, optimizer, 1, lambda _: start, "concat", listed=False)
    assert torch.equal(again[0].table, sides[0].table)


def _groups(ranks: list[int], n_ranks: int) -> Groups:
    idx = torch.tensor(ranks, device=DEVICE)
    return group(idx, n_ranks, torch.arange(len(ranks), device=DEVICE), idx.float())


def test_groups_hold_the_batch_in_the_order_of_ranks() -> None:
    groups = _groups([2, 0, 2, 3], 4)
    assert groups.offsets.tolist() == [0, 1, 1, 3, 4]
    assert groups.partners.tolist() == [1, 0, 2, 3]
    assert groups.ratings.tolist() == [0, 2, 2, 3]
    assert groups.chunk_offsets.tolist() == [0, 1, 1, 2, 3]
    assert groups.chunk_ranks.tolist() == [0, 2, 3, 4]  # the last is none


def test_long_segments_are_cut_and_places_without_a_rating_belong_to_nobody() -> None:
    groups = _groups([1] * (2 * CHUNK + 1) + [3] * 5 + [0], 3)
    assert groups.n_ranks == 3
    assert groups.offsets.tolist() == [0, 1, 2 * CHUNK + 2, 2 * CHUNK + 2]
    assert groups.chunk_offsets.tolist() == [0, 1, 4, 4]
    assert groups.chunk_ranks.tolist() == [0, 1, 1, 1, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("combine", both_combines())
@pytest.mark.parametrize("n_users", [7, 200])
def test_score_pairs(n_users: int, combine: str, dtype: torch.dtype) -> None:
    case = _case(dtype, batch_size=60, n_users=n_users, biases=n_users == 7)
    mine = functional.score_pairs(*case[:5], combine=combine, backend="triton")
    expected = reference.score_pairs(*case.to(torch.float64)[:5], combine=combine)
    assert mine.dtype == dtype
    bound = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.float64: EXACT}
    torch.testing.assert_close(
        mine.double().cpu(), expected, **bound.get(dtype, {"rtol": torch.finfo(dtype).eps, "atol": 1e-5})
    )
    assert len(functional.score_pairs(*case[:3], *(case.user_idx[:0],) * 2, backend="triton")) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 37, 2500])
def test_cluster_usage(n: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(n)
    logits = (torch.randn(n, 13, generator=generator) * 20).to(DEVICE, dtype)
    side = SideTensors(logits, torch.zeros(13, 2, device=DEVICE, dtype=dtype), (1, 5, 7), None)
    among = (torch.rand(n, generator=generator) < 0.7).to(DEVICE)
    exact = side._replace(assignment_logits=logits.double(), centers=side.centers.double())
    for counted in (among, torch.ones_like(among), torch.zeros_like(among)):
        usage = functional.cluster_usage(side, counted, backend="triton")
        expected = reference.cluster_usage(exact, counted)
        torch.testing.assert_close(usage, expected, rtol=1e-5, atol=1e-9, equal_nan=True)
