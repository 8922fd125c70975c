"""What views and recipes ask of their arguments, and how they print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

Range = tuple[float, float]


def shown(made: Any) -> str:
    """A call that makes the same, of what is not as by default."""
    values = [(f.name, getattr(made, f.name), f.default) for f in fields(made) if f.init]
    given = ", ".join(f"{name}={value!r}" for name, value, usual in values if value != usual)
    return f"{type(made).__name__}({given})"


def number(name: str, value: Any) -> Any:
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    return value


def as_range(made: Any, name: str) -> None:
    """A range, given as a list perhaps, as a tuple of two numbers."""
    value = getattr(made, name)
    pair = isinstance(value, Sequence) and len(value) == 2
    if not pair or not all(isinstance(part, Real) for part in value):
        raise TypeError(f"{name} must be a range of two numbers, not {value!r}")
    object.__setattr__(made, name, tuple(value))


def as_size(made: Any, name: str) -> None:
    """A size of other whole numbers than Python's, or in a list, as Python's in a tuple."""
    value = getattr(made, name)
    pair = isinstance(value, Sequence) and len(value) == 2
    if not isinstance(value, Integral) and not (
        pair and all(isinstance(part, Integral) for part in value)
    ):
        raise ValueError(f"{name} must be one or two positive whole numbers, not {value!r}")
    object.__setattr__(made, name, tuple(map(int, value)) if pair else int(value))


def check_range(name: str, value: Range, low: float, high: float, above: bool = False) -> None:
    """``above``: the least is not allowed itself."""
    if not low <= value[0] <= value[1] <= high or (above and value[0] == low):
        bracket = "(" if above else "["
        raise ValueError(f"{name} must be a range within {bracket}{low:g}, {high:g}], not {value}")
