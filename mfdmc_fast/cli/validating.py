"""The commands that judge settings: cross-validation and tuning."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from mfdmc_fast import tuning
from mfdmc_fast.cli.options import (
    DataOptions,
    ModelName,
    ModelOptions,
    settings_toml,
    with_data_options,
    with_model_options,
)
from mfdmc_fast.cli.output import Output
from mfdmc_fast.cli.shared import (
    ItemsPath,
    JsonFlag,
    QuietFlag,
    RatingsPath,
    UsersPath,
    features_of,
    fold_row,
    show_values,
)
from mfdmc_fast.cli.signals import INTERRUPTED
from mfdmc_fast.data import Store
from mfdmc_fast.estimator import RatingEstimator
from mfdmc_fast.evaluate import CrossValidation, compare, cross_validate
from mfdmc_fast.files import check_writable, replacing


@with_model_options
@with_data_options
def crossval(
    ratings: Annotated[
        Path, typer.Argument(help="ratings file, or the folder of the official folds", show_default=False)
    ],
    settings: ModelOptions,
    data: DataOptions,
    folds: Annotated[
        str, typer.Option(help="a number; column:NAME, one fold per value; official: u1.base, u1.test … in a folder")
    ] = "5",
    baseline: Annotated[
        ModelName | None, typer.Option(help="compare with this model, default settings, on the same folds")
    ] = None,
    users: UsersPath = None,
    items: ItemsPath = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Cross-validate: train on all folds but one, evaluate on that one, for each fold. Reports the last epoch.

    With a baseline also its RMSE, and the mean difference over the folds with a 95 % interval by Student's t.
    """
    output = Output(as_json=as_json, quiet=quiet)
    estimator = settings.estimator()
    splits = data.folds(ratings, folds, settings.seed)
    features = features_of(output, users, items)

    def validated(model: RatingEstimator, label: str) -> CrossValidation:
        return cross_validate(
            model,
            splits,
            rating_scale=data.rating_scale,
            **(features if model is estimator or model.takes_features else {}),
            callbacks_for=lambda fold: output.progress(f"{label}fold {fold}"),
            on_fold=lambda fold: output.note(f"{label}fold {fold.fold}: RMSE {fold.rmse:.4f} in {fold.seconds:.1f} s"),
        )

    result = validated(estimator, "")
    values = {"model": settings.model_name, **result.to_dict()}
    comparison = None
    if baseline is not None:
        comparison = compare(result, validated(settings.baseline(baseline), f"{baseline} "))
        values["baseline"] = {"model": baseline, **comparison.to_dict()}

    def show() -> None:
        title = (
            f"{settings.model_name}, {len(result.folds)} folds: RMSE {result.mean_rmse:.4f} ± {result.std_rmse:.4f},"
            f" MAE {result.mean_mae:.4f}, {result.seconds:.0f} s"
        )
        columns = ["fold", "RMSE", "MAE", "epochs", "seconds", "clusters left", "pruned"]
        rows = [fold_row(fold) for fold in result.folds]
        if comparison is not None:  # MAE and epochs would make it too wide
            columns = ["fold", "RMSE", str(baseline), "difference", *columns[4:]]
            pairs = zip(rows, comparison.fold_rmse, comparison.differences, strict=True)
            rows = [[*row[:2], rmse, difference, *row[4:]] for row, rmse, difference in pairs]
        output.table(title, columns, rows)
        if comparison is not None:
            interval = comparison.interval
            sure = "" if interval is None else f", 95 % interval {interval[0]:+.4f} to {interval[1]:+.4f}"
            output.out.print(
                f"{settings.model_name} - {baseline} ({comparison.mean_rmse:.4f}): {comparison.difference:+.4f}{sure}"
            )

    output.result(values, show)


@with_model_options
@with_data_options
def tune(
    ratings: RatingsPath,
    settings: ModelOptions,
    data: DataOptions,
    trials: Annotated[int, typer.Option(min=1, help="trainings; the first has the settings to begin with")] = 30,
    test: Annotated[
        str | None,
        typer.Option(help="never searched on; the best settings are trained again and tested once; as in mfdmc train"),
    ] = None,
    valid: Annotated[
        str, typer.Option(help="what settings are judged by: holdout:FRACTION or last of the training part, or a file")
    ] = "holdout:0.1",
    users: UsersPath = None,
    items: ItemsPath = None,
    out: Annotated[Path | None, typer.Option(help="TOML file to write, for --config")] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Search for settings: trainings on a part of the training ratings, judged by the RMSE on the rest of them.

    The search begins with the preset and the --config file; settings given as flags stay as they are. Ctrl-C ends it
    with the best so far. Needs optuna: pip install 'mfdmc_fast\\[tune]'
    """
    output = Output(as_json=as_json, quiet=quiet)
    settings.estimator()
    if out is not None:
        check_writable(out)
    training, testing = data.split(ratings, test, settings.seed)
    training = training.ratings() if isinstance(training, Store) else training
    searched, watched = data.validation_split(training, valid, settings.seed)
    output.note(f"{len(searched):,} ratings to train on, {len(watched):,} to judge settings by")
    options: dict[str, Any] = {"rating_scale": data.rating_scale, **features_of(output, users, items)}
    start = time.perf_counter()
    with output.trials(trials) as on_trial:
        result = tuning.tune(
            settings.estimator_class,
            searched,
            watched,
            trials,
            settings.seed,
            start=settings.settings,
            fixed=settings.flags,
            on_trial=on_trial,
            **options,
        )
    if result.interrupted:
        output.note(f"interrupted after {len(result.trials)} of {trials} trials; this is the best of them")
    values: dict[str, Any] = {
        "model": settings.model_name,
        "trials": len(result.trials),
        "interrupted": result.interrupted,
        "rmse": result.rmse,
        "start_rmse": result.start_rmse,
        "test_rmse": None,
        "test_mae": None,
        "seconds": round(time.perf_counter() - start, 3),
        "seed": settings.seed,
        "settings": result.settings,
        "out": None if out is None else str(out),
    }
    if out is not None:
        comment = f"mfdmc tune: RMSE {result.rmse:.4f} on {valid}, best of {len(result.trials)} trials"
        with replacing(out) as temporary:
            temporary.write_text(settings_toml(settings.model_name, result.settings, comment), encoding="utf-8")
    if testing is not None and not result.interrupted:
        fitted = settings.estimator_class(**result.settings).fit(
            training, callbacks=output.progress("training the best"), **options
        )
        errors = fitted.evaluate(testing)
        values |= {"test_rmse": errors["rmse"], "test_mae": errors["mae"]}

    def show() -> None:
        show_values(output, "the best settings", {k: v for k, v in values.items() if k != "settings"})
        show_values(output, "settings", result.settings)

    output.result(values, show)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
