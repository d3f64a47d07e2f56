"""Values of a file that do not have the types of their fields are refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from mfdmc_fast.plain_values import check_fields


@dataclass
class Inner:
    number: float
    kind: Literal["user", "item"] = "user"


@dataclass
class Outer:
    count: int = 0
    share: float = 0.0
    name: str = ""
    rmse: float | None = None
    counts: list[int] | None = None
    loss: dict[str, float] = field(default_factory=dict)
    inner: list[Inner] = field(default_factory=list)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"count": -(2**63), "share": 3, "rmse": 0.5, "counts": [1, 2], "loss": {"mse": 1, "total": 0.5}},
        {"inner": [Inner(1.5), Inner(2, "item")], "name": "x"},
    ],
)
def test_what_fits_is_let_through(values: dict[str, Any]) -> None:
    check_fields(Outer(**values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"count": 1.0}, "count of Outer is not int"),
        ({"count": True}, "count of Outer is not int"),
        ({"count": 2**64}, "count"),
        ({"share": 10**400}, "share of Outer is not float"),
        ({"share": float("nan")}, "share"),
        ({"share": "1"}, "share"),
        ({"rmse": float("inf")}, r"rmse of Outer is not float \| None"),
        ({"name": None}, "name of Outer is not str"),
        ({"counts": [1, "2"]}, "counts"),
        ({"counts": (1,)}, "counts"),
        ({"loss": {1: 0.5}}, "loss"),
        ({"loss": [0.5]}, "loss"),
        ({"inner": [{"number": 1.5}]}, "inner of Outer"),
        ({"inner": [Inner(1.5, "view")]}, "kind of Inner is not"),  # type: ignore[arg-type]
        ({"inner": [Inner("x")]}, "number of Inner is not float"),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_fields(Outer(**values))
