"""The command that writes reports."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from mfdmc_fast.cli.options import DataOptions, with_data_options
from mfdmc_fast.cli.output import Output
from mfdmc_fast.cli.shared import JsonFlag, ModelPath, QuietFlag, show_values
from mfdmc_fast.estimator import load_model
from mfdmc_fast.files import check_writable


@with_data_options
def report(
    model: ModelPath,
    out: Annotated[Path, typer.Option(help="HTML file to write", show_default=False)],
    data: DataOptions,
    items: Annotated[
        Path | None, typer.Option(help="table of items: ids, titles and labels, such as u.item or movies.dat")
    ] = None,
    users: Annotated[Path | None, typer.Option(help="table of users: ids and labels, such as u.user")] = None,
    test: Annotated[Path | None, typer.Option(help="file of test ratings, for errors and calibration")] = None,
    title: Annotated[str | None, typer.Option(help="of the page; unset: the name of the model file")] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write a model's report: one HTML page with clusters, explained predictions, training and errors.

    The page holds all that it shows and asks the network for nothing. Models without clusters get the other sections.
    """
    from mfdmc_fast.report import write_report

    output = Output(as_json=as_json, quiet=quiet)
    check_writable(out)
    start = time.perf_counter()
    fitted = load_model(model, device="cpu")
    ratings = None if test is None else data.read(test)
    write_report(
        fitted, out, users=users, items=items, test=ratings, title=title or f"Report of {model.name}", tell=output.note
    )
    values: dict[str, Any] = {
        "out": str(out),
        "kind": type(fitted).__name__,
        "bytes": out.stat().st_size,
        "seconds": round(time.perf_counter() - start, 3),
    }
    output.result(values, lambda: show_values(output, f"{out} written", values))
