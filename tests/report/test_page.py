"""The page without a browser: landmarks, text alternatives, escaping, nothing from elsewhere, all kinds of models."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from report_tools import NASTY, Page, fitted, write_items

from mfdmc_fast import MFDMC, BayesianMF, ConfigError, DataError, FunkMF
from mfdmc_fast.data import Ratings, make_planted_ratings
from mfdmc_fast.report import render_report, write_report
from mfdmc_fast.report.svg import Charts, Series

CLUSTER_SECTIONS = {"cards", "examples", "map", "labels", "usage"}


@pytest.fixture(scope="module")
def model_and_test() -> tuple[MFDMC, Ratings]:
    """A fitted model and test ratings; not to be changed."""
    return fitted()


@pytest.fixture(scope="module")
def text(model_and_test: tuple[MFDMC, Ratings], tmp_path_factory: pytest.TempPathFactory) -> str:
    model, test = model_and_test
    items = write_items(tmp_path_factory.mktemp("report") / "items.csv", model)
    users = {k: f"club{k % 3}" for k in model.users_.ids.tolist()}
    return render_report(model, users=users, items=items, test=test, title=f"A <i>title</i> & {NASTY}")


def test_landmarks_and_headings(text: str) -> None:
    page = Page(text)
    for tag in ("header", "nav", "main", "footer", "h1", "title"):
        assert len([1 for name, _ in page.elements if name == tag]) >= 1, tag
    assert len(page.named("main")) == len(page.named("h1")) == 1
    assert page.named("html")[0]["lang"] == "en"
    assert page.sections() == {*CLUSTER_SECTIONS, "summary", "errors", "training", "data", "settings"}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.named("section"):
        assert attributes["aria-labelledby"] in ids
    targets = {a["href"][1:] for a in page.named("a")}
    assert page.sections() == targets <= set(ids)


def test_every_picture_and_table_has_words(text: str) -> None:
    page = Page(text)
    tags = [name for name, _ in page.elements]
    assert tags.count("caption") == tags.count("table")
    charts = page.named("svg")
    assert len(charts) > 10
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for chart in charts:
        assert chart["role"] == "img"
        assert chart.get("aria-label") or set(chart["aria-labelledby"].split()) <= ids
    labels = text.count("<label>")
    assert labels == len(page.named("input")) + len(page.named("select"))


def test_nothing_comes_from_elsewhere(text: str) -> None:
    page = Page(text)
    for name, attributes in page.elements:
        for key in ("src", "href", "srcset", "action", "data", "xlink:href"):
            if key in attributes and not (name == "link" and attributes[key] == "data:,"):
                assert attributes[key].startswith("#"), (name, attributes)
    assert "@import" not in text
    assert "url(" not in text
    assert re.findall(r"https?://[^\"'\s<]+", text) == ["http://www.w3.org/2000/svg"]
    assert any("default-src 'none'" in attributes.get("content", "") for attributes in page.named("meta"))
    assert len(text.encode()) < 1_000_000


def test_metadata_is_escaped_and_shown(text: str) -> None:
    page = Page(text)
    assert "alert(" in text
    assert [attributes for attributes in page.named("script") if "src" in attributes] == []
    # the two of the page itself: data and script
    assert len(page.named("script")) == 2
    assert "<script>alert" not in text
    assert "<b>g" not in text
    shown = "".join(page.texts)
    assert NASTY in shown
    assert "<b>g" in shown
    assert f"A <i>title</i> & {NASTY}" in shown


def test_the_map_data_can_be_read(text: str, model_and_test: tuple[MFDMC, Ratings]) -> None:
    model, _ = model_and_test
    found = re.search(r'<script type="application/json" id="map-data">(.*?)</script>', text, re.S)
    assert found
    maps = json.loads(found[1])
    assert NASTY in maps["item"]["titles"]
    for side in ("user", "item"):
        n = len(maps[side]["titles"])
        assert n == len(model.users_ if side == "user" else model.items_)
        for view, drawn in enumerate(maps[side]["views"]):
            assert len(drawn["of"]) == n == len(drawn["xy"]) / 2
            assert all(0 <= x <= 1000 for x in drawn["xy"])
            ids = model.model_.prunable_sides()[side].cluster_ids[view]
            assert [center["cluster"] for center in drawn["centers"]] == list(ids)


def test_cards_and_examples_have_the_numbers_of_the_model(text: str, model_and_test: tuple[MFDMC, Ratings]) -> None:
    model, test = model_and_test
    cards = [a for a in Page(text).named("details") if a.get("class") == "card"]
    expected = [(c.side, c.view, c.size) for side in ("item", "user") for c in model.clusters(side)]
    assert [(a["data-side"], int(a["data-view"]), int(a["data-size"])) for a in cards] == expected
    # each table of parts sums to its prediction, to the digits shown
    for table in re.findall(r'<table class="parts">(.*?)</table>', text, re.S):
        body, _, foot = table.partition("<tfoot>")
        numbers = [float(x.replace("\N{MINUS SIGN}", "-")) for x in re.findall(r'class="num">([^<]+)<', body)]
        total = re.search(r"<b>([\d.-]+)</b>", foot)
        assert total
        assert sum(numbers) == pytest.approx(float(total[1]), abs=0.001 * len(numbers))
    assert f"{model.evaluate(test)['rmse']:.4f}" in text


def test_without_metadata_and_test_ratings(model_and_test: tuple[MFDMC, Ratings]) -> None:
    model, _ = model_and_test
    page = Page(render_report(model))
    assert page.sections() == {*CLUSTER_SECTIONS, "summary", "training", "data", "settings"} - {"labels"}
    assert "With tables of users and items" in "".join(page.texts)


def test_titles_without_labels(model_and_test: tuple[MFDMC, Ratings], tmp_path: Path) -> None:
    model, _ = model_and_test
    path = tmp_path / "names.csv"
    path.write_text("item_id,name\n" + "\n".join(f"{k},Name {k}" for k in model.items_.ids), encoding="utf-8")
    assert f"Name {model.items_.ids[0]}" in render_report(model, items=path)


@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_sum_and_a_view_of_one_cluster(combine: str) -> None:
    ratings = make_planted_ratings(40, 40, 800, seed=1)
    model = MFDMC(n_views=2, n_clusters=1, combine=combine, epochs=2, min_clusters=1).fit(ratings)  # type: ignore[arg-type]
    Page(render_report(model, test=ratings))


@pytest.mark.parametrize("kind", ["funkmf", "bayesian"])
def test_models_without_clusters_get_the_other_sections(kind: str) -> None:
    ratings = make_planted_ratings(40, 40, 800, seed=1)
    estimator = FunkMF(epochs=3) if kind == "funkmf" else BayesianMF(rank=2, sweeps=6, burn_in=2, n_draws=2)
    page = Page(render_report(estimator.fit(ratings), test=ratings, items={k: f"g{k % 2}" for k in range(1, 41)}))
    assert page.sections() == {"summary", "training", "data", "settings", "errors"}
    assert type(estimator).__name__ in "".join(page.texts)


def test_the_same_model_gives_the_same_page(model_and_test: tuple[MFDMC, Ratings], tmp_path: Path) -> None:
    model, test = model_and_test
    write_report(model, tmp_path / "a.html", test=test)
    model.save(tmp_path / "m.safetensors")
    write_report(MFDMC.load(tmp_path / "m.safetensors"), tmp_path / "b.html", test=test)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_metadata_of_other_ids_is_refused(model_and_test: tuple[MFDMC, Ratings]) -> None:
    model, _ = model_and_test
    with pytest.raises(DataError, match="is among the items of the model"):
        render_report(model, items={"no such id": "x", "nor this": "y"})


def test_a_missing_package_is_named(model_and_test: tuple[MFDMC, Ratings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ConfigError, match=r"pip install 'mfdmc_fast\[report\]'"):
        render_report(model_and_test[0])


class TestCharts:
    def test_a_line_goes_through_its_points(self) -> None:
        drawn = Charts().lines([Series([(0, 0), (1, 10)], "a")], "t", "d", x_label="x")
        assert 'class="line c0" d="M46.0 170.0L330.0 10.0"' in drawn

    def test_text_is_escaped(self) -> None:
        drawn = Charts().bars([("<a>", 1.0), ("b&", 2.0)], "<t>", '"d"', x_label="<x>")
        assert "<a>" not in drawn
        assert "&lt;t&gt;" in drawn
        Page(str(drawn))

    def test_bars_are_as_high_as_their_values(self) -> None:
        drawn = Charts().bars([("a", 1.0), ("b", 2.0)], "t", "d", x_label="x")
        heights = [float(x) for x in re.findall(r'height="([\d.]+)"', drawn)]
        assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)

    @pytest.mark.parametrize("points", [[(1.0, 0.0)], [(1.0, 3.0), (2.0, 3.0)], [(1.0, -1e-9), (2.0, 1e9)]])
    def test_single_points_constants_and_wide_ranges(self, points: list[tuple[float, float]]) -> None:
        drawn = Charts().lines([Series(points, "a")], "t", "d", x_label="x", dots=True)
        assert "nan" not in drawn
        Page(str(drawn))
