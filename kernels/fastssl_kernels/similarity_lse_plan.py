"""How the launchers lay a problem over a chip: tiles, pieces, precision, and the facts of rows."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl_kernels.similarity_lse_rows import _similarity_lse_rows_kernel
from fastssl_kernels.similarity_lse_shapes import TILES, Tiles, cdiv, next_power_of_2

# With |t| up to this, 2^t and sums of it stay well inside float32, without a running maximum; by
# bytes an element. A float32 product is off by 2^-24 of |t| and more, which must not show either.
BOUND = {4: 21.0, 2: 64.0}
WIDEST = 128  # features of a gradient or mean that a program holds where vectors go by chunks


class Device(NamedTuple):
    """What the choice of tiles depends on."""

    family: str  # a table of TILES
    processors: int
    interpreted: bool = False
    doubles: bool = True  # multiplies float64 on the tensor cores, at full rate


def _device(x: Tensor) -> Device:
    if x.device.type == "cpu":
        return Device("hopper", processors=8, interpreted=True)
    return _cuda_device(x.device.index)


@functools.cache
def _cuda_device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    family = "small"
    if properties.shared_memory_per_block_optin >= 227 * 1024:
        family = "hopper" if properties.major < 10 else "blackwell"
    # Elsewhere float64 has a 32nd of float32's pace or less, and large logits of float32 inputs
    # have the digits of float32 products.
    return Device(
        family=family,
        processors=properties.multi_processor_count,
        doubles=(properties.major, properties.minor) in {(8, 0), (9, 0), (10, 0)},
    )


def _launch(kernel, grid, *args, **meta) -> None:
    # A logit must be rounded alike wherever it is recomputed: no fusing into multiply-adds.
    kernel[grid](*args, enable_fp_fusion=False, **meta)


class _Plan(NamedTuple):
    """How a tensor's width is laid over tiles."""

    device: Device
    d: int
    whole_d: int  # d, as a power of two
    width: int
    precision: str

    def key(self, kind: str) -> tuple[str, int, int]:
        """Of the tiles: by their width if a tile of this kind holds such vectors whole."""
        whole = (kind, self.width, max(64, self.whole_d))
        return whole if whole in TILES[self.device.family] else (kind, self.width, 0)

    def tiles(self, kind: str) -> Tiles:
        return TILES[self.device.family][self.key(kind)]

    def block_d(self, tiles: Tiles) -> int:
        return min(self.whole_d, tiles.step or self.whole_d)

    @property
    def rows(self) -> int:
        """Rows a program takes in the passes that hold whole vectors (float32's in float64)."""
        return max(1, min(64, 8192 // self.width // self.whole_d))

    def block_out(self, tiles: Tiles) -> int:
        """Features of a gradient or mean that a program holds."""
        return min(self.whole_d, WIDEST) if tiles.step else self.whole_d

    def chunks(self, tiles: Tiles) -> int:
        """Programs that share the features of a gradient or mean."""
        return cdiv(self.d, self.block_out(tiles))

    def cut(
        self, tiles: Tiles, blocks: int, steps: int, most: int = 512, cost: float = 0.0
    ) -> tuple[int, int]:
        """Steps a piece, and pieces that have any, of so many steps for each block."""
        places = self.device.processors * tiles.per_processor
        run = cdiv(steps, _pieces(blocks, steps, places, most, cost))
        return run, cdiv(steps, run)

    def exact(self, bounded: bool) -> bool:
        """Whether logits are taken in float64: float32's large ones, so that losses keep digits."""
        return self.width == 4 and not bounded and self.device.doubles


def _plan(x: Tensor) -> _Plan:
    device = _device(x)
    d = x.shape[1]
    whole_d = max(16, next_power_of_2(d))
    width = x.element_size()
    return _Plan(
        device=device,
        d=d,
        whole_d=whole_d,
        width=width,
        # Single TF32 products would cost half the digits of float32 inputs.
        precision="tf32x3" if x.dtype == torch.float32 else "ieee",
    )


@functools.lru_cache(maxsize=4096)
def _pieces(blocks: int, steps: int, places: int, most: int, cost: float) -> int:
    """Into how many pieces to cut ``steps`` so that blocks · pieces programs fill the chip.

    A piece costs about one step to begin, and ``cost`` steps afterwards for all of them.
    """

    def time(pieces: int) -> float:
        waves = math.ceil(blocks * pieces / places)
        return waves * (math.ceil(steps / pieces) + 1) + cost * (pieces - 1)

    return min(range(1, max(1, min(steps, most)) + 1), key=time)


def _bounded(x: Tensor, scale: Tensor | None, factor: float, normalize: bool) -> bool:
    """Whether the host knows that no logit needs a running maximum."""
    bound = BOUND[x.element_size()]
    return normalize and scale is None and abs(factor) * math.log2(math.e) <= bound


class _Side(NamedTuple):
    """Rows or columns of the matrix, with what the kernels need to know of each vector."""

    x: Tensor
    norm: Tensor
    weight: Tensor | None
    exponent: Tensor | None


class _Problem(NamedTuple):
    """What every pass over the matrix takes."""

    plan: _Plan
    rows: _Side
    columns: _Side  # the rows themselves, if they are their own columns
    base2: Tensor  # scale · factor · log2(e), [1] f64
    paired: _Side  # where the rows' pairs are: the columns, or pairs that are none
    bounded: bool
    normalize: bool
    offsets: tuple[int, int]
    has_pair: bool
    flags: dict  # of the kernels that take logits

    @property
    def symmetric(self) -> bool:
        return self.columns is self.rows

    @property
    def exact(self) -> bool:
        return self.plan.exact(self.bounded)

    @property
    def wide(self) -> torch.dtype:
        """The dtype of what is compared with logits."""
        return torch.float64 if self.exact else torch.float32

    @property
    def ragged(self) -> bool:
        """Whether sizes divide no vector load: masks and addresses then take registers."""
        return any(n % 16 for n in (self.plan.d, len(self.rows.x), len(self.columns.x)))

    @property
    def triangle(self) -> Tiles:
        """Of the passes that take sums by rows and by columns at once."""
        return self.plan.tiles("triangle ragged" if self.ragged else "triangle")

    def kind(self, of: str) -> str:
        """The key of a pass's tiles: in float64, without running maxima or the like, or with; the
        last leave registers for ragged sizes too."""
        easy = self.bounded and not self.ragged
        return of + (" exact" if self.exact else "" if easy else " safe")


def _problem(
    x: Tensor,
    y: Tensor | None,
    scale: Tensor | None,
    factor: float,
    normalize: bool,
    self_offset: int | None,
    pair_offset: int | None,
    exclude_pair: bool,
    *,
    unbounded: bool = False,
    pairs: Tensor | None = None,  # [M, D]
    row_sums: tuple[Tensor, Tensor] | None = None,  # lse and d_lse, in the backward
    column_sums: tuple[Tensor, Tensor] | None = None,  # the same of the columns, if they have any
) -> _Problem:
    """Both sides made contiguous and their facts found, in one launch."""
    plan = _plan(x)
    bounded = _bounded(x, scale, factor, normalize) and not unbounded
    flags = {
        "HAS_SELF": self_offset is not None,
        "EXCLUDE_PAIR": exclude_pair,
        "PRECISION": plan.precision,
        "INTERPRETED": plan.device.interpreted,
        "D": plan.d,
    }
    rows = _side(plan, bounded, x, row_sums)
    columns = rows if y is None else _side(plan, bounded, y, column_sums)
    paired = columns if pairs is None else _side(plan, bounded, pairs, None)
    base2 = x.new_empty(1, dtype=torch.float64)
    facts = [_facts(rows, row_sums)] + ([] if y is None else [_facts(columns, column_sums)])
    _find_facts(
        plan, *facts, pairs=None if pairs is None else paired,
        scale=scale, base2=base2, factor=factor, normalize=normalize,
    )  # fmt: skip
    offsets = (self_offset or 0, pair_offset or 0)
    has_pair = pair_offset is not None or pairs is not None
    return _Problem(
        plan, rows, columns, base2, paired, bounded, normalize, offsets, has_pair, flags
    )


def _side(plan: _Plan, bounded: bool, x: Tensor, sums: tuple[Tensor, Tensor] | None) -> _Side:
    m = len(x)
    wide = torch.float64 if plan.exact(bounded) else torch.float32
    return _Side(
        x=x.contiguous(),
        norm=x.new_empty(m, dtype=torch.float64 if x.dtype == torch.float32 else torch.float32),
        weight=None if sums is None else x.new_empty(m, dtype=torch.float32),
        exponent=None if sums is None or bounded else x.new_empty(m, dtype=wide),
    )


def _facts(side: _Side, sums: tuple[Tensor, Tensor] | None) -> tuple[Tensor | None, ...]:
    """A side as the kernel of the rows' facts takes it."""
    lse, d_lse = (None, None) if sums is None else sums
    return side.x, side.norm, lse, d_lse, side.weight, side.exponent


def _find_facts(
    plan, x_facts, y_facts=(None,) * 6, *, pairs=None, scale, base2, factor, normalize
) -> None:
    own = (None, None) if pairs is None else (pairs.x, pairs.norm)
    m, k = (0 if facts[0] is None else len(facts[0]) for facts in (x_facts, y_facts))
    _launch(
        _similarity_lse_rows_kernel,
        (cdiv(m, plan.rows) + cdiv(k, plan.rows),),
        *(*x_facts, *y_facts, *own, scale, base2, factor, m, k),
        D=plan.d,
        BLOCK_D=plan.whole_d,
        ROWS=plan.rows,
        NORMALIZE=normalize,
        num_warps=4,
    )


def _rows(
    plan: _Plan,
    x: Tensor,
    normalize: bool,
    bounded: bool,
    *,
    base2: Tensor | None = None,
    scale: Tensor | None = None,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """For other ops: one side's inverse norms in float32, and base2, filled if given."""
    norm = x.new_empty(len(x), dtype=torch.float32)
    facts = (x, norm, None, None, None, None)
    _find_facts(plan, facts, scale=scale, base2=base2, factor=factor, normalize=normalize)
    return norm, base2
