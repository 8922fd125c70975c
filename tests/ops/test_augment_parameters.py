"""augment_parameters: the reference's numbers to the bit, whoever draws them."""

from __future__ import annotations

import pytest
import torch

import fastssl
from fastssl.ops import augment_parameters
from fastssl.reference.augment_parameters import Chances, Column

PHOTO = Chances(
    scale=(0.08, 1.0),
    ratio=(3 / 4, 4 / 3),
    flip=0.5,
    flip_vertical=0.2,
    turn=0.3,
    jitter=0.8,
    brightness=(0.2, 1.8),
    contrast=(0.1, 1.7),
    saturation=(0.5, 1.3),
    hue=(-0.2, 0.2),
    grey=0.2,
    blur=0.5,
    solarize=0.2,
    threshold=100.0,
    erase=0.7,
)
CASES = {
    "photo": PHOTO,
    "nothing": Chances(),
    "own ratio": PHOTO._replace(ratio=None, scale=(0.3, 0.9), grey_first=True),
    "crops that seldom fit": PHOTO._replace(scale=(0.9, 1.0), ratio=(0.1, 20.0)),
    "patches that seldom fit": PHOTO._replace(erase_scale=(0.5, 1.0), erase_ratio=(1e-3, 1e3)),
}


@pytest.mark.parametrize("chances", CASES.values(), ids=CASES)
def test_native_is_the_reference_bit_by_bit(chances):
    g = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 700, (3000, 2), generator=g)
    sizes[:9] = torch.tensor(
        [[1, 1], [1, 9000], [9000, 1], [2, 3], [1, 2], [2**23, 7]] + [[5, 5]] * 3
    )
    samples = torch.randint(0, 2**62, (3000,), generator=g)
    samples[:4] = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    for seed, view, size in (
        (0, 0, (224, 224)),
        (2**64 - 1, 2**32 - 1, (96, 97)),
        (2**63, 1, (1, 1)),
        (12345, 7, (3, 500)),
    ):
        drawn = []
        for backend in ("native", "reference"):
            with fastssl.use_backend(backend):
                drawn.append(augment_parameters(sizes, samples, seed, view, size, chances))
        assert torch.equal(*drawn)
    if chances.ratio == (0.1, 20.0):  # the fallback is among them, with every kind of ratio
        centred = drawn[0][:, Column.HEIGHT] == sizes[:, 0]
        assert 0.1 < centred.float().mean() < 1


def test_any_number_of_threads():
    sizes, samples = torch.tensor([[40, 50]]).expand(2000, 2), torch.arange(2000)
    whole = augment_parameters(sizes, samples, 3, 0, (32, 32), PHOTO)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(augment_parameters(sizes, samples, 3, 0, (32, 32), PHOTO), whole)
    finally:
        torch.set_num_threads(threads)
    part = augment_parameters(sizes[:5], samples[7:12], 3, 0, (32, 32), PHOTO)
    assert torch.equal(part, whole[7:12])
    assert augment_parameters(sizes[:0], samples[:0], 3, 0, (32, 32), PHOTO).shape == (0, 19)


def test_bad_input_is_named():
    sizes, samples = torch.tensor([[4, 4]] * 3), torch.arange(3)

    def draw(sizes=sizes, samples=samples, seed=0, view=0, size=(8, 8)):
        return augment_parameters(sizes, samples, seed, view, size, PHOTO)

    for text, wrong in {
        "samples must be int64": {"samples": samples.int()},
        r"sizes must be int64 of shape \[3, 2\]": {"sizes": sizes[:2]},
        "sizes must be on": {"sizes": sizes.to("meta")},
        r"seed must lie in \[0, 2\^64\), not -1": {"seed": -1},
        r"view must lie in \[0, 2\^32\)": {"view": 2**32},
        "size must be": {"size": (0, 8)},
    }.items():
        with pytest.raises(ValueError, match=text):
            draw(**wrong)


def test_opcheck_and_compile():
    sizes, samples = torch.tensor([[40, 50]] * 4), torch.arange(4)
    fwd = torch.ops.fastssl.augment_parameters_fwd
    numbers = [1.0] * 28
    torch.library.opcheck(fwd, (sizes, samples, -5, 1, 8, 8, numbers))
    with pytest.raises(RuntimeError, match="as many"):
        fwd(sizes, samples, 0, 0, 8, 8, numbers[:-1])

    def draw(sizes, samples):
        return augment_parameters(sizes, samples, 2**63 + 5, 0, (8, 8), PHOTO)

    whole = torch.compile(draw, fullgraph=True, backend="aot_eager")
    assert torch.equal(whole(sizes, samples), draw(sizes, samples))
