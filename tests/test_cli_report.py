"""`mfdmc report`: the page it writes, its words, and its exit codes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cli_tools import mfdmc, python_m, write_csv

from mfdmc_fast import MFDMC, FunkMF
from mfdmc_fast.data import make_planted_ratings

RATINGS = make_planted_ratings(n_users=40, n_items=30, n_ratings=500, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model files, test ratings, and a table of items in the layout and encoding of MovieLens."""
    path = tmp_path_factory.mktemp("report")
    MFDMC(n_views=2, n_clusters=3, epochs=2).fit(RATINGS).save(path / "model.safetensors")
    FunkMF(epochs=2).fit(RATINGS).save(path / "funkmf.safetensors")
    write_csv(path / "test.csv", RATINGS)
    lines = [f"{k}::Café {k} (199{k % 9})::{'Drama|War' if k % 2 else 'Comedy'}" for k in range(3, 33)]
    (path / "movies.dat").write_text("\n".join(lines), encoding="latin-1")
    (path / "other.csv").write_text("id,genre\nx,a\ny,a\n")
    return path


def test_a_page_is_written(folder: Path) -> None:
    out = folder / "report.html"
    ran = mfdmc(
        *("report", folder / "model.safetensors", "--items", folder / "movies.dat", "--test", folder / "test.csv"),
        *("--title", "Films & more", "--out", out, "--json"),
    )
    values = ran.json()
    page = out.read_text(encoding="utf-8")
    assert (values["out"], values["kind"], values["bytes"]) == (str(out), "MFDMC", out.stat().st_size)
    assert 0 < values["seconds"] < 60
    assert "<h1>Films &amp; more</h1>" in page
    assert ">Café " in page
    assert 'id="errors"' in page
    assert "movies.dat: has 28 of 30 items, 2 without training ratings are left out" in ran.err
    for step in ("reading metadata", "describing clusters", "explaining predictions"):
        assert step in ran.err


def test_tables_and_quiet_and_a_model_without_clusters(folder: Path) -> None:
    out = folder / "funkmf.html"
    ran = python_m("report", folder / "funkmf.safetensors", "--out", out, "--quiet")
    assert (ran.status, ran.err) == (0, "")
    assert "funkmf.html" in ran.out
    page = out.read_text(encoding="utf-8")
    assert "<h1>Report of funkmf.safetensors</h1>" in page
    assert 'id="cards"' not in page


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("model.safetensors", "--out", "none/r.html"), 3, ("does not exist",)),
        (("model.safetensors", "--out", "r.html", "--items", "none.csv"), 3, ("none.csv: no such file",)),
        (("model.safetensors", "--out", "r.html", "--items", "other.csv"), 3, ("other.csv", "items of the model")),
        (("model.safetensors", "--out", "r.html", "--test", "movies.dat"), 3, ("movies.dat", "rating")),
        (("test.csv", "--out", "r.html"), 4, ("test.csv",)),
        (("model.safetensors",), 2, ()),
    ],
    ids=["folder", "no-items", "other-ids", "no-ratings", "no-model", "no-out"],
)
def test_refusals(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], status: int, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(folder)
    mfdmc("report", *arguments, "--quiet").refused(status, *words)
    assert not (folder / "r.html").exists()


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    ran = mfdmc("report", folder / "model.safetensors", "--out", folder / "r.html", "--quiet")
    ran.refused(2, "pip install 'mfdmc_fast[report]'")
