"""The oracle against numbers worked out by hand, finite differences, and the algebra of softmax and entropy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfdmc_fast.ops import reference
from mfdmc_fast.ops.types import FactorTensors, LossWeights, SideTensors
from mfdmc_fast.testing import ALL_WEIGHTS, both_combines, make_case

NO_WEIGHTS = LossWeights()


def _tensor(values: list[object]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _hand_case() -> tuple[SideTensors, SideTensors, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of two and one clusters, d = 2. Weights of user 0: (3/4, 1/4), (1); of item 0: (1/2, 1/2), (1)."""
    user = SideTensors(
        _tensor([[math.log(3.0), 0.0, 0.0], [0.0, 0.0, 5.0]]),
        _tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]),
        (2, 1),
        _tensor([0.5, -0.25]),
    )
    item = SideTensors(
        _tensor([[0.0, 0.0, 1.0]]), _tensor([[2.0, 0.0], [0.0, 2.0], [3.0, -1.0]]), (2, 1), _tensor([0.1])
    )
    return user, item, torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), _tensor([3.0, 4.0, 5.0])


# embeddings by hand: user 0: (3/4, 1/2), (1, 1); user 1: (1/2, 1), (1, 1); item 0: (1, 1), (3, -1)
CONCAT_DOTS = (3 / 4 + 1 / 2 + 3 - 1, 1 / 2 + 1 + 3 - 1)  # 3.25, 3.5
SUM_DOTS = (1.75 * 4 + 1.5 * 0, 1.5 * 4 + 2.0 * 0)  # users (1.75, 1.5), (1.5, 2), item (4, 0)


@pytest.mark.parametrize(("combine", "dots"), [("concat", CONCAT_DOTS), ("sum", SUM_DOTS)])
def test_batch_loss_by_hand(combine: str, dots: tuple[float, float]) -> None:
    user, item, user_idx, item_idx, ratings = _hand_case()
    weights = LossWeights(spread=2.0, proximity=3.0, entropy=5.0, l2=7.0, bias_l2=11.0)
    terms = reference.batch_loss(
        user, item, 1.0, user_idx, item_idx, ratings, combine=combine, weights=weights, spread_margin=3.0
    )
    first, second = 1 + 0.5 + 0.1 + dots[0], 1 - 0.25 + 0.1 + dots[1]
    mse = ((first - 3) ** 2 + (first - 4) ** 2 + (second - 5) ** 2) / 3
    # only view 0 has a pair of centers; distances sqrt(5) and sqrt(8)
    spread = (3 - math.sqrt(5)) ** 2 + (3 - math.sqrt(8)) ** 2
    # mean over two views; view 1 has one cluster, so its embedding is the center and the distance 0
    user_0 = (3 / 4 * 1 + 1 / 4 * 4 - (9 / 16 + 1 / 4)) / 2
    user_1 = (1 / 2 * 1 + 1 / 2 * 4 - (1 / 4 + 1)) / 2
    item_0 = (1 / 2 * 4 + 1 / 2 * 4 - 2) / 2
    proximity = (2 * user_0 + user_1) / 3 + item_0
    entropy_user_0 = -(3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4)) / math.log(2) / 2
    entropy = (2 * entropy_user_0 + 1 / 2) / 3 + 1 / 2
    squares = {
        "concat": ((2 * (9 / 16 + 1 / 4 + 2) + (1 / 4 + 1 + 2)) / 3, 1 + 1 + 9 + 1),
        "sum": ((2 * (1.75**2 + 1.5**2) + (1.5**2 + 2**2)) / 3, 16),
    }[combine]
    l2 = sum(squares)
    bias_l2 = (2 * 0.25 + 0.0625) / 3 + 0.01
    expected = (mse, spread, proximity, entropy, l2, bias_l2)
    torch.testing.assert_close(torch.stack(terms[1:]), _tensor(list(expected)), rtol=1e-12, atol=1e-12)
    total = mse + 2 * spread + 3 * proximity + 5 * entropy + 7 * l2 + 11 * bias_l2
    assert terms.total.item() == pytest.approx(total, rel=1e-12)


def test_score_pairs_by_hand() -> None:
    user, item, user_idx, item_idx, _ = _hand_case()
    for combine, dots in (("concat", CONCAT_DOTS), ("sum", SUM_DOTS)):
        scores = reference.score_pairs(user, item, 1.0, user_idx, item_idx, combine=combine)
        expected = _tensor([1.6 + dots[0], 1.6 + dots[0], 0.85 + dots[1]])
        torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)


def test_funkmf_loss_by_hand() -> None:
    user = FactorTensors(_tensor([[1.0, 2.0], [0.0, 1.0]]), _tensor([0.5, 0.0]))
    item = FactorTensors(_tensor([[3.0, -1.0]]), _tensor([0.25]))
    terms = reference.funkmf_loss(
        user,
        item,
        2.0,
        torch.tensor([0, 1]),
        torch.tensor([0, 0]),
        _tensor([3.0, 3.0]),
        weights=LossWeights(l2=0.5, bias_l2=2.0),
    )
    mse = ((2 + 0.5 + 0.25 + 1 - 3) ** 2 + (2 + 0.25 - 1 - 3) ** 2) / 2
    l2, bias_l2 = (5 + 1) / 2 + 10, 0.25 / 2 + 0.0625
    expected = [mse + 0.5 * l2 + 2 * bias_l2, mse, 0.0, 0.0, 0.0, l2, bias_l2]
    torch.testing.assert_close(torch.stack(terms), _tensor(expected), rtol=1e-12, atol=1e-12)


def test_top_items_by_hand() -> None:
    users = _tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    items = _tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 0.0], [2.0, 0.0]])
    bias = _tensor([0.0, 0.0, 0.0, 2.0])
    found, scores = reference.top_items(
        users,
        items,
        bias,
        3,
        exclude_offsets=torch.tensor([0, 1, 1, 4]),
        exclude_items=torch.tensor([3, 0, 1, 2]),
        block_size=2,
    )
    # user 0 must not get item 3; user 1 has a tie of items 0 and 1, the lower first; user 2 has one candidate left
    assert found.tolist() == [[2, 1, 0], [0, 1, 3], [3, -1, -1]]
    assert scores.tolist() == [[3, 2, 1], [5, 5, 2], [4, -math.inf, -math.inf]]


@pytest.mark.parametrize("combine", both_combines())
@pytest.mark.parametrize("biases", [True, False], ids=["biases", "plain"])
@pytest.mark.parametrize("clusters", [((3, 1, 2), (2, 4, 1)), ((2,), (3,))], ids=["ragged", "one-view"])
def test_batch_loss_gradients(combine: str, biases: bool, clusters: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    case = make_case(9, *clusters, view_dim=3, n_users=4, n_items=5, biases=biases)

    def total(*parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        half = len(parameters) // 2
        user, item = (
            SideTensors(p[0], p[1], side.n_clusters, p[2] if biases else None)
            for p, side in ((parameters[:half], case.user), (parameters[half:], case.item))
        )
        return tuple(
            reference.batch_loss(user, item, *case[2:], combine=combine, weights=ALL_WEIGHTS, spread_margin=2.0)
        )

    assert torch.autograd.gradcheck(total, case.parameters())


def test_funkmf_loss_gradients() -> None:
    case = make_case(9, n_users=4, n_items=5)
    factors = [torch.randn(n, 3, dtype=torch.float64).requires_grad_() for n in (4, 5)]
    biases = [case.user.bias, case.item.bias]

    def total(*p: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sides = FactorTensors(p[0], p[2]), FactorTensors(p[1], p[3])
        return tuple(reference.funkmf_loss(*sides, *case[2:], weights=LossWeights(l2=0.1, bias_l2=0.2)))[:2]

    assert torch.autograd.gradcheck(total, [*factors, *biases])


def test_extreme_logits_stay_finite() -> None:
    case = make_case(logit_scale=80.0, dtype=torch.float32)
    terms = reference.batch_loss(*case, combine="concat", weights=ALL_WEIGHTS, spread_margin=1.0)
    terms.total.backward()
    assert torch.stack(terms).isfinite().all()
    for parameter in case.parameters():
        assert parameter.grad.isfinite().all()
    # one weight of each view is practically 1, so the entropy is practically 0
    assert terms.entropy < 0.1


def test_identical_centers_have_a_finite_gradient() -> None:
    centers = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    value = reference.spread(centers, (3,), margin=1.5)
    value.backward()
    assert value.item() == pytest.approx(1.5**2)
    assert centers.grad.isfinite().all()


def test_each_weight_adds_its_term() -> None:
    case = make_case()
    plain = reference.batch_loss(*case, combine="concat", weights=NO_WEIGHTS, spread_margin=3.0)
    assert plain.total == plain.mse
    for name in LossWeights._fields:
        terms = reference.batch_loss(
            *case, combine="concat", weights=NO_WEIGHTS._replace(**{name: 2.0}), spread_margin=3.0
        )
        assert getattr(terms, name) > 0
        torch.testing.assert_close(terms.total, terms.mse + 2 * getattr(terms, name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_any_float_dtype(dtype: torch.dtype) -> None:
    case = make_case(dtype=dtype)
    exact = make_case()
    arguments = {"combine": "sum", "weights": ALL_WEIGHTS, "spread_margin": 1.0}
    terms, expected = (torch.stack(reference.batch_loss(*c, **arguments)) for c in (case, exact))
    assert terms.dtype == dtype
    tolerance = {torch.float64: 0.0, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(terms.double(), expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(
    n_clusters=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 0.1, 1.0, 10.0, 80.0]),
)
def test_weights_and_entropy_algebra(n_clusters: tuple[int, ...], seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, sum(n_clusters), generator=generator, dtype=torch.float64) * scale
    weights = reference.assignment_weights(logits, n_clusters)
    for part in weights.split(n_clusters, dim=1):
        torch.testing.assert_close(part.sum(1), torch.ones(5, dtype=torch.float64))
        assert (part >= 0).all()
    # a constant added to a view's logits changes nothing
    shifted = torch.cat([part + 3.0 * k for k, part in enumerate(logits.split(n_clusters, dim=1))], dim=1)
    torch.testing.assert_close(reference.assignment_weights(shifted, n_clusters), weights)
    entropy = reference.normalized_entropy(reference.log_assignment_weights(logits, n_clusters), n_clusters)
    assert (entropy >= 0).all()
    assert (entropy <= 1 + 1e-12).all()
    for k, view in zip(n_clusters, entropy, strict=True):
        if k == 1:
            assert (view == 0).all()
        elif scale == 0.0:
            torch.testing.assert_close(view, torch.ones_like(view))


@pytest.mark.parametrize("combine", both_combines())
def test_symmetries(combine: str) -> None:
    case = make_case(40, seed=3)
    arguments = {"combine": combine, "weights": ALL_WEIGHTS, "spread_margin": 2.0}
    expected = torch.stack(reference.batch_loss(*case, **arguments))
    # the order of the batch
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = case._replace(**{k: getattr(case, k)[order] for k in ("user_idx", "item_idx", "ratings")})
    torch.testing.assert_close(torch.stack(reference.batch_loss(*shuffled, **arguments)), expected)
    # users and items swapped
    swapped = case._replace(user=case.item, item=case.user, user_idx=case.item_idx, item_idx=case.user_idx)
    torch.testing.assert_close(torch.stack(reference.batch_loss(*swapped, **arguments)), expected)
    # the clusters of a view permuted
    columns = torch.tensor([3, 1, 4, 2, 0, *range(5, 15)])
    permuted = case.user._replace(
        assignment_logits=case.user.assignment_logits[:, columns], centers=case.user.centers[columns]
    )
    torch.testing.assert_close(
        torch.stack(reference.batch_loss(case._replace(user=permuted)[0], *case[1:], **arguments)), expected
    )


def test_proximity_is_the_weighted_distance_to_the_centers() -> None:
    user = make_case().user
    log_weights = reference.log_assignment_weights(user.assignment_logits, user.n_clusters)
    per_view = reference.view_embeddings(log_weights.exp(), user.centers, user.n_clusters)
    value = reference.proximity(log_weights.exp(), user.centers, per_view, user.n_clusters)
    first, expected = 0, torch.zeros_like(value)
    for view, k in enumerate(user.n_clusters):
        for c in range(first, first + k):
            distance = (per_view[:, view] - user.centers[c]).square().sum(1)
            expected = expected + log_weights[c].exp() * distance / len(user.n_clusters)
        first += k
    torch.testing.assert_close(value, expected)


def test_l2_scales_weigh_the_rows() -> None:
    with torch.no_grad():
        _check_l2_scales()


def _check_l2_scales() -> None:
    case = make_case(l2_scales=True)
    found = reference.batch_loss(*case, combine="concat", weights=LossWeights(l2=2.0), spread_margin=0.0)
    expected = 0.0
    for side, idx in ((case.user, case.user_idx), (case.item, case.item_idx)):
        lengths = reference.embed(side, combine="concat").square().sum(1)
        expected += float(sum(lengths[e] * side.l2_scale[e] for e in idx) / len(idx))
    assert found.l2.item() == pytest.approx(expected, rel=1e-12)
    assert found.total.item() == pytest.approx(found.mse.item() + 2 * expected, rel=1e-12)
    sides = [FactorTensors(side.centers.new_ones(len(side.bias), 3), None, side.l2_scale) for side in case[:2]]
    terms = reference.funkmf_loss(*sides, *case[2:], weights=LossWeights(l2=1.0))
    mean = case.user.l2_scale[case.user_idx].mean() + case.item.l2_scale[case.item_idx].mean()
    assert terms.l2.item() == pytest.approx(3 * mean.item(), rel=1e-12)
