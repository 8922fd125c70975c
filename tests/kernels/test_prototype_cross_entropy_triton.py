"""``prototype_cross_entropy`` by Triton against the reference: under the interpreter, or on CUDA.

Small tiles, so that there are several blocks, runs and ragged edges.
"""

from __future__ import annotations

import fastssl_kernels.prototype_cross_entropy as kernels
import pytest
import torch

import fastssl
from fastssl.ops import prototype_cross_entropy
from tests.ops.test_prototype_cross_entropy import INF, NAN, check, logits, minus_infinity

pytestmark = [
    pytest.mark.gpu,  # and here by the interpreter
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter's inf − inf
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# (N, K, S, T, own)
PROBLEMS = [
    (1, 1, 1, 1, [-1]),
    (3, 70, 2, 2, [0, 1]),
    (2, 301, 5, 2, [0, 1]),
    (2, 150, 2, 4, [0, -1, 1, -1]),
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(kernels, "TILE", 64)
    monkeypatch.setattr(kernels, "WAVES", 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_is_the_reference_in_float64(dtype):
    # The interpreter cuts a float32 off where a device rounds it to bfloat16.
    rounding = 2 if DEVICE == "cpu" and dtype == torch.bfloat16 else 1
    for n, k, s, t, own in PROBLEMS:
        check("triton", *logits(n, k, s, t, dtype, device=DEVICE), None, own, rounding=rounding)


def test_centers_and_wide_logits():
    for spread in (1.0, 100.0):
        student, teacher = logits(3, 130, 2, 2, spread=spread, device=DEVICE)
        check("triton", student, teacher, spread * torch.randn(130, device=DEVICE), [0, 1])
        each = spread * torch.randn(2, 130, dtype=torch.float64, device=DEVICE)
        check("triton", student, teacher, each, [0, -1])
    same = [(t * 2.5).requires_grad_() for t in teacher]
    check("triton", same, teacher, None, [-1, -1])


def test_chunks_of_one_tensor_are_not_copied():
    whole = torch.randn(6, 40, device=DEVICE)
    assert kernels._stacked(whole.chunk(3)).data_ptr() == whole.data_ptr()
    for views in (whole.chunk(3)[::-1], [whole[:2], whole[4:]], [whole[:, :20], whole[:, 20:]]):
        assert torch.equal(kernels._stacked(views), torch.stack(list(views)))


def test_forbidden_prototypes():
    minus_infinity("triton", 3, 150, DEVICE)


def test_nan_and_infinity_stay_visible():
    for value in (NAN, INF):
        for side in range(2):
            both = [[x.detach() for x in xs] for xs in logits(2, 100, 2, 2, device=DEVICE)]
            both[side][0][1, 70] = value
            with fastssl.use_backend("triton"):
                loss = prototype_cross_entropy(*both, None, [0, 1])
            assert not loss[1].isfinite()
            assert loss[0].isfinite()
