import pytest
import torch

from fastssl.evaluation import draw_labels, few_label_accuracy
from fastssl.evaluation.linear import linear_accuracy


def clusters(n, classes=3, dim=5):
    labels = torch.arange(n) % classes
    return torch.eye(classes, dim)[labels] + 0.01 * torch.randn(n, dim), labels


@pytest.mark.parametrize("per_class", [1, 3, 7])
def test_draws_are_balanced_and_repeatable(per_class):
    labels = torch.randint(0, 4, (97,))
    rows = draw_labels(labels, per_class, seed=3)
    assert labels[rows].bincount().tolist() == [per_class] * 4
    assert rows.unique().numel() == rows.numel()
    assert torch.equal(rows, draw_labels(labels, per_class, seed=3))
    assert not torch.equal(rows, draw_labels(labels, per_class, seed=4))


def test_the_global_generator_is_left_alone():
    labels = torch.arange(20) % 2
    state = torch.random.get_rng_state()
    draw_labels(labels, 2, seed=0)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_class_that_is_too_small_is_named():
    with pytest.raises(ValueError, match="class 1 has 2 rows, 3"):
        draw_labels(torch.tensor([0, 0, 0, 1, 1]), 3, seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        draw_labels(torch.tensor([0, 1]), 0, seed=0)


def test_separable_features_reach_one():
    features, labels = clusters(30)
    test, test_labels = clusters(12)
    split = (features, labels, test, test_labels)
    assert few_label_accuracy(*split, per_class=2, seed=0) == 1.0
    assert linear_accuracy(*split) == 1.0


def test_the_probe_learns_from_the_drawn_rows_alone(monkeypatch):
    seen = []

    def spy(features, labels, test_features, test_labels):
        seen.append((features, labels))
        assert test_features is test
        assert test_labels is test_y
        return 0.5

    monkeypatch.setattr("fastssl.evaluation.few_labels.linear_accuracy", spy)
    features, labels = torch.arange(40.0)[:, None], torch.arange(40) % 4
    test, test_y = -torch.ones(8, 1), torch.arange(8) % 4
    assert few_label_accuracy(features, labels, test, test_y, per_class=3, seed=5) == 0.5
    ((rows, drawn),) = seen
    assert (rows >= 0).all()  # every test feature is −1
    assert torch.equal(drawn, rows.flatten().long() % 4)
    assert drawn.bincount().tolist() == [3] * 4


def test_the_probe_does_not_see_the_scale_of_a_row():
    features, labels = clusters(40)
    test, test_labels = clusters(20)
    test = test + 0.3 * torch.randn_like(test)
    plain = linear_accuracy(features, labels, test, test_labels)
    scaled = linear_accuracy(
        features * torch.rand(40, 1).add(0.1) * 1e3, labels, test * 1e-3, test_labels
    )
    assert plain == scaled
    assert plain > 0.5
