"""The page of a run on images: what is shown is what was given, escaped, with words for every picture."""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from report_tools import NASTY, Page

from mfdmc_fast import ConfigError
from mfdmc_fast.report import write_images
from mfdmc_fast.report.images import Gallery, ImageSection, Picture, Scores, render_images

PIXELS = np.array([[0.0, 0.25, 0.5], [0.75, 1.0, 1.5]])
SECTION = ImageSection(
    f"digits {NASTY}",
    "some text",
    [Scores("all scores", ["RMSE", "NMI"], [("pca", ["1.6", ""]), (NASTY, ["1.7", "0.7"])], [0, 1])],
    [("ours", f"wins against {NASTY}")],
    [Gallery("Centers", "what they are", [("view 0", [Picture(PIXELS, "60%", "first"), Picture(PIXELS, "", NASTY)])])],
)


@pytest.fixture(scope="module")
def text() -> str:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    return render_images([SECTION, SECTION], title=f"A page {NASTY}", text="a command")


def test_what_is_given_is_shown_and_escaped(text: str) -> None:
    page = Page(text)
    assert page.named("script") == []
    shown = "".join(page.texts)
    for said in (f"A page {NASTY}", f"digits {NASTY}", "a command", "all scores", f"wins against {NASTY}", "60%"):
        assert said in shown
    assert page.sections() == {"summary", "images-1", "images-2"}
    assert {a["href"][1:] for a in page.named("a")} == page.sections()
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_best_of_a_column_is_bold(text: str) -> None:
    cells = re.findall(r"<td>(.*?)</td>", text)
    assert cells[:4] == ["<b>1.6</b>", "\N{EN DASH}", "1.7", "<b>0.7</b>"]


def test_pictures_have_words_and_the_pixels_that_were_given(text: str) -> None:
    from matplotlib.image import imread

    pictures = Page(text).named("img")
    assert [picture["alt"] for picture in pictures] == ["first", NASTY] * 2
    kind, _, data = pictures[0]["src"].partition(",")
    assert kind == "data:image/png;base64"
    grey = imread(io.BytesIO(base64.b64decode(data)), format="png")[:, :, 0]
    # white is 0 and black 1, in 256 steps; what is above 1 is black
    np.testing.assert_allclose(grey, 1 - np.minimum(PIXELS, 1), atol=0.01)


def test_nothing_comes_from_elsewhere(text: str) -> None:
    assert not re.findall(r"https?://", text)
    for name, attributes in Page(text).elements:
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("#", "data:")), name


def test_it_is_written_as_one_file(text: str, tmp_path: Path) -> None:
    write_images(tmp_path / "page.html", [SECTION, SECTION], title=f"A page {NASTY}", text="a command")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == text
    assert len(list(tmp_path.iterdir())) == 1


def test_a_picture_of_other_dimensions_is_refused() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    flat = ImageSection("a", "", [], [], [Gallery("b", "", [("c", [Picture(PIXELS.ravel(), "", "")])])])
    with pytest.raises(ConfigError, match=r"shape \(6,\); it must be \[height, width\]"):
        render_images([flat], title="", text="")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.image", None)
    with pytest.raises(ConfigError, match=r"pip install 'mfdmc_fast\[report\]'"):
        render_images([SECTION], title="", text="")
