"""Cases × providers: check every answer, then time all of them interleaved.

A provider whose loss or gradients differ from the float64 truth is reported as wrong and gets
no time. The others take turns within one process, so that whatever else the machine does falls
on all of them alike.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Largest error against float64 at which a provider still counts as right: (loss, gradients),
# relative. Wide enough for anybody's rounding in that dtype, far too narrow for another formula.
TOLERANCE = {
    "float64": (1e-9, 1e-8),
    "float32": (1e-4, 1e-3),
    "float16": (1e-2, 3e-2),
    "bfloat16": (2e-2, 8e-2),
}
# The same for the loss of a provider that says how its problem differs: it does something alike.
ALIKE = 0.25


# Others' share of the processors below which the machine counts as quiet: one tick in twelve.
QUIET = 0.1


class Skip(Exception):
    """A provider does not take part in a case; the text says why."""


@dataclass(frozen=True)
class Case:
    """One size of one problem."""

    rows: int  # M; for two views of N samples M = 2N
    dim: int = 128
    dtype: str = "float32"
    device: str = "cpu"
    temperature: float = 0.1
    seed: int = 0
    task: str = ""  # of a benchmark of several

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def __str__(self) -> str:
        return f"M={self.rows} D={self.dim} {self.dtype} {self.device}"


@dataclass(frozen=True)
class Answer:
    """The float64 truth; ``sample`` holds the rows that ``gradients`` covers, None for all."""

    loss: Tensor
    gradients: tuple[Tensor, ...]
    sample: Tensor | None = None


@dataclass(frozen=True)
class Provider:
    """One implementation of a loss.

    ``make(case)`` returns a function of the inputs giving a scalar, or raises :class:`Skip`.
    Above ``limit`` rows the provider is not tried, for ``reason``; nor where its peak of
    ``matrices`` M×M matrices (measured at M = 8,192) does not fit in memory. ``differs``: in what
    its problem is another, so that its answer can only be alike; every table says so.
    """

    name: str
    make: Callable[[Case], Callable[..., Tensor]]
    limit: int | None = None
    reason: str = ""
    matrices: float | None = None
    differs: str = ""

    def function(self, case: Case) -> Callable[..., Tensor]:
        if self.limit is not None and case.rows > self.limit:
            raise Skip(f"not tried above M={self.limit}: {self.reason}")
        if self.matrices is not None:
            need = self.matrices * case.rows**2 * case.torch_dtype.itemsize
            free = free_memory(case.device)
            # Of main memory half: other people's processes live there too.
            most = (0.9 if case.device == "cuda" else 0.5) * free
            if need > most:
                raise Skip(
                    f"needs about {need / 2**30:,.0f} GiB; of what is free it may take "
                    f"{most / 2**30:,.0f}"
                )
        return self.make(case)


@dataclass(frozen=True)
class Benchmark:
    """A problem: its inputs, its truth, who solves it, and the arithmetic it cannot avoid."""

    name: str
    title: str
    inputs: Callable[[Case], tuple[Tensor, ...]]
    truth: Callable[[Case, tuple[Tensor, ...]], Answer]
    providers: tuple[Provider, ...]
    # FLOP of the two full M×M×D products that no streamed method does without.
    flops: Callable[[Case], float]
    rows: tuple[int, ...]
    # In place of FLOP, where memory is the limit: bytes read and written.
    bytes: Callable[[Case], float] | None = None
    # What a reader counts by, and how many of it a row makes: then also µs each and each a second.
    each: tuple[str, int] | None = None
    memory_rows: tuple[int, ...] = ()
    goals: tuple[Any, ...] = field(default=())
    # Of a plain run: features, dtype, and threads (None: torch's own).
    dim: int = 128
    dtype: str = "float32"
    threads: int | None = None
    # Problems that are alike, each a case at every size.
    tasks: tuple[str, ...] = ("",)

    def provider(self, name: str) -> Provider:
        for provider in self.providers:
            if provider.name == name:
                return provider
        known = ", ".join(p.name for p in self.providers)
        raise ValueError(f"no provider {name!r} of {self.name}; there are {known}")


def free_memory(device: str) -> float:
    """Bytes that can still be had."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        with open("/proc/meminfo") as file:
            sizes = dict(line.split(":") for line in file)
        return int(sizes["MemAvailable"].split()[0]) * 1024.0
    except (OSError, KeyError):
        return float("inf")


def step(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """Forward and backward: the loss and the gradient of every input that requires one, None where
    the loss does not depend on it."""
    loss = function(*inputs)
    learning = [t for t in inputs if t.requires_grad]
    if not learning:
        return (loss,)
    return (loss, *torch.autograd.grad(loss, learning, allow_unused=True))


def errors(
    result: tuple[Tensor | None, ...], truth: Answer, differs: str = ""
) -> tuple[float, float]:
    """Relative errors of the loss and of the worst gradient (L2); NaN never passes, nor does a
    gradient that is not there, unless the problem ``differs``."""
    loss, *gradients = (t if t is None else t.detach().double() for t in result)
    loss_error = abs(loss.item() - truth.loss.item()) / max(abs(truth.loss.item()), 1e-12)
    grad_error = 0.0
    for got, want in zip(gradients, truth.gradients, strict=True):
        if got is None:
            if differs:
                continue
            return loss_error, float("nan")
        if truth.sample is not None:
            got = got[truth.sample]
        error = ((got - want).norm() / want.norm().clamp_min(1e-30)).item()
        grad_error = max(grad_error, error) if error == error else float("nan")
        if grad_error != grad_error:
            break
    return loss_error, grad_error


def check(
    case: Case, result: tuple[Tensor | None, ...], truth: Answer, differs: str = ""
) -> dict[str, Any]:
    """``{"loss_error", "grad_error"}``, ``"differs"`` where it does, and ``"wrong"`` with a
    sentence if they are too large."""
    loss_error, grad_error = errors(result, truth, differs)
    entry: dict[str, Any] = {"loss_error": loss_error, "grad_error": grad_error}
    most_loss, most_grad = TOLERANCE[case.dtype]
    if differs:
        entry["differs"], most_loss = differs, ALIKE
    if not (loss_error <= most_loss and grad_error <= most_grad):
        entry["wrong"] = (
            f"loss off by {loss_error:.1e}, gradients by {grad_error:.1e} from float64 "
            f"(allowed {most_loss:.0e} and {most_grad:.0e})"
        )
    return entry


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def sample(
    run: Callable[[], object],
    repeats: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds per call over ``repeats`` calls in a row; ``clock`` is for CPUs, CUDA has events."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / repeats
    begin = clock()
    for _ in range(repeats):
        run()
    return (clock() - begin) / repeats


def interleave(
    runs: dict[str, Callable[[], object]],
    *,
    device: str = "cpu",
    seconds: float = 10.0,
    rounds: int = 50,
    least: int = 3,
    span: float = 0.005,
    patience: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, list[float | None]], float]:
    """Time all ``runs`` in turns.

    Args:
        runs: what to call, by name.
        device: "cpu" or "cuda".
        seconds: about how long the whole may take; each run has an equal share of it, and sits
            out once its share is spent and it has had ``least`` turns.
        rounds: most turns each.
        least: fewest turns each.
        span: a turn repeats a quick run until it lasts about this many seconds.
        patience: seconds to spend, over the whole call, on waiting for a shared machine to be
            quiet before a turn, and on repeating turns that were disturbed.
        clock: what reads the time on CPUs. ``time.process_time`` counts what this process used,
            which others hardly change as long as it runs on one thread.

    Returns:
        Seconds per call for every round, None where a run sat out; and the share of the
        processors that other processes held during the turns.
    """
    repeats = {}
    for name, run in runs.items():
        sample(run, 1, device, clock)  # warm
        first = sample(run, 1, device, clock)
        repeats[name] = max(1, min(1000, round(span / max(first, 1e-7))))
    times: dict[str, list[float | None]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    lost = 0.0
    share = seconds / max(len(runs), 1)
    order = list(runs)
    shuffle = random.Random(0).shuffle
    gc.collect()
    gc.freeze()  # collections between turns then look at new objects only
    gc.disable()
    try:
        for turn in range(rounds):
            if turn >= least and all(spent[name] > share for name in runs):
                break
            shuffle(order)  # nobody always follows the same neighbour
            for name in order:
                if turn >= least and spent[name] > share:
                    times[name].append(None)
                    continue
                gc.collect()
                while True:
                    patience -= wait_for_quiet(patience)
                    contention = Contention()
                    took = sample(runs[name], repeats[name], device, clock)
                    whole = took * repeats[name]
                    if patience <= 0 or whole < 0.05 or contention.share() < QUIET:
                        break
                    patience -= whole
                lost += contention.share() * whole
                times[name].append(took)
                spent[name] += whole
    finally:
        gc.enable()
        gc.unfreeze()
    return times, lost / sum(spent.values())


class Contention:
    """How much of the processors others took meanwhile: 0 on a machine of one's own.

    Interleaving shares a disturbance out fairly; it cannot undo one. So every result says how
    large it was.
    """

    def __init__(self) -> None:
        self.start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        try:
            with open("/proc/stat") as file:
                user, nice, system, idle, iowait, *rest = map(float, file.readline().split()[1:9])
        except OSError:
            return 0.0, 0.0, 0.0
        busy = user + nice + system + sum(rest)
        tick = os.sysconf("SC_CLK_TCK")
        return busy / tick, (busy + idle + iowait) / tick, time.process_time()

    def share(self) -> float:
        """Processor time of all others over all processor time there was."""
        busy, whole, own = (b - a for a, b in zip(self.start, self._now(), strict=True))
        return max(0.0, (busy - own) / whole) if whole > 0 else 0.0


def wait_for_quiet(patience: float) -> float:
    """Sleep until the other processes leave the processors alone; the seconds it took."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < patience:
        contention = Contention()
        time.sleep(0.06)  # six ticks of /proc/stat on each core
        if contention.share() < QUIET:
            break
    return time.perf_counter() - begin


def quantiles(times: list[float | None]) -> dict[str, float]:
    """The best, p20, p50 and p80 in milliseconds, and the number of turns."""
    taken = sorted(t for t in times if t is not None)

    def at(q: float) -> float:
        position = q * (len(taken) - 1)
        low = int(position)
        high = min(low + 1, len(taken) - 1)
        return (taken[low] + (taken[high] - taken[low]) * (position - low)) * 1e3

    return {
        "best": taken[0] * 1e3,
        "p20": at(0.2),
        "p50": at(0.5),
        "p80": at(0.8),
        "turns": len(taken),
    }


def ratio(times: list[float | None], base: list[float | None]) -> float:
    """Median over the shared rounds of time over base time."""
    return statistics.median(
        t / b for t, b in zip(times, base, strict=True) if t is not None and b is not None
    )
