import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastssl.evaluation import knn_accuracy, knn_predict


def brute_force(bank, labels, query, k, temperature):
    """The formula, one query and one neighbour at a time."""
    cosines = [
        (float(row @ query / (row.norm() * query.norm())), int(label))
        for row, label in zip(bank, labels, strict=True)
    ]
    votes: dict[int, float] = {}
    for cosine, label in sorted(cosines, reverse=True)[:k]:
        votes[label] = votes.get(label, 0.0) + torch.tensor(cosine / temperature).exp().item()
    return max(votes, key=lambda label: votes[label])


@pytest.mark.parametrize("k", [1, 5, 20, 500])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_the_formula(k, temperature):
    bank, queries = torch.randn(61, 7), torch.randn(23, 7)
    labels = torch.randint(0, 4, (61,))
    expected = [brute_force(bank, labels, query, k, temperature) for query in queries]
    predicted = knn_predict(bank, labels, queries, k=k, temperature=temperature, chunk_size=5)
    assert predicted.tolist() == expected


def test_weights_matter():
    bank = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
    labels = torch.tensor([0, 1, 1])
    query = torch.tensor([[2.0, 0.0]])
    assert knn_predict(bank, labels, query, k=3, temperature=0.07).tolist() == [0]
    assert knn_predict(bank, labels, query, k=3, temperature=100.0).tolist() == [1]


def test_a_tiny_temperature_does_not_overflow():
    features = torch.nn.functional.normalize(torch.randn(10, 3), dim=1)
    labels = torch.arange(10)
    assert knn_accuracy(features, labels, features, labels, temperature=1e-4) == 1.0


def test_never_writes_all_similarities():
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes = [t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
            self.elements = max(self.elements, *sizes, 0)
            return result

    bank, queries = torch.randn(3000, 8), torch.randn(2000, 8)
    with Largest() as largest:
        knn_predict(bank, torch.randint(0, 4, (3000,)), queries, k=10, chunk_size=2000)
    assert 0 < largest.elements <= 8 * 3000  # the bank itself


def test_half_precision_features_and_no_query():
    bank, labels = torch.eye(3, dtype=torch.bfloat16), torch.arange(3)
    assert knn_predict(bank, labels, bank).tolist() == [0, 1, 2]
    assert knn_predict(bank, labels, bank[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("bank", "labels", "query", "options", "message"),
    [
        (torch.ones(3, 2), torch.zeros(3).long(), torch.ones(1, 3), {}, "D differs"),
        (torch.ones(3, 2), torch.zeros(2).long(), torch.ones(1, 2), {}, "as many labels"),
        (torch.ones(0, 2), torch.zeros(0).long(), torch.ones(1, 2), {}, "N >= 1"),
        (torch.ones(3, 2), torch.zeros(3).long(), torch.ones(1, 2), {"k": 0}, "k >= 1"),
        (torch.ones(3, 2), torch.zeros(3).long(), torch.ones(1, 2), {"temperature": 0}, "> 0"),
    ],
)
def test_wrong_input_says_what_is_wrong(bank, labels, query, options, message):
    with pytest.raises(ValueError, match=message):
        knn_predict(bank, labels, query, **options)
