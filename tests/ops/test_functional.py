"""The public ops: what they refuse, edge cases that every backend must survive, and equal bits for equal inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mfdmc_fast.ops import functional, native
from mfdmc_fast.ops.types import FactorTensors, LossTerms, LossWeights, SideTensors
from mfdmc_fast.testing import ALL_WEIGHTS, Case, both_combines, make_case

FACTOR_WEIGHTS = LossWeights(l2=0.1, bias_l2=0.2)
# more than torch's grain size, so that its CPU kernels share the work out between threads
LARGE_BATCH = 70_001
NEEDS_MODULE = pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))
BACKENDS = [pytest.param("cpu", marks=NEEDS_MODULE), "reference"]


@pytest.fixture
def _restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _index(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _factors(case: Case, n_factors: int = 5, *, biases: bool = True) -> tuple[FactorTensors, FactorTensors]:
    """FunkMF parameters as large as the sides of a case."""
    generator = torch.Generator().manual_seed(7)
    sides = []
    for side in (case.user, case.item):
        n, dtype = len(side.assignment_logits), side.centers.dtype
        factors = torch.randn(n, n_factors, generator=generator, dtype=torch.float64).to(dtype)
        bias = torch.randn(n, generator=generator, dtype=torch.float64).to(dtype) if biases else None
        sides.append(
            FactorTensors(factors.requires_grad_(), None if bias is None else bias.requires_grad_()),
        )
    return sides[0], sides[1]


def _batch_loss(case: Case, **options: Any) -> LossTerms:
    return functional.batch_loss(*case, **{"weights": ALL_WEIGHTS, "spread_margin": 2.0} | options)


def _score_pairs(case: Case, **options: Any) -> Tensor:
    return functional.score_pairs(*case[:5], **options)


def _funkmf_loss(case: Case) -> LossTerms:
    return functional.funkmf_loss(*_factors(case), *case[2:], weights=FACTOR_WEIGHTS)


def _gradients(total: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(total, parameters))


SIDE_FAULTS: dict[str, tuple[Callable[[SideTensors], SideTensors], type[Exception], str]] = {
    "no-view": (lambda s: s._replace(n_clusters=()), ValueError, r"{name}\.n_clusters must hold at least one view"),
    "empty-view": (lambda s: s._replace(n_clusters=(15, 0)), ValueError, r"one cluster a view, got \(15, 0\)"),
    "logits-columns": (
        lambda s: s._replace(assignment_logits=s.assignment_logits[:, 1:]),
        ValueError,
        r"{name}\.assignment_logits must be \[n, {total}\], got \[{n}, {less}\]",
    ),
    "logits-ndim": (
        lambda s: s._replace(assignment_logits=s.assignment_logits[0]),
        ValueError,
        r"{name}\.assignment_logits must be",
    ),
    "centers-rows": (
        lambda s: s._replace(centers=s.centers[1:]),
        ValueError,
        r"{name}\.centers must be \[{total}, d\], got \[{less}, 7\]",
    ),
    "centers-ndim": (lambda s: s._replace(centers=s.centers[:, 0]), ValueError, r"{name}\.centers must be"),
    "centers-empty": (lambda s: s._replace(centers=s.centers[:, :0]), ValueError, r"{name}\.centers must be"),
    "bias-length": (lambda s: s._replace(bias=s.bias[1:]), ValueError, r"{name}\.bias must be \[{n}\]"),
    "bias-ndim": (lambda s: s._replace(bias=s.bias[:, None]), ValueError, r"{name}\.bias must be \[{n}\]"),
    "scale-length": (
        lambda s: s._replace(l2_scale=s.bias.detach()[1:]),
        ValueError,
        r"{name}\.l2_scale must be \[{n}\]",
    ),
    "scale-dtype": (
        lambda s: s._replace(l2_scale=s.bias.detach().float()),
        TypeError,
        r"tensors of {name} must share",
    ),
    "logits-dtype": (
        lambda s: s._replace(assignment_logits=s.assignment_logits.float()),
        TypeError,
        r"tensors of {name} must share one floating dtype and device: got torch\.float32",
    ),
    "bias-dtype": (lambda s: s._replace(bias=s.bias.float()), TypeError, r"tensors of {name} must share"),
    "integers": (
        lambda s: SideTensors(s.assignment_logits.long(), s.centers.long(), s.n_clusters, s.bias.long()),
        TypeError,
        r"tensors of {name} must share one floating dtype",
    ),
    "centers-device": (lambda s: s._replace(centers=s.centers.to("meta")), TypeError, r"tensors of {name} must share"),
}


@pytest.mark.parametrize("op", [_batch_loss, _score_pairs], ids=["batch_loss", "score_pairs"])
@pytest.mark.parametrize("name", ["user", "item"])
@pytest.mark.parametrize(("spoil", "error", "message"), SIDE_FAULTS.values(), ids=SIDE_FAULTS)
def test_bad_side_is_refused(
    spoil: Callable[[SideTensors], SideTensors],
    error: type[Exception],
    message: str,
    name: str,
    op: Callable[[Case], object],
) -> None:
    case = make_case(user_clusters=(5, 10), item_clusters=(4, 8))
    side = getattr(case, name)
    n, total = side.assignment_logits.shape
    expected = message.format(name=name, total=total, less=total - 1, n=n)
    with pytest.raises(error, match=expected):
        op(case._replace(**{name: spoil(side)}))


@pytest.mark.parametrize(("spoil", "error", "message"), SIDE_FAULTS.values(), ids=SIDE_FAULTS)
def test_embed_refuses_a_bad_side(
    spoil: Callable[[SideTensors], SideTensors], error: type[Exception], message: str
) -> None:
    side = make_case(user_clusters=(5, 10), item_clusters=(4, 8)).user
    with pytest.raises(error, match=message.format(name="side", total=15, less=14, n=11)):
        functional.embed(spoil(side))


PAIR_FAULTS: dict[str, tuple[Callable[[Case], Case], type[Exception], str]] = {
    "dtype-of-one-side": (
        lambda c: c._replace(item=c.to(torch.float32).item),
        TypeError,
        r"both sides must share dtype and device, got torch\.float64 on cpu and torch\.float32",
    ),
    "number-of-views": (
        lambda c: c._replace(item=c.item._replace(n_clusters=(4, 8))),
        ValueError,
        r"equally many views .* got 3 views of 7 and 2 views of 7",
    ),
    "view-dim": (
        lambda c: c._replace(user=c.user._replace(centers=c.user.centers[:, :6])),
        ValueError,
        r"the same view_dim, got 3 views of 6 and 3 views of 7",
    ),
    "one-bias": (lambda c: c._replace(item=c.item._replace(bias=None)), ValueError, "a bias on both sides or on"),
    "user-idx-int32": (lambda c: c._replace(user_idx=c.user_idx.int()), TypeError, "user_idx must be a vector of int"),
    "item-idx-float": (lambda c: c._replace(item_idx=c.item_idx.float()), TypeError, "item_idx must be a vector of"),
    "user-idx-2d": (lambda c: c._replace(user_idx=c.user_idx[:, None]), TypeError, r"user_idx .* got \[63, 1\]"),
    "item-idx-scalar": (lambda c: c._replace(item_idx=c.item_idx[0]), TypeError, r"item_idx .* got \[\]"),
    "lengths": (lambda c: c._replace(item_idx=c.item_idx[1:]), ValueError, "equally long, got 63 and 62"),
    "idx-device": (
        lambda c: c._replace(user_idx=_index().to("meta"), item_idx=_index(), ratings=c.ratings[:0]),
        ValueError,
        "user_idx and item_idx must be on cpu",
    ),
}


@pytest.mark.parametrize("op", [_batch_loss, _score_pairs], ids=["batch_loss", "score_pairs"])
@pytest.mark.parametrize(("spoil", "error", "message"), PAIR_FAULTS.values(), ids=PAIR_FAULTS)
def test_sides_and_indices_that_do_not_fit_are_refused(
    spoil: Callable[[Case], Case], error: type[Exception], message: str, op: Callable[[Case], object]
) -> None:
    with pytest.raises(error, match=message):
        op(spoil(make_case()))


RATING_FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "length": lambda r: r[1:],
    "ndim": lambda r: r[:, None],
    "dtype": lambda r: r.float(),
    "integers": lambda r: r.long(),
    "device": lambda r: r.to("meta"),
}


@pytest.mark.parametrize("op", [_batch_loss, _funkmf_loss], ids=["batch_loss", "funkmf_loss"])
@pytest.mark.parametrize("spoil", RATING_FAULTS.values(), ids=RATING_FAULTS)
def test_bad_ratings_are_refused(spoil: Callable[[Tensor], Tensor], op: Callable[[Case], object]) -> None:
    case = make_case()
    with pytest.raises(ValueError, match=r"ratings must be \[63\] torch\.float64 on cpu, got \["):
        op(case._replace(ratings=spoil(case.ratings)))


@pytest.mark.parametrize("op", [_batch_loss, _score_pairs, _funkmf_loss], ids=["batch_loss", "score_pairs", "funkmf"])
@pytest.mark.parametrize(("name", "n"), [("user", 11), ("item", 17)])
@pytest.mark.parametrize("value", [-1, "n", 2**40, -(2**63)], ids=["minus-1", "n", "huge", "int64-min"])
def test_index_outside_its_side_is_refused_with_its_position(
    value: int | str, name: str, n: int, op: Callable[[Case], object]
) -> None:
    case = make_case()
    wrong = n if value == "n" else int(value)
    idx = getattr(case, f"{name}_idx").clone()
    idx[[5, 40]] = wrong
    with pytest.raises(IndexError, match=rf"^{name}_idx\[5\] is {wrong}, but there are {n} rows \(0 to {n - 1}\)$"):
        op(case._replace(**{f"{name}_idx": idx}))


@pytest.mark.parametrize("op", [_batch_loss, _score_pairs], ids=["batch_loss", "score_pairs"])
def test_any_index_into_a_side_without_entities_is_refused(op: Callable[[Case], object]) -> None:
    case = make_case(n_users=1)
    empty = case.user._replace(assignment_logits=case.user.assignment_logits[:0], bias=case.user.bias[:0])
    with pytest.raises(IndexError, match=r"user_idx\[0\] is 0, but there are 0 rows"):
        op(case._replace(user=empty))


@pytest.mark.parametrize("op", [_batch_loss, _score_pairs], ids=["batch_loss", "score_pairs"])
def test_unknown_combine_is_refused(op: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="combine must be 'concat' or 'sum', got 'product'"):
        op(make_case(), combine="product")


def test_embed_refuses_an_unknown_combine() -> None:
    with pytest.raises(ValueError, match="combine must be 'concat' or 'sum', got 'product'"):
        functional.embed(make_case().user, combine="product")  # type: ignore[arg-type]


@pytest.mark.parametrize("margin", [-0.1, math.nan], ids=str)
def test_bad_spread_margin_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="spread_margin must be 0 or more"):
        _batch_loss(make_case(), spread_margin=margin)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (_index(0, 11), IndexError, r"rows\[1\] is 11, but there are 11 rows \(0 to 10\)"),
        (_index(0, 1, -1), IndexError, r"rows\[2\] is -1"),
        (_index(0).int(), TypeError, "rows must be a vector of int64"),
        (_index(0)[None], TypeError, "rows must be a vector of int64"),
    ],
    ids=["n", "minus-1", "int32", "2d"],
)
def test_embed_refuses_bad_rows(rows: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        functional.embed(make_case().user, rows)


FACTOR_FAULTS: dict[str, tuple[Callable[[FactorTensors], FactorTensors], str]] = {
    "factors-1d": (lambda f: f._replace(factors=f.factors[:, 0]), r"user\.factors must be a floating matrix"),
    "factors-integers": (lambda f: f._replace(factors=f.factors.long()), r"user\.factors must be a floating matrix"),
    "n-factors": (lambda f: f._replace(factors=f.factors[:, 1:]), "same n_factors"),
    "bias-length": (lambda f: f._replace(bias=f.bias[1:]), r"user\.bias must be \[11\]"),
    "one-bias": (lambda f: f._replace(bias=None), "a bias on both sides or on neither"),
    "factors-dtype": (lambda f: FactorTensors(f.factors.float(), f.bias.float()), "dtype"),
    "bias-dtype": (lambda f: f._replace(bias=f.bias.float()), "dtype"),
}


@pytest.mark.parametrize(("spoil", "message"), FACTOR_FAULTS.values(), ids=FACTOR_FAULTS)
def test_funkmf_loss_refuses_bad_factors(spoil: Callable[[FactorTensors], FactorTensors], message: str) -> None:
    case = make_case()
    user, item = _factors(case)
    # ratings of the dtype of the spoilt side, so that they are not what is refused
    changed = spoil(user)
    dtype = changed.factors.dtype if changed.factors.is_floating_point() else torch.float64
    with pytest.raises((TypeError, ValueError), match=message):
        functional.funkmf_loss(changed, item, 3.0, case.user_idx, case.item_idx, case.ratings.to(dtype))


@pytest.mark.parametrize("name", ["spread", "proximity", "entropy"])
def test_funkmf_loss_refuses_weights_of_terms_it_does_not_have(name: str) -> None:
    case = make_case()
    with pytest.raises(ValueError, match="FunkMF has no clusters"):
        functional.funkmf_loss(*_factors(case), *case[2:], weights=LossWeights(**{name: 0.1}))


TOP_ITEMS_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "users-1d": ({"user_embeddings": torch.ones(3)}, "must be matrices with the same D"),
    "items-3d": ({"item_embeddings": torch.ones(4, 3, 1)}, "must be matrices with the same D"),
    "other-size": ({"item_embeddings": torch.ones(4, 2)}, r"got \[2, 3\] and \[4, 2\]"),
    "n-0": ({"n": 0}, "n must be at least 1, got 0"),
    "bias-length": ({"item_bias": torch.zeros(3)}, r"item_bias must be \[4\], got \[3\]"),
    "only-offsets": ({"exclude_offsets": _index(0, 0, 0)}, "give both exclude_offsets and exclude_items"),
    "only-items": ({"exclude_items": _index()}, "give both exclude_offsets and exclude_items"),
    "offsets-length": (
        {"exclude_offsets": _index(0, 1), "exclude_items": _index(0)},
        r"exclude_offsets must be \[3\], ascending from 0 to 1",
    ),
    "offsets-empty": ({"exclude_offsets": _index(), "exclude_items": _index()}, r"exclude_offsets must be \[3\]"),
    "offsets-start": ({"exclude_offsets": _index(1, 1, 1), "exclude_items": _index(0)}, "exclude_offsets must be"),
    "offsets-end": ({"exclude_offsets": _index(0, 1, 2), "exclude_items": _index(0)}, "exclude_offsets must be"),
    "offsets-fall": ({"exclude_offsets": _index(0, 2, 1), "exclude_items": _index(0)}, "exclude_offsets must be"),
    "offsets-float": (
        {"exclude_offsets": torch.tensor([0.0, 1.0, 1.0]), "exclude_items": _index(0)},
        "exclude_offsets must be",
    ),
    "excluded-range": ({"exclude_offsets": _index(0, 1, 2), "exclude_items": _index(0, 4)}, r"exclude_items\[1\] is 4"),
    "excluded-int32": ({"exclude_offsets": _index(0, 1, 1), "exclude_items": _index(0).int()}, "vector of int64"),
    "integers": (
        {"user_embeddings": torch.ones(2, 3).long(), "item_embeddings": torch.ones(4, 3).long()},
        "dtype|floating",
    ),
    "other-dtype": ({"item_embeddings": torch.ones(4, 3).double()}, "dtype"),
    "bias-dtype": ({"item_bias": torch.zeros(4).double()}, "dtype"),
}


@pytest.mark.parametrize(("changes", "message"), TOP_ITEMS_FAULTS.values(), ids=TOP_ITEMS_FAULTS)
def test_top_items_refuses_bad_arguments(changes: dict[str, Any], message: str) -> None:
    good = {"user_embeddings": torch.ones(2, 3), "item_embeddings": torch.ones(4, 3), "item_bias": None, "n": 2}
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        functional.top_items(**good | changes)


def _strided(tensor: Tensor) -> Tensor:
    """The same numbers in every second place of a larger storage, columns first."""
    spread = torch.stack([tensor, torch.full_like(tensor, 99 if tensor.dtype == torch.int64 else math.nan)], dim=-1)
    spread = spread.transpose(0, 1).contiguous().transpose(0, 1) if tensor.ndim == 2 else spread
    return spread[..., 0]


def _strided_case(case: Case) -> Case:
    def strided(side: SideTensors) -> SideTensors:
        bias = None if side.bias is None else _strided(side.bias)
        return SideTensors(_strided(side.assignment_logits), _strided(side.centers), side.n_clusters, bias)

    return Case(
        strided(case.user),
        strided(case.item),
        case.global_mean,
        *(_strided(getattr(case, k)) for k in ("user_idx", "item_idx", "ratings")),
    )


@pytest.mark.parametrize("combine", both_combines())
def test_batch_loss_of_non_contiguous_inputs(combine: str) -> None:
    case = make_case()
    strided = _strided_case(case)
    assert not any(t.is_contiguous() for t in (*strided.parameters(), *strided[3:]))
    terms, expected = (_batch_loss(c, combine=combine) for c in (strided, case))
    torch.testing.assert_close(torch.stack(terms), torch.stack(expected), rtol=1e-12, atol=1e-12)
    # the strided tensors were made from the leaves of the case, so gradients arrive there
    actual, wanted = (_gradients(t.total, case.parameters()) for t in (terms, expected))
    torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("combine", both_combines())
def test_score_pairs_of_non_contiguous_inputs(combine: str, backend: str) -> None:
    case = make_case()
    scores, expected = (_score_pairs(c, combine=combine, backend=backend) for c in (_strided_case(case), case))
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("combine", both_combines())
def test_embed_of_non_contiguous_inputs(combine: str) -> None:
    side, rows = make_case().user, _index(3, 0, 3)
    strided = _strided_case(make_case()).user
    expected = functional.embed(side, combine=combine)[rows]
    torch.testing.assert_close(functional.embed(strided, _strided(rows), combine=combine), expected)


def test_top_items_of_non_contiguous_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randn(n, 4, generator=generator) for n in (5, 9))
    bias, offsets, excluded = torch.randn(9, generator=generator), _index(0, 2, 2, 3, 3, 4), _index(1, 2, 5, 0)

    def top(*a: Tensor) -> tuple[Tensor, Tensor]:
        return functional.top_items(a[0], a[1], a[2], 3, exclude_offsets=a[3], exclude_items=a[4])

    arguments = (users, items, bias, offsets, excluded)
    found, scores = top(*map(_strided, arguments))
    expected, expected_scores = top(*arguments)
    assert torch.equal(found, expected)
    torch.testing.assert_close(scores, expected_scores)


def test_losses_of_an_empty_batch_are_zero_with_zero_gradients() -> None:
    case = make_case(0)
    factors = _factors(case)
    losses = (
        (_batch_loss(case), case.parameters()),
        (
            functional.funkmf_loss(*factors, *case[2:], weights=FACTOR_WEIGHTS),
            [t for side in factors for t in side[:2]],
        ),
    )
    for terms, parameters in losses:
        assert all(term.shape == () and term.item() == 0 for term in terms)
        for parameter, gradient in zip(parameters, _gradients(terms.total, parameters), strict=True):
            assert torch.equal(gradient, torch.zeros_like(parameter))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_scores_of_no_pairs(dtype: torch.dtype, backend: str) -> None:
    scores = _score_pairs(make_case(0, dtype=dtype), backend=backend)
    assert scores.shape == (0,)
    assert scores.dtype == dtype


@pytest.mark.parametrize(("combine", "width"), [("concat", 21), ("sum", 7)])
def test_embeddings_of_no_rows(combine: str, width: int) -> None:
    assert functional.embed(make_case().user, _index(), combine=combine).shape == (0, width)


@pytest.mark.parametrize(("n_users", "n_items"), [(0, 4), (2, 0), (0, 0)], ids=["no-users", "no-items", "neither"])
def test_top_items_of_nothing(n_users: int, n_items: int) -> None:
    found, scores = functional.top_items(torch.ones(n_users, 3), torch.ones(n_items, 3), torch.zeros(n_items), 2)
    assert found.shape == scores.shape == (n_users, min(2, n_items))
    assert found.dtype == torch.int64


def test_top_items_gives_at_most_all_items_and_keeps_the_order_of_ties() -> None:
    users, items = torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0], [0.0], [2.0]])
    found, scores = functional.top_items(users, items, None, 10)
    assert found.tolist() == [[0, 2, 1], [1, 0, 2]]
    assert scores.tolist() == [[2, 2, 0], [0, -2, -2]]


GRADIENT_SUBSETS = {
    "user-logits": (0,),
    "user-centers": (1,),
    "biases": (2, 5),
    "item-side": (3, 4, 5),
    "all-but-item-logits": (0, 1, 2, 4, 5),
}


@pytest.mark.parametrize("combine", both_combines())
@pytest.mark.parametrize("wanted", GRADIENT_SUBSETS.values(), ids=GRADIENT_SUBSETS)
def test_gradients_where_only_some_inputs_require_them(wanted: tuple[int, ...], combine: str) -> None:
    case = make_case()
    parameters = case.parameters()
    expected = _gradients(_batch_loss(case, combine=combine).total, parameters)
    for k, parameter in enumerate(parameters):
        parameter.requires_grad_(k in wanted)
    _batch_loss(case, combine=combine).total.backward()
    for k, parameter in enumerate(parameters):
        if k in wanted:
            torch.testing.assert_close(parameter.grad, expected[k], rtol=1e-12, atol=1e-12)
        else:
            assert parameter.grad is None


def test_gradients_of_funkmf_where_only_some_inputs_require_them() -> None:
    case = make_case()
    parameters = [t for side in _factors(case) for t in side[:2]]

    def total() -> Tensor:
        sides = FactorTensors(*parameters[:2]), FactorTensors(*parameters[2:])
        return functional.funkmf_loss(*sides, *case[2:], weights=FACTOR_WEIGHTS).total

    expected = _gradients(total(), parameters)
    for parameter in parameters[:3]:
        parameter.requires_grad_(False)
    total().backward()
    assert all(parameter.grad is None for parameter in parameters[:3])
    torch.testing.assert_close(parameters[3].grad, expected[3], rtol=1e-12, atol=1e-12)


def test_nothing_is_recorded_where_no_input_requires_gradients() -> None:
    case = make_case()
    for parameter in case.parameters():
        parameter.requires_grad_(False)
    assert not any(term.requires_grad for term in _batch_loss(case))


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_carry_no_gradient(backend: str) -> None:
    assert not _score_pairs(make_case(), backend=backend).requires_grad


def test_embeddings_are_differentiable() -> None:
    side = make_case(user_clusters=(2, 3), item_clusters=(1, 1), view_dim=2, n_users=4).user

    def embed(logits: Tensor, centers: Tensor) -> Tensor:
        return functional.embed(SideTensors(logits, centers, side.n_clusters), _index(1, 3, 1))

    assert torch.autograd.gradcheck(embed, (side.assignment_logits, side.centers))


def _repeated(case: Case, times: int) -> Case:
    return case._replace(**{k: getattr(case, k).repeat(times) for k in ("user_idx", "item_idx", "ratings")})


@pytest.mark.parametrize("batch_size", [1, 63])
@pytest.mark.parametrize("combine", both_combines())
def test_repeating_the_batch_changes_no_mean(combine: str, batch_size: int) -> None:
    case = make_case(batch_size)
    terms, expected = (_batch_loss(c, combine=combine) for c in (_repeated(case, 3), case))
    torch.testing.assert_close(torch.stack(terms), torch.stack(expected), rtol=1e-12, atol=1e-12)
    actual, wanted = (_gradients(t.total, case.parameters()) for t in (terms, expected))
    torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


def test_an_entity_counts_once_per_rating() -> None:
    case = make_case(3)._replace(user_idx=_index(4, 4, 9), item_idx=_index(2, 2, 2))
    squares = functional.embed(case.user).square().sum(1), functional.embed(case.item).square().sum(1)
    expected = (2 * squares[0][4] + squares[0][9]) / 3 + squares[1][2]
    torch.testing.assert_close(_batch_loss(case).l2, expected)
    expected = (2 * case.user.bias[4] ** 2 + case.user.bias[9] ** 2) / 3 + case.item.bias[2] ** 2
    torch.testing.assert_close(_batch_loss(case).bias_l2, expected)


@pytest.mark.parametrize("combine", both_combines())
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_cluster_and_ragged_views(backend: str, combine: str) -> None:
    case = make_case(user_clusters=(1, 4, 1), item_clusters=(1, 1, 2), view_dim=1)
    scores = _score_pairs(case, combine=combine, backend=backend)
    user, item = (functional.embed(side, combine=combine).detach() for side in (case.user, case.item))
    expected = (user[case.user_idx] * item[case.item_idx]).sum(1) + case.global_mean
    expected = expected + case.user.bias.detach()[case.user_idx] + case.item.bias.detach()[case.item_idx]
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)


@NEEDS_MODULE
@pytest.mark.parametrize("biases", [True, False], ids=["biases", "plain"])
@pytest.mark.parametrize("combine", both_combines())
@pytest.mark.parametrize(
    ("dtype", "bounds"),
    [(torch.float32, {"rtol": 1e-5, "atol": 1e-5}), (torch.float64, {"rtol": 1e-12, "atol": 1e-12})],
    ids=["f32", "f64"],
)
def test_backends_agree_on_score_pairs(
    dtype: torch.dtype, bounds: dict[str, float], combine: str, biases: bool
) -> None:
    case = make_case(5_001, dtype=dtype, biases=biases, logit_scale=5.0, seed=4)
    ours, oracle = (_score_pairs(case, combine=combine, backend=b) for b in ("cpu", "reference"))
    assert ours.std() > 1
    torch.testing.assert_close(ours, oracle, **bounds)


def _run_batch_loss(case: Case, combine: str) -> list[Tensor]:
    terms = _batch_loss(case, combine=combine)
    return [*terms, *_gradients(terms.total, case.parameters())]


def _run_funkmf_loss(case: Case, _: str) -> list[Tensor]:
    factors = _factors(case)
    terms = functional.funkmf_loss(*factors, *case[2:], weights=FACTOR_WEIGHTS)
    return [*terms, *_gradients(terms.total, [t for side in factors for t in side[:2]])]


def _run_score_pairs_cpu(case: Case, combine: str) -> list[Tensor]:
    return [_score_pairs(case, combine=combine, backend="cpu")]


def _run_score_pairs_reference(case: Case, combine: str) -> list[Tensor]:
    return [_score_pairs(case, combine=combine, backend="reference")]


def _run_embed(case: Case, combine: str) -> list[Tensor]:
    z = functional.embed(case.user, case.user_idx, combine=combine)
    return [z, *_gradients(z.square().sum(), [case.user.assignment_logits, case.user.centers])]


def _run_top_items(case: Case, _: str) -> list[Tensor]:
    user, item = (functional.embed(side).detach() for side in (case.user, case.item))
    return list(functional.top_items(user[case.user_idx[:9000]], item, case.item.bias, 4))


RUNS = [
    pytest.param(_run_batch_loss, "concat", id="batch_loss-concat"),
    pytest.param(_run_batch_loss, "sum", id="batch_loss-sum"),
    pytest.param(_run_funkmf_loss, "concat", id="funkmf_loss"),
    pytest.param(_run_score_pairs_cpu, "concat", id="score_pairs-cpu", marks=NEEDS_MODULE),
    pytest.param(_run_score_pairs_reference, "concat", id="score_pairs-reference"),
    pytest.param(_run_embed, "concat", id="embed"),
    pytest.param(_run_top_items, "concat", id="top_items"),
]


def _large_case() -> Case:
    return make_case(LARGE_BATCH, (10, 3), (2, 4), view_dim=4, n_users=5000, n_items=17, dtype=torch.float32)


def _same_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("_restored_threads")
@pytest.mark.parametrize("n_threads", [1, 2], ids=["1-thread", "2-threads"])
@pytest.mark.parametrize(("run", "combine"), RUNS)
def test_same_inputs_give_the_same_bits(run: Callable[[Case, str], list[Tensor]], combine: str, n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    case = _large_case()
    first = run(case, combine)
    # what threads do to the order of additions shows only now and then
    for _ in range(n_threads):
        assert _same_bits(first, run(case, combine))


@pytest.mark.usefixtures("_restored_threads")
@pytest.mark.parametrize(("run", "combine"), [run for run in RUNS if run.id == "score_pairs-cpu"])
def test_the_number_of_threads_does_not_change_the_bits(run: Callable[[Case, str], list[Tensor]], combine: str) -> None:
    case = _large_case()
    torch.set_num_threads(1)
    one = run(case, combine)
    torch.set_num_threads(2)
    assert _same_bits(one, run(case, combine))
