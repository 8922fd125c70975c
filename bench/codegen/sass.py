"""Machine code as ``cuobjdump -sass`` prints it: blocks, loops, and what a turn of one executes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import NamedTuple

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
FUNCTION = re.compile(r"Function : (\S+)")
TARGET = re.compile(r"\b0x([0-9a-f]+)\s*$")
JUMPS = {"BRA", "BRX", "JMP", "EXIT", "RET"}
GROUP = 128  # threads that one HGMMA belongs to
# Which unit takes an instruction. What is not here (uniform datapath, barriers, moves) costs an
# issue slot only.
UNITS = {
    "xu": "MUFU F2F F2I I2F FRND FLO POPC",
    "fp32": "FFMA FMUL FADD FFMA2 FMUL2 FADD2",
    "imad": "IMAD HFMA2 HADD2 HMUL2",
    "alu": "ISETP FSETP FSEL SEL LOP3 FMNMX IMNMX VIMNMX FMNMX3 PLOP3 IADD3 IADD LEA SHF PRMT VIADD"
    " VIADDMNMX IABS SGXT BMSK F2FP I2FP FCHK LOP ISCADD BFE HSETP2 P2R R2P HMNMX2",
    "fp64": "DFMA DMUL DADD DSETP",
    "shuffle": "SHFL VOTE REDUX MATCH",
}
UNIT = {word: unit for unit, words in UNITS.items() for word in words.split()}
SLOWER = {"TF32": 2, "DMMA": 16}  # than bf16's products, on A100 to H200
SHARED = {"LDS", "STS", "LDSM", "STSM", "ATOMS"}
TENSOR = {"HGMMA", "QGMMA", "IGMMA", "HMMA", "DMMA", "IMMA", "UTCHMMA", "UTCQMMA"}
GLOBAL = {"LDG", "STG", "LDGSTS", "ATOMG", "RED", "ATOM"}
LOCAL = {"LDL", "STL"}


class Instruction(NamedTuple):
    at: int
    guard: str  # the predicate, "" if none
    name: str
    operands: str

    @property
    def stem(self) -> str:
        return self.name.split(".")[0]

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = TARGET.search(self.operands.strip())
        return int(found[1], 16) if self.stem == "BRA" and found else None

    @property
    def never(self) -> bool:
        return self.guard == "!PT"


class Block(NamedTuple):
    first: int
    code: list[Instruction]
    after: list[int]  # addresses of the blocks that may follow


class Loop(NamedTuple):
    head: int
    blocks: frozenset[int]


def functions(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each function of a listing, padding left out."""
    found: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in text.splitlines():
        if name := FUNCTION.search(line):
            code = found.setdefault(name[1], [])
        elif part := LINE.match(line):
            at, guard, word, operands = part.groups()
            if word != "NOP":
                code.append(Instruction(int(at, 16), guard or "", word, operands.strip()))
    return found


def blocks(code: list[Instruction]) -> dict[int, Block]:
    """Basic blocks by address."""
    targets = {i.target for i in code} - {None}
    made: dict[int, Block] = {}
    here: list[Instruction] = []
    for n, instruction in enumerate(code):
        here.append(instruction)
        following = code[n + 1].at if n + 1 < len(code) else None
        jumps = instruction.stem in JUMPS
        if not jumps and following is not None and following not in targets:
            continue
        after = [] if instruction.target is None else [instruction.target]
        # `BRA P3, 0x…` and `BRA.U UP0, 0x…` carry a condition among their operands.
        conditional = bool(instruction.guard) or "P" in instruction.operands
        if following is not None and (not jumps or conditional):
            after.append(following)
        # A branch to itself is the padding after the last EXIT.
        if not (len(here) == 1 and instruction.target == instruction.at):
            made[here[0].at] = Block(here[0].at, here, after)
        here = []
    known = made.keys()
    return {at: b._replace(after=[a for a in b.after if a in known]) for at, b in made.items()}


def loops(graph: dict[int, Block]) -> list[Loop]:
    """Natural loops, innermost first; those with one head are one."""
    before = defaultdict(set)
    for at, block in graph.items():
        for after in block.after:
            before[after].add(at)
    found: dict[int, set[int]] = {}
    for tail, head in _back_edges(graph):
        inside, todo = found.setdefault(head, {head}), [tail]
        while todo:
            if (at := todo.pop()) not in inside:
                inside.add(at)
                todo += before[at]
    return sorted((Loop(h, frozenset(b)) for h, b in found.items()), key=lambda x: len(x.blocks))


def _back_edges(graph: dict[int, Block]) -> list[tuple[int, int]]:
    """Edges to a block that is on the way to their own."""
    if not graph:
        return []
    edges, seen, way = [], set(), set()
    stack: list[tuple[int, int]] = [(min(graph), 0)]
    while stack:
        at, turn = stack.pop()
        if turn == 0:
            seen.add(at)
            way.add(at)
        if turn < len(graph[at].after):
            stack.append((at, turn + 1))
            after = graph[at].after[turn]
            if after in way:
                edges.append((at, after))
            elif after not in seen:
                stack.append((after, 0))
        else:
            way.discard(at)
    return edges


def worth(code: list[Instruction]) -> int:
    """How much a block is of the work itself: matrix instructions, then exponentials."""
    tensor = sum(i.stem in TENSOR for i in code)
    return 10**6 * tensor + 10**3 * sum(i.name == "MUFU.EX2" for i in code)


def main_loop(graph: dict[int, Block]) -> tuple[Loop | None, list[Loop]]:
    """The innermost loop with all work that any loop has, and the loops inside it."""
    all_loops = loops(graph)
    if not all_loops:
        return None, []

    def total(loop: Loop) -> int:
        return sum(worth(graph[at].code) for at in loop.blocks)

    most = max(map(total, all_loops))
    if most:
        main = next(loop for loop in all_loops if total(loop) == most)
    else:  # no matrix, no exponential: the loop that moves the most
        main = max(all_loops, key=lambda x: sum(len(graph[at].code) for at in x.blocks))
    return main, [x for x in all_loops if x.blocks < main.blocks]


def turn(graph: dict[int, Block], loop: Loop | None, inner: list[Loop], trips: int) -> Counter[str]:
    """Instructions of one turn by what they are, each inner loop that has work ``trips`` times.

    Of the ways through the body it is the shortest of those with the most work: what is guarded,
    as the masks of the few tiles that hold a diagonal or an edge, is left out. Without a loop, the
    way through the whole kernel.
    """
    inside = set(graph) if loop is None else set(loop.blocks)
    head = min(graph) if loop is None else loop.head
    back = set(_back_edges(graph))
    weight = {
        at: next((trips for x in inner if at in x.blocks and _works(graph, x)), 1) for at in inside
    }
    order: list[int] = []
    _postorder(graph, head, inside, back, order)
    ends = {
        at
        for at in inside
        if ((at, head) in back if loop else not [a for a in graph[at].after if (at, a) not in back])
    }
    best: dict[int, tuple[float, int | None]] = {}
    for at in order:  # every block after all that may follow it
        code = graph[at].code
        own = weight[at] * (len(code) - worth(code))
        rest = [(best[a][0], a) for a in graph[at].after if (at, a) not in back and a in best] + (
            [(0.0, None)] if at in ends else []
        )
        if rest:
            cost, after = min(rest, key=lambda pair: pair[0])
            best[at] = (own + cost, after)
    found: Counter[str] = Counter()
    at: int | None = head
    while at is not None:
        for instruction in graph[at].code:
            for what, amount in amounts(instruction).items():
                found[what] += weight[at] * amount
        at = best[at][1]
    return found


def _works(graph: dict[int, Block], loop: Loop) -> bool:
    return any(worth(graph[at].code) for at in loop.blocks)


def _postorder(graph, head, inside, back, order) -> None:
    seen, stack = set(), [(head, 0)]
    while stack:
        at, step = stack.pop()
        seen.add(at)
        after = [a for a in graph[at].after if a in inside and (at, a) not in back]
        if step < len(after):
            stack.append((at, step + 1))
            if after[step] not in seen:
                stack.append((after[step], 0))
        else:
            order.append(at)


def amounts(i: Instruction) -> dict[str, int]:
    """What one warp's instruction takes: an issue slot, a unit, bytes, FLOP.

    ``flop`` is the instruction's for a warp; HGMMA's is a quarter of its group's.
    """
    found = {"issue": 1}
    if i.never:
        return found
    stem = i.stem
    if stem in UNIT:
        found[UNIT[stem]] = 1
        if i.name == "MUFU.EX2":
            found["exp"] = 1
    elif stem in TENSOR:
        found["tensor"] = 1
        found |= _product(i)
    elif stem in SHARED:
        found["shared"] = 32 * _bytes(i)
    elif stem in GLOBAL:
        size, loads = _bytes(i), stem in ("LDG", "LDGSTS")
        # Of the narrow loads many lanes ask for the same: the L1 cache answers.
        found["store" if not loads else "load" if size == 16 else "read"] = 32 * size
        if stem == "LDGSTS":
            found["shared"] = 32 * size
    elif stem in LOCAL:
        found["local"] = 1
    elif stem == "BAR":
        found["barriers"] = 1
    elif i.name.startswith("WARPGROUP.DEPBAR"):
        found["waits"] = 1
    return found


def _bytes(i: Instruction) -> int:
    """Of one thread."""
    if i.stem in ("LDSM", "STSM"):
        matrices = i.name.rsplit(".", 1)[-1]  # LDSM.16.M88.4; one if it does not say
        return 4 * int(matrices) if matrices.isdigit() else 4
    for part in reversed(i.name.split(".")[1:]):
        if part in ("128", "64"):
            return int(part) // 8
        if part in ("U8", "S8", "U16", "S16"):
            return int(part[1:]) // 8
    return 4


def _product(i: Instruction) -> dict[str, int]:
    """Of a matrix instruction for a warp: FLOP, as many of bfloat16's as cost the same, and bytes
    that it reads from shared memory."""
    slower = next((by for word, by in SLOWER.items() if word in i.name), 1)
    group = re.search(r"GMMA\.(\d+)x(\d+)x(\d+)", i.name)
    if group:
        m, n, k = map(int, group.groups())
        size = 32 // k  # a step is 32 bytes deep in every dtype
        descriptors = i.operands.count("gdesc")
        # One descriptor names both operands; beside a register operand, only the second.
        registers = re.match(r"R\d+, R\d+,", i.operands)
        rows = (n if registers else m + n) if descriptors else 0
        flop = 2 * m * n * k // 4
        return {"flop": flop, "matrix": flop * slower, "operands": rows * k * size // 4}
    small = re.search(r"\b[HDI]MMA\.(16|8)(8)(16|32|8|4)\b", i.name)
    if small:
        m, n, k = map(int, small.groups())
        return {"flop": 2 * m * n * k, "matrix": 2 * m * n * k * slower}
    return {}
