import pytest
import torch
from torch import nn

from fastssl.data import load_data
from fastssl.evaluation import Fitting, accuracy, distill, extract_features, fine_tune
from fastssl.functional import distillation_loss
from fastssl.nn import SmallCNN

SHORT = Fitting(epochs=4, batch_size=16, lr=0.2)


def answers():
    """A teacher with a batch norm and dropout, in training mode: it must answer in evaluation."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)
    ).train()


def student():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU())


def test_the_student_follows_the_teacher():
    images = torch.rand(48, 1, 6, 6)
    teacher, learner = answers(), student()
    teacher[4].weight.data *= 5
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (teacher, learner)]
    losses = []
    for epochs in (1, 150):
        model = distill(
            teacher,
            learner,
            images,
            Fitting(epochs=epochs, lr=0.4),
            temperature=0.5,
            progress=False,
        )
        wanted, got = extract_features(teacher, images), extract_features(model, images)
        losses.append(distillation_loss(got, wanted, 0.5).item())
    entropy = distillation_loss(wanted, wanted, 0.5).item()  # the least there can be
    assert entropy < losses[1] < entropy + 0.3 * (losses[0] - entropy)
    assert (got.argmax(1) == wanted.argmax(1)).float().mean() > 0.9
    assert all(m.training for m in teacher)
    for module, state in zip((teacher, learner), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())


def test_one_step_is_the_formula():
    """From weights of 0 the student's layer moves by −lr · mean (P_s − P_t) f, in float64."""
    images = torch.rand(10, 1, 6, 6)
    teacher, learner = answers().double(), student().double()
    model = distill(
        teacher,
        learner,
        images,
        Fitting(epochs=1, lr=0.1),
        temperature=0.4,
        transform=torch.Tensor.double,
        progress=False,
    )
    x = images.double()
    target = torch.softmax(teacher.eval()(x) / 0.4, 1)
    moved = 0.1 * (target - 1 / 3).T @ learner(x) / 10
    torch.testing.assert_close(model.linear.weight, moved.detach(), rtol=1e-12, atol=1e-14)


def test_a_seed_decides_every_bit_and_both_see_one_view():
    images, teacher, learner = torch.rand(40, 1, 6, 6), answers(), student()
    seen = []
    teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def augment(batch, rows, seed):
        views.append(batch + rows[:, None, None, None])
        return views[-1]

    results = []
    for seed in (1, 1, 2):
        views: list[torch.Tensor] = []
        seen.clear()
        results.append(
            distill(teacher, learner, images, SHORT, augment=augment, seed=seed, progress=False)
        )
        assert all(torch.equal(a, b) for a, b in zip(seen[1:], views, strict=True))
    a, b, c = (model.linear.weight for model in results)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_wrong_input_says_what_is_wrong():
    images = torch.rand(4, 1, 6, 6)
    with pytest.raises(ValueError, match=r"logits \[B, C\], got \[1, 1, 6, 6\]"):
        distill(nn.Identity(), student(), images, SHORT, progress=False)
    with pytest.raises(ValueError, match="temperature must be positive"):
        distill(answers(), student(), images, SHORT, temperature=0, progress=False)
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]"):
        distill(answers(), student(), images[0], SHORT, progress=False)


@pytest.mark.slow
def test_unlabelled_digits_teach_a_smaller_student():
    """A teacher of few labels labels the rest; the student comes close to it."""
    data = load_data("digits", image_size=8)
    (x, y), (test_x, test_y) = (
        (split[torch.arange(len(split))], split.labels) for split in (data.train, data.test)
    )
    torch.manual_seed(0)
    few = Fitting(epochs=60, lr=0.1)
    teacher = fine_tune(SmallCNN(1, width=8), x, y, few, share=0.1, progress=False)
    small = SmallCNN(1, width=4)
    alone = fine_tune(small, x, y, few, share=0.1, progress=False)
    taught = distill(teacher, small, x, Fitting(epochs=12, batch_size=128), progress=False)
    scores = [accuracy(model, test_x, test_y) for model in (teacher, alone, taught)]
    assert scores[2] > scores[1] + 0.01, scores
    assert scores[2] > scores[0] - 0.05, scores
