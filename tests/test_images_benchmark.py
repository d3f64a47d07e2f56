"""The benchmark of images: data, equal size, what is hidden from whom, measures by hand, and its report."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from benchmarks import images as benchmark
from benchmarks import tune_images
from benchmarks.suite import image_pictures, images
from benchmarks.suite.statistics import Interval
from mfdmc_fast.estimator import MFDMC

SMALL = {**images.SHAPE, "epochs": 3}


def some_digits(n: int = 150) -> images.Images:
    return images.digits(n, 0)


def everything(of: images.Images) -> images.Bools:
    return np.ones(of.pixels.shape, dtype=bool)


def test_digits_are_scikit_learns() -> None:
    pixels, labels = load_digits(return_X_y=True)
    found = images.digits(None, 3)
    assert np.array_equal(found.pixels, pixels)
    assert np.array_equal(found.labels, labels)
    assert found.n_labels == 10
    few = images.digits(40, 3)
    rows = [int(np.flatnonzero((pixels == picture).all(1))[0]) for picture in few.pixels]
    assert len(set(rows)) == 40
    assert np.array_equal(few.labels, labels[rows])


def test_patches_are_squares_of_the_photographs() -> None:
    found = images.patches(20, 1)
    assert found.labels.tolist() == [0] * 10 + [1] * 10
    for label, picture in enumerate(load_sample_images().images):
        grey = picture.astype(np.float64).mean(axis=2) * 16 / 255
        tiles = [
            grey[top : top + 8, left : left + 8].ravel()
            for top in range(0, grey.shape[0] - 7, 8)
            for left in range(0, grey.shape[1] - 7, 8)
        ]
        for patch in found.pixels[found.labels == label]:
            assert np.abs(np.stack(tiles) - patch).max(axis=1).min() < 1e-12
    assert not np.array_equal(found.pixels, images.patches(20, 2).pixels)


def test_every_method_has_as_many_numbers_for_an_image() -> None:
    of = some_digits()
    for fit in images.BASELINES.values():
        assert fit(of.pixels, 0).embedding.shape == (150, images.DIMENSION)
    for settings in images.SETTINGS.values():
        assert set(settings) <= set(inspect.signature(MFDMC).parameters)
        assert {name: settings[name] for name in images.SHAPE} == images.SHAPE
        short = {**settings, "epochs": 1}
        assert images.mfdmc(of.pixels, everything(of), short, 0).embedding.shape == (150, images.DIMENSION)


def test_pca_reconstructs_like_the_best_approximation_by_numpy() -> None:
    of = some_digits()
    mean = of.pixels.mean(0)
    u, s, v = np.linalg.svd(of.pixels - mean, full_matrices=False)
    best = (u[:, :16] * s[:16]) @ v[:16] + mean
    found = images.pca(of.pixels, 0)
    assert np.allclose(found.reconstruction, best.clip(0, 16), atol=1e-9)
    assert images.rmse(best, of.pixels) == pytest.approx(np.sqrt((s[16:] ** 2).sum() / of.pixels.size))
    assert images.rmse(found.reconstruction, of.pixels) <= images.rmse(best, of.pixels)


def test_nmf_is_in_units_of_pixel_values_and_k_means_gives_centers() -> None:
    of = some_digits()
    found = images.nmf(of.pixels / 2, 0)  # far below 16, so that nothing is clipped
    basis, *_ = np.linalg.lstsq(found.embedding, found.reconstruction, rcond=None)
    assert np.allclose(np.linalg.norm(basis, axis=1), 1.0)
    found = images.k_means(of.pixels, 0)
    nearest = found.embedding.argmin(1)
    assert np.allclose(np.linalg.norm(of.pixels - found.reconstruction, axis=1), found.embedding.min(1))
    first = nearest == nearest[0]
    assert np.allclose(found.reconstruction[0], of.pixels[first].mean(0))


def test_mfdmc_predicts_the_pixel_in_its_place() -> None:
    of = some_digits(60)
    found = images.mfdmc(of.pixels, everything(of), SMALL, 0)
    assert found.model is not None
    pairs = [(0, 0), (7, 63), (59, 20)]
    for image, pixel in pairs:
        assert found.reconstruction[image, pixel] == found.model.predict([image], [pixel])[0]
    pixels = found.model.model_.embeddings("item").numpy()[found.model.items_.encode(np.arange(64))]
    assert np.allclose((found.embedding @ pixels.T).clip(0, 16), found.reconstruction, atol=1e-4)


def test_hidden_pixels_are_a_tenth_and_are_not_read() -> None:
    of = some_digits()
    known = images.hide(of.pixels.shape, 0)
    assert 0.08 < (~known).mean() < 0.12
    changed = np.where(known, of.pixels, 16 - of.pixels)
    for method in images.BASELINES:
        a, b = (images.completions(method, pixels, known, 0, 2) for pixels in (of.pixels, changed))
        assert len(a) == 2
        assert np.array_equal(a[-1], b[-1])
    a, b = (images.mfdmc(pixels, known, SMALL, 0).reconstruction for pixels in (of.pixels, changed))
    assert np.array_equal(a, b)


def test_refits_find_hidden_pixels_of_images_of_low_rank() -> None:
    rng = np.random.default_rng(0)
    # as many components as PCA has: a spare one would fit what was filled in
    pixels = 8 + rng.standard_normal((600, 16)) @ rng.standard_normal((16, 64))
    pixels = 8 + (pixels - 8) * 7 / np.abs(pixels - 8).max()
    known = rng.random(pixels.shape) >= 0.01
    found = images.completions("pca", pixels, known, 0, 100)
    errors = [images.rmse(values[~known], pixels[~known]) for values in found]
    assert errors[-1] < 1e-3 * errors[0]
    of_known = [images.rmse(values[known], pixels[known]) for values in found]
    assert (np.diff(of_known) < 1e-12).all()  # as expectation maximization does, but for rounding


def test_images_that_are_asked_about_are_not_in_the_fit_of_k_nn(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.repeat([0, 1], [40, 60])
    points = np.random.default_rng(0).uniform(size=(100, 1)) + labels[:, None] * 0.3
    seen: dict[str, list[float]] = {}

    class Spy(images.KNeighborsClassifier):  # type: ignore[misc]
        def fit(self, X: Any, y: Any) -> Any:  # noqa: N803
            seen["fit"] = X[:, 0].tolist()
            return super().fit(X, y)

        def score(self, X: Any, y: Any) -> float:  # noqa: N803
            seen["score"] = X[:, 0].tolist()
            return float(super().score(X, y))

    monkeypatch.setattr(images, "KNeighborsClassifier", Spy)
    accuracy = images.knn_accuracy(points, labels, 0)
    assert not set(seen["fit"]) & set(seen["score"])
    assert sorted(seen["fit"] + seen["score"]) == sorted(points[:, 0].tolist())
    label_of = dict(zip(points[:, 0].tolist(), labels.tolist(), strict=True))
    assert sum(label_of[x] == 0 for x in seen["fit"]) == 20
    # by hand: the majority of the five nearest on the line
    right = 0
    for x in seen["score"]:
        nearest = sorted(seen["fit"], key=lambda other: abs(other - x))[:5]
        right += (sum(label_of[other] for other in nearest) >= 3) == label_of[x]
    assert 25 < right < 50
    assert accuracy == right / 50


def test_agreement_is_scikit_learns_and_known_where_it_is_plain() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    assert images.agreement(np.array([5, 5, 3, 3, 4, 4]), labels) == (1.0, 1.0)
    assert images.agreement(np.zeros(6, dtype=np.int64), labels) == (0.0, 0.0)
    # two of three labels together: mutual information ln 3 - 2/3 ln 2, entropies ln 3 and ln 3 - 2/3 ln 2
    nmi, ami = images.agreement(np.array([0, 0, 0, 0, 1, 1]), labels)
    shared = np.log(3) - 2 / 3 * np.log(2)
    assert nmi == pytest.approx(shared / ((np.log(3) + shared) / 2))
    clusters = np.array([0, 1, 0, 0, 1, 1])
    assert images.agreement(clusters, labels) == (
        normalized_mutual_info_score(labels, clusters),
        adjusted_mutual_info_score(labels, clusters),
    )
    assert ami < nmi


def test_entropies_by_hand() -> None:
    flat, sharp = np.full((3, 4), 0.25), np.eye(4)
    half = np.array([[0.5, 0.5, 0.0, 0.0]])
    assert images.entropies([flat, sharp, half]) == pytest.approx([1.0, 0.0, 0.5])


def test_a_clusters_picture_is_its_part_of_the_mean_image() -> None:
    rng = np.random.default_rng(0)
    pixels = 8 + rng.uniform(-1, 1, (80, 64))  # far from the ends, so that nothing is clipped
    model = images.mfdmc(pixels, np.ones(pixels.shape, dtype=bool), {**SMALL, "epochs": 20}, 0).model
    assert model is not None
    pictures = image_pictures.cluster_pictures(model, 80)
    views = images.memberships(model, "user", 80)
    weights = images.memberships(model, "item", 64)
    assert [len(picture) for picture in pictures] == [view.shape[1] for view in views]
    assert all(np.allclose(view.sum(1), 1, atol=1e-6) for view in (*views, *weights))
    z = model.model_.embeddings("user").numpy()[images.image_rows(model, 80)]
    q = model.model_.embeddings("item").numpy()[model.items_.encode(np.arange(64))]
    mean = (z @ q.T).mean(0)
    unclipped = [((p > 0) & (p < 16)).all() for p in pictures]
    assert any(unclipped)
    for view, of_view, whole in zip(views, pictures, unclipped, strict=True):
        if whole:
            assert np.allclose(view.mean(0) @ of_view, mean, atol=1e-3)


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((0.1, 0.05, 0.15), "wins"),
        ((-0.1, -0.15, -0.05), "loses"),
        ((0.1, -0.1, 0.3), "even"),
        ((1, None, None), "even"),
    ],
)
def test_who_wins(interval: tuple[float, float | None, float | None], word: str) -> None:
    assert benchmark.verdict(Interval(*interval, n=5, pairs="seeds")) == word


def test_differences_are_by_seed_and_lower_errors_are_better() -> None:
    rows = [
        {"dataset": "digits", "method": method, "seed": seed, "rmse": value + seed, "knn": value}
        for method, value in (("mfdmc-sharp", 1.0), ("pca", 1.5))
        for seed in (0, 1, 2)
    ]
    knn, error = benchmark.MEASURES[0], benchmark.MEASURES[3]
    assert benchmark.difference(rows, "digits", "mfdmc-sharp", "pca", error)[:3] == pytest.approx((0.5, 0.5, 0.5))
    assert benchmark.difference(rows, "digits", "mfdmc-sharp", "pca", knn).mean == pytest.approx(-0.5)
    assert benchmark.shown(benchmark.interval(rows, "digits", "pca", "knn")) == "1.500 ± 0.000"
    assert benchmark.shown(benchmark.interval(rows, "digits", "pca", "hidden_rmse")) == ""


def test_the_whole_command_in_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {name: {**settings, "epochs": 2} for name, settings in images.SETTINGS.items()}
    completion = {name: {method: {"rounds": 1} for method in images.BASELINES} for name in images.DATASETS}
    for module in (images, benchmark, image_pictures):
        monkeypatch.setattr(module, "SETTINGS", small)
    for module in (images, benchmark):
        monkeypatch.setattr(module, "COMPLETION", completion)
    monkeypatch.setattr(benchmark, "QUICK_IMAGES", 100)
    path = tmp_path / "images.json"
    page = tmp_path / "page.html"
    monkeypatch.setattr(sys, "argv", ["images", "--quick", "--json", str(path), "--report", str(page)])
    benchmark.main()
    results = json.loads(path.read_text(encoding="utf-8"))
    assert len(results["rows"]) == 2 * 2 * len(benchmark.METHODS)
    assert {row["images"] for row in results["rows"]} == {100}
    assert results["settings"] == small
    text = (tmp_path / "images.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    html = page.read_text(encoding="utf-8")
    # ten images and what six methods make of them, for two datasets, and the centers beside them
    assert html.count("<img ") > 2 * 10 * 7
    assert "against nmf" in html
    assert "against nmf" in text
    assert (tmp_path / "images.png").read_bytes().startswith(b"\x89PNG")


def test_the_search_draws_settings_of_the_same_shape() -> None:
    rng = tune_images.random.Random(0)
    for terms in (False, True):
        settings = tune_images.draw(rng, terms)
        assert {name: settings[name] for name in images.SHAPE} == images.SHAPE
        MFDMC(**settings)._config()
    assert not set(tune_images.SEEDS) & set(range(50))


def test_methods_that_are_not_run_again_keep_figures_and_commit(tmp_path: Path) -> None:
    rows = [
        {"dataset": dataset, "method": method, "seed": 0, "knn": 0.5}
        for dataset in images.DATASETS
        for method in benchmark.METHODS
    ]
    path = tmp_path / "images.json"
    path.write_text(json.dumps({"commit": "old", "rows": rows}), encoding="utf-8")
    kept = benchmark.earlier_rows(path, ["mfdmc-taught"], 1)
    assert kept == [{**row, "commit": "old"} for row in rows if row["method"] != "mfdmc-taught"]
    new = {"method": "mfdmc-taught", "commit": "new"}
    assert benchmark.measured_at([*kept, new]).endswith("mfdmc-sharp); commit new (mfdmc-taught)")
    assert benchmark.measured_at(kept) == "commit old"
    for where, seeds in ((path, 2), (tmp_path / "none.json", 1), (None, 1)):
        with pytest.raises(SystemExit, match="run them all"):
            benchmark.earlier_rows(where, ["mfdmc-taught"], seeds)
