import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastssl.data import ImageStore, PhotoViews, TensorImages, build_recipe, load_data
from fastssl.errors import UserError
from fastssl.evaluation import (
    Fitting,
    accuracy,
    draw_share,
    extract_features,
    fine_tune,
    linear_accuracy,
)
from fastssl.evaluation.fitting import classifier
from fastssl.nn import SmallCNN, SplitBatchNorm, first_layers, projection_head

SHORT = Fitting(epochs=3, batch_size=16)


def encoder():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten()
    )


def images(n=40, classes=2):
    """Which part of the image is bright."""
    labels = torch.arange(n) % classes
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 100, (n, 1, 6, 6), dtype=torch.uint8, generator=generator)
    for i, label in enumerate(labels.tolist()):
        pixels[i, :, 3 * label : 3 * label + 3] += 100
    return pixels, labels


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def tuned(module, fitting=SHORT, **options):
    return fine_tune(module, *images(), fitting, **{"progress": False, **options})


def test_the_callers_encoder_stays_as_it_is():
    module = encoder().train()
    module[1].eval()
    module[0].requires_grad_(False)
    before = weights(module)
    state = torch.random.get_rng_state()
    model = fine_tune(module, *images(), SHORT, progress=False)
    assert torch.equal(state, torch.random.get_rng_state())
    assert same(weights(module), before)
    assert [m.training for m in module] == [True, False, True, True, True]
    assert not module[0].weight.requires_grad
    for name, value in model.encoder.state_dict().items():
        assert not torch.equal(value, before[name]), name  # all of the copy learnt
    assert not any(m.training for m in model.modules())


def test_a_seed_decides_every_bit():
    module = encoder()
    a, b, c = (weights(tuned(module, seed=seed)) for seed in (1, 1, 2))
    assert same(a, b)
    assert not same(a, c)


def test_images_read_batch_by_batch_are_the_same():
    module, (pixels, labels) = encoder(), images()
    whole, read = (
        weights(fine_tune(module, given, labels, SHORT, share=0.5, progress=False))
        for given in (pixels, TensorImages(pixels))
    )
    assert same(whole, read)


def test_batch_norm_follows_or_is_frozen():
    module = encoder()
    follows, frozen = (
        tuned(module, Fitting(epochs=3, freeze_batch_norm=freeze)).encoder[1]
        for freeze in (False, True)
    )
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(frozen, name), getattr(module[1], name))
        assert not torch.equal(getattr(follows, name), getattr(module[1], name))
    assert not torch.equal(frozen.weight, module[1].weight)


def test_first_steps_are_the_formula():
    """Two steps of SGD with momentum over the whole set, from weights of 0, without dropout."""
    pixels, labels = images(12)
    start = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh()).double()
    fitting = Fitting(epochs=2, lr=0.3, momentum=0.9, weight_decay=0.01)
    model = fine_tune(
        start, pixels, labels, fitting, transform=lambda x: 2 * x.double(), progress=False
    )

    expected = nn.Sequential(copy.deepcopy(start), nn.Linear(5, 2).double())
    nn.init.zeros_(expected[1].weight)
    nn.init.zeros_(expected[1].bias)
    velocity = [torch.zeros_like(p) for p in expected.parameters()]
    for lr in (0.3, 0.15):  # half a cosine
        expected.zero_grad()
        logits = expected((pixels.float() / 255).double() * 2)
        loss = (logits.exp().sum(1).log() - logits[torch.arange(12), labels]).mean()
        loss.backward()
        with torch.no_grad():
            for p, v in zip(expected.parameters(), velocity, strict=True):
                v.mul_(0.9).add_(p.grad + 0.01 * p * (p.dim() > 1))
                p.sub_(lr * v)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_only_the_share_is_seen_and_augmented_views_are(monkeypatch):
    seen = []

    def augment(batch, rows, seed):
        seen.append((batch, rows, seed))
        return batch.float()

    pixels, labels = images(40)
    pixels[:, 0, 0, 0] = torch.arange(40)
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    fine_tune(module, pixels, labels, SHORT, share=0.1, augment=augment, seed=5, progress=False)
    rows = draw_share(labels, 0.1, seed=5)
    assert len(seen) == 3  # epochs of one batch
    assert len({seed for *_, seed in seen}) == 3
    for batch, index, _ in seen:
        assert sorted(batch[:, 0, 0, 0].tolist()) == sorted(rows.tolist())
        assert torch.equal(batch, pixels[index])


def test_photographs_are_augmented_in_their_own_sizes(tmp_path, monkeypatch):
    """Training views are those of the recipe on the files as they are, never of a smaller square;
    without a recipe the squares that the encoder is judged by."""
    rng = np.random.default_rng(0)
    for i in range(8):
        pixels = rng.integers(0, 256, (20 + 5 * i, 60 - 4 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    store = ImageStore(sorted(tmp_path.iterdir()), size=12, crop=0.875)
    labels, seen, made = torch.arange(8) % 2, [], []

    class Spied(PhotoViews):
        def __call__(self, images, indices, seed):
            made.append((images, indices, seed))
            return super().__call__(images, indices, seed)

    views = Spied(build_recipe("photo", 12).gentle(0.5).recipe)
    module = nn.Sequential(nn.Flatten(), nn.Linear(432, 3))
    module.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    given = {"transform": views.normalize, "progress": False}
    fine_tune(module, store, labels, Fitting(2, 8), augment=views, **given)
    assert len(made) == 2
    for x, (packed, indices, seed) in zip(seen[1:], made, strict=True):  # after the example
        assert torch.equal(packed.sizes, store.sizes[indices])
        again = PhotoViews(views.recipe)(store.gather(indices), indices, seed)
        assert torch.equal(x, again[0])
    seen.clear()
    fine_tune(module, store, labels, Fitting(1, 8), **given)
    squares = views.normalize(store[torch.arange(8)].float() / 255)
    given_to_it, right = (
        sorted(image.contiguous().numpy().tobytes() for image in x) for x in (seen[1], squares)
    )
    assert given_to_it == right


def test_shares_are_of_each_class():
    labels = torch.tensor([0] * 50 + [1] * 30 + [3] * 10)
    rows = draw_share(labels, 0.1, seed=0)
    assert labels[rows].bincount().tolist() == [5, 3, 0, 1]
    assert torch.equal(rows, draw_share(labels, 0.1, seed=0))
    assert not torch.equal(rows, draw_share(labels, 0.1, seed=1))
    assert draw_share(labels, 1.0, seed=0).sort().values.tolist() == list(range(90))


def test_split_batch_norm_takes_any_batch():
    module = nn.Sequential(SplitBatchNorm(1, 8), nn.Flatten())
    tuned(module, Fitting(epochs=1, batch_size=13))
    assert module[0].splits == 8


def test_the_heads_first_layer_can_be_kept():
    head = projection_head("v2", 16, 12, 8)
    kept = first_layers(head, 1)
    assert [type(m).__name__ for m in kept] == ["Linear", "BatchNorm1d", "ReLU"]
    assert kept[0] is head[0]
    assert len(first_layers(head, 2)) == 6
    module = nn.Sequential(SmallCNN(1, width=4), kept)
    model = fine_tune(module, *images(), SHORT, progress=False)
    assert model.linear.weight.shape == (2, 12)
    assert not torch.equal(model.encoder[1][0].weight, head[0].weight)
    for layers, version in ((0, "v2"), (3, "v2"), (1, "linear")):
        with pytest.raises(UserError, match=f"not {layers}"):
            first_layers(projection_head(version, 4, 4, 4), layers)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(40).long()}, UserError, "two classes"),
        ({"labels": torch.full((40,), -1)}, ValueError, "0 or more, got -1"),
        ({"labels": torch.zeros(39).long()}, ValueError, r"int64 \[40\]"),
        ({"labels": torch.zeros(40)}, ValueError, "float32"),
        ({"images": torch.zeros(40, 6)}, ValueError, r"\[N, C, H, W\]"),
        ({"share": 0.01}, UserError, "too few labels: 0.01 of the 20 rows of class 0"),
        ({"share": 0.0}, UserError, "above 0"),
        ({"share": 1.5}, UserError, "at most 1"),
        ({"fitting": Fitting(lr=1e38)}, UserError, "the loss is nan in epoch"),
        ({"fitting": Fitting(optimizer="adam")}, UserError, "no optimizer 'adam'"),
    ],
)
def test_wrong_input_says_what_is_wrong(change, error, message):
    pixels, labels = images()
    given = {"images": pixels, "labels": labels, "fitting": SHORT} | change
    with pytest.raises(error, match=message):
        fine_tune(encoder(), **given, progress=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("epochs", 0), ("batch_size", 1), ("lr", 0.0), ("lr", float("nan"))),
        *(("warmup_epochs", -1.0), ("momentum", 1.0), ("weight_decay", -0.1)),
    ],
)
def test_settings_that_cannot_be(name, value):
    with pytest.raises(UserError, match=f"{name} must be .*, not {value}"):
        Fitting(**{name: value})


def test_a_classifier_begins_with_equal_odds():
    model = classifier(encoder(), 3, torch.rand(2, 1, 6, 6)).eval()
    assert torch.equal(model(torch.rand(5, 1, 6, 6)), torch.zeros(5, 3))


@pytest.mark.slow
def test_digits_are_learnt():
    """From an untrained encoder, whose frozen features a linear probe reads badly."""
    data = load_data("digits", image_size=8)
    (x, y), (test_x, test_y) = (
        (split[torch.arange(len(split))], split.labels) for split in (data.train, data.test)
    )
    module = SmallCNN(1, width=4)
    frozen, test_frozen = (extract_features(module, pixels) for pixels in (x, test_x))
    probe = linear_accuracy(frozen, y, test_frozen, test_y)

    def tuned_accuracy(epochs, share):
        fitting = Fitting(epochs=epochs, batch_size=128)
        return accuracy(
            fine_tune(module, x, y, fitting, share=share, progress=False), test_x, test_y
        )

    all_labels, few = tuned_accuracy(10, 1.0), tuned_accuracy(60, 0.1)
    assert all_labels > probe + 0.15, (probe, all_labels)
    assert probe < few < all_labels, (probe, few, all_labels)
