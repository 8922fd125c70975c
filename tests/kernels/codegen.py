"""What tests ask of the machine code that ``bench.codegen.compile`` makes without a GPU."""

from __future__ import annotations

import re
from typing import NamedTuple

from bench.codegen.compile import Launch, assemble, key, record

__all__ = ["Built", "Launch", "assemble", "build", "record"]


class Built(NamedTuple):
    name: str
    registers: int
    local: int  # bytes of stack, and instructions that touch it
    shared: int  # bytes
    tensor: int  # tensor-core instructions, of which
    doubles: int  # ... on float64
    warp_group: int  # ... by warp groups (Hopper)
    commits: int  # ... that close a group to wait for


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
