"""The commands of `mfdmc`. Each reads options, calls the Python interface, and prints through `Output`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import mfdmc_fast
from mfdmc_fast.cli import preparing, reporting, training, updating, validating
from mfdmc_fast.cli.options import DataOptions, with_data_options
from mfdmc_fast.cli.output import Output, errors_to_exit_codes
from mfdmc_fast.cli.shared import JsonFlag, ModelPath, QuietFlag, RatingsPath, fold_row, show_values
from mfdmc_fast.config import MFDMCConfig
from mfdmc_fast.data import holdout, make_planted_ratings
from mfdmc_fast.distributed import n_started
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.estimator import MFDMC, BayesianMF, FunkMF, RatingEstimator, load_model
from mfdmc_fast.evaluate import FoldResult, fold_result
from mfdmc_fast.files import check_writable, replacing

app = typer.Typer(
    name="mfdmc",
    help="Interpretable matrix factorization of ratings with dynamic multi-view clustering.\n\n"
    "Try it:  mfdmc demo\n\n"
    "Own data:  mfdmc train ratings.csv --test holdout:0.1 --out model.safetensors",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _command(name: str, examples: list[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a command with examples under its help and with our exit codes."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(**values: Any) -> Any:
            with errors_to_exit_codes():
                if name != "train" and n_started() > 1:
                    raise ConfigError(
                        f"mfdmc {name} is one process; start it without torchrun, which is for mfdmc train"
                    )
                return function(**values)

        # blank lines, because rich would join the examples to one paragraph
        epilog = "\n\n".join(["[bold]Examples[/]", *(f"  {example}" for example in examples)])
        app.command(name, epilog=epilog)(run)
        return function

    return register


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    if version:
        typer.echo(mfdmc_fast.__version__)
        raise typer.Exit


_command(
    "prepare",
    [
        "mfdmc prepare ratings.csv --out ratings.store",
        "mfdmc prepare 'parts/*.csv.gz' --out parts.store --on-bad-row skip",
        "mfdmc prepare 2024.parquet 2025.parquet --out years.store --json",
    ],
)(preparing.prepare)


_command(
    "train",
    [
        "mfdmc train ratings.csv --test holdout:0.1 --out model.safetensors",
        "mfdmc train ratings.csv --preset accurate --test holdout:0.1 --out model.safetensors",
        "mfdmc train u1.base --test u1.test --out model.safetensors --json",
        "mfdmc train ratings.csv --model bayesian --out bayesian.safetensors",
        "mfdmc train ratings.parquet --test column:fold=1 --epochs 80 --out model.safetensors",
        "mfdmc train ratings.store --memory-limit 4GiB --test u1.test --out model.safetensors",
        "mfdmc train ratings.csv --validation-fraction 0.1 --patience 5 --keep best --out model.safetensors",
        "mfdmc train ratings.csv --checkpoint-dir run1 --checkpoint-every 10min --resume --out model.safetensors",
        "torchrun --nproc-per-node 8 -m mfdmc_fast train ratings.store --out model.safetensors",
    ],
)(training.train)


@_command("evaluate", ["mfdmc evaluate model.safetensors u1.test", "mfdmc evaluate model.safetensors u1.test --json"])
@with_data_options
def evaluate(
    model: ModelPath, ratings: RatingsPath, data: DataOptions, as_json: JsonFlag = False, quiet: QuietFlag = False
) -> None:
    """RMSE and MAE of a model on a ratings file."""
    output = Output(as_json=as_json, quiet=quiet)
    values = load_model(model, device="cpu").evaluate(data.read(ratings))
    output.result(values, lambda: show_values(output, f"{model} on {ratings}", values))


_command(
    "crossval",
    [
        "mfdmc crossval ml-100k --folds official --preset accurate",
        "mfdmc crossval ratings.csv --folds 5 --seed 1 --json",
        "mfdmc crossval ratings.parquet --folds column:fold --model bayesian --baseline funkmf",
    ],
)(validating.crossval)
_command(
    "tune",
    [
        "mfdmc tune ratings.csv --trials 5 --out settings.toml",
        "mfdmc tune ratings.csv --preset balanced --trials 3 --test holdout:0.1 --out settings.toml",
        "mfdmc tune u1.base --model funkmf --trials 5 --test u1.test --json",
    ],
)(validating.tune)


@_command(
    "predict",
    [
        "mfdmc predict model.safetensors pairs.csv --out predictions.csv",
        "mfdmc predict model.safetensors u1.test | head",
        "mfdmc predict bayesian.safetensors pairs.csv --std",
    ],
)
@with_data_options
def predict(
    model: ModelPath,
    pairs: Annotated[Path, typer.Argument(help="file with a user and an item column", show_default=False)],
    data: DataOptions,
    std: Annotated[
        bool, typer.Option("--std", help="also how far ratings may lie from predictions; of bayesian models")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="CSV file to write; unset: standard output")] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Predict ratings of (user, item) pairs as CSV: user, item, prediction, known (both were in training).

    With --std there is a column of predictive standard deviations, empty where an id was not in training.
    """
    output = Output(as_json=as_json, quiet=quiet)
    if as_json and out is None:
        raise ConfigError("--json prints a summary on standard output; say with --out where the predictions go")
    if out is not None:
        check_writable(out)
    fitted = load_model(model, device="cpu")
    if std and not isinstance(fitted, BayesianMF):
        raise ConfigError(
            f"--std: {model} is of kind {type(fitted).__name__}, which has no standard deviations; train with"
            " --model bayesian"
        )
    users, items = data.read_pairs(pairs)
    predictions, *deviations, known = fitted.predict(
        users, items, return_known=True, **({"return_std": True} if std else {})
    )
    columns = {"user": users, "item": items, "prediction": [f"{p:.6g}" for p in predictions]}
    if std:
        columns["std"] = [f"{x:.6g}" if np.isfinite(x) else "" for x in deviations[0]]
    columns["known"] = known.astype(int)
    lines = _csv_lines(list(columns), list(columns.values()))
    if out is None:
        typer.echo(lines, nl=False)
        return
    with replacing(out) as temporary:
        temporary.write_text(lines, encoding="utf-8")
    values = {"out": str(out), "pairs": len(predictions), "unknown": int((~known).sum())}
    output.result(values, lambda: show_values(output, f"{out} written", values))


@_command(
    "recommend",
    [
        "mfdmc recommend model.safetensors --user 1 -n 5",
        "mfdmc recommend model.safetensors --user 1 --user 7 --json",
        "mfdmc recommend model.safetensors --all --out top10.csv",
    ],
)
def recommend(
    model: ModelPath,
    user: Annotated[list[str] | None, typer.Option(help="raw user id; repeat for several", show_default=False)] = None,
    all_users: Annotated[bool, typer.Option("--all", help="every user of the model")] = False,
    n: Annotated[int, typer.Option("-n", min=1, help="items per user")] = 10,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="also items rated in training")] = False,
    out: Annotated[Path | None, typer.Option(help="CSV file to write: user, rank, item, score, known")] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """The items with the highest predicted ratings for users."""
    output = Output(as_json=as_json, quiet=quiet)
    if bool(user) == all_users:
        raise ConfigError("say for whom: --user ID (repeat for several) or --all")
    if out is not None:
        check_writable(out)
    fitted = load_model(model, device="cpu")
    users = fitted.users_.ids if all_users else user or []
    top = fitted.recommend(users, n, exclude_seen=not include_seen)
    known_users = np.atleast_1d(top.known)
    rows = [
        (u, rank, item, float(score), bool(known))
        for u, items, scores, known in zip(users, top.items, top.scores, known_users, strict=True)
        for rank, (item, score) in enumerate(zip(items, scores, strict=True), start=1)
        if item is not None
    ]
    unknown = [str(u) for u, known in zip(users, known_users, strict=True) if not known]
    if unknown:
        output.note(f"not in training: {', '.join(unknown)}; they get the items with the highest bias")
    columns = ["user", "rank", "item", "score", "known"]
    if out is not None:
        with replacing(out) as temporary:
            temporary.write_text(_csv_lines(columns, list(zip(*rows, strict=True)) or [[]] * 5), encoding="utf-8")
        values: dict[str, Any] = {"out": str(out), "users": len(users), "recommendations": len(rows)}
        output.result(values, lambda: show_values(output, f"{out} written", values))
        return
    listed = [
        {
            "user": _plain(u),
            "known": bool(known),
            "items": [
                {"item": _plain(item), "score": round(float(score), 6)}
                for item, score in zip(items, scores, strict=True)
                if item is not None
            ],
        }
        for u, items, scores, known in zip(users, top.items, top.scores, known_users, strict=True)
    ]
    output.result(
        {"recommendations": listed},
        lambda: output.table("recommendations", columns, [list(row) for row in rows]),
    )


_command(
    "report",
    [
        "mfdmc report model.safetensors --items u.item --users u.user --test u1.test --out report.html",
        "mfdmc report model.safetensors --items movies.csv --title 'Films' --out report.html --json",
    ],
)(reporting.report)


_command(
    "fold-in",
    [
        "mfdmc fold-in model.safetensors new-users.csv --out model2.safetensors",
        "mfdmc fold-in model.safetensors today.csv --update --out model.safetensors --json",
    ],
)(updating.fold_in)
_command(
    "export",
    [
        "mfdmc export model.safetensors --out vectors",
        "mfdmc export model.safetensors --out vectors --format npy --faiss hnsw --onnx",
    ],
)(updating.export)


@_command("demo", ["mfdmc demo", "mfdmc demo --seed 3 --out demo.safetensors"])
def demo(
    seed: Annotated[int, typer.Option(min=0, help="seed of the generated ratings and of training")] = 0,
    out: Annotated[Path | None, typer.Option(help="keep the trained MFDMC model in this file")] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Generate ratings with planted clusters in several views, train MFDMC and FunkMF on them, compare."""
    output = Output(as_json=as_json, quiet=quiet)
    if out is not None:
        check_writable(out)
    ratings = make_planted_ratings(seed=seed)
    _, training, testing = holdout(ratings, 0.2, seed)
    output.note(
        f"generated {len(ratings):,} ratings with planted clusters; training on {len(training):,}, testing on the rest"
    )
    results = []
    models: list[RatingEstimator] = [FunkMF(seed=seed), MFDMC(seed=seed)]
    for model in models:
        name = type(model).__name__
        model.fit(training, callbacks=output.progress(f"training {name}"))
        results.append(fold_result(name, model, testing))
    mfdmc = models[-1]
    if out is not None:
        mfdmc.save(out)
    values: dict[str, Any] = {
        "ratings": len(ratings),
        "mfdmc_rmse": results[1].rmse,
        "funkmf_rmse": results[0].rmse,
        "clusters_user": results[1].clusters_user,
        "clusters_item": results[1].clusters_item,
        "pruned": results[1].pruned,
        "seconds": round(sum(r.seconds for r in results), 3),
        "backend": mfdmc.history_.backend,
    }
    output.result(values, lambda: _show_demo(output, results, mfdmc, out))


@_command("doctor", ["mfdmc doctor", "mfdmc doctor --json"])
def doctor(as_json: JsonFlag = False) -> None:
    """Versions, backends, and why a backend cannot be used here."""
    from mfdmc_fast.cli.doctor import examine

    output = Output(as_json=as_json, quiet=True)
    report = examine()

    def show() -> None:
        output.table("versions", ["package", "version"], [[k, v] for k, v in report["versions"].items()])
        output.table("machine", ["what", "value"], [[k, v] for k, v in report["machine"].items()])
        output.table(
            "backends",
            ["backend", "ops", "state"],
            [[name, ", ".join(b["ops"]), b["why_unavailable"] or "ready"] for name, b in report["backends"].items()],
        )

    output.result(report, show)


def _show_demo(output: Output, results: list[FoldResult], mfdmc: RatingEstimator, out: Path | None) -> None:
    output.table(
        "test ratings of planted data",
        ["model", "RMSE", "MAE", "epochs", "seconds", "clusters left", "pruned"],
        [fold_row(result) for result in results],
    )
    for side in ("user", "item"):
        counts = getattr(results[1], f"clusters_{side}")
        output.out.print(f"clusters of each {side} view: {counts}, from {[MFDMCConfig.n_clusters] * len(counts)}")
    events = mfdmc.history_.prune_events
    if events:
        output.table(
            f"first of {len(events)} pruned clusters",
            ["after epoch", "side", "view", "cluster", "mean weight"],
            [[e.epoch, e.side, e.view, e.cluster, e.usage] for e in events[:8]],
        )
    output.out.print(
        "Both models have their default settings, chosen on MovieLens-100k."
        " Next: mfdmc train RATINGS --out model.safetensors"
        if out is None
        else f"Next: mfdmc recommend {out} --user 1"
    )


def _csv_lines(columns: list[str], values: list[Any]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*values, strict=True))
    return text.getvalue()


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
