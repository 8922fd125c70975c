"""Targets a results file is held to, each one line of arithmetic over its figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TEXTS = {
    "ratio": "times faster than {provider}",
    "of_floor": "of the floor",
    "p50": "ms",
    "graph_ms": "ms in a CUDA graph",
    "graph_ratio": "times faster than {provider}, both in a CUDA graph",
    "memory_mib": "MiB above inputs",
    "us_each": "µs each",
}


@dataclass(frozen=True)
class Goal:
    """``figure`` of ``provider`` at ``rows`` is at least (or at most) ``bound``.

    ``provider`` may be several names with ``|`` between them: the first that was measured.
    """

    bound: float
    least: bool
    figure: str
    provider: str
    rows: int
    dtype: str = "float32"
    device: str = "cpu"

    def judge(self, results: dict[str, Any]) -> dict[str, Any]:
        """The goal in words, the value measured (None: not measured) and whether it is met."""
        value = None
        for case in results["cases"]:
            if any(case[key] != getattr(self, key) for key in ("rows", "dtype", "device")):
                continue
            for name in self.provider.split("|"):
                if value is None:
                    value = case["providers"].get(name, {}).get(self.figure)
        sign = "≥" if self.least else "≤"
        met = None
        if value is not None:
            met = value >= self.bound if self.least else value <= self.bound
        what = TEXTS[self.figure].format(provider=self.provider.split("|")[0])
        return {
            "goal": f"{self.dtype} M={self.rows}: {sign} {self.bound:g} {what}",
            "value": value,
            "met": met,
        }


def report(judged: list[dict[str, Any]]) -> str:
    """A line for each goal that was measured."""
    return "\n".join(
        f"{'met   ' if goal['met'] else 'MISSED'} {goal['goal']}: {goal['value']:.3g}"
        for goal in judged
        if goal["met"] is not None
    )


BF16 = {"dtype": "bfloat16", "device": "cuda"}  # where the GPU's goals are set


def at_least(bound: float, figure: str, provider: str, rows: int, **where: str) -> Goal:
    return Goal(bound, True, figure, provider, rows, **where)


def at_most(bound: float, figure: str, provider: str, rows: int, **where: str) -> Goal:
    return Goal(bound, False, figure, provider, rows, **where)
