"""A model for the tests of reports, with metadata that must be escaped, and a reader of pages."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from mfdmc_fast import MFDMC
from mfdmc_fast.data import Ratings, holdout, make_planted_ratings

SETTINGS = {"n_views": 5, "n_clusters": 6, "epochs": 12, "prune_start": 2, "prune_threshold": 0.15, "seed": 1}
NASTY = '<script>alert("x")</script> & \'quotes\' "too" Zürich 東京'


def fitted() -> tuple[MFDMC, Ratings]:
    """A model with pruned clusters, and test ratings."""
    _, train, test = holdout(make_planted_ratings(n_users=120, n_items=90, n_ratings=5000, seed=2), 0.2, seed=1)
    model = MFDMC(**SETTINGS).fit(train)
    assert model.history_.prune_events
    return model, test


def write_items(path: Path, model: MFDMC) -> Path:
    """Titles and genres of all items but the first; genres follow the clusters of a view, so some stand out."""
    ids = model.items_.ids.tolist()
    view = min(model.memberships("item"), key=lambda w: max((w.argmax(1) == k).sum() for k in range(w.shape[1])))
    lines = ["item_id;title;genre"]
    for row, (k, cluster) in enumerate(zip(ids, view.argmax(1).tolist(), strict=True)):
        title = NASTY.replace('"', '""') if row % 7 == 1 else f"Film {k}"
        if row:
            lines.append(f'{k};"{title}";<b>g{cluster}</b>')
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


VOID = {"meta", "link", "input", "br", "hr", "img"}


class Page(HTMLParser):
    """Elements of a page, by name with their attributes, and text; fails where tags do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def sections(self) -> set[str]:
        return {attributes["id"] for attributes in self.named("section")}
