"""Command line options made from the settings classes, so that names, help and defaults stand in one place."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, get_args, get_origin, get_type_hints

import numpy.typing as npt
import typer

from mfdmc_fast.config import PRESETS, BayesianMFConfig, FunkMFConfig, MFDMCConfig, ModelConfig, preset
from mfdmc_fast.data import (
    Ratings,
    Split,
    column_folds,
    holdout,
    leave_last_out,
    official_folds,
    read_pairs,
    read_ratings,
)
from mfdmc_fast.data import kfold as seeded_kfold
from mfdmc_fast.data.store import Store, store_at
from mfdmc_fast.data.store_files import MANIFEST
from mfdmc_fast.errors import ConfigError, DataError
from mfdmc_fast.estimator import MFDMC, BayesianMF, FunkMF, RatingEstimator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# the parser takes memory for the square of the parts of a key
_MOST_TOML_BYTES = 1 << 14

ModelName = Literal["mfdmc", "funkmf", "bayesian"]
_MODELS: dict[str, tuple[type[ModelConfig], type[RatingEstimator]]] = {
    "mfdmc": (MFDMCConfig, MFDMC),
    "funkmf": (FunkMFConfig, FunkMF),
    "bayesian": (BayesianMFConfig, BayesianMF),
}
_DATA_OPTIONS: dict[str, tuple[Any, str]] = {
    "user_column": (Optional[str], "name or 0-based position of the column of user ids"),
    "item_column": (Optional[str], "name or 0-based position of the column of item ids"),
    "rating_column": (Optional[str], "name or 0-based position of the column of ratings"),
    "timestamp_column": (Optional[str], "name or 0-based position of the column of timestamps"),
    "delimiter": (Optional[str], "field separator of text files; unset: detected"),
    "header": (Optional[bool], "text files start with column names; unset: detected"),
    "on_bad_row": (Optional[Literal["error", "skip"]], "rows that cannot be used: stop (unset), or skip and count"),
    "on_repeat": (Optional[Literal["last", "mean", "error"]], "a user rates an item twice: keep which; unset: last"),
    "rating_scale": (Optional[str], "lowest:highest possible rating; others are bad rows, predictions are clipped"),
}


def with_data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how a ratings file is read; the command gets them as `data: DataOptions`."""
    parameters = {
        name: Annotated[hint, typer.Option(help=text, rich_help_panel="Ratings file")]
        for name, (hint, text) in _DATA_OPTIONS.items()
    }
    return _extended(command, "data", parameters, lambda values: DataOptions(values))


def with_model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--model`, `--config` and one option per setting; the command gets them as `settings: ModelOptions`."""
    parameters: dict[str, Any] = {
        "model": Annotated[
            ModelName | None, typer.Option(help="which model", show_default="mfdmc", rich_help_panel="Model")
        ],
        "preset": Annotated[
            str | None,
            typer.Option(
                help=f"named settings of mfdmc, which others here override: {', '.join(PRESETS)}",
                rich_help_panel="Model",
            ),
        ],
        "config": Annotated[
            Path | None,
            typer.Option(help="TOML file of settings, names as below with _ for -", rich_help_panel="Model"),
        ],
    }
    for config_class, _ in _MODELS.values():
        hints = get_type_hints(config_class)
        for field in dataclasses.fields(config_class):
            if field.name in parameters:
                continue
            users = [name for name, (c, _) in _MODELS.items() if field.name in _names(c)]
            panel = f"Settings of {' and '.join(users) if len(users) < len(_MODELS) else 'every model'}"
            defaults = {n: _default(c, field.name) for n, (c, _) in _MODELS.items() if n in users}
            shown = " ".join(f"{v} ({n})" for n, v in defaults.items()) if len(set(defaults.values())) > 1 else None
            helps = {
                n: c.__dataclass_fields__[field.name].metadata["help"] for n, (c, _) in _MODELS.items() if n in users
            }
            text = "; ".join(f"{h} ({n})" for n, h in helps.items()) if len(set(helps.values())) > 1 else None
            parameters[field.name] = Annotated[
                _cli_type(hints[field.name]) | None,
                typer.Option(
                    help=text or field.metadata["help"],
                    show_default=shown or next(iter(defaults.values())),
                    rich_help_panel=panel,
                ),
            ]
    return _extended(command, "settings", parameters, lambda values: ModelOptions(values))


class DataOptions:
    """How to read ratings, as given on the command line."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.rating_scale = _parse_scale(values["rating_scale"])
        columns = {
            "user": values["user_column"],
            "item": values["item_column"],
            "rating": values["rating_column"],
            "timestamp": values["timestamp_column"],
        }
        self._options: dict[str, Any] = {
            name: int(column) if column.isdecimal() else column
            for name, column in columns.items()
            if column is not None
        }
        for name in ("delimiter", "header", "on_bad_row", "on_repeat"):
            if values[name] is not None:
                self._options[name] = values[name]
        if self._options.get("delimiter") == r"\t":
            self._options["delimiter"] = "\t"

    def read(self, path: Path, keep: tuple[str, ...] = ()) -> Ratings:
        """Ratings of one file."""
        return read_ratings(path, keep=keep, rating_scale=self.rating_scale, **self._options)

    def prepare_options(self) -> dict[str, Any]:
        """The options of `prepare` that are given."""
        return {**self._options, "rating_scale": self.rating_scale}

    def training(self, path: Path) -> Ratings | Store:
        """Ratings to train on, all of them: a store as it is, so that they may stay on disk, unless options concern
        single ratings.
        """
        store = None if self._options else store_at(path)
        return self.read(path) if store is None else store

    def read_pairs(self, path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """User and item ids of a file of pairs; the options that concern ratings do not apply."""
        options = {name: self._options.get(name) for name in ("user", "item", "delimiter", "header")}
        return read_pairs(path, **options)

    def folds(self, path: Path, folds: str, seed: int) -> list[Split]:
        """Splits named on the command line: `official`, a number of folds, or `column:NAME`."""
        if folds == "official":
            return official_folds(path, rating_scale=self.rating_scale, **self._options)
        if path.is_dir() and not (path / MANIFEST).exists():
            raise DataError(
                "is a folder: only --folds official takes one, except for a store; give the ratings file",
                source=str(path),
            )
        if folds.isdecimal():
            return seeded_kfold(self.read(path), int(folds), seed)
        kind, _, name = folds.partition(":")
        if kind == "column" and name:
            return column_folds(self.read(path, keep=(name,)), name)
        raise ConfigError(f"--folds {folds!r}: must be official, a number such as 5, or column:NAME")

    def split(self, path: Path, test: str | None, seed: int) -> tuple[Ratings | Store, Ratings | None]:
        """Training and test ratings; `test` is a file, `holdout:FRACTION`, `last` or `column:NAME=VALUE`."""
        if test is None:
            return self.training(path), None
        kind, _, rest = test.partition(":")
        if kind == "holdout" or test == "last":
            return _held_out(self.read(path), "--test", test, seed)
        if kind == "column":
            name, _, value = rest.partition("=")
            if not name or not value:
                raise ConfigError(f"--test {test!r}: write column:NAME=VALUE, such as column:fold=1")
            ratings = self.read(path, keep=(name,))
            chosen = ratings.columns[name].astype(str) == value
            if not chosen.any() or chosen.all():
                raise DataError(f"{int(chosen.sum())} of {len(ratings)} rows have the value {value!r}", column=name)
            return ratings.take(~chosen), ratings.take(chosen)
        return self.training(path), self.read(Path(test))

    def validation_split(self, training: Ratings, valid: str, seed: int) -> tuple[Ratings, Ratings]:
        """Ratings to train on and to judge settings by: `holdout:FRACTION` or `last` of the training ratings, or a file
        beside them.
        """
        if valid == "last" or valid.partition(":")[0] == "holdout":
            return _held_out(training, "--valid", valid, seed)
        return training, self.read(Path(valid))


class ModelOptions:
    """Settings of a model from a TOML file and from flags, which win."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        flags = {name: value for name, value in values.items() if value is not None}
        merged = {**_read_toml(flags.pop("config", None)), **flags}
        self._flags = flags
        self.model_name = str(merged.pop("model", "mfdmc"))
        if self.model_name not in _MODELS:
            raise ConfigError(f"model = {self.model_name!r}: must be one of {', '.join(_MODELS)}")
        self._config_class, self._estimator_class = _MODELS[self.model_name]
        named = merged.pop("preset", None)
        if named is not None and self.model_name != "mfdmc":
            raise ConfigError(f"--preset {named}: presets are settings of mfdmc, not of {self.model_name}")
        foreign = sorted(set(merged) - set(_names(self._config_class)))
        if foreign:
            raise ConfigError(f"{', '.join(foreign)}: not a setting of {self.model_name}")
        settings = {name: _number_if_numeric(value) for name, value in merged.items()}
        self._settings = settings if named is None else {**preset(str(named)), **settings}

    @property
    def seed(self) -> int:
        """The seed to use, also for splits."""
        return int(self._settings.get("seed", self._config_class.seed))

    @property
    def estimator_class(self) -> type[RatingEstimator]:
        """The class of the model."""
        return self._estimator_class

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that are given, by preset, file or flag."""
        return dict(self._settings)

    @property
    def flags(self) -> dict[str, Any]:
        """The settings that are given by flags."""
        return {name: value for name, value in self._settings.items() if name in self._flags}

    def baseline(self, name: str) -> RatingEstimator:
        """An unfitted estimator of a model with its defaults, but the seed, backend and device given here."""
        shared = {key: self._settings[key] for key in ("seed", "backend", "device") if key in self._settings}
        return _MODELS[name][1](**shared)

    def estimator(self) -> RatingEstimator:
        """An unfitted estimator; wrong settings raise ConfigError here, before any file is read."""
        self._config_class(**self._settings)
        return self._estimator_class(**self._settings)


def settings_toml(model_name: str, settings: Mapping[str, Any], comment: str) -> str:
    """Settings as a TOML file that `--config` reads; what is unset is left out."""
    lines = [f"# {comment}", f"model = {json.dumps(model_name)}"]
    # JSON's texts, numbers, true and false are TOML's
    lines += [f"{name} = {json.dumps(value)}" for name, value in settings.items() if value is not None]
    return "\n".join(lines) + "\n"


def _held_out(ratings: Ratings, option: str, how: str, seed: int) -> tuple[Ratings, Ratings]:
    """Training and held-out ratings; `how` is `holdout:FRACTION` or `last`."""
    if how == "last":
        _, train, held_out = leave_last_out(ratings)
        return train, held_out
    try:
        fraction = float(how.partition(":")[2])
    except ValueError:
        raise ConfigError(f"{option} {how!r}: write the held-out share as a number, such as holdout:0.1") from None
    _, train, held_out = holdout(ratings, fraction, seed)
    return train, held_out


def _extended(
    command: Callable[..., Any], target: str, parameters: Mapping[str, Any], make: Callable[[dict[str, Any]], Any]
) -> Callable[..., Any]:
    """A command whose parameter `target` is made from many options, which typer reads off the signature."""

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        own = {name: values.pop(name) for name in parameters}
        return command(**values, **{target: make(own)})

    kept = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != target]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in parameters.items()
    ]
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kept] + added
    )
    run.__annotations__ = {p.name: p.annotation for p in [*kept, *added]}
    return run


def _names(config_class: type[ModelConfig]) -> list[str]:
    return [field.name for field in dataclasses.fields(config_class)]


def _default(config_class: type[ModelConfig], name: str) -> str:
    value = getattr(config_class, name)
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _cli_type(hint: Any) -> Any:
    if get_origin(hint) is Literal:
        return hint
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    return str if str in kinds else kinds[0]


def _number_if_numeric(value: Any) -> Any:
    """Weights arrive as text because they may be schedules; plain numbers become numbers again."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _parse_scale(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise ConfigError(f"--rating-scale {text!r}: write lowest:highest, such as 1:5") from None
    if not low < high:
        raise ConfigError(f"--rating-scale {text!r}: the lowest rating must be below the highest")
    return low, high


def _read_toml(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_TOML_BYTES + 1)
        if len(content) > _MOST_TOML_BYTES:
            raise ConfigError(f"{path}: more than {_MOST_TOML_BYTES:,} bytes; a file of settings is shorter")
        return tomllib.loads(content.decode())
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    # not only TOMLDecodeError: text that is not UTF-8, dates such as 2020-13-45, thousands of digits, deep nesting
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
