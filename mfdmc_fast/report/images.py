"""A run on images as one HTML page: tables of measures, and pictures of cluster centers."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import mfdmc_fast
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.files import replacing
from mfdmc_fast.report.page import TEMPLATES, template_environment


class Picture(NamedTuple):
    """A grey image.

    Attributes:
        pixels: [height, width], 0 (white) to 1 (black); what is outside is clipped.
        caption: shown below it.
        says: what a screen reader says.
    """

    pixels: npt.NDArray[np.floating]
    caption: str
    says: str


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures with a name each, such as the centers of a view, and what they show."""

    title: str
    text: str
    rows: Sequence[tuple[str, Sequence[Picture]]]


@dataclass(frozen=True)
class Scores:
    """A table: names of the columns, rows of a name and the texts of its cells, and for each column the number of the
    row that is best, or None.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    best: Sequence[int | None]


@dataclass(frozen=True)
class ImageSection:
    """What is told of one dataset of images: text, tables, lines of who wins and loses, and pictures."""

    title: str
    text: str
    scores: Sequence[Scores]
    verdicts: Sequence[tuple[str, str]]
    galleries: Sequence[Gallery]


def render_images(sections: Sequence[ImageSection], *, title: str, text: str) -> str:
    """A run on images as HTML in the format of reports, with all styles and pictures in it.

    Args:
        sections: one for each dataset.
        title: of the page.
        text: what was run, in a sentence or two.

    Raises:
        ConfigError: jinja2 or matplotlib is missing, or a picture has no two dimensions.
    """
    environment = template_environment()
    environment.filters["picture"] = _png
    values: dict[str, Any] = {
        "title": title,
        "kind": "images",
        "version": mfdmc_fast.__version__,
        "styles": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "text": text,
        "sections": sections,
    }
    page: str = environment.get_template("images.html.j2").render(values)
    return page


def write_images(
    out: str | os.PathLike[str], sections: Sequence[ImageSection], *, title: str = "Images", text: str = ""
) -> None:
    """Write the page of `render_images` as one file."""
    page = render_images(sections, title=title, text=text)
    with replacing(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _png(pixels: npt.NDArray[np.floating]) -> str:
    """The data of a PNG picture as a URI, one pixel of it for each number."""
    try:
        from matplotlib.image import imsave
    except ImportError as error:
        raise ConfigError("pictures need matplotlib; install it with: pip install 'mfdmc_fast[report]'") from error
    if pixels.ndim != 2:
        raise ConfigError(f"a picture has the shape {pixels.shape}; it must be [height, width]")
    file = io.BytesIO()
    imsave(file, pixels, cmap="gray_r", vmin=0.0, vmax=1.0, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
