"""Views and pretext tasks of images on a device are made there alone: no wait, no tensor of the
host, so that a CUDA graph may hold a whole recipe."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from fastssl import augment, backends
from fastssl.augment import Augment, Packed, Recipe, View
from fastssl.data import ImageStore, PhotoViews, TensorImages, placed, reader, resident
from tests.syncs.pretend import HostTensor, PretendCuda, on_device
from tests.syncs.replay import Capture, Graph

B = 4
SMALL = View(16)
EVERYTHING = View(
    16, (0.2, 1.0), (0.5, 2.0), 0.5, 0.5, 0.5, 0.8, 0.4, 0.4, 0.4, 0.1, 0.2, True, 0.5, (0.1, 2.0),
    5, 0.2, 128.0, 0.5,
)  # fmt: skip
CALLS = {
    "simclr": augment.simclr(16),
    "moco-v1": augment.moco_v1(16),
    "moco-v2": augment.moco_v2(16),
    "byol": augment.byol(16),
    "mae": augment.mae(16),
    "swav": augment.swav(16, 8, crops=3),
    "dino": augment.dino(16, 8, crops=3),
    "dinov2": augment.dinov2(16, 7, crops=3),
    "digits": augment.digits(16),
    "everything": Recipe((EVERYTHING, SMALL, EVERYTHING), quantized=True),
    "rotation": augment.Rotation(SMALL),
    "a rotation": augment.Rotation(SMALL, every=False),
    "patches": augment.RelativePatches(4, 1, 1, 16),
    "jigsaw": augment.Jigsaw(24, 4, 6, grid=2),
    "counting": augment.Counting(8, 16),
    "colorization": augment.Colorization(SMALL),
    "split brain": augment.SplitBrain(SMALL),
    "centre mask": augment.CentreMask(SMALL),
    "block mask": augment.BlockMask(SMALL),
    "patch mask": augment.PatchMask(SMALL, 4),
}
IMAGES = {
    "planar": lambda: torch.zeros(B, 3, 24, 20, dtype=torch.uint8, device="cuda"),
    "pixels": lambda: torch.zeros(B, 24, 20, 3, dtype=torch.uint8, device="cuda"),
    "packed": lambda: Packed(
        torch.zeros(B * 1440, dtype=torch.uint8, device="cuda"),
        torch.arange(B, device="cuda") * 1440,
        torch.full((B, 2), 20, device="cuda"),
    ),
}


RECIPES = [name for name in CALLS if isinstance(CALLS[name], Recipe)]


@pytest.fixture
def pretend():
    with PretendCuda() as device:
        yield device


@pytest.fixture
def built(monkeypatch):
    """As if CUDA's kernels were built."""
    if backends.unavailable("native"):
        pytest.skip("native kernels are not built")
    monkeypatch.setattr(backends, "_NO_CUDA", None)


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("name", CALLS)
def test_made_on_the_device_alone(name, kind, built, pretend):
    images, indices, call = IMAGES[kind](), torch.arange(B, device="cuda"), CALLS[name]
    call(images, indices, 0)  # tables that tasks keep for a device go there once
    with pretend.no_waiting() as seen, pretend.no_host_tensors():
        call(images, indices, 1)
        if isinstance(call, Recipe):
            parameters = call.parameters(images, indices, 1)
            call.apply(images, parameters, dtype=torch.bfloat16, channels_last=True)
    assert "fastssl.augment_fwd" in seen


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("name", RECIPES)
def test_plain_torch_draws_without_a_wait(name, kind, pretend):
    images, indices = IMAGES[kind](), torch.arange(B, device="cuda")
    with pretend.no_waiting(), pretend.no_host_tensors(), backends.use_backend("reference"):
        CALLS[name].parameters(images, indices, 1)


def test_augment_on_the_device_alone(built, pretend):
    module = Augment(augment.simclr(16))
    with pretend.no_waiting(), pretend.no_host_tensors():
        for kind in ("planar", "packed"):
            module(IMAGES[kind]())


@pytest.mark.parametrize("kind", ["tensor", "files"])
def test_a_batch_of_a_resident_set(kind, built, pretend, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**30))
    if kind == "tensor":
        images = TensorImages(torch.zeros(6, 3, 24, 20, dtype=torch.uint8))
    else:
        for i in range(6):
            Image.new("RGB", (20 + i, 24)).save(tmp_path / f"{i}.png")
        images = ImageStore(sorted(tmp_path.iterdir()))
    recipe, device = PhotoViews(augment.simclr(16)), torch.device("cuda")
    images = resident(images, device, True)
    read, chosen = reader(images, recipe, pin=True), torch.tensor([4, 0, 3])
    with pretend.no_waiting():
        batch = placed(read(chosen), device)
        views = recipe(batch, chosen.to(device, non_blocking=True), 1)
    assert all(map(on_device, views))


def test_a_tensor_of_the_host_is_found(pretend):
    with pretend.no_host_tensors(), pytest.raises(HostTensor):
        torch.ones(3).to("cuda", non_blocking=True)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_within_a_graph(name):
    """A replay makes the views of what images and indices hold by then."""
    recipe, generator = CALLS[name], torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, B, 3, 24, 20), dtype=torch.uint8, generator=generator)
    numbers = torch.arange(2 * B).view(2, B)
    images, indices = pixels[0].clone(), numbers[0].clone()
    with Capture(graph := Graph()):
        views = recipe(images, indices, 5)
    for i in (1, 0):
        images.copy_(pixels[i])
        indices.copy_(numbers[i])
        graph.replay()
        right = recipe(pixels[i], numbers[i], 5)
        assert all(torch.equal(a, b) for a, b in zip(views, right, strict=True))
