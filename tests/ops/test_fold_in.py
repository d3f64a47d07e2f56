"""Rows solved with all else fixed: the oracle against known answers, the native kernel against the oracle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mfdmc_fast.ops import functional, native, reference
from mfdmc_fast.ops.types import LossWeights, RowPrior, RowRatings, SideTensors
from mfdmc_fast.testing import both_combines, make_case

RATES = [0.3 * (1 - t / 20) for t in range(20)]
ADAM: dict[str, Any] = {"rates": RATES, "betas": (0.9, 0.999), "epsilon": 1e-8}
WEIGHTS = LossWeights(proximity=0.05, entropy=0.1)
needs_native = pytest.mark.skipif(native.why_unavailable() is not None, reason="the C++ module is not built")


class Problem(NamedTuple):
    """The arguments of `fold_in`, in order."""

    side: SideTensors
    partner_embeddings: Tensor
    partner_bias: Tensor | None
    global_mean: float
    own: RowRatings
    prior: RowPrior

    def to(self, dtype: torch.dtype) -> Problem:
        """The same numbers in another dtype."""

        def convert(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(dtype) if value.is_floating_point() else value
            if isinstance(value, tuple) and hasattr(value, "_fields"):
                return type(value)(*map(convert, value))
            return value

        return Problem(*map(convert, self))


def make_problem(
    n: int = 21,
    n_clusters: tuple[int, ...] = (5, 3, 7),
    view_dim: int = 4,
    n_partners: int = 30,
    most: int = 60,
    *,
    combine: str = "concat",
    biases: bool = True,
    logit_scale: float = 1.0,
    seed: int = 0,
) -> Problem:
    """Seeded rows with up to `most` ratings each; the first has none, and the last the most."""
    case = make_case(1, n_clusters, n_clusters, view_dim, n, n_partners, logit_scale=logit_scale, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    side = SideTensors(case.user.assignment_logits.detach(), case.user.centers.detach(), n_clusters)
    embeddings = functional.embed(case.item, combine=combine).detach()  # type: ignore[arg-type]
    counts = torch.randint(most + 1, (n,), generator=generator)
    counts[0], counts[-1] = 0, most
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    total = int(offsets[-1])
    ratings = torch.rand(total, generator=generator, dtype=torch.float64) * 4 + 1
    own = RowRatings(offsets, torch.randint(n_partners, (total,), generator=generator, dtype=torch.int32), ratings)
    unknowns = embeddings.shape[1] + biases
    root = torch.randn(unknowns, unknowns, generator=generator, dtype=torch.float64)
    precision = root @ root.T + torch.eye(unknowns, dtype=torch.float64)
    means = 0.2 * torch.randn(n, unknowns, generator=generator, dtype=torch.float64)
    assert case.item.bias is not None
    bias = case.item.bias.detach() if biases else None
    return Problem(side, embeddings, bias, 3.0, own, RowPrior(means, precision))


def objective(problem: Problem, logits: Tensor, bias: Tensor | None, combine: str) -> Tensor:
    """[R] what `fold_in` minimizes, written down once more, row by row and rating by rating."""
    values = []
    z = functional.embed(problem.side._replace(assignment_logits=logits), combine=combine)  # type: ignore[arg-type]
    views = problem.side.n_clusters
    for r in range(len(logits)):
        rows = slice(int(problem.own.offsets[r]), int(problem.own.offsets[r + 1]))
        partners = problem.own.partners[rows].long()
        predictions = problem.partner_embeddings[partners] @ z[r] + problem.global_mean
        x = z[r]
        if bias is not None and problem.partner_bias is not None:
            predictions = predictions + problem.partner_bias[partners] + bias[r]
            x = torch.cat([x, bias[r : r + 1]])
        apart = x - problem.prior.means[r]
        value = ((predictions - problem.own.ratings[rows]) ** 2).sum() + apart @ problem.prior.precision @ apart
        value = value / max(1, len(partners))
        for view, centers in zip(logits[r].split(views), problem.side.centers.split(views), strict=True):
            w = torch.softmax(view, 0)
            value = value + WEIGHTS.proximity / len(views) * (w @ (centers - w @ centers).square().sum(1))
            if len(w) > 1:
                entropy = -(w * w.log()).sum() / torch.log(torch.tensor(float(len(w))))
                value = value + WEIGHTS.entropy / len(views) * entropy
        values.append(value)
    return torch.stack(values)


def solve(problem: Problem, combine: str, backend: str, **changes: Any) -> tuple[Tensor, Tensor | None]:
    return functional.fold_in(
        *problem,
        combine=combine,  # type: ignore[arg-type]
        backend=backend,
        **{"weights": WEIGHTS, **ADAM, **changes},
    )


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("combine", both_combines())
def test_the_oracle_takes_adams_steps_on_the_objective(combine: str, biases: bool) -> None:
    problem = make_problem(n=5, combine=combine, biases=biases)
    logits, bias = solve(problem, combine, "reference")
    expected = problem.side.assignment_logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([expected])
    for rate in RATES:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        best = best_bias(problem, expected, combine)
        objective(problem, expected, best, combine).sum().backward()
        optimizer.step()
    # Adam divides gradients by their size, so that the rounding of small ones shows
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-6, atol=1e-7)
    best = best_bias(problem, expected, combine)
    assert (bias is None) == (best is None)
    if bias is not None and best is not None:
        torch.testing.assert_close(bias, best, rtol=1e-6, atol=1e-7)


def best_bias(problem: Problem, logits: Tensor, combine: str) -> Tensor | None:
    """Newton's step in the bias, exact because the objective is a quadratic function of it."""
    if problem.partner_bias is None:
        return None
    bias = torch.zeros(len(logits), dtype=logits.dtype, requires_grad=True)
    value = objective(problem, logits.detach(), bias, combine).sum()
    (slope,) = torch.autograd.grad(value, bias, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), bias)
    return (-slope / curvature).detach()


def test_a_row_without_ratings_follows_the_prior() -> None:
    problem = make_problem(n=1)
    # far more weight than the start has: the embedding of the first cluster of each view, and a bias of 0.7
    first = torch.tensor([0, 5, 8])
    target = torch.cat([problem.side.centers[first].flatten(), torch.tensor([0.7], dtype=torch.float64)])
    empty = RowRatings(torch.zeros(2, dtype=torch.int64), problem.own.partners[:0], problem.own.ratings[:0])
    prior = RowPrior(target[None], torch.eye(13, dtype=torch.float64) * 10)
    solved, bias = solve(
        problem._replace(own=empty, prior=prior), "concat", "reference", rates=[0.2] * 400, weights=LossWeights()
    )
    z = functional.embed(problem.side._replace(assignment_logits=solved))
    torch.testing.assert_close(z[0], target[:-1], atol=0.02, rtol=0)
    assert bias is not None
    torch.testing.assert_close(bias[0], target[-1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("biases", [True, False])
def test_factors_are_the_minimum(biases: bool) -> None:
    problem = make_problem(biases=biases)
    factors, bias = functional.fold_in_factors(*problem[1:])
    assert (bias is not None) == biases
    x = factors if bias is None else torch.cat([factors, bias[:, None]], 1)
    x.requires_grad_()
    row = torch.repeat_interleave(torch.arange(len(x)), problem.own.offsets.diff())
    partners = problem.own.partners.long()
    dim = factors.shape[1]
    predictions = (x[row, :dim] * problem.partner_embeddings[partners]).sum(1) + problem.global_mean
    if problem.partner_bias is not None:
        predictions = predictions + x[row, dim] + problem.partner_bias[partners]
    apart = x - problem.prior.means
    loss = (predictions - problem.own.ratings).square().sum() + ((apart @ problem.prior.precision) * apart).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.abs().max() < 1e-9
    torch.testing.assert_close(x[0], problem.prior.means[0])


CASES: dict[str, dict[str, Any]] = {
    "21-rows": {},
    "one-row": {"n": 1},
    "many-rows": {"n": 100, "most": 100},
    "default-shape": {"n": 40, "n_clusters": (10,) * 8},
    "one-cluster-left": {"n_clusters": (1, 3, 1)},
    "wide": {"n_clusters": (40, 3), "view_dim": 33},
    "tiny": {"n_clusters": (2,), "view_dim": 1},
    "logits-80": {"logit_scale": 80.0},
    "no-biases": {"biases": False},
}


@needs_native
@pytest.mark.parametrize("kernels", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("combine", both_combines())
@pytest.mark.parametrize("name", list(CASES))
def test_the_kernel_follows_the_oracle(name: str, combine: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels not in native.available_kernels():
        pytest.skip(f"this processor has no {kernels}")
    monkeypatch.setenv("MFDMC_CPU_KERNELS", kernels)
    problem = make_problem(combine=combine, **CASES[name])
    found, bias = solve(problem.to(torch.float32), combine, "cpu")
    expected, expected_bias = solve(problem, combine, "reference")
    # logits that hardly matter may go other ways by rounding; what they are for may not
    for a, b in zip(
        *(
            functional.embed(problem.side._replace(assignment_logits=x.double()), combine=combine)  # type: ignore[arg-type]
            for x in (found, expected)
        ),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert (bias is None) == (expected_bias is None)
    if bias is not None and expected_bias is not None:
        torch.testing.assert_close(bias.double(), expected_bias, rtol=1e-3, atol=1e-4)


@needs_native
def test_the_number_of_threads_does_not_change_the_bits(restored_threads: None) -> None:
    problem = make_problem(n=200).to(torch.float32)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(solve(problem, "concat", "cpu"))
    for first, second in itertools.pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_native)])
def test_the_start_stays_as_it_is(backend: str) -> None:
    problem = make_problem().to(torch.float32)
    before = problem.side.assignment_logits.clone()
    solved, _ = solve(problem, "concat", backend)
    assert torch.equal(before, problem.side.assignment_logits)
    assert not torch.equal(before, solved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p._replace(partner_embeddings=p.partner_embeddings[:, 1:]), "partner_embeddings must be"),
        (lambda p: p._replace(partner_bias=p.partner_bias[1:]), "partners.bias must be"),
        (lambda p: p._replace(prior=p.prior._replace(means=p.prior.means[1:])), "prior.means must be"),
        (lambda p: p._replace(own=p.own._replace(offsets=p.own.offsets[:-1])), "offsets must ascend"),
        (lambda p: p._replace(own=p.own._replace(ratings=p.own.ratings[1:])), "as many ratings"),
        (lambda p: p._replace(own=p.own._replace(partners=p.own.partners + 30)), "outside"),
        (lambda p: p._replace(own=p.own._replace(ratings=p.own.ratings.float())), "own.ratings"),
        (lambda p: p._replace(partner_bias=None), "prior.means must be"),
    ],
)
def test_wrong_arguments(change: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError, IndexError), match=message):
        solve(change(make_problem()), "concat", "auto")


def test_weights_that_are_not_used() -> None:
    with pytest.raises(ValueError, match="must be 0"):
        solve(make_problem(), "concat", "auto", weights=LossWeights(l2=0.1))


def test_the_objective_falls() -> None:
    problem = make_problem()
    residuals = problem.own.ratings - problem.global_mean - problem.partner_bias[problem.own.partners.long()]

    def loss(logits: Tensor) -> Tensor:
        return reference.fold_in_loss(
            logits,
            problem.side.centers,
            problem.side.n_clusters,
            problem.partner_embeddings,
            residuals,
            problem.own,
            problem.prior,
            biases=True,
            combine="concat",
            weights=WEIGHTS,
        )[0]

    solved, _ = solve(problem, "concat", "auto")
    assert (loss(solved) < loss(problem.side.assignment_logits)).all()
