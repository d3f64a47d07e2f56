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
from benchmarks.ingest import BLOCK, sparse_store, write_text
from mfdmc_fast.config import MFDMCConfig
from mfdmc_fast.data import BatchIterator, read_ratings


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
