"""The command that trains a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mfdmc_fast.checkpoints import DEFAULT_EVERY, DEFAULT_KEEP
from mfdmc_fast.cli.options import DataOptions, ModelOptions, with_data_options, with_model_options
from mfdmc_fast.cli.output import Output
from mfdmc_fast.cli.shared import ItemsPath, JsonFlag, QuietFlag, RatingsPath, UsersPath, features_of, show_values
from mfdmc_fast.distributed import joined
from mfdmc_fast.evaluate import fold_result
from mfdmc_fast.files import check_writable

_PANEL = "Checkpoints"


@with_model_options
@with_data_options
def train(
    ratings: RatingsPath,
    out: Annotated[Path, typer.Option(help="model file to write", show_default=False)],
    settings: ModelOptions,
    data: DataOptions,
    test: Annotated[
        str | None,
        typer.Option(help="test ratings: a file, holdout:FRACTION, last (by time, per user) or column:NAME=VALUE"),
    ] = None,
    validation: Annotated[Path | None, typer.Option(help="file of ratings to watch each epoch")] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="memory that the process may have, such as 2GiB: ratings of a store that would not keep within it stay"
            " on disk; unset: those that exceed what is free"
        ),
    ] = None,
    users: UsersPath = None,
    items: ItemsPath = None,
    checkpoint_dir: Annotated[
        Path | None, typer.Option(help="folder for checkpoints of this run", rich_help_panel=_PANEL)
    ] = None,
    checkpoint_every: Annotated[
        str | None,
        typer.Option(
            help="epochs from one to the next, such as 5, or minutes, such as 10min",
            show_default=DEFAULT_EVERY,
            rich_help_panel=_PANEL,
        ),
    ] = None,
    checkpoint_keep: Annotated[
        int | None, typer.Option(help="how many stay", show_default=str(DEFAULT_KEEP), rich_help_panel=_PANEL)
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="continue from the last checkpoint, where there is one", rich_help_panel=_PANEL),
    ] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Train a model on a ratings file, write it, and evaluate it on test ratings if there are any.

    With --checkpoint-dir, a run that was killed or interrupted continues where the same command is given with --resume;
    the model is bit-identical to that of a run that nothing ended.

    Started by torchrun, all processes of all machines train one model, each with a share of the users and items. The
    first one writes checkpoints and the model; a run continues with any number of processes.
    """
    estimator = settings.estimator()
    with joined(str(estimator.get_params()["device"])) as processes:
        output = Output(as_json=as_json, quiet=quiet or not processes.is_first)
        checkpoints = None
        if processes.is_first:
            check_writable(out)
            checkpoints = estimator.checkpoints(
                checkpoint_dir, every=checkpoint_every, keep=checkpoint_keep, resume=resume
            )
        training, testing = data.split(ratings, test, settings.seed)
        watched = None if validation is None else data.read(validation)
        output.note(f"{len(training):,} training ratings from {ratings}")
        try:
            model = estimator.fit(
                training,
                validation=watched,
                rating_scale=data.rating_scale,
                **features_of(output, users, items),
                callbacks=output.progress("training"),
                memory_limit=memory_limit,
                checkpoint_dir=checkpoint_dir,
                checkpoint_every=checkpoint_every,
                checkpoint_keep=checkpoint_keep,
                resume=resume,
            )
        except KeyboardInterrupt:
            if not processes.is_first:
                raise KeyboardInterrupt("process 0 says how to continue") from None
            there = None if checkpoints is None else checkpoints.what_there_is()
            raise KeyboardInterrupt(
                f"{there}; to continue, give the same command with --resume" if there else "nothing was written"
            ) from None
        if not processes.is_first:
            processes.any(False)  # stays until the model is written
            return
        model.save(out)
        processes.any(False)
        result = None if testing is None else fold_result("test", model, testing)
        history = model.history_
        values: dict[str, Any] = {
            "model": settings.model_name,
            "out": str(out),
            "rmse": result.rmse if result else None,
            "mae": result.mae if result else None,
            "epochs": history.kept_epoch,
            "seconds": round(history.seconds, 3),
            "clusters_user": model.model_.clusters("user"),
            "clusters_item": model.model_.clusters("item"),
            "pruned": sum(event.epoch <= history.kept_epoch for event in history.prune_events),
            "users": len(model.users_),
            "items": len(model.items_),
            "ratings": len(training),
            "bad_rows_skipped": training.report.bad_rows_skipped,
            "repeated_pairs": training.report.repeated_pairs,
            "test_ratings": None if testing is None else len(testing),
            "unknown_users": result.unknown_users if result else None,
            "unknown_items": result.unknown_items if result else None,
            "valid_rmse": history.epochs[history.kept_epoch - 1].valid_rmse,
            "backend": history.backend,
            "batch_size": history.batch_size,
            "streamed": history.streamed,
            "stop_reason": history.stop_reason,
            "processes": processes.size,
            "seed": settings.seed,
        }
        output.result(values, lambda: show_values(output, f"{out} written", values))
