"""Whether values that a file held have the types that a dataclass declares, before anything relies on them."""

from __future__ import annotations

import dataclasses
import functools
import math
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_fields(instance: Any) -> None:
    """Raise `ValueError` unless every field of a dataclass fits its annotation, also of dataclasses in lists.

    Numbers must be finite, integers within 64 bits; an integer passes for a float.
    """
    for name, hint in _hints(instance.__class__).items():
        value = getattr(instance, name)
        if not _fits(value, hint):
            raise ValueError(f"{name} of {type(instance).__name__} is not {_words(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Literal:
        return isinstance(value, str) and value in inner
    if kind is list:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if kind is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            check_fields(value)
            return True
        return False
    if hint is NoneType:
        return value is None
    if isinstance(value, bool):
        return hint is bool
    if isinstance(value, int):
        return hint in (int, float) and -(2**63) <= value < 2**63
    return isinstance(value, hint) and (hint is not float or math.isfinite(value))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _words(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("mfdmc_fast.", "")
