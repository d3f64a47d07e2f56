"""What several commands share: arguments, reading of features, and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mfdmc_fast.cli.output import Output
from mfdmc_fast.data import read_features
from mfdmc_fast.evaluate import FoldResult

JsonFlag = Annotated[bool, typer.Option("--json", help="print one JSON line on standard output")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="no progress and no notes")]
RatingsPath = Annotated[
    Path, typer.Argument(help="ratings: text, .gz, .zst, Parquet, Arrow or a store", show_default=False)
]
UsersPath = Annotated[
    Path | None, typer.Option(help="what is known of users: a table of ids and labels; for a Bayesian model or teacher")
]
ItemsPath = Annotated[Path | None, typer.Option(help="the same of items, such as genres")]
ModelPath = Annotated[Path, typer.Argument(help="model file that `mfdmc train` wrote", show_default=False)]


def features_of(output: Output, users: Path | None, items: Path | None) -> dict[str, Any]:
    """Arguments of `fit`; says which columns are left out."""
    found: dict[str, Any] = {}
    for name, path in (("user_features", users), ("item_features", items)):
        if path is not None:
            found[name] = read_features(path)
            labels = ", ".join(f"{block.name} ({len(block.labels)})" for block in found[name].blocks)
            output.note(f"{path}: labels from {labels}")
            for column, reason in found[name].ignored.items():
                output.note(f"{path}: {column} is left out: {reason}")
    return found


def show_values(output: Output, title: str, values: dict[str, Any]) -> None:
    shown = [[name, value if value is not None else "-"] for name, value in values.items()]
    output.table(title, ["", "value"], shown)


def fold_row(fold: FoldResult) -> list[Any]:
    clusters = (
        f"{sum(fold.clusters_user)} + {sum(fold.clusters_item)}" if fold.clusters_user and fold.clusters_item else "-"
    )
    return [fold.fold, fold.rmse, fold.mae, fold.epochs, f"{fold.seconds:.1f}", clusters, fold.pruned]
