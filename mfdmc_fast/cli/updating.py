"""The commands for models in use: new ratings, and export to other programs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from mfdmc_fast.cli.options import DataOptions, with_data_options
from mfdmc_fast.cli.output import Output
from mfdmc_fast.cli.shared import JsonFlag, ModelPath, QuietFlag, RatingsPath, show_values
from mfdmc_fast.estimator import load_model
from mfdmc_fast.files import check_writable


@with_data_options
def fold_in(
    model: ModelPath,
    ratings: RatingsPath,
    out: Annotated[Path, typer.Option(help="model file to write; may be MODEL itself", show_default=False)],
    data: DataOptions,
    update: Annotated[
        bool, typer.Option("--update", help="also move known users and items that have new ratings")
    ] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Add users and items that were not in training to a model, by their ratings, without training again.

    Everything else stays as it is, so ratings of known users and items are refused unless --update is given.
    """
    output = Output(as_json=as_json, quiet=quiet)
    check_writable(out)
    fitted = load_model(model, device="cpu")
    new = data.read(ratings)
    users, items = len(fitted.users_), len(fitted.items_)
    start = time.perf_counter()
    if update:
        fitted.partial_fit(new)
    else:
        fitted.fold_in(new)
    seconds = time.perf_counter() - start
    fitted.save(out)
    values: dict[str, Any] = {
        "out": str(out),
        "ratings": len(new),
        "new_users": len(fitted.users_) - users,
        "new_items": len(fitted.items_) - items,
        "users": len(fitted.users_),
        "items": len(fitted.items_),
        "seconds": round(seconds, 3),
    }
    output.result(values, lambda: show_values(output, f"{out} written", values))


def export(
    model: ModelPath,
    out: Annotated[Path, typer.Option(help="folder to write to; made if it is not there", show_default=False)],
    format: Annotated[Literal["parquet", "npy"], typer.Option(help="of vectors and ids")] = "parquet",
    faiss: Annotated[
        Optional[Literal["flat", "hnsw"]], typer.Option(help="also a FAISS index of the items; flat is exact")
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="also the scorer as an ONNX graph")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write a model's vectors and ids for other programs, such as vector databases.

    The inner product of a user's and an item's vector ranks items as `mfdmc recommend` does; manifest.json says how it
    becomes a rating. --faiss and --onnx need pip install 'mfdmc_fast\\[export]'.
    """
    from mfdmc_fast.export import export as write

    output = Output(as_json=as_json, quiet=quiet)
    manifest = write(load_model(model, device="cpu"), out, format=format, faiss=faiss, onnx=onnx)
    values: dict[str, Any] = {
        "out": str(out),
        **{name: manifest[name] for name in ("kind", "users", "items", "dimension", "files")},
        "faiss_recall_at_10": manifest.get("faiss", {}).get("recall_at_10"),
        "onnx_largest_difference": manifest.get("onnx", {}).get("largest_difference"),
    }
    difference = values["onnx_largest_difference"]
    shown = {**values, "files": ", ".join(values["files"])}
    if difference is not None:
        shown["onnx_largest_difference"] = f"{difference:.2g}"
    output.result(values, lambda: show_values(output, f"{out} written", shown))
