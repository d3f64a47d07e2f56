"""A model for the tests of reports, with metadata that must be escaped, and its page."""

from __future__ import annotations

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
