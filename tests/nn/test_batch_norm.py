"""Split and shuffled batch norm."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastssl.nn import SplitBatchNorm, shuffled, split_batch_norm
from fastssl.nn.heads import ScaleNorm


@pytest.mark.parametrize(("splits", "shape"), [(1, (6, 3)), (2, (8, 3)), (3, (9, 3, 4, 5))])
def test_each_group_is_normalised_alone(splits, shape):
    x = torch.randn(shape, requires_grad=True)
    plain = nn.BatchNorm2d(3) if len(shape) == 4 else nn.BatchNorm1d(3)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    split = split_batch_norm(copy.deepcopy(plain), splits)
    groups = [copy.deepcopy(plain) for _ in range(splits)]
    expected = torch.empty(shape)
    for i, group in enumerate(groups):
        expected[i::splits] = group(x[i::splits])
    y = split(x)
    torch.testing.assert_close(y, expected)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(group, name) for group in groups]).mean(0)
        torch.testing.assert_close(getattr(split, name), mean)
    assert split.num_batches_tracked == 1

    upstream = torch.randn(shape)
    mine = torch.autograd.grad(y, [x, split.weight, split.bias], upstream)
    theirs = torch.autograd.grad(
        expected, [x, *(p for g in groups for p in g.parameters())], upstream
    )
    torch.testing.assert_close(mine[0], theirs[0])
    torch.testing.assert_close(mine[1], sum(theirs[1::2]))
    torch.testing.assert_close(mine[2], sum(theirs[2::2]))
    split.eval(), plain.load_state_dict(split.state_dict())
    torch.testing.assert_close(split(x), plain.eval()(x))


def test_a_network_is_changed_and_keeps_its_weights():
    network = nn.Sequential(
        nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3, eps=0.1)), ScaleNorm(3)
    )
    before = dict(network.named_parameters())
    state = copy.deepcopy(network.state_dict())
    assert split_batch_norm(network, 4) is network
    assert isinstance(network[1][0], SplitBatchNorm)
    assert network[1][0].eps == 0.1
    assert network[2].bias is None
    after = dict(network.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is before[name] for name in after)
    torch.testing.assert_close(network.state_dict(), state)
    network.load_state_dict(state)
    network(torch.rand(8, 2))


def test_rows_must_divide():
    with pytest.raises(ValueError, match=r"x must have a multiple of 4 rows \(splits\), not 6"):
        SplitBatchNorm(3, 4)(torch.rand(6, 3))


@pytest.mark.parametrize("options", [{"momentum": None}, {"track_running_stats": False}])
def test_other_kinds_of_averages_are_refused(options):
    with pytest.raises(ValueError, match="no exponential running averages"):
        split_batch_norm(nn.Sequential(nn.BatchNorm1d(3, **options)), 2)


def test_shuffling_changes_the_company_and_not_the_order():
    x = torch.rand(64, 3)
    encode = nn.Linear(3, 2)
    torch.testing.assert_close(shuffled(encode, x), encode(x).detach(), rtol=0, atol=1e-6)

    seen = []

    def spy(rows):
        seen.append(rows)
        return rows

    assert torch.equal(shuffled(spy, x), x)
    assert not torch.equal(seen[0], x)
    norm = SplitBatchNorm(3, 8)
    assert (shuffled(norm, x) - norm(x)).abs().max() > 0.1
    assert not shuffled(encode, x.requires_grad_()).requires_grad
