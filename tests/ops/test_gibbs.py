"""The Gibbs sampler: the native one follows the oracle, and the oracle draws from the right distributions."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from mfdmc_fast.ops import functional, native, reference_gibbs
from mfdmc_fast.ops.types import FeatureBags, GibbsSampler

needs_native = pytest.mark.skipif(native.why_unavailable() is not None, reason="the C++ module was not built")
USER_BAG = FeatureBags(np.array([0, 4, 9]), np.array([0, 3, 5, 9, 1, 3, 7, 8, 20], dtype=np.int32))
ITEM_BAG = FeatureBags(np.array([0, 3]), np.array([3, 4, 16], dtype=np.int32))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "implicit": {"implicit": True},
    "noise": {"noise_degrees": 4.0},
    "features": {"user_bags": [USER_BAG], "item_bags": [ITEM_BAG]},
    "all": {"implicit": True, "noise_degrees": 20.0, "user_bags": [USER_BAG], "item_bags": [ITEM_BAG]},
}


def ratings_23_17() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User offsets, items and ratings: one user and one item without ratings, one user with all items but that."""
    generator = np.random.default_rng(0)
    rated = generator.random((23, 17)) < 0.4
    rated[7] = True
    rated[5] = False
    rated[:, 3] = False
    offsets = np.concatenate([[0], np.cumsum(rated.sum(1))])
    items = np.nonzero(rated)[1].astype(np.int32)
    return offsets, items, (3 + generator.normal(size=len(items))).astype(np.float32)


def make(backend: str, *, rank: int = 5, seed: int = 3, unit: float = 1.0, **options: Any) -> GibbsSampler:
    offsets, items, ratings = ratings_23_17()
    ratings = ratings * np.float32(unit)
    return functional.gibbs_sampler(
        offsets,
        items,
        ratings,
        n_items=17,
        mean=float(ratings.mean()),
        rank=rank,
        seed=seed,
        backend=backend,
        **options,
    )


@functools.cache
def oracle_draws(name: str, rank: int) -> list[tuple[float, list[tuple[np.ndarray, np.ndarray]]]]:
    """Noise precision, and rows and weights of both sides, after each of three sweeps."""
    oracle, draws = make("reference", rank=rank, **OPTIONS[name]), []
    for _ in range(3):
        oracle.sweep()
        draws.append((oracle.noise_precision, [(oracle.rows(side), oracle.noise_weights(side)) for side in (0, 1)]))
    return draws


@needs_native
@pytest.mark.parametrize("kernels", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize(("name", "rank"), [*((name, 5) for name in OPTIONS), ("all", 1), ("all", 16), ("plain", 31)])
def test_native_draws_follow_the_oracle(name: str, rank: int, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFDMC_CPU_KERNELS", kernels)
    try:
        own = make("cpu", rank=rank, **OPTIONS[name])
    except ValueError as error:
        pytest.skip(str(error))
    for precision, sides in oracle_draws(name, rank):
        own.sweep()
        assert own.noise_precision == pytest.approx(precision, rel=2e-5)
        for side, (rows, weights) in enumerate(sides):
            np.testing.assert_allclose(own.rows(side), rows, rtol=0, atol=3e-5)
            np.testing.assert_allclose(own.noise_weights(side), weights, rtol=3e-5)


@needs_native
def test_draws_are_the_same_bits_for_any_number_of_threads() -> None:
    before, drawn = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            sampler = make("cpu", **OPTIONS["all"])
            for _ in range(4):
                sampler.sweep()
            drawn.append((sampler.rows(0), sampler.rows(1), sampler.noise_weights(1), sampler.noise_precision))
    finally:
        torch.set_num_threads(before)
    for other in drawn[1:]:
        for a, b in zip(drawn[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@needs_native
def test_seeds_change_the_draws() -> None:
    one, other = make("cpu", seed=1), make("cpu", seed=2)
    one.sweep()
    other.sweep()
    assert np.abs(one.rows(0) - other.rows(0)).max() > 0.01


@needs_native
def test_units_of_the_ratings_do_not_matter() -> None:
    one, large = make("cpu", **OPTIONS["all"]), make("cpu", unit=1024.0, **OPTIONS["all"])
    for _ in range(3):
        one.sweep()
        large.sweep()
    np.testing.assert_allclose(large.rows(0)[:, -1], 1024 * one.rows(0)[:, -1], rtol=0, atol=0.05)
    assert large.noise_precision == pytest.approx(one.noise_precision / 1024**2, rel=1e-3)


def test_random_numbers_have_their_distributions() -> None:
    index = np.arange(20_000, dtype=np.uint64)
    for normal in reference_gibbs.normals(7, index):
        assert stats.kstest(normal.numpy(), "norm").pvalue > 0.01
    for shape, rate in ((1.0, 2.0), (7.5, 0.5)):
        stream = reference_gibbs.Stream(11)
        drawn = [stream.gamma(shape, rate) for _ in range(5_000)]
        assert stats.kstest(drawn, "gamma", args=(shape, 0, 1 / rate)).pvalue > 0.01


def test_a_row_is_drawn_from_its_conditional() -> None:
    """Mean and covariance of many draws of one user given all else, against the formulas of linear regression."""
    sampler = make("reference", rank=2, noise_degrees=4.0)
    assert isinstance(sampler, reference_gibbs.GibbsSampler)
    for _ in range(2):
        sampler.sweep()
    user, item, e = sampler.user, sampler.item, 7
    partners, ratings = user.ratings[e]
    exactness = sampler.noise_precision * user.weights[e] * item.weights[partners]
    design = torch.cat([item.rows[partners, :2], torch.ones(len(partners), 1, dtype=torch.float64)], dim=1)
    precision = design.T @ exactness.diag() @ design + user.precision.diag()
    left = ratings - sampler.mean - item.rows[partners, 2]
    mean = torch.linalg.solve(precision, design.T @ (exactness * left) + user.precision * user.mean)
    draws = []
    for sweep in range(1000, 1600):  # other random numbers for each
        sampler._sweep = sweep
        sampler._draw_rows(0)
        draws.append(user.rows[e].clone())
    drawn, covariance = torch.stack(draws), torch.linalg.inv(precision)
    standardized = (drawn - mean) @ torch.linalg.cholesky(precision)
    assert stats.kstest(standardized.flatten().numpy(), "norm").pvalue > 0.01
    assert torch.allclose(drawn.T.cov(), covariance, rtol=0.3, atol=0.1 * float(covariance.abs().max()))


def test_weights_of_noise_find_the_noisy_users() -> None:
    generator = np.random.default_rng(1)
    noisy = np.arange(60) % 2
    ratings = (3 + generator.normal(size=(60, 40)) * np.where(noisy, 1.5, 0.3)[:, None]).astype(np.float32).ravel()
    items = np.tile(np.arange(40, dtype=np.int32), 60)
    sampler = functional.gibbs_sampler(
        np.arange(61) * 40, items, ratings, n_items=40, mean=3.0, rank=1, seed=0, noise_degrees=4.0
    )
    total = np.zeros(60)
    for _ in range(30):
        sampler.sweep()
        total += sampler.noise_weights(0)
    assert total[noisy == 0].min() > 3 * total[noisy == 1].max()


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_native), "reference"])
def test_watched_pairs_add_up_clipped_predictions(backend: str) -> None:
    sampler = make(backend, noise_degrees=4.0)
    users, items = np.array([0, 5, 22], dtype=np.int32), np.array([3, 0, 16], dtype=np.int32)
    sums, wanted = np.zeros(3, dtype=np.float32), np.zeros(3)
    sampler.watch(users, items, (2.5, 3.5), sums)
    mean = float(ratings_23_17()[2].mean())
    for _ in range(5):
        sampler.sweep()
        sampler.add_predictions()
        p, q = sampler.rows(0)[users], sampler.rows(1)[items]
        wanted += np.clip(mean + p[:, -1] + q[:, -1] + (p[:, :-1] * q[:, :-1]).sum(1), 2.5, 3.5)
    np.testing.assert_allclose(sums, wanted, rtol=1e-5)
    with pytest.raises(IndexError):
        sampler.watch(users, np.array([3, 0, 17], dtype=np.int32), (0.0, 5.0), sums)


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_native), "reference"])
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"items": np.array([0, 17], dtype=np.int32)}, IndexError, r"items\[1\] is 17, outside \[0, 17\)"),
        ({"items": np.array([0, 1])}, TypeError, "int32"),
        ({"user_offsets": np.array([0, 2, 1, 2])}, ValueError, "ascend"),
        ({"ratings": np.ones(2)}, TypeError, "float32"),
        ({"ratings": np.ones(3, dtype=np.float32)}, ValueError, "as many as items"),
        ({"rank": 0}, ValueError, "rank"),
        ({"user_bags": [FeatureBags(np.array([0, 1]), np.array([3], dtype=np.int32))]}, IndexError, "user_bags"),
    ],
)
def test_wrong_arguments_are_refused(backend: str, change: dict[str, Any], error: type[Exception], match: str) -> None:
    given: dict[str, Any] = {
        "user_offsets": np.array([0, 1, 1, 2]),
        "items": np.array([0, 16], dtype=np.int32),
        "ratings": np.ones(2, dtype=np.float32),
        "n_items": 17,
        "mean": 1.0,
        "rank": 2,
        "seed": 0,
        "backend": backend,
    }
    with pytest.raises(error, match=match):
        functional.gibbs_sampler(**{**given, **change})


@needs_native
@pytest.mark.parametrize("n_pairs", [0, 1, 2500])
def test_posterior_scores_match_the_oracle(n_pairs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(7, 20, 6, generator=generator), torch.randn(7, 30, 6, generator=generator)
    user_idx = torch.randint(20, (n_pairs,), generator=generator)
    item_idx = torch.randint(30, (n_pairs,), generator=generator)
    own, oracle = (
        functional.posterior_scores(users, items, 0.5, user_idx, item_idx, scale=(-2.0, 2.0), backend=backend)
        for backend in ("cpu", "reference")
    )
    for a, b in zip(own, oracle, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
