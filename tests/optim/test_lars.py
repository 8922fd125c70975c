"""LARS against its authors' formulas, each written down once more in float64."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
from torch import nn

from fastssl.nn import SmallCNN
from fastssl.ops import ema_update_
from fastssl.optim import LARS, build_optimizer, parameter_groups, set_lr

RATES = [0.5, 2.0, 1.0, 0.1, 0.7]  # a schedule: the orders differ under it
MOMENTUM, DECAY, TRUST = 0.8, 0.1, 1e-3


def trust(w, d, adapted, trust_coefficient=TRUST):
    """SimCLR's: η‖w‖/‖d‖ where both are above 0."""
    size, length = w.square().sum().sqrt().item(), d.square().sum().sqrt().item()
    return trust_coefficient * size / length if adapted and size > 0 and length > 0 else 1.0


def simclr(w, gradients, adapted, nesterov, classic):
    """google-research/simclr, of one variable that is adapted and decayed or neither."""
    w, v = w.double(), 0.0
    for lr, g in zip(RATES, gradients.double(), strict=False):
        g = g + DECAY * w if adapted else g
        if classic:
            scaled = lr * trust(w, g, adapted)
            v = MOMENTUM * v + scaled * g
            w = w - (MOMENTUM * v + scaled * g if nesterov else v)
        else:
            v = MOMENTUM * v + g
            update = MOMENTUM * v + g if nesterov else v
            w = w - trust(w, update, adapted) * lr * update
    return w


def moco_v3(w, gradients, adapted, nesterov):
    """facebookresearch/moco-v3; Nesterov's momentum as torch.optim.SGD has it."""
    w, v = w.double(), 0.0
    for lr, g in zip(RATES, gradients.double(), strict=False):
        d = g + DECAY * w if adapted else g
        d = d * trust(w, d, adapted)
        v = MOMENTUM * v + d
        w = w - lr * (d + MOMENTUM * v if nesterov else v)
    return w


FORMULAS = {
    "classic": lambda *a: simclr(*a, classic=True),
    "popular": lambda *a: simclr(*a, classic=False),
    "torch": moco_v3,
}


def network(dtype=torch.float32):
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 5), nn.Linear(5, 9))
    nn.init.zeros_(module[2].weight)
    return module.to(dtype)


def gradients_of(module):
    """[steps, ...] for each parameter; one layer's are once all zero."""
    gradients = [torch.randn(len(RATES), *p.shape, dtype=p.dtype) for p in module.parameters()]
    gradients[0][2] = 0
    return gradients


def take_steps(optimizer, parameters, gradients):
    for step, lr in enumerate(RATES):
        set_lr(optimizer, lr)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient[step].clone()
        optimizer.step()


@pytest.mark.parametrize(
    ("order", "nesterov", "grouped"),
    list(itertools.product(FORMULAS, (False, True), (False, True))),
)
def test_steps_are_those_of_the_authors_formulas(order, nesterov, grouped):
    module = network()
    start = [p.detach().clone() for p in module.parameters()]
    gradients = gradients_of(module)
    if grouped:  # exclusions from the helper, else by LARS itself
        first, second = (parameter_groups(part, DECAY) for part in (module[:2], module[2:]))
        optimizer = LARS(first, 1, MOMENTUM, order=order, nesterov=nesterov)
        for group in second:
            optimizer.add_param_group(group)
    else:
        parameters = module.parameters()
        optimizer = LARS(parameters, 1, MOMENTUM, DECAY, order=order, nesterov=nesterov)
    take_steps(optimizer, list(module.parameters()), gradients)
    for p, first, gradient in zip(module.parameters(), start, gradients, strict=True):
        expected = FORMULAS[order](first, gradient, p.dim() > 1, nesterov)
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(p.detach(), first)


@pytest.mark.parametrize("name", ["lars", "lars-torch"])
def test_by_name(name):
    module = network()
    again = copy.deepcopy(module)
    gradients = gradients_of(module)
    optimizer = build_optimizer(name, module, lr=1, momentum=MOMENTUM, weight_decay=DECAY)
    order = {"lars": "classic", "lars-torch": "torch"}[name]
    other = LARS(again.parameters(), 1, MOMENTUM, DECAY, order=order)
    assert type(optimizer) is LARS
    for o, m in ((optimizer, module), (other, again)):
        take_steps(o, list(m.parameters()), gradients)
    for p, q in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_ratio_of_separate_norms_is_lightlys():
    lightly = pytest.importorskip("lightly.utils.lars")
    module = nn.Linear(6, 5, bias=False)
    other = copy.deepcopy(module)
    options = dict(lr=1, momentum=MOMENTUM, weight_decay=DECAY, eps=1e-8, nesterov=True)
    ours = LARS(module.parameters(), separate_norms=True, order="torch", **options)
    gradients = [torch.randn(len(RATES), 5, 6)]
    take_steps(ours, list(module.parameters()), gradients)
    take_steps(lightly.LARS(other.parameters(), **options), list(other.parameters()), gradients)
    torch.testing.assert_close(module.weight, other.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_without_adaptation_it_is_sgd(nesterov):
    module = network()
    other = copy.deepcopy(module)
    gradients = gradients_of(module)
    options = dict(lr=1, momentum=MOMENTUM, weight_decay=DECAY, nesterov=nesterov)
    ours = LARS(module.parameters(), adapt=False, order="torch", **options)
    take_steps(ours, list(module.parameters()), gradients)
    sgd = torch.optim.SGD(other.parameters(), **options)
    take_steps(sgd, list(other.parameters()), gradients)
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def saved(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_goes_on_from_its_state(dtype):
    module = network(dtype)
    gradients = gradients_of(module)
    optimizer = LARS(module.parameters(), 1, nesterov=True, weight_decay=DECAY)
    take_steps(optimizer, list(module.parameters()), gradients)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(state["velocity"].dtype == wide for state in optimizer.state.values())
    other = copy.deepcopy(module).to(memory_format=torch.channels_last)
    again = LARS(other.parameters(), 3)
    again.load_state_dict(saved(optimizer))
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(optimizer.state[p]["velocity"], again.state[q]["velocity"])
        assert again.state[q]["velocity"].stride() == q.stride()
    for o, m in ((optimizer, module), (again, other)):
        take_steps(o, list(m.parameters()), gradients)
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_checkpoints_of_before_there_was_an_order():
    """They keep MoCo v3's."""
    module = network()
    start = [p.detach().clone() for p in module.parameters()]
    optimizer = LARS(module.parameters(), 1)
    state = saved(optimizer)
    for name in ("order", "nesterov", "adapt", "trust_coefficient", "eps", "separate_norms"):
        del state["param_groups"][0][name]
    del state["param_groups"][0]["capturable"]
    state["param_groups"][0] |= {"momentum": MOMENTUM, "weight_decay": DECAY}
    optimizer.load_state_dict(state)
    gradients = gradients_of(module)
    take_steps(optimizer, list(module.parameters()), gradients)
    for p, first, gradient in zip(module.parameters(), start, gradients, strict=True):
        expected = moco_v3(first, gradient, p.dim() > 1, False)
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_a_copy_goes_on():
    module = network()
    gradients = gradients_of(module)
    optimizer = LARS(module.parameters(), 1, MOMENTUM, order="torch")
    take_steps(optimizer, list(module.parameters()), gradients)
    again = copy.deepcopy(optimizer)
    (others,) = (group["params"] for group in again.param_groups)
    take_steps(optimizer, list(module.parameters()), gradients)
    assert not torch.equal(module[0].weight, others[0])
    take_steps(again, others, gradients)
    for p, q in zip(module.parameters(), others, strict=True):
        assert torch.equal(p, q)


def test_a_rate_in_a_tensor():
    """What a CUDA graph replays sees what the tensor holds."""
    module = network()
    other = copy.deepcopy(module)
    gradients = gradients_of(module)
    optimizer = LARS(parameter_groups(module, DECAY), 1, capturable=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    take_steps(optimizer, list(module.parameters()), gradients)
    assert all(a is group["lr"] for a, group in zip(rates, optimizer.param_groups, strict=True))
    assert [rate.item() for rate in rates] == pytest.approx([RATES[-1]] * 2)
    assert rates[0] is not rates[1]
    take_steps(LARS(other.parameters(), 1, weight_decay=DECAY), list(other.parameters()), gradients)
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    plain = LARS(other.parameters(), 0.25)
    optimizer = LARS(module.parameters(), 1, capturable=True)
    optimizer.load_state_dict(saved(plain))
    assert optimizer.param_groups[0]["lr"].item() == 0.25


@pytest.mark.parametrize("m", [0.9, torch.tensor(0.9)])
def test_averages_follow_as_after_the_step(m):
    online, spare = network(), nn.Linear(3, 2)  # which has no gradients
    target, rest = copy.deepcopy(online), copy.deepcopy(spare)
    for p in (*target.parameters(), *rest.parameters()):
        p.requires_grad_(False).add_(0.1)
    other, follower, follower_rest = copy.deepcopy(online), *copy.deepcopy((target, rest))
    pairs = dict(zip(online.parameters(), target.parameters(), strict=True))
    del pairs[online[3].weight]  # nobody follows it
    pairs |= dict(zip(spare.parameters(), rest.parameters(), strict=True))
    together = LARS([*online.parameters(), *spare.parameters()], 1, weight_decay=DECAY)
    apart = LARS(other.parameters(), 1, weight_decay=DECAY)
    for p, q in zip(online.parameters(), other.parameters(), strict=True):
        p.grad = q.grad = torch.randn_like(p)
    together.step(averages=pairs, ema_momentum=m)
    apart.step()
    del follower[3].weight, other[3].weight
    ema_update_(list(follower.parameters()), list(other.parameters()), m)
    ema_update_(list(follower_rest.parameters()), list(spare.parameters()), m)
    del target[3].weight
    for a, b in ((target, follower), (rest, follower_rest)):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(p, q)


def test_compiled():
    module = network()
    other = copy.deepcopy(module)
    gradients = gradients_of(module)
    optimizer = LARS(module.parameters(), 1, weight_decay=DECAY, capturable=True)
    again = LARS(other.parameters(), 1, weight_decay=DECAY, capturable=True)
    take_steps(optimizer, list(module.parameters()), gradients)
    again.step = torch.compile(again.step, backend="aot_eager")
    take_steps(again, list(other.parameters()), gradients)
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_a_closure_and_a_parameter_without_gradient():
    used, spare = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = LARS([used, spare], 0.5)

    def closure():
        loss = used.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4
    assert torch.equal(spare.detach(), torch.ones(2))
    assert not torch.equal(used.detach(), torch.ones(2, 2))
    assert spare not in optimizer.state
    LARS([spare], 1).step()  # nothing to do at all


def test_groups_by_name_and_by_module():
    module = nn.ModuleDict(
        {
            "body": SmallCNN(1),
            "norm": nn.LayerNorm([4, 4, 4]),  # of three dimensions
            "head": nn.Linear(128, 3),
        }
    )
    module["head"].bias.requires_grad_(False)
    adapted, spared = parameter_groups(module, 0.1)
    assert "norm.weight" in spared["param_names"]
    assert adapted["param_names"][-1] == "head.weight"
    for group in (adapted, spared):
        named = dict(module.named_parameters())
        assert all(
            named[n] is p for n, p in zip(group["param_names"], group["params"], strict=True)
        )
    assert (adapted["weight_decay"], adapted["adapt"]) == (0.1, True)
    assert (spared["weight_decay"], spared["adapt"]) == (0.0, False)
    by_name, rest = parameter_groups(module, 0.1, exclude=[r"^head\.", "norm"])
    assert rest["param_names"] == ["norm.weight", "norm.bias", "head.weight"]
    assert len(by_name["params"]) == len(list(module["body"].parameters()))
    (everything,) = parameter_groups(module["norm"], 0.1, exclude=[])
    assert everything["param_names"] == ["weight", "bias"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(lr=-1), "lr must be 0 or more, not -1"),
        (dict(lr=float("nan")), "lr must be 0 or more, not nan"),
        (dict(momentum=1), r"momentum must lie in \[0, 1\), not 1"),
        (dict(weight_decay=-1), "weight_decay must be 0 or more"),
        (dict(trust_coefficient=-1), "trust_coefficient must be 0 or more"),
        (dict(eps=-1), "eps must be 0 or more"),
        (dict(order="moco"), "order must be one of classic, torch, popular, not 'moco'"),
        (dict(order="popular", separate_norms=True), "separate_norms is not for the popular order"),
    ],
)
def test_settings_out_of_range(options, says):
    parameter = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=says):
        LARS([parameter], **{"lr": 1, **options})
    with pytest.raises(ValueError, match=says):
        LARS([{"params": [parameter], **options}], 1)


def test_sparse_gradients_are_refused():
    table = nn.Embedding(4, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"LARS takes no sparse gradients, as of a \[4, 3\]"):
        LARS(table.parameters(), 1).step()
