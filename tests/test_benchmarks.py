"""What the benchmarks compare with: torch's forms of the loss are the oracle's, and generated ratings are sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.bayesian_speed import MYFM, summary
from benchmarks.calibration import calibration
from benchmarks.cpu_scaling import gathered_loss, shuffled, zipf_ratings
from benchmarks.cpu_training import make_model, seconds_to, table_loss
from benchmarks.fold_in import bias_only, held_out_users, many_users
from benchmarks.ingest import BLOCK, sparse_store, write_text
from mfdmc_fast.config import MFDMCConfig
from mfdmc_fast.data import BatchIterator, Ratings, make_planted_ratings, read_ratings
from mfdmc_fast.estimator import FunkMF


@pytest.mark.parametrize("form", [table_loss, gathered_loss])
@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_torch_forms_of_the_loss_are_the_oracles(form, combine: str) -> None:
    dataset = zipf_ratings(60, 40, 900)
    config = MFDMCConfig(n_views=3, n_clusters=4, view_dim=2, combine=combine, backend="reference", logit_scale=1.0)
    model = make_model(dataset, config).double()
    batch = next(BatchIterator(dataset, 300, 0).epoch(1))
    batch = batch._replace(ratings=batch.ratings.double())
    expected = model.batch_loss(*batch, epoch=20).total
    ours = form(model, model.loss_weights(20))(*batch)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (ours, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-9)


def test_generated_ratings() -> None:
    dataset = zipf_ratings(5000, 30, 40_000, seed=3)
    assert len(dataset) == 40_000
    assert dataset.sorted() is dataset
    assert (len(dataset.users), len(dataset.items)) == (5000, 30)
    counts = np.sort(np.bincount(dataset.item_idx))[::-1]
    assert counts[0] > 5 * counts[-1]
    mixed = shuffled(dataset)
    assert mixed.sorted() is not mixed
    np.testing.assert_array_equal(mixed.sorted().item_idx, dataset.item_idx)


def test_generated_text_and_sparse_stores(tmp_path: Path) -> None:
    write_text(tmp_path / "ratings.csv", 20_000)
    ratings = read_ratings(tmp_path / "ratings.csv")
    assert ratings.report.rows == 20_000
    assert ratings.report.repeated_pairs < 500
    assert ratings.scale == (0.5, 5.0)
    assert np.abs(np.diff(ratings.users[:100])).min() > 0
    store = sparse_store(tmp_path / "store", 2 * BLOCK, BLOCK)
    assert (len(store), store.n_items) == (2 * BLOCK, 2)
    dataset = store.load()
    assert (dataset.item_idx == np.repeat([0, 1], BLOCK)).all()
    assert (dataset.ratings == np.repeat([1, 5], BLOCK)).all()
    assert store.item_path.stat().st_blocks * 512 < 4.5 * BLOCK


def test_seconds_to_a_quality() -> None:
    curve = [{"epochs": n, "seconds": n / 10, "rmse": rmse} for n, rmse in enumerate([0.9, 0.86, 0.855], start=1)]
    assert seconds_to(curve) == {"0.8600": 0.2, "0.8505": None}


def test_calibration_of_normal_errors() -> None:
    generator = np.random.default_rng(1)
    deviations = generator.uniform(0.5, 2.0, 200_000)
    errors = generator.normal(size=200_000) * deviations
    found = calibration(errors, deviations)
    for level, share in found["coverage"].items():
        assert share == pytest.approx(float(level), abs=0.004)
    assert found["std_of_standardized_errors"] == pytest.approx(1, abs=0.005)
    assert found["nll"] < found["nll_of_one_std"]
    for group in found["by_std"]:
        assert group["rmse"] == pytest.approx(group["mean_std"], rel=0.03)
    # twice as sure as right: an interval of z stds holds what one of z / 2 should
    assert calibration(errors, deviations / 2)["coverage"]["0.95"] == pytest.approx(0.673, abs=0.005)


def test_the_summary_of_speeds() -> None:
    rows = [
        {"model": model, "seed": seed, "seconds": seconds, "rmse": 0.8}
        for model, times in ((MYFM, (8.0, 10.0, 12.0)), ("ours", (2.0, 2.0, 4.0)))
        for seed, seconds in enumerate(times)
    ]
    ours = summary(rows)[1]
    assert (ours["seconds"], ours["times_as_fast_as_myfm"], ours["extremes"]) == (2.0, 4.0, [3.0, 5.0])
    assert summary(rows[3:])[0]["times_as_fast_as_myfm"] is None


def test_users_held_out_and_the_places_of_their_ratings() -> None:
    ratings = make_planted_ratings(100, 40, 1500, seed=1)
    held, place = held_out_users(ratings, 3)
    assert len(set(ratings.users[held].tolist())) == len(set(ratings.users.tolist())) // 10
    assert not set(ratings.users[held].tolist()) & set(ratings.users[~held].tolist())
    for user in set(ratings.users.tolist()):
        own = np.sort(place[ratings.users == user])
        np.testing.assert_allclose(own, np.arange(len(own)) / len(own))
    assert not np.array_equal(place, held_out_users(ratings, 4)[1])


def test_many_users_are_new_and_rate_what_known_ones_did() -> None:
    ratings = make_planted_ratings(100, 40, 1500, seed=1)
    many = many_users(ratings, 300)
    assert len(set(many.users.tolist())) == 300
    assert many.users.min() > ratings.users.max()
    assert len(many) == pytest.approx(0.8 * 300 * 15, rel=0.1)
    known = {(frozenset(ratings.items[ratings.users == u].tolist())) for u in set(ratings.users.tolist())}
    assert all(
        any(set(many.items[many.users == user].tolist()) <= items for items in known)
        for user in sorted(set(many.users.tolist()))[:20]
    )


def test_biases_alone_are_shrunk() -> None:
    ratings = make_planted_ratings(100, 40, 1500, seed=1)
    model = FunkMF(n_factors=2, epochs=5, seed=1).fit(ratings, rating_scale=(1, 5))
    given = Ratings(np.array([999, 999]), np.array([1, 2]), model.predict(999, [1, 2]).astype(float) + 1)
    test = Ratings(np.array([999, 998]), np.array([3, 3]), np.array([3.0, 3.0]))
    shift = bias_only(model, given, test) - model.predict(test.users, test.items)
    assert 0 < shift[0] < 1
    assert shift[1] == pytest.approx(0, abs=1e-6)
