"""What chips can do a clock: the figures that predictions rest on, and where they come from.

Lanes a clock and multiprocessor are the CUDA programming guide's table of arithmetic throughput;
sizes are its table of capacities; processors, clocks and DRAM bandwidth are the vendor's data
sheets. ``tflops``, ``dram`` and ``l2`` are what can be sustained, not peaks: an H200's are those
that the project's rooflines use (790 TFLOP/s, 4.3 TB/s), the others' the same share of their peaks
(0.80, 0.90), and the caches' are others' reports for the H100 and A100. None was measured here.
"""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    name: str
    capability: int
    processors: int
    clock: float  # GHz, sustained
    tflops: float  # bf16, dense, sustained
    dram: float  # TB/s, sustained
    l2: float  # TB/s, reads, sustained
    shared: int  # bytes that the programs on a multiprocessor share
    lanes: dict[str, int]  # of each unit, a clock and multiprocessor
    registers: int = 65536
    threads: int = 2048
    programs: int = 32
    schedulers: int = 4
    shared_bytes: int = 128  # a clock and multiprocessor
    reserved: int = 1024  # bytes of shared memory that each program costs besides its own
    launch: float = 2.0  # µs from one kernel to the next in a CUDA graph

    @property
    def flop(self) -> float:
        """bf16 FLOP a clock and multiprocessor."""
        return 1e3 * self.tflops / self.processors / self.clock

    def share(self, terabytes: float) -> float:
        """Bytes a clock that one multiprocessor has of a bandwidth, all working."""
        return 1e3 * terabytes / self.processors / self.clock


AMPERE = {"xu": 16, "fp32": 64, "imad": 64, "alu": 64, "fp64": 32, "shuffle": 32}
HOPPER = {"xu": 16, "fp32": 128, "imad": 64, "alu": 64, "fp64": 64, "shuffle": 32}
KIB = 1024
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("H200", 90, 132, 1.8, 790.0, 4.3, 5.6, 228 * KIB, HOPPER),
        Chip("H100", 90, 132, 1.8, 790.0, 3.0, 5.6, 228 * KIB, HOPPER),
        Chip("A100", 80, 108, 1.41, 250.0, 1.8, 3.7, 164 * KIB, AMPERE),
        Chip("B200", 100, 148, 1.85, 1800.0, 7.2, 10.0, 228 * KIB, HOPPER),
    )
}
