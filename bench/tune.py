"""Other tile shapes for the Triton kernels, each timed on the device at hand.

Kernel choices live in the launchers' table of tiles; this tries alternatives in their place and
says which is faster. It changes nothing: a person edits the table.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from bench.harness import Case, check, sample, step
from bench.run import first_line, load

# block_m, block_n, num_warps, num_stages, programs a multiprocessor; a triangle's block_m divides
# its block_n.
TRIANGLE = [
    # What `fastssl bench codegen --sweep triangle` puts first, then what was shipped before it.
    (64, 128, 4, 3, 2),
    (64, 128, 4, 2, 2),
    (128, 128, 8, 3, 1),
    (128, 128, 8, 2, 1),
    (128, 128, 8, 4, 1),
    (128, 128, 4, 3, 1),
    (128, 128, 8, 2, 2),
    (128, 128, 8, 3, 2),
    (64, 64, 4, 3, 2),
    (64, 64, 4, 4, 3),
    (256, 256, 8, 2, 1),
]
BWD = [
    # What `fastssl bench codegen --sweep bwd` puts first, then what was shipped before it.
    (64, 128, 4, 2, 2),
    (128, 32, 4, 3, 2),
    (128, 128, 8, 3, 1),
    (128, 128, 8, 2, 1),
    (128, 128, 8, 4, 1),
    (128, 64, 8, 3, 1),
    (128, 64, 4, 3, 2),
    (128, 64, 8, 3, 2),
    (64, 128, 4, 3, 2),
    (64, 64, 4, 3, 2),
    (256, 64, 8, 3, 1),
    (256, 128, 8, 2, 1),
]


def sweep(device: str, rows: int, dim: int, dtype: str, until: float) -> dict[str, Any]:
    """Milliseconds of forward + backward for every candidate, one pass changed at a time.

    Stops at the wall-clock time ``until``. A candidate that does not compile, or whose answer is
    wrong, is listed with the reason.
    """
    from fastssl_kernels import similarity_lse as kernels

    if device != "cuda":
        return {"note": "tiles are tried on CUDA devices only"}
    if not all(hasattr(kernels, name) for name in ("TILES", "Tiles", "_plan")):
        return {"note": "the launchers keep their tiles elsewhere now: bench/tune.py must follow"}
    bench, case = load("nt_xent"), Case(rows, dim, dtype, device)
    tensors = bench.inputs(case)
    truth = bench.truth(case, tensors)
    function = bench.provider("fastssl").function(case)
    plan = kernels._plan(tensors[0])
    table = kernels.TILES[plan.device.family]
    found: dict[str, Any] = {"rows": rows, "dim": dim, "dtype": dtype, "tried": []}

    def timed() -> dict[str, Any]:
        entry = check(case, step(function, tensors), truth)
        if "wrong" not in entry:
            sample(lambda: step(function, tensors), 2, device)
            entry["ms"] = 1e3 * min(
                sample(lambda: step(function, tensors), 5, device) for _ in range(3)
            )
        return entry

    found["shipped_ms"] = timed().get("ms")
    for kind, candidates in (("bwd", BWD), ("triangle", TRIANGLE)):
        key = plan.key(kind)
        shipped = table[key]
        for candidate in candidates:
            if time.time() > until:
                found["note"] = "not all were tried: the time was out"
                break
            *tile, programs = candidate
            table[key] = kernels.Tiles(*tile, per_processor=programs)
            if table[key] == shipped:
                continue
            try:
                entry = timed()
            except Exception as error:
                entry = {"failed": first_line(error)}
                torch.cuda.synchronize()  # raises if the device answers no more: then no one can
            finally:
                table[key] = shipped
            found["tried"].append({"pass": kind, "tiles": candidate, **entry})
            print(f"tune {kind} {candidate}: {entry.get('ms', entry)}", flush=True)
    return found
