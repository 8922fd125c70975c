"""``lightly.transforms`` by our operations: signatures, what is drawn, views beside theirs."""

from __future__ import annotations

import inspect
import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import fastssl
from fastssl.augment import Collate, View
from fastssl.compat import lightly_transforms as ours
from tests.augment.test_distributions import distance
from tests.compat.agreement import peer


@pytest.fixture(scope="module")
def theirs():
    """lightly's package, whose import asks for another that we neither have nor need."""
    name = "lightning_utilities.core.imports"
    try:
        __import__(name)
        missing = {}
    except ImportError:
        missing = {part: ModuleType(part) for part in (name, name[:23], name[:18])}
        missing[name].RequirementCache = lambda *_: False
    sys.modules |= missing
    yield peer("lightly.transforms", "lightly")
    for part in missing:
        del sys.modules[part]


def photo(height=40, width=50, mode="RGB"):
    """Smooth, with colours of every hue."""
    y, x = np.mgrid[:height, :width] / 10
    pixels = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=2)
    return Image.fromarray(np.uint8(127.5 + 120 * pixels)).convert(mode)


def parameters(call):
    return [(p.name, p.default, p.kind) for p in inspect.signature(call).parameters.values()]


@pytest.mark.parametrize("name", ours.__all__)
def test_signatures_are_theirs(name, theirs):
    assert parameters(getattr(ours, name)) == parameters(getattr(theirs, name))


def told(transform):
    """What one of lightly's views draws from, in our words, from its steps."""
    found = {}
    for step in steps(transform):
        kind, given = type(step).__name__, vars(step)
        if kind == "RandomResizedCrop":
            found |= {"shape": tuple(step.size), "scale": tuple(step.scale), "ratio": step.ratio}
        elif kind == "RandomHorizontalFlip":
            found["flip"] = step.p
        elif kind == "RandomVerticalFlip":
            found["flip_vertical"] = step.p
        elif kind == "RandomRotate":
            assert step.angle == 90
            found["turn"] = step.prob
        elif kind == "RandomApply":
            (jitter,) = step.transforms
            found["jitter"] = step.p
            for word in ("brightness", "contrast", "saturation", "hue"):
                found[word] = getattr(jitter, word)
        elif kind == "RandomGrayscale":
            found["grey"] = step.p
        elif kind == "GaussianBlur":
            found |= {"blur": step.prob, "sigma": tuple(step.sigmas)}
        elif kind == "RandomSolarization":
            found |= {"solarize": step.prob, "threshold": step.threshold}
        elif kind == "Normalize":
            found |= {"mean": tuple(step.mean), "std": tuple(step.std)}
        else:  # a jitter that does nothing, and the conversion to a tensor
            assert kind in ("ToImage", "ToDtype") or given["hue"] is None, kind
    return found


def steps(transform):
    inner = vars(transform).get("transform", transform)  # v2's have a method of that name
    if type(inner).__name__ != "Compose":
        return [transform]
    return [step for part in inner.transforms for step in steps(part)]


def says(view: View, recipe, words):
    """The same of one of ours."""
    chances, jittered = view.chances._asdict(), "brightness" in words
    found = {word: chances[word] for word in words if word in chances}
    if jittered:  # None where torchvision leaves a step out: a factor of 1, a hue of 0
        for word, nothing in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0)):
            found[word] = None if found[word] == (nothing, nothing) else found[word]
    return found | {"shape": view.shape, "mean": recipe.mean, "std": recipe.std}


SEVERAL = [name for name in ours.__all__ if not name.startswith(("BYOLT", "TiCoT"))]


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("changed", [False, True], ids=["defaults", "other numbers"])
def test_draws_from_what_theirs_draws_from(name, changed, theirs):
    options = {}
    if changed:
        known = inspect.signature(getattr(ours, name)).parameters
        others = dict(
            input_size=30, cj_prob=0.3, cj_strength=0.7, cj_bright=0.1, cj_contrast=0.0, cj_sat=0.9,
            cj_hue=0.3, min_scale=0.4, random_gray_scale=0.15, sigmas=(0.3, 1.2), vf_prob=0.1,
            hf_prob=0.4, rr_prob=0.25, solarization_prob=0.35, solarize_prob=0.45, k=3,
            num_views=2, n_local_views=3, focal_views=1, crop_size=22, crop_counts=(1, 2),
            normalize={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
        )  # fmt: skip
        options = {key: value for key, value in others.items() if key in known}
    mine, other = getattr(ours, name)(**options), getattr(theirs, name)(**options)
    others = getattr(other, "transforms", None) or [other]
    assert len(mine.recipe.views) == len(others)
    for view, transform in zip(mine.recipe.views, others, strict=True):
        want = told(transform)
        got = says(view, mine.recipe, want)
        assert want.keys() <= got.keys()
        for word, value in want.items():
            assert got[word] == pytest.approx(value), word
        assert view.jitter == want.get("jitter", 0)
        assert (view.solarize, view.turn) == (want.get("solarize", 0), want.get("turn", 0))


FIXED = dict(cj_prob=0.0, random_gray_scale=0.0, gaussian_blur=0.0, hf_prob=0.0, min_scale=1.0,
             normalize=None)  # fmt: skip
ONE = {
    "resized": ({}, 0.0, 0),
    "flipped": ({"hf_prob": 1.0, "vf_prob": 1.0}, 0.0, 0),
    "turned": ({"rr_prob": 1.0}, 0.0, 0),
    "grey": ({"random_gray_scale": 1.0}, 1.0, 0),
    "solarized": ({"solarization_prob": 1.0}, 0.0, 0),
    "normalised": ({"normalize": ours.IMAGENET_NORMALIZE}, 0.0, 0),
    "blurred": ({"gaussian_blur": 1.0, "sigmas": (1.5, 1.5)}, 3.0, 8),
    "brighter": ({"cj_prob": 1.0, "cj_bright": 1e-9, "cj_contrast": 0, "cj_sat": 0, "cj_hue": 0},
                 1.0, 0),
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "mode"),  # lightly's has no grey images with three means
    [(what, mode) for what in ONE for mode in ("RGB", "L") if (what, mode) != ("normalised", "L")],
)
def test_a_view_is_theirs_where_nothing_is_drawn(what, mode, theirs):
    """A crop of the whole (no other fits a square of a scale of 1), and one more step at a time."""
    change, most, edge = ONE[what]
    options = FIXED | change | {"input_size": 24}
    image = photo(40, 40, mode)
    mine = ours.BYOLView1Transform(**options)(image)
    want = theirs.BYOLView1Transform(**options)(image)
    assert mine.shape == want.shape
    away = (mine - want).abs() * 255
    if what == "normalised":
        assert away.max() < 1e-3
    else:  # the blur's edges are Pillow's own
        inner = slice(edge, 24 - edge)
        assert away[:, inner, inner].max() <= most + 1e-3


@pytest.mark.parametrize(("sigma", "most"), [(0.6, 6), (1.0, 2), (2.0, 2)])
def test_blurs_an_edge_as_theirs(sigma, most, theirs):
    """A Gaussian in full, as Pillow's means come near it."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, 20:] = 255
    options = FIXED | {"gaussian_blur": 1.0, "sigmas": (sigma, sigma), "input_size": 40}
    image = Image.fromarray(pixels)
    mine = ours.SimCLRViewTransform(**options)(image)
    want = theirs.SimCLRViewTransform(**options)(image)
    assert (mine - want).abs().max() * 255 < most


@pytest.mark.parametrize("name", ["SimCLRTransform", "BYOLView2Transform"])
def test_views_are_distributed_as_theirs(name, theirs):
    """Mean, contrast and redness of views of one photograph."""
    image, count = photo(32, 40), 600
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 – which theirs draws from
    made = []
    for room in (ours, theirs):
        transform = getattr(room, name)(input_size=16)
        views = [transform(image) for _ in range(count)]
        x = torch.stack([v[0] if isinstance(v, list) else v for v in views])  # [count, 3, 16, 16]
        redness = (x[:, 0] - x[:, 2]).mean((1, 2))
        made.append(torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3)), redness]))
    for mine, other in zip(*made, strict=True):
        assert distance(mine, other) > 1e-3  # passed but once in a thousand draws


def test_quarter_turns_are_counter_clockwise_and_as_frequent():
    transform = ours.SimCLRTransform(input_size=8, **FIXED | {"min_scale": 1.0}, rr_prob=0.3)
    image = photo(16, 16)
    whole = ours.SimCLRViewTransform(input_size=8, **FIXED)(image)
    views = torch.stack([view for _ in range(400) for view in transform(image)])
    turned = (views == whole.rot90(1, (1, 2))).flatten(1).all(1)
    assert ((views == whole).flatten(1).all(1) | turned).all()
    assert abs(turned.float().mean() - 0.3) < 4 * (0.3 * 0.7 / 800) ** 0.5
    with pytest.raises(ValueError, match="rr_degrees must be None"):
        ours.SimCLRTransform(rr_prob=0.5, rr_degrees=20)
    ours.SimCLRTransform(rr_degrees=20)


def test_torchs_seed_makes_it_repeatable_and_each_call_differs():
    transform, image = ours.DINOTransform(global_crop_size=16, local_crop_size=8), photo()
    torch.manual_seed(1)
    first, second = transform(image), transform(image)
    assert [v.shape[1] for v in first] == [16, 16, 8, 8, 8, 8, 8, 8]
    assert not torch.equal(first[0], second[0])
    torch.manual_seed(1)
    for one, other in zip(transform(image), first, strict=True):
        assert torch.equal(one, other)
    copy = pickle.loads(pickle.dumps(transform))
    torch.manual_seed(1)
    assert torch.equal(copy(image)[7], first[7])


def test_other_images_and_batches():
    transform = ours.SimCLRTransform(input_size=16)
    pixels = np.asarray(photo())
    for image in (photo(mode="RGBA"), pixels, torch.from_numpy(pixels.copy()).permute(2, 0, 1)):
        assert [v.shape for v in transform(image)] == [(3, 16, 16)] * 2
    assert transform(photo(mode="L"))[0].shape == (1, 16, 16)
    views = Collate(transform.recipe)([photo(), photo(30, 20)])
    assert [v.shape for v in views] == [(2, 3, 16, 16)] * 2
    assert ours.MAETransform((12, 20))(photo())[0].shape == (3, 12, 20)
    made = ours.BYOLTransform(None, lambda image: image.size)(photo())
    assert made[0].shape == (3, 224, 224)
    assert made[1] == (50, 40)


def test_bad_input_is_named():
    wrong = [
        (TypeError, "must be an image of Pillow", lambda: ours.SimCLRTransform()("a.png")),
        (TypeError, "must be uint8", lambda: ours.SimCLRTransform()(torch.rand(3, 8, 8))),
        (ValueError, "no pixels", lambda: ours.SimCLRTransform()(Image.new("RGB", (0, 3)))),
        (ValueError, "jitter must be a probability", lambda: ours.SimCLRTransform(cj_prob=2)),
        (ValueError, "sigma must be a range", lambda: ours.SimCLRTransform(sigmas=(2, 1))),
        (ValueError, "one of each for every size", lambda: ours.SwaVTransform(crop_counts=(2,))),
        (ValueError, "k must be at least 1", lambda: ours.MMCRTransform(k=0)),
        (ValueError, "views must hold at least one", lambda: ours.FastSiamTransform(num_views=0)),
    ]
    for error, text, call in wrong:
        with pytest.raises(error, match=text):
            call()


def test_patch(theirs):
    own, module = theirs.SimCLRTransform, sys.modules["lightly.transforms.simclr_transform"]
    with fastssl.patch("lightly_transforms") as patched:
        assert theirs.SimCLRTransform is module.SimCLRTransform is ours.SimCLRTransform
        assert "lightly.transforms.DINOTransform" in patched.replaced
        assert len({there.split(".")[-1] for there in patched.replaced}) == len(ours.__all__)
    assert theirs.SimCLRTransform is module.SimCLRTransform is own
