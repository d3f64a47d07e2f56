"""Fused kernels of batch_loss and funkmf_loss against the oracle in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mfdmc_fast.ops import functional, native, reference, triton_backend
from mfdmc_fast.ops.types import FactorTensors, LossTerms, LossWeights
from mfdmc_fast.testing import ALL_WEIGHTS, Case, both_combines, make_case

needs_module = pytest.mark.skipif(native.why_unavailable() is not None, reason="the C++ module is not built")

CASES: dict[str, dict[str, Any]] = {
    "B1": {"batch_size": 1},
    "B63": {},
    "B5000": {"batch_size": 5000, "n_users": 300, "n_items": 170},
    "one-cluster-left": {"user_clusters": (1, 3, 1), "item_clusters": (1, 1, 2)},
    "all-one-cluster": {"user_clusters": (1,), "item_clusters": (1,), "view_dim": 1},
    "one-view": {"user_clusters": (10,), "item_clusters": (9,), "view_dim": 16},
    "many-clusters": {"user_clusters": (40, 3), "item_clusters": (7, 70), "view_dim": 33},
    "default-shape": {"user_clusters": (10,) * 8, "item_clusters": (10,) * 8, "view_dim": 4, "batch_size": 700},
    "one-user": {"n_users": 1, "batch_size": 100},
    "logits-80": {"logit_scale": 80.0},
    "logits-80-B1": {"logit_scale": 80.0, "batch_size": 1},
    "no-biases": {"biases": False},
    "l2-scales": {"l2_scales": True, "batch_size": 300},
}
KERNELS = ["baseline", "avx2", "avx512"]


class Target(NamedTuple):
    """A backend and the device of the tensors that it gets."""

    backend: str
    device: str


def _target(name: str, monkeypatch: pytest.MonkeyPatch) -> Target:
    if name == "triton":
        if triton_backend.why_unavailable() is not None:
            pytest.skip(str(triton_backend.why_unavailable()))
        return Target("triton", "cuda" if torch.cuda.is_available() else "cpu")
    if native.why_unavailable() is not None:
        pytest.skip("the C++ module is not built")
    if name not in native.available_kernels():
        pytest.skip(f"this processor has no {name}")
    monkeypatch.setenv("MFDMC_CPU_KERNELS", name)
    return Target("cpu", "cpu")


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    _target(request.param, monkeypatch)
    return str(request.param)


@pytest.fixture(params=[*KERNELS, "triton"])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    return _target(request.param, monkeypatch)


@pytest.fixture(params=[native.available_kernels()[0] if native.why_unavailable() is None else "avx512", "triton"])
def one_of_each(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    """For what does not depend on the instruction set."""
    return _target(request.param, monkeypatch)


def _check(mine: LossTerms, exact: LossTerms, gradients: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(torch.stack(mine).double().cpu(), torch.stack(exact), rtol=1e-5, atol=1e-6)
    for gradient, true in zip(gradients, expected, strict=True):
        assert gradient.isfinite().all()
        error = (gradient.double().cpu() - true).square().mean().sqrt()
        # the second part is for gradients that are 0 but for rounding, as where a weight is 1 within a float
        assert error <= 1e-5 * true.square().mean().sqrt() + 1e-9


@pytest.mark.parametrize("combine", both_combines())
@pytest.mark.parametrize("name", list(CASES))
def test_batch_loss_matches_the_oracle(name: str, combine: str, target: Target) -> None:
    case = make_case(**CASES[name], dtype=torch.float32).to(torch.float32, target.device)
    exact = case.to(torch.float64)
    arguments = {"combine": combine, "weights": ALL_WEIGHTS, "spread_margin": 2.0}
    mine = functional.batch_loss(*case, **arguments, backend=target.backend)
    expected = reference.batch_loss(*exact, **arguments)
    (3 * mine.total).backward()
    (3 * expected.total).backward()
    _check(mine, expected, [p.grad for p in case.parameters()], [p.grad for p in exact.parameters()])


@pytest.mark.parametrize("parts", [{"biases": True}, {"biases": False}, {"l2_scales": True}], ids=str)
@pytest.mark.parametrize("n_factors", [1, 16, 37])
@pytest.mark.parametrize("batch_size", [1, 63, 5000])
def test_funkmf_loss_matches_the_oracle(batch_size: int, n_factors: int, parts: dict[str, bool], kernels: str) -> None:
    case = make_case(batch_size, n_users=30, n_items=20, **parts, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    factors = [torch.randn(n, n_factors, generator=generator) for n in (30, 20)]
    results = []
    for dtype, loss in ((torch.float32, functional.funkmf_loss), (torch.float64, reference.funkmf_loss)):
        own = case.to(dtype)
        sides = [
            FactorTensors(f.detach().to(dtype, copy=True).requires_grad_(), s.bias, s.l2_scale)
            for f, s in zip(factors, (own.user, own.item), strict=True)
        ]
        extra = {"backend": "cpu"} if dtype == torch.float32 else {}
        terms = loss(*sides, *own[2:], weights=LossWeights(l2=0.3, bias_l2=0.2), **extra)
        terms.total.backward()
        results.append((terms, [t.grad for side in sides for t in side[:2] if t is not None]))
    _check(results[0][0], results[1][0], results[0][1], results[1][1])


def test_gradients_of_a_pruned_model_have_its_shape(one_of_each: Target) -> None:
    case = make_case(200, (3, 1, 2), (2, 5, 1)).to(torch.float32, one_of_each.device)
    functional.batch_loss(*case, weights=ALL_WEIGHTS, backend=one_of_each.backend).total.backward()
    assert [tuple(p.grad.shape) for p in case.parameters()] == [tuple(p.shape) for p in case.parameters()]


@pytest.mark.parametrize("n_users", [5, 40])  # as many as ratings, more
def test_rows_outside_the_batch_get_no_gradient(n_users: int, one_of_each: Target) -> None:
    case = make_case(5, n_users=n_users, n_items=40).to(torch.float32, one_of_each.device)
    functional.batch_loss(*case, weights=ALL_WEIGHTS, backend=one_of_each.backend).total.backward()
    absent = torch.ones(n_users, dtype=torch.bool)
    absent[case.user_idx.cpu()] = False
    assert absent.any()
    assert (case.user.assignment_logits.grad[absent] == 0).all()
    assert (case.user.assignment_logits.grad[~absent] != 0).any(dim=1).all()


def test_only_the_total_can_be_differentiated(one_of_each: Target) -> None:
    case = make_case().to(torch.float32, one_of_each.device)
    terms = functional.batch_loss(*case, weights=ALL_WEIGHTS, backend=one_of_each.backend)
    assert terms.total.requires_grad
    assert not any(term.requires_grad for term in terms[1:])


@needs_module
def test_any_torch_optimizer_can_use_the_gradients() -> None:
    case = make_case(500, n_users=30, n_items=30, dtype=torch.float32)
    optimizer = torch.optim.SGD(case.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        terms = functional.batch_loss(*case, weights=ALL_WEIGHTS, backend="cpu")
        terms.total.backward()
        optimizer.step()
        losses.append(terms.total.item())
    assert losses[-1] < 0.7 * losses[0]


def test_inputs_that_need_no_gradient_get_none(one_of_each: Target) -> None:
    case: Case = make_case().to(torch.float32, one_of_each.device)
    frozen = case._replace(item=case.item._replace(centers=case.item.centers.detach()))
    functional.batch_loss(*frozen, weights=ALL_WEIGHTS, backend=one_of_each.backend).total.backward()
    assert frozen.item.centers.grad is None
    assert case.user.centers.grad is not None


def test_non_contiguous_inputs_are_taken(one_of_each: Target) -> None:
    case = make_case().to(torch.float32, one_of_each.device)
    logits = case.user.assignment_logits
    turned = case._replace(user=case.user._replace(assignment_logits=logits.T.contiguous().T))
    arguments = {"weights": ALL_WEIGHTS, "backend": one_of_each.backend}
    assert functional.batch_loss(*turned, **arguments).total == functional.batch_loss(*case, **arguments).total


@needs_module
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_clusters": (1024, 1), "item_clusters": (2, 2)}, "at most 1024 clusters or embedding numbers"),
        ({"user_clusters": (2, 2), "item_clusters": (2, 2), "view_dim": 513}, "at most 1024 clusters"),
    ],
    ids=["clusters", "embedding"],
)
def test_shapes_beyond_the_kernels_are_refused_and_auto_falls_back(change: dict[str, Any], message: str) -> None:
    case = make_case(3, **change, dtype=torch.float32)
    with pytest.raises(RuntimeError, match=message):
        functional.batch_loss(*case, backend="cpu")
    assert functional.batch_loss(*case).mse.requires_grad  # only the reference differentiates single terms
