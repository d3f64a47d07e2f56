"""Small charts as inline SVG. Colors are classes of the page's style sheet, so that they follow light and dark.

`Markup.format` escapes every text that it inserts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

_WIDTH, _HEIGHT = 340, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 30


class Series(NamedTuple):
    """A line: points [n] of (x, y), its name, and the number of its color."""

    points: Sequence[tuple[float, float]]
    name: str
    color: int = 0


class Charts:
    """Makes the charts of one page; numbers their ids."""

    def __init__(self) -> None:
        self._ids = count(1)

    def lines(
        self,
        series: Sequence[Series],
        title: str,
        description: str,
        *,
        x_label: str,
        marks: Sequence[tuple[float, float, str]] = (),
        dots: bool = False,
        diagonal: bool = False,
        from_zero: bool = False,
    ) -> Markup:
        """A line chart.

        Args:
            series: with one point or more each.
            title, description: what a screen reader says.
            x_label: name of the horizontal axis.
            marks: (x, y, text) of events; the text is shown where the pointer rests.
            dots: mark every point.
            diagonal: draw y = x.
            from_zero: let the vertical axis start at 0.
        """
        xs = [x for line in series for x, _ in line.points]
        ys = [y for line in series for _, y in line.points] + ([0.0] if from_zero else [])
        if diagonal:
            xs = ys = xs + ys
        x_axis, y_axis = (
            _Axis(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT),
            _Axis(min(ys), max(ys), _HEIGHT - _BOTTOM, _TOP),
        )
        parts = [_grid(x_axis, y_axis, x_label)]
        if diagonal:
            low, high = max(x_axis.low, y_axis.low), min(x_axis.high, y_axis.high)
            ends = f"M{x_axis.at(low)} {y_axis.at(low)}L{x_axis.at(high)} {y_axis.at(high)}"
            parts.append(Markup('<path class="ideal" d="{}"/>').format(ends))
        for line in series:
            path = "L".join(f"{x_axis.at(x)} {y_axis.at(y)}" for x, y in line.points)
            parts.append(
                Markup('<path class="line c{}" d="M{}"><title>{}</title></path>').format(
                    line.color % 8, path, line.name
                )
            )
            if dots or len(line.points) == 1:
                for x, y in line.points:
                    text = f"{line.name}: {number(x)}, {number(y)}"
                    parts.append(_dot(x_axis.at(x), y_axis.at(y), f"dot c{line.color % 8}", text))
        parts += [_dot(x_axis.at(x), y_axis.at(y), "mark", text) for x, y, text in marks]
        return self._figure(parts, title, description)

    def bars(self, values: Sequence[tuple[str, float]], title: str, description: str, *, x_label: str) -> Markup:
        """Columns from 0, with their values above.

        Args:
            values: name and value, 0 or more, of each.
            title, description: what a screen reader says.
            x_label: name of the horizontal axis.
        """
        y_axis = _Axis(0.0, max(value for _, value in values), _HEIGHT - _BOTTOM, _TOP + 8)
        step = (_WIDTH - _LEFT - _RIGHT) / len(values)
        parts = [_grid(None, y_axis, x_label)]
        every = math.ceil(max(len(name) for name, _ in values) * 6.6 / step)
        for k, (name, value) in enumerate(values):
            x, top = _LEFT + k * step, y_axis.at(value)
            drawn = Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>{}: {}</title></rect>')
            left, width, height = round(x + step * 0.14, 1), round(step * 0.72, 1), round(y_axis.start - top, 1)
            parts.append(drawn.format(left, top, width, height, name, number(value)))
            if k % every == 0:
                parts.append(_text(x + step / 2, _HEIGHT - _BOTTOM + 12, name, "tick middle"))
        return self._figure(parts, title, description)

    def _figure(self, parts: Sequence[Markup], title: str, description: str) -> Markup:
        at = next(self._ids)
        return Markup(
            '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-labelledby="t{at} d{at}">'
            '<title id="t{at}">{title}</title><desc id="d{at}">{description}</desc>{parts}</svg>'
        ).format(w=_WIDTH, h=_HEIGHT, at=at, title=title, description=description, parts=Markup("").join(parts))


class _Axis:
    """Values from low to high at pixels from start to end, with round ticks."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        if high - low < 1e-12 * max(1.0, abs(high)):
            low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
        step = _round_step((high - low) / 4)
        self.low, self.high = min(low, math.ceil(low / step) * step), high
        self.start, self.end = start, end
        first = math.ceil(low / step - 1e-9)
        self.ticks = [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]

    def at(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def _round_step(wanted: float) -> float:
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= wanted * 0.999)


def _grid(x_axis: _Axis | None, y_axis: _Axis, x_label: str) -> Markup:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(_LEFT, y, _WIDTH - _RIGHT))
        parts.append(_text(_LEFT - 5, y + 3, number(tick), "tick end"))
    for tick in x_axis.ticks if x_axis else ():
        parts.append(_text(x_axis.at(tick) if x_axis else 0, _HEIGHT - _BOTTOM + 12, number(tick), "tick middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 3, x_label, "tick middle"))
    return Markup("").join(parts)


def _text(x: float, y: float, text: str, name: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(name, round(x, 1), round(y, 1), text)


def _dot(x: float, y: float, name: str, text: str) -> Markup:
    return Markup('<circle class="{}" cx="{}" cy="{}" r="3"><title>{}</title></circle>').format(name, x, y, text)


def number(value: Any) -> str:
    """Numbers as they are read: four digits, or thousands with commas; anything else as it is."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int | np.integer) and not isinstance(value, bool) else str(value)
