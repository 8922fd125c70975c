"""The tile shapes that ``similarity_lse`` ships, by chip. tests/kernels compiles each of them."""

from __future__ import annotations

from typing import NamedTuple


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up; Triton's own, which kernels may call too, takes microseconds."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two from n on, which is at least 1; as Triton's."""
    return 1 << (n - 1).bit_length()


class Tiles(NamedTuple):
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    step: int = 0  # features that one product takes at a time; 0: all, held throughout
    per_processor: int = 1  # programs that one multiprocessor holds at a time


# By chip: Hopper's size (227 KiB of shared memory a program), below what differs on Blackwell,
# whose tensor cores have a memory of their own, and smaller (99 KiB are enough). By pass, bytes an
# element and features of vectors held whole, or 0 for chunks of wider ones. A triangle's block_m
# divides its block_n; sums by rows and by columns of different vectors share its tiles. "ragged":
# with sizes that no vector load divides, whose masks and addresses take registers.
# "safe": with running maxima, or exponents of their own for rows and columns; "exact": those with
# products in float64.
TILES: dict[str, dict[tuple[str, int, int], Tiles]] = {
    "hopper": {
        ("triangle", 2, 64): Tiles(64, 128, 4, 3, per_processor=2),
        ("triangle", 2, 128): Tiles(64, 128, 4, 3, per_processor=2),
        ("triangle", 2, 256): Tiles(128, 128, 8, 2),
        ("triangle", 2, 0): Tiles(128, 128, 8, 3, step=64),
        ("triangle", 4, 0): Tiles(64, 64, 4, 3, step=32),
        ("triangle ragged", 2, 64): Tiles(64, 64, 4, 3, per_processor=2),
        ("triangle ragged", 2, 128): Tiles(64, 64, 4, 3, per_processor=2),
        ("triangle ragged", 2, 256): Tiles(128, 128, 8, 2),
        ("triangle ragged", 2, 0): Tiles(128, 128, 8, 3, step=64),
        ("triangle ragged", 4, 0): Tiles(64, 64, 4, 3, step=32),
        ("fwd", 2, 64): Tiles(128, 128, 8, 3),
        ("fwd", 2, 128): Tiles(128, 128, 8, 3),
        ("fwd", 2, 256): Tiles(128, 64, 8, 3),
        ("fwd", 2, 0): Tiles(128, 128, 8, 3, step=64),
        ("fwd", 4, 0): Tiles(64, 64, 4, 3, step=32),
        ("fwd exact", 4, 0): Tiles(64, 64, 8, 2, step=32),
        ("mean", 2, 64): Tiles(64, 128, 4, 2, per_processor=2),
        ("mean", 2, 128): Tiles(64, 128, 4, 2, per_processor=2),
        ("mean", 2, 256): Tiles(64, 64, 4, 2, per_processor=2),
        ("mean", 2, 512): Tiles(64, 64, 8, 2),
        ("mean", 2, 0): Tiles(128, 64, 8, 2, step=64),
        ("mean", 4, 0): Tiles(64, 32, 4, 2, step=32, per_processor=2),
        ("mean safe", 2, 64): Tiles(64, 128, 4, 2, per_processor=2),
        ("mean safe", 2, 128): Tiles(64, 64, 4, 2, per_processor=2),
        ("mean safe", 2, 256): Tiles(64, 64, 4, 2, per_processor=2),
        ("mean safe", 2, 512): Tiles(64, 64, 8, 2),
        ("mean safe", 2, 0): Tiles(128, 64, 8, 2, step=64),
        ("mean safe", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("mean exact", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("bwd", 2, 64): Tiles(64, 128, 4, 2, per_processor=2),
        ("bwd", 2, 128): Tiles(64, 128, 4, 2, per_processor=2),
        ("bwd", 2, 256): Tiles(64, 64, 4, 2, per_processor=2),
        ("bwd", 2, 512): Tiles(64, 64, 8, 2),
        ("bwd", 2, 0): Tiles(128, 64, 8, 2, step=64),
        ("bwd", 4, 0): Tiles(64, 32, 4, 2, step=32, per_processor=2),
        ("bwd safe", 2, 64): Tiles(64, 128, 4, 2, per_processor=2),
        ("bwd safe", 2, 128): Tiles(64, 64, 4, 2, per_processor=2),
        ("bwd safe", 2, 256): Tiles(128, 64, 8, 2),
        ("bwd safe", 2, 512): Tiles(64, 64, 8, 2),
        ("bwd safe", 2, 0): Tiles(64, 64, 8, 2, step=64),
        ("bwd safe", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("bwd exact", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("softplus fwd", 2, 64): Tiles(64, 128, 4, 3, per_processor=2),
        ("softplus fwd", 2, 128): Tiles(64, 128, 4, 3, per_processor=2),
        ("softplus fwd", 2, 256): Tiles(64, 64, 4, 2, per_processor=2),
        ("softplus fwd", 2, 0): Tiles(128, 128, 8, 3, step=64),
        ("softplus fwd", 4, 0): Tiles(64, 64, 4, 3, step=32),
        ("softplus bwd", 2, 64): Tiles(64, 128, 4, 2, per_processor=2),
        ("softplus bwd", 2, 128): Tiles(64, 64, 4, 2, per_processor=2),
        ("softplus bwd", 2, 256): Tiles(64, 64, 8, 2),
        ("softplus bwd", 2, 512): Tiles(64, 64, 8, 2),
        ("softplus bwd", 2, 0): Tiles(64, 64, 8, 2, step=64),
        ("softplus bwd", 4, 0): Tiles(64, 32, 8, 2, step=32),
    },
    "small": {
        ("triangle", 2, 64): Tiles(64, 128, 4, 2, per_processor=2),
        ("triangle", 2, 128): Tiles(64, 128, 4, 2, per_processor=2),
        ("triangle", 2, 256): Tiles(64, 64, 4, 2),
        ("triangle", 2, 0): Tiles(64, 64, 4, 2, step=64),
        ("triangle", 4, 0): Tiles(32, 32, 4, 2, step=32),
        ("triangle ragged", 2, 64): Tiles(64, 64, 4, 2, per_processor=2),
        ("triangle ragged", 2, 128): Tiles(64, 64, 4, 2, per_processor=2),
        ("triangle ragged", 2, 256): Tiles(64, 64, 4, 2),
        ("triangle ragged", 2, 0): Tiles(64, 64, 4, 2, step=64),
        ("triangle ragged", 4, 0): Tiles(32, 32, 4, 2, step=32),
        ("fwd", 2, 64): Tiles(128, 64, 8, 3),
        ("fwd", 2, 128): Tiles(64, 128, 4, 2, per_processor=2),
        ("fwd", 2, 256): Tiles(64, 64, 4, 2),
        ("fwd", 2, 0): Tiles(64, 64, 8, 2, step=64),
        ("fwd", 4, 0): Tiles(64, 32, 4, 2, step=32),
        ("fwd exact", 4, 0): Tiles(64, 64, 8, 2, step=32),
        ("mean", 2, 64): Tiles(128, 64, 8, 2),
        ("mean", 2, 128): Tiles(64, 64, 4, 2),
        ("mean", 2, 256): Tiles(64, 64, 4, 2, per_processor=2),
        ("mean", 2, 0): Tiles(64, 32, 4, 2, step=64),
        ("mean", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("mean safe", 2, 64): Tiles(128, 64, 8, 2),
        ("mean safe", 2, 128): Tiles(64, 64, 4, 2, per_processor=2),
        ("mean safe", 2, 256): Tiles(64, 32, 8, 2),
        ("mean safe", 2, 0): Tiles(64, 32, 8, 2, step=64),
        ("mean safe", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("mean exact", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("bwd", 2, 64): Tiles(128, 64, 8, 2),
        ("bwd", 2, 128): Tiles(64, 128, 4, 2, per_processor=2),
        ("bwd", 2, 256): Tiles(64, 64, 4, 2, per_processor=2),
        ("bwd", 2, 0): Tiles(64, 32, 4, 2, step=64),
        ("bwd", 4, 0): Tiles(64, 32, 4, 2, step=32, per_processor=2),
        ("bwd safe", 2, 64): Tiles(128, 64, 8, 2),
        ("bwd safe", 2, 128): Tiles(64, 64, 4, 2, per_processor=2),
        ("bwd safe", 2, 256): Tiles(64, 32, 8, 2),
        ("bwd safe", 2, 0): Tiles(64, 32, 8, 2, step=64),
        ("bwd safe", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("bwd exact", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("softplus fwd", 2, 64): Tiles(128, 64, 8, 3),
        ("softplus fwd", 2, 128): Tiles(64, 64, 4, 3, per_processor=3),
        ("softplus fwd", 2, 256): Tiles(64, 64, 4, 2),
        ("softplus fwd", 2, 0): Tiles(64, 64, 8, 2, step=64),
        ("softplus fwd", 4, 0): Tiles(64, 32, 4, 2, step=32),
        ("softplus bwd", 2, 64): Tiles(128, 64, 8, 2),
        ("softplus bwd", 2, 128): Tiles(64, 64, 4, 2, per_processor=2),
        ("softplus bwd", 2, 256): Tiles(64, 32, 8, 2),
        ("softplus bwd", 2, 0): Tiles(64, 32, 8, 2, step=64),
        ("softplus bwd", 4, 0): Tiles(64, 32, 8, 2, step=32),
    },
}
TILES["blackwell"] = TILES["hopper"] | {
    ("triangle", 2, 64): Tiles(64, 64, 4, 3, per_processor=2),
    ("triangle", 2, 128): Tiles(64, 64, 4, 3, per_processor=2),
    ("triangle", 2, 256): Tiles(64, 128, 8, 2),
    ("triangle", 2, 0): Tiles(64, 128, 8, 3, step=64),
    ("triangle ragged", 2, 256): Tiles(64, 128, 8, 2),
    ("triangle ragged", 2, 0): Tiles(64, 128, 8, 3, step=64),
    ("mean", 2, 64): Tiles(128, 128, 8, 3),
    ("mean safe", 2, 64): Tiles(128, 128, 8, 3),
    ("mean safe", 2, 128): Tiles(128, 64, 8, 3),
    ("mean", 2, 256): Tiles(128, 64, 8, 2),
    ("mean safe", 2, 256): Tiles(128, 64, 8, 2),
    ("mean", 2, 512): Tiles(128, 64, 8, 2, step=64),
    ("mean safe", 2, 512): Tiles(128, 64, 8, 2, step=64),
    ("bwd", 2, 64): Tiles(128, 128, 8, 3),
    ("bwd", 2, 128): Tiles(128, 128, 8, 3),
    ("bwd", 2, 256): Tiles(128, 64, 8, 2),
    ("bwd", 2, 512): Tiles(128, 64, 8, 2, step=64),
    ("bwd safe", 2, 64): Tiles(128, 64, 8, 3),
    ("bwd safe", 2, 128): Tiles(128, 64, 8, 3),
    ("bwd safe", 2, 256): Tiles(64, 64, 8, 2),
    ("bwd safe", 2, 512): Tiles(64, 64, 8, 2, step=64),
    ("mean", 4, 0): Tiles(64, 64, 8, 2, step=32),
    ("bwd", 4, 0): Tiles(64, 64, 8, 2, step=32),
    ("softplus fwd", 2, 64): Tiles(128, 128, 8, 3),
    ("softplus fwd", 2, 128): Tiles(128, 128, 8, 3),
    ("softplus fwd", 2, 256): Tiles(128, 64, 8, 3),
    ("softplus bwd", 2, 64): Tiles(128, 64, 8, 3),
    ("softplus bwd", 2, 128): Tiles(128, 64, 8, 3),
    ("softplus bwd", 2, 512): Tiles(64, 64, 8, 2, step=64),
}
