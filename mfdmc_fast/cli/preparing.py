"""The command that lays out ratings on disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from mfdmc_fast.cli.options import DataOptions, with_data_options
from mfdmc_fast.cli.output import Output
from mfdmc_fast.cli.shared import JsonFlag, QuietFlag, show_values
from mfdmc_fast.data import prepare as prepare_store


@with_data_options
def prepare(
    ratings: Annotated[
        list[str],
        typer.Argument(help="ratings: files or quoted patterns of text, .gz, .zst, Parquet, Arrow", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="folder to make", show_default=False)],
    data: DataOptions,
    workers: Annotated[
        int | None, typer.Option(min=1, help="threads; unset: one a processor, at most 4", show_default=False)
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Lay out ratings as a store: a folder that every command takes like a ratings file, and that mfdmc train can read
    piece by piece where the ratings exceed the memory.

    Memory stays below 2 GiB however many ratings there are, as long as the distinct ids fit. After an interruption,
    also by force, the same command goes on where it was.
    """
    output = Output(as_json=as_json, quiet=quiet)
    start = time.perf_counter()
    try:
        with output.preparing() as tell:
            store = prepare_store(ratings, out, workers=workers, tell=tell, **data.prepare_options())
    except KeyboardInterrupt:
        output.note(f"what is done is kept in {out}.partial; the same command goes on from there")
        raise
    seconds = time.perf_counter() - start
    values: dict[str, Any] = {
        "out": str(out),
        "ratings": len(store),
        "users": store.n_users,
        "items": store.n_items,
        "rows": store.report.rows,
        "bad_rows_skipped": store.report.bad_rows_skipped,
        "repeated_pairs": store.report.repeated_pairs,
        "rating_scale": list(store.scale),
        "bytes": sum(path.stat().st_size for path in store.path.iterdir()),
        "seconds": round(seconds, 3),
        "rows_per_second": round(store.report.rows / seconds),
    }
    output.result(values, lambda: show_values(output, f"{out} written", values))
