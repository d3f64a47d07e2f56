"""The ablation and the sensitivity sweeps: what they vary, that nothing runs twice, and their reports."""

from __future__ import annotations

import inspect
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import ablation, sensitivity, tradeoff
from benchmarks.suite import worker
from benchmarks.suite.lab import Lab, Store, Worker
from benchmarks.suite.models import all_models
from benchmarks.suite.study import Variant, run_variants
from benchmarks.suite.worker import VALIDATION
from mfdmc_fast.config import PRESETS
from mfdmc_fast.estimator import MFDMC


def made_row(variant: Variant, fold: str, seed: int) -> dict[str, Any]:
    value = 0.9 + 0.01 * (variant.name != ablation.FULL) + 0.02 * (fold == "u2") + 0.001 * seed
    details: dict[str, Any] = {"clusters_user": [5, 4], "clusters_item": [3, 6], "entropy": {"user": 0.5, "item": 0.25}}
    details["epochs_log"] = [{"rmse": 1.0 - 0.1 * e, "user": [5, 4], "item": [6, 6]} for e in range(2)]
    where = {"commit": "abc", "dirty": False, "cpu": "a processor", "threads": 2, "python": "3.11"}
    return {"rmse": value, "seed": seed, "fit_seconds": 0.5, "details": details, **where}


def made(variants: list[Variant], folds: tuple[str, ...]) -> Any:
    return [(v, {(fold, seed): made_row(v, fold, seed) for fold in folds for seed in (0, 1)}) for v in variants]


@pytest.mark.parametrize(
    "variants",
    [ablation.variants(), sensitivity.variants("mfdmc"), tradeoff.variants()],
    ids=["ablation", "sweeps", "tradeoff"],
)
def test_every_variant_is_a_setting_of_mfdmc(variants: list[Variant]) -> None:
    names = [(variant.group, variant.name) for variant in variants]
    assert len(set(names)) == len(names)
    known = set(inspect.signature(MFDMC).parameters)
    for variant in variants:
        assert variant.model in all_models()
        assert set(variant.settings) <= known
        MFDMC(**variant.settings)._config()


def test_schedules_have_the_same_greatest_weights() -> None:
    for model, top in (("mfdmc", "0.094"), ("mfdmc-balanced", "0.01")):
        schedules = sensitivity.schedules(model)
        assert schedules["constant"]["weight_entropy"] == top
        assert schedules["up in 30 epochs"]["weight_entropy"] == f"0:{top}:30"
        assert schedules["none"] == {"weight_entropy": 0.0, "weight_proximity": 0.0}


def test_the_ablations_report(tmp_path: Path) -> None:
    results = made(ablation.variants(), ("u1", "u2"))
    text = ablation.markdown(results, "a title")
    assert "## taught, sum" in text
    assert "| full | 0.9105 ± 0.0141 |  | 18 | 0.50 / 0.25 |" in text
    assert "| without spread | 0.9205 ± 0.0141 | +0.0100 [+0.0100, +0.0100] | 18 | 0.50 / 0.25 |" in text
    assert "- 112 fits at commit abc, a processor, 2 threads, Python 3.11" in text
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    ablation.plot(results, "a title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_sweeps_report(tmp_path: Path) -> None:
    results = made(sensitivity.variants("mfdmc"), ("validation",))
    text = sensitivity.markdown(results, "a title")
    assert "| 0.001 | 0.9105 ± 0.0007 | 0.9110 | 18 | 0.50 / 0.25 | 0.50 |" in text
    assert "| 1 | 5 4 | 3 6 | 18 |" in text
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    sensitivity.plot(results, "a title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_tradeoffs_report(tmp_path: Path) -> None:
    results = made(tradeoff.variants(), ("u1",))
    assert {variant.name for variant, _ in results if variant.group == tradeoff.MARKED} == set(PRESETS)
    text = tradeoff.markdown(results, "a title")
    # 18 of 2 x 16 x 16 clusters are left, and of 2 x 8 x 10
    assert "| 0.01 | 0.9105 ± 0.0007 | 0.38 | 0.50 / 0.25 | 96% |" in text
    assert "| fast | 0.9105 ± 0.0007 | 0.38 | 0.50 / 0.25 | 89% |" in text
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    tradeoff.plot(results, "a title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_quick_tradeoff_has_the_ends_of_its_curves() -> None:
    few = tradeoff.variants(4)
    assert len(few) < len(tradeoff.variants()) / 2
    for curve, (_, _, _, weights) in tradeoff.CURVES.items():
        names = [variant.name for variant in few if variant.group == curve]
        assert names[0] == "0"
        assert float(names[-1]) > weights[len(weights) // 2]
    taught = [variant for variant in tradeoff.variants() if variant.group == tradeoff.TAUGHT]
    assert PRESETS["balanced"]["weight_entropy"] in [variant.settings["weight_entropy"] for variant in taught]


def test_variants_run_once_and_failures_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Worker, "run", lambda self, job: worker.run_job(job))
    small = {"epochs": 3, "n_views": 2, "n_clusters": 3, "view_dim": 2}
    variants = [
        Variant("a", "short", "mfdmc", small, history=True),
        Variant("a", "none", "mfdmc", {**small, "prune": False}),
    ]
    console = Console(file=io.StringIO())
    labs = [Lab(Store(tmp_path / "rows"), 1, 60, "test") for _ in range(2)]
    first = run_variants("study", variants, "planted", [VALIDATION], 2, labs[0], console)
    assert labs[0].ran == 4
    assert list(first[0][1]) == [("holdout", 0), ("holdout", 1)]
    log = first[0][1]["holdout", 0]["details"]["epochs_log"]
    assert len(log) == 3
    assert log[-1]["rmse"] == pytest.approx(first[0][1]["holdout", 0]["rmse"], rel=1e-5)
    assert "epochs_log" not in first[1][1]["holdout", 0]["details"]
    labs[1] = Lab(Store(tmp_path / "rows"), 1, 60, "test")
    assert run_variants("study", variants, "planted", [VALIDATION], 2, labs[1], console) == first
    assert labs[1].ran == 0
    monkeypatch.setattr(Worker, "run", lambda self, job: {"error": "broken"})
    other = [Variant("a", "other", "mfdmc", {**small, "view_dim": 3})]
    for _ in range(2):
        assert run_variants("study", other, "planted", [VALIDATION], 1, labs[1], console) == [(other[0], {})]
    assert labs[1].ran == 2
    assert "broken" in console.file.getvalue()  # type: ignore[attr-defined]
