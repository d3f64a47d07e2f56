"""The report of a model: one HTML page that holds all that it shows and asks the network for nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mfdmc_fast
from mfdmc_fast.data import Features, Vocabulary, read_features
from mfdmc_fast.errors import ConfigError, DataError
from mfdmc_fast.estimator import MFDMC, RatingEstimator
from mfdmc_fast.files import replacing
from mfdmc_fast.interpret.affinity import view_pairs
from mfdmc_fast.interpret.cards import cluster_cards
from mfdmc_fast.model import SIDES, SideName
from mfdmc_fast.report import examples, figures

TEMPLATES = Path(__file__).parent / "templates"
_TOP_MEMBERS = 8


def write_report(
    model: RatingEstimator,
    out: str | os.PathLike[str],
    *,
    users: Any = None,
    items: Any = None,
    test: Any = None,
    title: str = "Model report",
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Write the report of a fitted model as one HTML file; arguments as in `render_report`."""
    page = render_report(model, users=users, items=items, test=test, title=title, tell=tell)
    with replacing(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render_report(
    model: RatingEstimator,
    *,
    users: Any = None,
    items: Any = None,
    test: Any = None,
    title: str = "Model report",
    tell: Callable[[str], None] = lambda text: None,
) -> str:
    """The report of a fitted model as HTML, with all styles, scripts and pictures in it.

    Models without clusters get the sections that apply to them.

    Args:
        model: a fitted estimator.
        users, items: what is known of users and items: labels and titles, anything `read_features` takes.
        test: test ratings, anything `read_ratings` takes, for errors and calibration.
        title: of the page.
        tell: called with a line of text before each step.

    Raises:
        ConfigError: jinja2 is missing. DataError: metadata or test ratings cannot be used.
    """
    environment = template_environment()
    # only now: they need a package that comes with jinja2
    from mfdmc_fast.report import sections
    from mfdmc_fast.report.svg import Charts

    state = model._state()
    tell("reading metadata")
    features: dict[SideName, Features | None] = {
        side: None if source is None else read_features(source, labels_needed=False)
        for side, source in zip(SIDES, (users, items), strict=True)
    }
    for side, vocabulary in zip(SIDES, (state.users, state.items), strict=True):
        source = features[side]
        if source is not None:
            tell(_overlap(source, vocabulary, side))
    errors = None
    if test is not None:
        tell("predicting test ratings")
        errors = figures.error_figures(model, test)
    charts = Charts()
    values: dict[str, Any] = {
        "title": title,
        "kind": type(model).__name__,
        "version": mfdmc_fast.__version__,
        "styles": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "script": (TEMPLATES / "report.js").read_text(encoding="utf-8"),
        "headline": _headline(model, errors),
        "training": sections.training(model, charts),
        "errors": None if errors is None else sections.errors_on_test(errors, charts),
        "data": sections.data_profile(model, features, charts),
        "settings": sections.settings(model),
        "versions": sections.versions(),
        "clusters": None,
        "metadata": [side for side in SIDES if features[side] is not None],
    }
    if isinstance(model, MFDMC):
        tell("describing clusters")
        vocabularies: dict[SideName, Vocabulary] = {"user": state.users, "item": state.items}
        fitted: Any = state.model
        cards = cluster_cards(fitted, vocabularies, features, top=_TOP_MEMBERS)
        titles = {side: _titles(features[side], vocabularies[side]) for side in SIDES}
        values["clusters"] = {
            "sides": [
                sections.side_of_clusters(model, side, cards[side], features[side], charts) for side in SIDES[::-1]
            ],
            "cards": [*cards["item"], *cards["user"]],
            "n_views": model.n_views,
            "combine": model.combine,
            "maps": sections.maps(model, cards, titles),
        }
        tell("explaining predictions")
        names = {(card.side, card.view, card.cluster): card.name for side in SIDES for card in cards[side]}
        meeting = view_pairs(fitted)
        values["examples"] = [
            examples.example(model, pair, meeting, names, titles) for pair in examples.example_pairs(model, errors)
        ]
    tell("writing the page")
    page: str = environment.get_template("report.html.j2").render(values)
    return page


def template_environment() -> Any:
    """Jinja's environment, which escapes everything; ConfigError where it is not installed."""
    try:
        import jinja2
    except ImportError as error:
        raise ConfigError("reports need jinja2; install it with: pip install 'mfdmc_fast[report]'") from error
    from mfdmc_fast.report.svg import number

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["signed"] = lambda value: f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
    environment.filters["percent"] = lambda value: f"{value:.0%}" if value >= 0.01 or value == 0 else "<1%"
    environment.filters["p_value"] = lambda value: f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
    return environment


def _overlap(features: Features, vocabulary: Vocabulary, side: SideName) -> str:
    """How many entities the metadata describe; DataError for none: the wrong file, or the wrong side."""
    rows = vocabulary.encode(features.ids)
    n_described, n_extra = int((rows >= 0).sum()), int((rows < 0).sum())
    if not n_described:
        raise DataError(
            f"none of its ids, such as {features.ids.tolist()[0]!r}, is among the {side}s of the model, such as"
            f" {vocabulary.ids.tolist()[0]!r}; give the table of {side}s, with the ids of the ratings",
            source=features.source,
        )
    extra = f", {n_extra:,} without training ratings are left out" if n_extra else ""
    return f"{features.source}: has {n_described:,} of {len(vocabulary):,} {side}s{extra}"


def _titles(features: Features | None, vocabulary: Any) -> list[str]:
    return [str(raw) for raw in vocabulary.ids.tolist()] if features is None else features.titles_of(vocabulary)


def _headline(model: RatingEstimator, errors: figures.ErrorFigures | None) -> list[dict[str, str]]:
    """The numbers at the top of the page: name, value and what it means."""
    history = model.history_
    found = []
    if errors is not None:
        found.append(("test RMSE", f"{errors.rmse:.4f}", f"MAE {errors.mae:.4f} on {errors.n:,} ratings"))
    n_ratings = int(figures.activity(model, "user").sum())
    entities = f"{len(model.users_):,} users, {len(model.items_):,} items"
    found.append(("training ratings", f"{n_ratings:,}", entities))
    if isinstance(model, MFDMC):
        for side in SIDES:
            left = sum(model.model_.clusters(side) or [])
            started = model.n_views * model.n_clusters
            found.append(
                (f"{side} clusters", str(left), f"of {started} in {model.n_views} views; {started - left} pruned")
            )
        sharp = [float(figures.sharpness(model, side).mean()) for side in SIDES]
        found.append(
            ("normalised entropy", f"{sharp[0]:.2f} / {sharp[1]:.2f}", "users / items; 0: one role each, 1: no roles")
        )
    teacher = f", {history.teacher_seconds:.1f} s of it the teacher" if history.teacher_seconds else ""
    found.append(("training", f"{history.seconds:.1f} s", f"{history.kept_epoch} epochs{teacher}"))
    return [dict(zip(("name", "value", "note"), row, strict=True)) for row in found]
