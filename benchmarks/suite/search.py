"""Search spaces as plain values, and a seeded search in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `default` is what the first trial takes."""

    low: float
    high: float
    default: float
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.low:g} … {self.high:g}{' (log)' * self.log}"


@dataclass(frozen=True)
class Choice:
    """One of several values; `default` is what the first trial takes."""

    values: tuple[Any, ...]
    default: Any

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


Space = Mapping[str, Range | Choice]


@dataclass(frozen=True)
class Search:
    """What a search has found: the trials in their order, and the settings of the best one (None: all failed)."""

    settings: dict[str, Any] | None
    value: float
    trials: list[tuple[dict[str, Any], float | None]]


def search(space: Space, trials: int, seed: int, evaluate: Callable[[int, dict[str, Any]], float | None]) -> Search:
    """Minimise over a space with Optuna's TPE sampler; the first trial is the defaults.

    The same arguments, with an `evaluate` that gives the same values, propose the same settings, and a search with more
    trials begins with those of one with fewer.

    Args:
        space: what may vary.
        trials: how many settings to try.
        seed: of the sampler.
        evaluate: number of a trial from 0 on and its settings → value, or None where they fail.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=10)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial({name: part.default for name, part in space.items()})
    done: list[tuple[dict[str, Any], float | None]] = []
    for number in range(trials):
        trial = study.ask()
        settings = {name: _suggest(trial, name, part) for name, part in space.items()}
        value = evaluate(number, settings)
        if value is None or not math.isfinite(value):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            done.append((settings, None))
        else:
            study.tell(trial, value)
            done.append((settings, value))
    good = [(value, number) for number, (_, value) in enumerate(done) if value is not None]
    if not good:
        return Search(None, math.nan, done)
    value, number = min(good)
    return Search(done[number][0], value, done)


def _suggest(trial: Any, name: str, part: Range | Choice) -> Any:
    if isinstance(part, Choice):
        return trial.suggest_categorical(name, list(part.values))
    if part.whole:
        return trial.suggest_int(name, int(part.low), int(part.high), log=part.log)
    # three digits are enough for anybody, and can be read and typed
    return float(f"{trial.suggest_float(name, part.low, part.high, log=part.log):.3g}")
