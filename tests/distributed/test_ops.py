"""The ops over many ranks are those over the whole matrix, forward and every gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from fastssl.distributed import agree, batch, blocks
from fastssl.distributed.ring import _Lse
from fastssl.reference.similarity_lse import masked_lse, unit_rows
from tests.distributed.launch import launch
from tests.numerics import relative

SAMPLES = [5, 3, 8, 4]  # on each rank
# The op, rows and columns a sample (None: the rows are the columns), and options for n samples.
FORMS = {
    "views": ("similarity_lse", 2, None,
              lambda n: dict(self_offset=0, pair_offset=n, exclude_pair=True)),
    "rows": ("similarity_lse", 1, None, lambda n: dict(normalize=True, self_offset=0)),
    "keys": ("similarity_lse", 1, 1, lambda n: dict(normalize=True, pair_offset=0)),
    "wide": ("similarity_lse", 1, 3,
             lambda n: dict(pair_offset=n + 1, exclude_pair=True, self_offset=0)),
    "both": ("similarity_lse_both", 1, 1, lambda n: dict(pair_offset=0)),
    "wide both": ("similarity_lse_both", 1, 3,
                  lambda n: dict(normalize=True, pair_offset=n, exclude_pair=True)),
    "sigmoid": ("similarity_softplus", 1, 1, lambda n: dict(pair_offset=0, exclude_pair=True)),
    "wide sigmoid": ("similarity_softplus", 1, 2, lambda n: dict(normalize=True)),
}  # fmt: skip
SCALARS = {"similarity_lse": (3.0,), "similarity_lse_both": (3.0,), "similarity_softplus": (2, -1)}
GRADIENT = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 4e-3}


def parts(form, samples, dtype, width=19):
    """Every rank's rows and columns, and upstream gradients for rows, pairs and columns."""
    _, rows, columns, _ = FORMS[form]
    generator = torch.Generator().manual_seed(0)

    def draw(random, each, *width):
        return [random(each * n, *width, generator=generator).double() for n in samples]

    x, y = (draw(torch.randn, each, width) for each in (rows, columns or rows))
    x, y = ([part.to(dtype) for part in side] for side in (x, y))
    upstream = [draw(torch.rand, each) for each in (rows, rows, columns or 0)]
    return x, y if columns else None, upstream


def truth(form, samples, dtype):
    """From the whole matrix in float64: every rank's results, gradients of x and y; of scalars."""
    op, _, _, options = FORMS[form]
    x, y, upstream = parts(form, samples, dtype)
    x = [part.double().requires_grad_() for part in x]
    y = [part.double().requires_grad_() for part in y] if y else x
    scalars = [torch.tensor(s, dtype=torch.float64, requires_grad=True) for s in SCALARS[op]]
    rows, columns = torch.cat(x), torch.cat(y)
    if options(1).get("normalize"):
        rows, columns = unit_rows(rows), unit_rows(columns)
    logits = scalars[0] * rows @ columns.T + (scalars[1] if len(scalars) > 1 else 0)

    blocks = []  # what is left out, and what is paired, within a rank's own
    for part, other, n in zip(x, y, samples, strict=True):
        i, k, option = torch.arange(len(part)), len(other), options(n)
        left_out, paired = torch.zeros(2, len(part), k, dtype=torch.bool)
        if "self_offset" in option:
            left_out[i, (i + option["self_offset"]) % k] = True
        if "pair_offset" in option:
            paired[i, (i + option["pair_offset"]) % k] = True
            left_out |= paired & option.get("exclude_pair", False)
        blocks.append((left_out, paired))
    left_out, paired = (torch.block_diag(*side).bool() for side in zip(*blocks, strict=True))

    results = [masked_lse(logits, left_out), (logits * paired).sum(1)]
    if op == "similarity_softplus":
        results[0] = -F.logsigmoid(-logits).masked_fill(left_out, 0).sum(1)
    if op == "similarity_lse_both":
        results.append(masked_lse(logits.T, left_out.T))
    total = sum((r * torch.cat(u)).sum() for r, u in zip(results, upstream, strict=False))
    d_x = torch.autograd.grad(total, x, retain_graph=True)
    d_y = torch.autograd.grad(total, y, retain_graph=True) if y is not x else None
    d_scalars = torch.autograd.grad(total, scalars)
    sides = [[len(part) for part in side] for side in (x, x, y)]
    results = [r.detach().split(side) for r, side in zip(results, sides, strict=False)]
    return results, d_x, d_y, d_scalars


def over_ranks(form, samples, dtype, ring, needs=(True, True, True), group=True):
    """This rank's results and gradients; those of the scalars summed over ranks."""
    op, _, _, options = FORMS[form]
    x, y, upstream = parts(form, samples, dtype)
    rank = dist.get_rank(None if group is True else group)
    x = x[rank].requires_grad_(needs[0])
    y = y[rank].requires_grad_(needs[1]) if y else None
    wide = torch.promote_types(dtype, torch.float32)
    scalars = [torch.tensor(s, dtype=wide, requires_grad=needs[2]) for s in SCALARS[op]]
    ranks = agree(group, ring, lambda x: None, x=x[: samples[rank]])
    results = getattr(ranks, op)(x, y, *scalars, **options(samples[rank]))
    total = sum((r * u[rank]).sum() for r, u in zip(results, upstream, strict=False))
    wanted = [t for t in (x, y, *scalars) if t is not None and t.requires_grad]
    gradients = dict(zip(wanted, torch.autograd.grad(total, wanted), strict=True))
    d_scalars = [gradients[s] for s in scalars if s in gradients]
    for d in d_scalars:
        dist.all_reduce(d, group=None if group is True else group)
    return [r.detach() for r in results], gradients.get(x), gradients.get(y), d_scalars


def compare(form, samples, dtype, ring, needs=(True, True, True), group=True):
    case = f"{form}, {samples}, {dtype}, ring={ring}, {needs}"
    rank = dist.get_rank(None if group is True else group)
    results, d_x, d_y, d_scalars = truth(form, samples, dtype)
    mine, d_x_mine, d_y_mine, d_scalars_mine = over_ranks(form, samples, dtype, ring, needs, group)
    for a, b in zip(mine, results, strict=True):
        assert relative(a, b[rank]) < 1e-6, case
    for a, b in ((d_x_mine, d_x), (d_y_mine, d_y)):
        if a is not None:
            assert a.dtype == dtype
            assert relative(a, b[rank]) < GRADIENT[dtype], case
    for a, b in zip(d_scalars_mine, d_scalars, strict=needs[2]):
        assert relative(a, b) < 1e-6, case


def every_form(size):
    for form, dtype, ring in itertools.product(FORMS, GRADIENT, (False, True)):
        compare(form, SAMPLES[:size], dtype, ring)


def what_is_needed(size):
    for form, ring in itertools.product(("keys", "wide both", "sigmoid"), (False, True)):
        for needs in itertools.product((False, True), repeat=3):
            if any(needs):
                compare(form, SAMPLES[:size], torch.float32, ring, needs)


def one_sample_each(size):
    """Alone, a rank has no negative: its own log-sum-exp is −inf."""
    for ring in (False, True):
        compare("views", [1] * size, torch.float32, ring)


def a_group_of_some(size):
    group = dist.new_group([0, 2])
    if dist.get_rank() != 1:
        for form, ring in itertools.product(("views", "both"), (False, True)):
            compare(form, SAMPLES[:2], torch.float32, ring, group=group)


def nan_shows_on_every_rank(size):
    rank = dist.get_rank()
    for ring in (False, True):
        x = torch.randn(4, 3)
        x[0, 0] = float("nan") if rank == 0 else 0.0
        ranks = agree(True, ring, lambda x: None, x=x)
        assert ranks.similarity_lse(x)[0].isnan().all()
        assert ranks.similarity_lse(x, x.clone())[0].isnan().all()
        assert all(lse.isnan().all() for lse in ranks.similarity_lse_both(x, x)[::2])


def memory_of_a_ring_is_that_of_a_shard(size):
    """What waits for the backward: a ring's is its own shard, whatever the number of ranks."""
    x, y = (torch.randn(300, 64, requires_grad=True) for _ in range(2))
    ranks = {ring: agree(True, ring, lambda x: None, x=x) for ring in (False, True)}
    kept = {}
    for ring in ranks:
        for columns in (None, y):
            saved = {}

            def pack(t, saved=saved):
                saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
                return t

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                lse, _ = ranks[ring].similarity_lse(x, columns, 2.0)
            lse.sum().backward()
            kept[ring, columns is None] = sum(saved.values()) / (x.numel() * x.element_size())
    assert kept[True, True] < 1 + 0.5  # x and float64 vectors
    assert kept[True, False] < 2 + 0.5
    assert kept[False, False] > 2 + size - 1


def sending_overlaps_computing(size):
    """Each shard is on its way while the one before it is used, in the backward as well."""
    events = []

    def noting(event, function):
        def call(*args, **kwargs):
            events.append(event)
            return function(*args, **kwargs)

        return call

    x = torch.randn(5, 4, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "similarity_lse", noting("own", batch.similarity_lse))
        patch.setattr(_Lse, "forward", noting("use", _Lse.forward))
        patch.setattr(_Lse, "backward", noting("use", _Lse.backward))
        patch.setattr(blocks, "wait", noting("wait", blocks.wait))
        patch.setattr(blocks.Blocks, "shift", noting("send", blocks.Blocks.shift))
        ranks = agree(True, True, lambda x: None, x=x)
        lse, _ = ranks.similarity_lse(x, x.detach().clone())
        between = ["wait", "send", "use"] * (size - 2)
        assert events == ["send", "own", *between, "wait", "use"]
        events.clear()
        lse.sum().backward()
        assert events == ["send", *between, "wait", "use"]


def cases(size):
    every_form(size)
    if size == 2:
        what_is_needed(size)
        one_sample_each(size)
        nan_shows_on_every_rank(size)
    if size == 3:
        a_group_of_some(size)
        one_sample_each(size)
    if size == 4:
        memory_of_a_ring_is_that_of_a_shard(size)
        sending_overlaps_computing(size)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_equals_the_whole_matrix(size):
    launch(cases, size, size)
