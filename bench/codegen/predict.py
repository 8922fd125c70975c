"""From machine code and a chip's rates: how long a tile takes, what bounds it, how far from the
roofline.

A program's turn of its main loop takes each unit a number of cycles. Were all units always busy,
the slowest would set the pace (``best``); were nothing to overlap within a program, the matrix
instructions and then the slowest of the rest (``serial``; copies to shared memory are asynchronous
and overlap). Triton's programs wait for a product before they use it, all warps at once, so what
overlaps are programs that share a multiprocessor: ``likely = max(best, serial / resident)``.

A barrier and a wait for a product are given the cycles that they cost at least (``BARRIER``,
``WAIT``: assumed). Left out: other latencies, bank conflicts, misses of the L2 cache, and clocks
that fall under load beyond what the sustained rate of products says. A prediction compares versions
of a kernel and says what bounds them; how long it takes, a GPU says.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from bench.codegen import sass
from bench.codegen.chip import Chip
from bench.codegen.compile import Launch, Machine, machine

PRODUCTS = {  # matrix products of a tile: by features of the inputs, by features of the output
    "_similarity_lse_fwd_triangle_kernel": (1, 0),
    "_similarity_lse_fwd_kernel": (1, 0),
    "_similarity_lse_fwd_both_kernel": (1, 0),
    "_similarity_lse_fwd_mean_kernel": (1, 1),
    "_similarity_lse_bwd_kernel": (1, 1),
    "_similarity_softplus_fwd_kernel": (1, 0),
    "_similarity_softplus_bwd_kernel": (1, 1),
    "_similarity_topk_fwd_kernel": (1, 0),
}
TRIANGLE = "_similarity_lse_fwd_triangle_kernel"
BARRIER, WAIT = 30.0, 100.0  # cycles


class Prediction(NamedTuple):
    kernel: str
    chip: str
    shape: str
    registers: int
    spills: int
    shared: int
    resident: int  # programs that a multiprocessor holds
    mix: dict[str, int]  # of a program's turn: warps' instructions, FLOP, bytes
    cycles: dict[str, float]  # of each unit, for that turn
    best: float  # cycles a turn and multiprocessor if everything overlaps
    serial: float  # ... of one program alone
    unit: str  # what a turn makes
    units: int
    roofline: float  # ps a unit, the whole chip

    @property
    def likely(self) -> float:
        return max(self.best, self.serial / self.resident)

    @property
    def bound(self) -> str:
        """The busiest unit, or that too few programs share a multiprocessor to keep it busy."""
        top = max(self.cycles, key=lambda unit: self.cycles[unit])
        return top if self.likely <= 1.05 * self.best else f"{top}, waiting"

    def ps(self, chip: Chip, cycles: float | None = None) -> float:
        """Picoseconds a unit, all multiprocessors working."""
        cycles = self.likely if cycles is None else cycles
        return 1e3 * cycles / self.units / chip.processors / chip.clock

    def of_roofline(self, chip: Chip) -> float:
        return self.roofline / self.ps(chip)

    def row(self, chip: Chip) -> dict:
        """What is kept of it."""
        return {
            "kernel": self.kernel,
            "chip": self.chip,
            "shape": self.shape,
            "registers": self.registers,
            "spills": self.spills,
            "shared": self.shared,
            "resident": self.resident,
            "tensor": self.mix.get("tensor", 0),
            "mix": dict(sorted(self.mix.items())),
            "cycles": {unit: round(c, 1) for unit, c in sorted(self.cycles.items())},
            "unit": self.unit,
            "ps": round(self.ps(chip), 4),
            "ps_best": round(self.ps(chip, self.best), 4),
            "ps_serial": round(self.ps(chip, self.serial), 4),
            "bound": self.bound,
            "roofline_ps": round(self.roofline, 4),
            "of_roofline": round(self.of_roofline(chip), 3),
        }


def resident(made: Machine, chip: Chip) -> int:
    """Programs that one multiprocessor holds; 0 if not one fits."""
    threads = 32 * made.warps
    a_warp = math.ceil(32 * made.registers / 256) * 256  # registers are given out by 256
    limits = [chip.programs, chip.threads // threads, chip.registers // (a_warp * made.warps)]
    limits.append(chip.shared // (made.shared + chip.reserved))
    return min(limits)


class Work(NamedTuple):
    """What one turn of a launch's main loop is for."""

    unit: str
    units: int
    flop: int  # of its matrix products
    trips: int  # turns of the inner loop over features
    entries: int  # powers of two that it needs at least


def work(launch: Launch) -> Work:
    values, name = launch.values, launch.kernel.__name__
    if name in PRODUCTS:
        m = values["BLOCK_M"]
        n = values["BLOCK_N"]
        trips = math.ceil(values["D"] / values["BLOCK_D"])
        own, out = PRODUCTS[name]
        width = own * trips * values["BLOCK_D"] + out * values.get("BLOCK_OUT", 0)
        # A tile beside the diagonal serves two logits of the whole matrix with each product.
        units = 2 * m * n if name == TRIANGLE else m * n
        return Work("logit", units, 2 * m * n * width, trips, 0 if "topk" in name else m * n)
    return Work("byte", 0, 0, 1, 0)


def shape(launch: Launch) -> str:
    """The configuration in short: tile, warps, stages."""
    values = launch.values
    tile = [
        str(values[name])
        for name in ("BLOCK", "BLOCK_M", "BLOCK_N", "BLOCK_B", "ROW", "BLOCK_K", "BLOCK_D")
        if isinstance(values.get(name), int)
    ]
    warps, stages = (launch.meta.get(k, d) for k, d in (("num_warps", 4), ("num_stages", 3)))
    return f"{'×'.join(tile)} w{warps} s{stages}"


def count(made: Machine, trips: int) -> Counter[str]:
    """A program's turn of its main loop."""
    graph = sass.blocks(made.code)
    mix = sass.turn(graph, *sass.main_loop(graph), trips)
    return Counter({what: amount * made.warps for what, amount in mix.items()})


def predict(launch: Launch, chip: Chip) -> Prediction:
    """How long a turn of the launch's main loop takes on the chip."""
    made = machine(launch, chip.capability)
    doing, name = work(launch), launch.kernel.__name__
    mix = count(made, doing.trips)
    if doing.flop and not mix["flop"] and mix["tensor"]:
        mix["flop"] = mix["matrix"] = doing.flop  # Blackwell's do not say their shape
    moved = mix["load"] + mix["store"] + (0 if doing.flop else mix["read"])
    units = {unit: mix[unit] * 32 / lanes for unit, lanes in chip.lanes.items()}
    units["issue"] = mix["issue"] / chip.schedulers
    # Shared memory is the L1 cache's; one port for both.
    units["shared"] = (mix["shared"] + mix["read"]) / chip.shared_bytes
    cycles = units | {
        "tensor": mix["matrix"] / chip.flop,
        "operands": mix["operands"] / chip.shared_bytes,
        "L2": moved / chip.share(chip.l2),
    }
    whole = cycles | {"shared": units["shared"] + cycles["operands"]}
    if doing.unit == "byte":
        whole["DRAM"] = moved / chip.share(chip.dram)
    best = max(whole.values())
    serial = max(cycles["tensor"], cycles["operands"]) + max(units.values())
    serial += (BARRIER * mix["barriers"] + WAIT * mix["waits"]) / made.warps
    if doing.flop:
        # tf32x3 takes three products for one.
        tensor = (mix["matrix"] or doing.flop) / chip.flop
        exps = doing.entries / chip.lanes["xu"]
        ideal = max(tensor, exps)
        amount = doing.units
    else:
        amount = moved
        ideal = moved / chip.share(chip.dram)
        serial = max(best, serial)
    return Prediction(
        kernel=name,
        chip=chip.name,
        shape=shape(launch),
        registers=made.registers,
        spills=made.spills,
        shared=made.shared,
        resident=resident(made, chip),
        mix={what: amount for what, amount in mix.items() if amount},
        cycles={unit: c for unit, c in whole.items() if c and unit != "operands"},
        best=best,
        serial=max(best, serial),
        unit=doing.unit,
        units=max(1, amount),
        roofline=1e3 * ideal / max(1, amount) / chip.processors / chip.clock,
    )


# Turns of the main loop that all programs take together, of kernels that only stream.
TURNS = {
    "_sinkhorn_rows_kernel": lambda v, programs: (
        programs * math.ceil(v["K"] / v["ROW"]) * (1 if v["plan_ptr"] is None else 2)
    ),
    "_sinkhorn_columns_kernel": lambda v, programs: programs * math.ceil(v["run"] / v["BLOCK_B"]),
}


def seconds(launches: list[Launch], chip: Chip) -> float:
    """Predicted, of launches one after another in a CUDA graph."""
    return sum(chip.launch * 1e-6 + _seconds(launch, chip) for launch in launches)


def _seconds(launch: Launch, chip: Chip) -> float:
    name, programs = launch.kernel.__name__, math.prod(launch.grid)
    if name not in PRODUCTS:
        # Each tensor crosses the memory bus once, or the arithmetic takes longer.
        moved = {t.data_ptr(): t.nbytes for t in launch.args if hasattr(t, "nbytes")}
        bus = sum(moved.values()) / (1e12 * chip.dram)
        if name not in TURNS:
            return bus
        found = predict(launch, chip)
        cycles = max(c for unit, c in found.cycles.items() if unit not in ("DRAM", "L2"))
        turns = TURNS[name](launch.values, programs)
        return max(bus, cycles * turns / chip.processors / (1e9 * chip.clock))
    found = predict(launch, chip)
    turns = launch.values["run"]
    if name == TRIANGLE:  # of whole blocks
        turns *= launch.values["BLOCK_N"] // launch.values["BLOCK_M"]
    full, rest = divmod(programs, chip.processors * found.resident)
    cycles = full * turns * found.resident * found.likely
    # The last wave's busiest multiprocessor holds so many programs.
    held = math.ceil(rest / chip.processors)
    cycles += turns * max(found.serial * bool(rest), held * found.best)
    return cycles / (1e9 * chip.clock)
