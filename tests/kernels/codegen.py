"""Compile, without a GPU, exactly what the launchers would launch, and read what came out.

``record`` runs a launcher on CPU tensors with its launches caught instead of run; ``build``
specialises one caught launch as Triton's own launcher would (alignment, ones, Nones) and
compiles it for a target; the figures come from the disassembler that Triton bundles.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from fastssl_kernels import similarity_lse, similarity_lse_plan
from fastssl_kernels.similarity_lse_rows import _similarity_lse_rows_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")


class Launch(NamedTuple):
    kernel: Any
    grid: tuple[int, ...]
    args: tuple
    meta: dict


class Built(NamedTuple):
    name: str
    registers: int
    local: int  # bytes of stack, and instructions that touch it
    shared: int  # bytes
    tensor: int  # tensor-core instructions, of which
    doubles: int  # ... on float64
    warp_group: int  # ... by warp groups (Hopper)
    commits: int  # ... that close a group to wait for


def record(module, device, launcher: str, *args) -> list[Launch]:
    """The launches of ``module.launcher(*args)`` as it would make them on ``device``.

    Without the pass over rows where another op shares it: similarity_lse's tests compile it.
    """
    caught = []

    def catch(kernel, *args, grid, warmup, **meta):
        if module is similarity_lse or kernel is not _similarity_lse_rows_kernel:
            caught.append(Launch(kernel, grid, args, meta))

    with (
        patch.object(triton.JITFunction, "run", catch),
        patch.object(similarity_lse_plan, "_device", lambda x: device),
    ):
        getattr(module, launcher)(*args)
    return caught


def source(launch: Launch) -> ASTSource:
    """The launch specialised to its arguments."""
    kernel = launch.kernel
    values = dict(zip(kernel.arg_names, launch.args, strict=False)) | {
        k: v for k, v in launch.meta.items() if k not in OPTIONS
    }
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        special = not parameter.do_not_specialize
        if (
            parameter.is_constexpr
            or value is None
            or (special and type(value) is int and value == 1)
        ):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            aligned = True
        elif isinstance(value, float):
            signature[parameter.name] = parameter.annotation_type or "fp32"
            aligned = False
        else:
            signature[parameter.name] = "i32"
            aligned = special and value % 16 == 0
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def key(launch: Launch) -> str:
    """Equal for launches that compile to the same code."""
    made = source(launch)
    options = {k: v for k, v in launch.meta.items() if k in OPTIONS}
    return f"{made.name} {made.signature} {made.constants} {made.attrs} {options}"


def build(launch: Launch, capability: int) -> Built:
    """Compile one launch for ``sm_<capability>`` and read what the machine code needs; the same
    code once a process."""
    same = f"{capability} {key(launch)}"
    if same not in _built:
        _built[same] = _build(launch, capability)
    return _built[same]


_built: dict[str, Built] = {}


def _build(launch: Launch, capability: int) -> Built:
    compiled, sass, usage = assemble(launch, capability)
    stack, registers = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()[::-1]
    touches = len(re.findall(r"\b(?:LDL|STL)\b", sass))
    groups = re.findall(r"\bHGMMA\..*", sass)
    doubles = len(re.findall(r"\bDMMA\.", sass))
    return Built(
        name=compiled.metadata.name,
        registers=int(registers),
        local=int(stack) + touches,
        shared=compiled.metadata.shared,
        tensor=len(groups) + len(re.findall(r"\bHMMA\.", sass)) + doubles,
        doubles=doubles,
        warp_group=len(groups),
        commits=sum("gsb0" in line for line in groups),
    )


def assemble(launch: Launch, capability: int):
    """The compiled kernel, its disassembly, and its resource usage."""
    options = {k: v for k, v in launch.meta.items() if k in OPTIONS}
    compiled = triton.compile(
        source(launch), target=GPUTarget("cuda", capability, 32), options=options
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        return compiled, *(_cuobjdump(flag, cubin.name) for flag in ("-sass", "-res-usage"))


def _cuobjdump(flag: str, path: str) -> str:
    command = [str(CUOBJDUMP), flag, path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
