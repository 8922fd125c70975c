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


# By whether the chip is Hopper's size (227 KiB of shared memory a program) or smaller (99 KiB are
# enough): (pass, bytes an element, features of a tile or 0 for chunks). Triangles are square.
# "safe": with running maxima, or exponents of their own for rows and columns; "exact": those with
# products in float64.
TILES: dict[bool, dict[tuple[str, int, int], Tiles]] = {
    True: {
        ("triangle", 2, 64): Tiles(128, 128, 8, 3),
        ("triangle", 2, 128): Tiles(128, 128, 8, 3),
        ("triangle", 2, 256): Tiles(128, 128, 8, 2),
        ("triangle", 2, 0): Tiles(128, 128, 8, 3, step=64),
        ("triangle", 4, 0): Tiles(64, 64, 4, 3, step=32),
        ("fwd", 2, 64): Tiles(128, 128, 8, 3),
        ("fwd", 2, 128): Tiles(128, 128, 8, 3),
        ("fwd", 2, 256): Tiles(128, 64, 8, 3),
        ("fwd", 2, 0): Tiles(128, 128, 8, 3, step=64),
        ("fwd", 4, 0): Tiles(64, 64, 4, 3, step=32),
        ("fwd exact", 4, 0): Tiles(64, 64, 8, 2, step=32),
        ("mean", 2, 64): Tiles(128, 128, 8, 3),
        ("mean", 2, 128): Tiles(64, 128, 4, 2, per_processor=2),
        ("mean", 2, 256): Tiles(128, 64, 8, 2),
        ("mean", 2, 0): Tiles(128, 64, 8, 2, step=64),
        ("mean", 4, 0): Tiles(64, 64, 8, 2, step=32),
        ("mean safe", 2, 64): Tiles(128, 128, 8, 3),
        ("mean safe", 2, 128): Tiles(128, 64, 8, 3),
        ("mean safe", 2, 256): Tiles(128, 64, 8, 2),
        ("mean safe", 2, 0): Tiles(128, 64, 8, 2, step=64),
        ("mean safe", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("mean exact", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("bwd", 2, 64): Tiles(128, 128, 8, 3),
        ("bwd", 2, 128): Tiles(64, 128, 4, 2, per_processor=2),
        ("bwd", 2, 256): Tiles(128, 64, 8, 2),
        ("bwd", 2, 0): Tiles(128, 64, 8, 2, step=64),
        ("bwd", 4, 0): Tiles(64, 64, 8, 2, step=32),
        ("bwd safe", 2, 64): Tiles(128, 64, 8, 3),
        ("bwd safe", 2, 128): Tiles(128, 64, 8, 3),
        ("bwd safe", 2, 256): Tiles(64, 64, 8, 2),
        ("bwd safe", 2, 0): Tiles(64, 64, 8, 2, step=64),
        ("bwd safe", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("bwd exact", 4, 0): Tiles(64, 32, 8, 2, step=32),
    },
    False: {
        ("triangle", 2, 64): Tiles(128, 128, 8, 3),
        ("triangle", 2, 128): Tiles(128, 128, 8, 3),
        ("triangle", 2, 256): Tiles(64, 64, 4, 2),
        ("triangle", 2, 0): Tiles(64, 64, 4, 2, step=64),
        ("triangle", 4, 0): Tiles(32, 32, 4, 2, step=32),
        ("fwd", 2, 64): Tiles(128, 64, 8, 3),
        ("fwd", 2, 128): Tiles(128, 64, 8, 3),
        ("fwd", 2, 256): Tiles(64, 64, 4, 2),
        ("fwd", 2, 0): Tiles(64, 64, 8, 2, step=64),
        ("fwd", 4, 0): Tiles(64, 32, 4, 2, step=32),
        ("fwd exact", 4, 0): Tiles(64, 64, 8, 2, step=32),
        ("mean", 2, 64): Tiles(128, 64, 8, 2),
        ("mean", 2, 128): Tiles(64, 64, 4, 2),
        ("mean", 2, 256): Tiles(64, 32, 8, 2),
        ("mean", 2, 0): Tiles(64, 32, 4, 2, step=64),
        ("mean", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("mean safe", 2, 64): Tiles(128, 64, 8, 2),
        ("mean safe", 2, 128): Tiles(64, 64, 8, 2),
        ("mean safe", 2, 256): Tiles(64, 32, 8, 2),
        ("mean safe", 2, 0): Tiles(64, 32, 8, 2, step=64),
        ("mean safe", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("mean exact", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("bwd", 2, 64): Tiles(128, 64, 8, 2),
        ("bwd", 2, 128): Tiles(64, 64, 4, 2),
        ("bwd", 2, 256): Tiles(64, 32, 8, 2),
        ("bwd", 2, 0): Tiles(64, 32, 4, 2, step=64),
        ("bwd", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("bwd safe", 2, 64): Tiles(128, 64, 8, 2),
        ("bwd safe", 2, 128): Tiles(64, 64, 8, 2),
        ("bwd safe", 2, 256): Tiles(64, 32, 8, 2),
        ("bwd safe", 2, 0): Tiles(64, 32, 8, 2, step=64),
        ("bwd safe", 4, 0): Tiles(64, 32, 8, 2, step=32),
        ("bwd exact", 4, 0): Tiles(64, 32, 8, 2, step=32),
    },
}
