"""``fastssl.compat.pytorch_metric_learning`` against the package, and against the formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastssl.compat import positive_pairs
from fastssl.compat import pytorch_metric_learning as compat
from tests.compat.agreement import DTYPES, TEMPERATURES, agrees, peer, views

M = 30
LABELS = {
    "pairs": torch.arange(M // 2).repeat(2),
    "classes": torch.arange(M) ** 2 % 7,
    "one large, many small": torch.cat([torch.zeros(11), torch.arange(19) // 2]).long(),
    "one pair": torch.cat([torch.zeros(2), torch.arange(1, M - 1)]).long(),
    "two classes": torch.arange(M) % 2,
    "floats": torch.arange(M) % 5 / 2,
}
LOSSES = ["NTXentLoss", "SupConLoss"]


def losses():
    return peer("pytorch_metric_learning.losses", "pytorch-metric-learning")


def rows(m=M, d=16, dtype=torch.float32):
    return torch.cat(views((m + 1) // 2, d, dtype))[:m]


def formula(name, labels, t, ref_labels=None, own=True, normalize=True):
    """Of embeddings, or of embeddings and references, all pairs written out."""

    def loss(x, y=None):
        y, y_labels = (x, labels) if y is None else (y, ref_labels)
        if normalize:
            x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        s = x @ y.T / t
        same = labels[:, None] == y_labels
        itself = torch.eye(*same.shape, dtype=torch.bool) if own else torch.zeros_like(same)
        positive, negative = same & ~itself, ~same
        if name == "NTXentLoss":
            lse = s.masked_fill(~negative, float("-inf")).logsumexp(dim=1, keepdim=True)
            return F.softplus(lse - s)[positive].mean()
        count = positive.sum(dim=1)
        lse = s.masked_fill(itself, float("-inf")).logsumexp(dim=1)
        mean = (s * positive).sum(dim=1) / count.clamp(min=1)
        return (lse - mean)[count > 0].mean()

    return loss


@pytest.fixture(params=["streamed", "written"])
def block(request, monkeypatch):
    """Without a streamed block the small cases here would never see one."""
    if request.param == "streamed":
        monkeypatch.setattr(positive_pairs, "BLOCK", 9)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.usefixtures("block")
def test_is_the_packages(name, labels):
    theirs = losses()
    for temperature in TEMPERATURES:
        mine = getattr(compat, name)(temperature)
        for dtype in DTYPES:
            agrees(
                lambda x, loss=mine: loss(x, LABELS[labels]),
                lambda x, t=temperature: getattr(theirs, name)(t)(x, LABELS[labels]),
                rows(dtype=dtype),
            )


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.usefixtures("block")
def test_references_are_the_packages(name, labels):
    """References of their own labels, fewer and more than the rows."""
    theirs = losses()
    for k in (17, 41):
        ref_labels = LABELS[labels][torch.randint(M, (k,))]
        for settings in ({"ref_labels": ref_labels}, {"ref_labels": LABELS[labels]}, {}):
            references = rows(k if settings.get("ref_labels") is ref_labels else M).flip(0)
            agrees(
                lambda x, y, s=settings: getattr(compat, name)()(x, LABELS[labels], None, y, **s),
                lambda x, y, s=settings: getattr(theirs, name)()(x, LABELS[labels], None, y, **s),
                rows(),
                references,
            )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_self_supervised_is_the_packages(name, symmetric):
    theirs = losses()
    wrapped = theirs.SelfSupervisedLoss(getattr(theirs, name)(), symmetric)
    mine = compat.SelfSupervisedLoss(getattr(compat, name)(), symmetric)
    for dtype in DTYPES:
        for shape in ((2, 3), (24, 16), (61, 33)):
            agrees(mine, wrapped, *views(*shape, dtype))
    others = theirs.ContrastiveLoss()
    agrees(
        compat.SelfSupervisedLoss(others, symmetric),
        theirs.SelfSupervisedLoss(others, symmetric),
        *views(24, 16),
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [8, 29, 64])
@pytest.mark.usefixtures("block")
def test_memory_is_the_packages(name, size):
    """Over several batches: an unfilled memory, its end, and rows that only enter it."""
    theirs = losses()
    mine = compat.CrossBatchMemory(getattr(compat, name)(), 12, memory_size=size)
    package = theirs.CrossBatchMemory(getattr(theirs, name)(), 12, memory_size=size)
    for step in range(9):
        labels = torch.randint(4, (8,))
        mask = torch.arange(8) % 3 == 0 if step % 3 == 2 else None
        agrees(
            lambda x, m=mask, y=labels: mine(x, y, enqueue_mask=m),
            lambda x, m=mask, y=labels: package(x, y, enqueue_mask=m),
            torch.cat(views(4, 12, seed=step)),
        )
        for buffer in ("embedding_memory", "label_memory"):
            a, b = (getattr(memory, buffer).double() for memory in (mine, package))
            torch.testing.assert_close(a, b)
        assert (mine.queue_idx, mine.has_been_filled) == (
            package.queue_idx,
            package.has_been_filled,
        )
    mine.load_state_dict(package.state_dict())


def test_products_are_the_packages():
    theirs = losses()
    distances = peer("pytorch_metric_learning.distances", "pytorch-metric-learning")
    z = 0.5 * rows(d=5)
    for name in LOSSES:
        for distance in (
            distances.CosineSimilarity(),
            distances.DotProductSimilarity(),
            distances.DotProductSimilarity(normalize_embeddings=False),
        ):
            mine = getattr(compat, name)(0.5, distance=distance)
            package = getattr(theirs, name)(0.5, distance=distance)
            agrees(
                lambda x, loss=mine: loss(x, LABELS["classes"]),
                lambda x, loss=package: loss(x, LABELS["classes"]),
                z,
            )


@pytest.mark.parametrize("name", LOSSES)
def test_without_pairs_of_a_kind_the_loss_is_zero_as_the_packages(name):
    theirs, x = losses(), rows(6)
    for labels, ref_labels in (
        (torch.arange(6), None),  # no positive
        (torch.zeros(6), None),  # no negative
        (torch.zeros(1), torch.arange(2)),  # one of each
        (torch.zeros(2), torch.arange(3)),
        (torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 3])),
    ):
        settings = {}
        if ref_labels is not None:
            settings = {"ref_emb": rows(len(ref_labels)), "ref_labels": ref_labels}
        agrees(
            lambda x, y=labels, s=settings: getattr(compat, name)()(x, y, **s),
            lambda x, y=labels, s=settings: getattr(theirs, name)()(
                x, y, **{k: v.to(x) if v.is_floating_point() else v for k, v in s.items()}
            ),
            x[: len(labels)],
        )


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.usefixtures("block")
def test_formulas(name, labels):
    ids, t = LABELS[labels], 0.2
    loss = getattr(compat, name)(t)
    agrees(lambda x: loss(x, ids), formula(name, ids, t), rows())
    others = ids[torch.randperm(M)[:27]]
    agrees(
        lambda x, y: loss(x, ids, ref_emb=y, ref_labels=others),
        formula(name, ids, t, others, own=False),
        rows(),
        rows(27) + 1,
    )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_self_supervised_formula(name, symmetric):
    loss = compat.SelfSupervisedLoss(getattr(compat, name)(0.2), symmetric)
    ids = torch.arange(13)
    plain = formula(name, ids.repeat(2), 0.2)
    if symmetric:
        agrees(loss, lambda a, b: plain(torch.cat([a, b])), *views(13, 7))
    else:
        agrees(loss, formula(name, ids, 0.2, ids, own=False), *views(13, 7))


def test_memory_formula():
    """Two batches: the second among both. What lies in the memory has no gradient, and a row's own
    copy is not its positive."""
    t, labels, x = 0.2, torch.arange(16) % 3, rows(16, 6)
    first, second = slice(0, 8), slice(8, 16)
    both = torch.cat([labels[second], labels[first]])
    memory = compat.CrossBatchMemory(compat.NTXentLoss(t), 6, memory_size=16)
    agrees(
        lambda z: memory(z, labels[first]),
        lambda z: formula("NTXentLoss", labels[first], t, labels[first])(z, z.detach()),
        x[first],
    )
    agrees(
        lambda z: memory(z, labels[second]),
        lambda z: formula("NTXentLoss", labels[second], t, both)(
            z, torch.cat([z.detach(), x[first].to(z)])
        ),
        x[second],
    )


def test_digits_where_positives_dominate():
    """A difference of log-sum-exps over all and over positives would have none left here."""
    ids = torch.arange(300) % 75
    x = torch.eye(75)[ids] + 0.05 * torch.randn(300, 75)
    for t in (0.02, 0.05):
        agrees(lambda x, t=t: compat.NTXentLoss(t)(x, ids), formula("NTXentLoss", ids, t), x)


def test_memory_is_of_rows_not_of_their_square():
    """A block of 128 × 128 is the largest that is written, whatever the sizes of the labels."""
    seen = []

    def spy(x, y, normalize):
        seen.append(x.shape[0] * x.shape[1] * y.shape[1])
        return similarities(x, y, normalize)

    similarities, positive_pairs.similarities = positive_pairs.similarities, spy
    try:
        for ids in (torch.arange(2000) // 3, torch.cat([torch.zeros(40), torch.arange(1960)])):
            compat.NTXentLoss()(torch.randn(2000, 8), ids)
    finally:
        positive_pairs.similarities = similarities
    assert max(seen) <= 128 * 128


def test_what_is_not_served_says_so():
    class LpDistance:
        normalize_embeddings, p, power = True, 2, 1

    class SumReducer:
        pass

    class TripletMarginLoss(torch.nn.Module):
        pass

    x, labels = rows(6), torch.arange(6) // 2
    for settings, name in (
        ({"distance": LpDistance()}, "distance=LpDistance"),
        ({"reducer": SumReducer()}, "reducer=SumReducer"),
        ({"embedding_regularizer": SumReducer()}, "embedding_regularizer"),
        ({"collect_stats": True}, "collect_stats"),
    ):
        with pytest.raises(NotImplementedError, match=name):
            compat.NTXentLoss(**settings)
    with pytest.raises(NotImplementedError, match="indices_tuple"):
        compat.SupConLoss()(x, labels, (labels, labels, labels))
    with pytest.raises(NotImplementedError, match="loss=TripletMarginLoss"):
        compat.CrossBatchMemory(TripletMarginLoss(), 16)
    with pytest.raises(NotImplementedError, match="miner=SumReducer"):
        compat.CrossBatchMemory(compat.NTXentLoss(), 16, miner=SumReducer())
    memory = compat.CrossBatchMemory(compat.NTXentLoss(), 16, memory_size=4)
    with pytest.raises(ValueError, match=r"at most 4 rows \(memory_size\), not 6"):
        memory(x, labels)
    with pytest.raises(ValueError, match="labels must be given"):
        compat.NTXentLoss()(x)
    with pytest.raises(ValueError, match=r"labels must have shape \[6\]"):
        compat.NTXentLoss()(x, labels[:5])
    with pytest.raises(ValueError, match=r"ref_labels must have shape \[4\]"):
        compat.NTXentLoss()(x, labels, ref_emb=x[:4], ref_labels=labels[:3])
