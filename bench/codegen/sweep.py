"""Other tiles for one kind of pass, each compiled and predicted. It changes nothing: a person edits
``similarity_lse_shapes.TILES``, and a GPU (bench/tune.py) has the last word."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from fastssl_kernels import similarity_topk
from fastssl_kernels.similarity_lse_shapes import TILES, Tiles

from bench.codegen.catalogue import device, similarity, softplus, topk
from bench.codegen.chip import Chip
from bench.codegen.compile import Launch
from bench.codegen.predict import Prediction, predict

# By kind of pass: who launches it, with which options, and the kernel.
LSE = "_similarity_lse_"
KINDS = {
    "triangle": (similarity, {}, LSE + "fwd_triangle_kernel"),
    "fwd": (similarity, {"k": 8192}, LSE + "fwd_kernel"),
    "mean": (similarity, {"m": 256, "k": 65536, "mean": True}, LSE + "fwd_mean_kernel"),
    "mean safe": (
        similarity,
        {"m": 256, "k": 65536, "mean": True, "learned": True},
        LSE + "fwd_mean_kernel",
    ),
    "bwd": (similarity, {}, LSE + "bwd_kernel"),
    "bwd safe": (similarity, {"learned": True}, LSE + "bwd_kernel"),
    "softplus fwd": (softplus, {}, "_similarity_softplus_fwd_kernel"),
    "softplus bwd": (softplus, {}, "_similarity_softplus_bwd_kernel"),
    "topk": (topk, {}, "_similarity_topk_fwd_kernel"),
}
ROWS, COLUMNS, WARPS, STAGES = (64, 128, 256), (32, 64, 128, 256), (4, 8), (2, 3)


def sweep(kind: str, chip: Chip, d: int) -> Iterator[tuple[bool, Tiles, Prediction | str]]:
    """(whether shipped, tiles, prediction or why there is none) of each candidate."""
    make, options, kernel = KINDS[kind]
    table, place = _place(kind, chip, d)
    shipped = table[place]
    steps = (32, 64, 128) if shipped.step else (0,)
    seen = set()
    candidates = itertools.product(ROWS, COLUMNS, WARPS, STAGES, steps)
    for tiles in (shipped, *(Tiles(*c) for c in candidates)):
        if tiles in seen or (kind == "triangle" and tiles.block_m > tiles.block_n):
            continue
        seen.add(tiles)
        # Sums of more entries than 64 a thread leave no registers for anything else.
        if tiles.block_m * tiles.block_n > 64 * 32 * tiles.num_warps * 2:
            continue
        table[place] = tiles
        try:
            launch = _only(make(chip, d=d, **options), kernel)
            found: Prediction | str = predict(launch, chip)
        except Exception as error:  # a candidate that does not compile is a finding
            found = str(error).strip().splitlines()[0][:80] if str(error) else repr(error)
        finally:
            table[place] = shipped
        yield tiles == shipped, tiles, found


def _place(kind: str, chip: Chip, d: int):
    family = device(chip).family
    if kind == "topk":
        return similarity_topk.TILES, (family, 2)
    table = TILES[family]
    return table, (kind, 2, d if (kind, 2, d) in table else 0)


def _only(launches: list[Launch], kernel: str) -> Launch:
    return next(launch for launch in launches if launch.kernel.__name__ == kernel)
