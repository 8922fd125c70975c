"""``fastssl bench codegen``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.codegen import baseline, sweep
from bench.codegen.catalogue import SHIPPED, SMALL
from bench.codegen.chip import CHIPS
from bench.codegen.compile import cuda

CUDA = Path(__file__).parents[2] / "csrc" / "cuda"


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(
        prog="fastssl bench codegen",
        description="Compile every kernel without a GPU, read the machine code, and predict what "
        "a logit or a byte costs, what bounds it, and how far from the roofline that is.",
    )
    words.add_argument("--chip", nargs="+", choices=CHIPS, default=["H200"])
    words.add_argument("--case", nargs="+", metavar="WORD", help="cases whose names hold a word")
    words.add_argument("--small", action="store_true", help="as CI does it")
    words.add_argument("--goals", action="store_true", help="whole ops beside their goals")
    words.add_argument("--sweep", choices=sweep.KINDS, help="other tiles for one kind of pass")
    words.add_argument("--dim", type=int, default=128, help="features, for --sweep")
    words.add_argument("--write", action="store_true", help="keep the figures in bench/results")
    return words


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    chips = [CHIPS[name] for name in options.chip]
    if options.sweep:
        for chip in chips:
            _sweep(options.sweep, chip, options.dim)
        return 0
    cases = SMALL if options.small else SHIPPED
    if options.case:
        cases = [c for c in cases if any(word in c.name for word in options.case)]
        if not cases:
            known = ", ".join(c.name for c in SHIPPED)
            parser().error(f"--case: none of {', '.join(options.case)} is in a name of {known}")
    found = {name: row for chip in chips for name, row in baseline.rows(cases, chip).items()}
    print(baseline.table(found))
    reached = {}
    if options.goals or options.write:
        reached = {chip.name: baseline.goals(chip) for chip in chips}
        for name, goals in reached.items():
            print(f"{name}, predicted:\n{baseline.goal_table(goals)}")
    said = baseline.complaints(found, baseline.kept())
    for path in sorted(CUDA.glob("*.cu")):
        said += _cuda(path, {chip.capability for chip in chips})
    for line in said:
        print("REFUSED:", line)
    if options.write:
        baseline.save(found, reached)
        print(f"written: {baseline.PATH.name}")
    return int(bool(said))


def _cuda(path: Path, capabilities: set[int]) -> list[str]:
    said = []
    for capability in sorted(capabilities):
        try:
            made = cuda(path, capability)
        except RuntimeError as error:
            print(error)
            continue
        for one in made:
            print(
                f"{path.name} sm_{capability} {one.name}: {one.registers} registers, "
                f"{one.spills} spills, {one.shared} bytes of static shared memory"
            )
            if one.spills:
                said.append(f"{path.name} {one.name} spills on sm_{capability}: {one.spills}")
    return said


def _sweep(kind: str, chip, d: int) -> None:
    found = list(sweep.sweep(kind, chip, d))
    good = [(tiles, p, own) for own, tiles, p in found if not isinstance(p, str) and p.resident]
    good.sort(key=lambda entry: (entry[1].spills > 0, entry[1].likely / entry[1].units))
    print(f"{kind}, D={d}, {chip.name}, predicted: ps a logit (best to serial)")
    for tiles, p, own in good:
        print(
            f"{'*' if own else ' '} {tuple(tiles)!s:28} {p.ps(chip):7.3f} "
            f"({p.ps(chip, p.best):.3f} to {p.ps(chip, p.serial):.3f}) {p.of_roofline(chip):4.0%}"
            f"  {p.bound:18} registers {p.registers} spills {p.spills} resident {p.resident}"
        )
    failed = len(found) - len(good)
    print(f"* shipped; {failed} more do not compile or do not fit")
