import numpy as np
import pytest
import torch

from fastssl.evaluation import rank_me


def formula(z, eps=1e-7):
    """From numpy's singular values."""
    sigma = np.linalg.svd(z.double().numpy(), compute_uv=False)
    p = sigma / np.abs(sigma).sum() + eps
    return np.exp(-np.sum(p * np.log(p)))


@pytest.mark.parametrize("shape", [(200, 7), (7, 200), (1, 5), (5, 1), (31, 31)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_is_the_formula(shape, dtype):
    z = (torch.randn(shape) * torch.logspace(-4, 2, shape[1])).to(dtype)
    assert rank_me(z) == pytest.approx(formula(z), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_singular_values_give_the_rank(rank):
    q, _ = torch.linalg.qr(torch.randn(40, rank, dtype=torch.float64))
    r, _ = torch.linalg.qr(torch.randn(12, rank, dtype=torch.float64))
    z = 1e3 * q @ r.T  # [40, 12]
    assert rank_me(z) == pytest.approx(rank, rel=1e-4)  # ε of every direction that is not used
    assert rank_me(z, eps=0) == pytest.approx(rank, rel=1e-12)
    assert rank_me(z * 1e-6) == pytest.approx(rank_me(z), rel=1e-9)


def test_small_singular_values_are_not_drowned():
    """σ₂/σ₁ = 1e-9 is below what a Gram matrix in float64 could show."""
    z = torch.diag(torch.tensor([1.0, 1e-9], dtype=torch.float64))
    assert rank_me(z, eps=0) == pytest.approx(1 + 1e-9 * (1 + 9 * np.log(10)), abs=1e-12)


def test_no_features_use_no_dimension():
    assert rank_me(torch.zeros(4, 3)) == 0.0
    assert rank_me(torch.ones(4, 3)) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(3), r"\[N, D\]"),
        (torch.ones(0, 3), "N, D >= 1"),
        (torch.ones(3, 2).long(), "floating"),
        (torch.full((3, 2), float("inf")), "NaN or infinity"),
    ],
)
def test_wrong_input_says_what_is_wrong(features, message):
    with pytest.raises(ValueError, match=message):
        rank_me(features)
