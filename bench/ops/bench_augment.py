"""SimCLR's two views of M images, of one side, in pixels, for 224 from sources of 375 × 500, as
photographs are, and for less from images of that side, without blur, as CIFAR's; on one thread, for
torchvision and Pillow know no more.

Nearly everybody is given the parameters that fastssl draws, so that all answers are alike;
fastssl's time is with drawing them. In bfloat16, the dtype of fastssl's views, answers need only
agree to what is lost between uint8 and float32: Pillow's are in whole numbers, torchvision's in
either. kornia draws for itself, and does something else (see its ``differs``): its answer is held
to be alike only, and so reported; so is triton-augment, which has kernels for CUDA of a part of it.
``torch.compile`` is given all images at once (augment_batched). The floor is the time of the bytes:
half of each source is read on average, and the views are written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.goals import BF16, Goal, at_least, at_most
from bench.harness import Answer, Benchmark, Case, Provider
from bench.ops.augment_batched import view
from bench.peers import _cuda_peer, _peer, compiled

SEED = 1
Make = Callable[[Any, Tensor, list[Tensor]], list[Tensor]]


def recipe(case: Case) -> Any:
    from fastssl import augment

    if case.dim >= 96:
        return augment.simclr(case.dim)
    return augment.simclr(case.dim, strength=0.5, blur=0.0)


def source(case: Case) -> tuple[int, int]:
    return (375, 500) if case.dim >= 96 else (case.dim, case.dim)


def inputs(case: Case) -> tuple[Tensor, ...]:
    """uint8 [M, 3, H, W]: smooth, as photographs are."""
    generator = torch.Generator(device=case.device).manual_seed(case.seed)
    x = torch.rand(case.rows, 3, 12, 16, generator=generator, device=case.device)
    x = F.interpolate(x, source(case), mode="bicubic").clamp(0, 1)
    return ((x * 255).byte(),)


# Of the pixels that an answer knows of: to look at more would take a tenth of fastssl's time.
STRIDE = 1009


def score(views: list[Tensor]) -> Tensor:
    """One number that knows of pixels at even strides: squares, each weighed by its place."""
    seen = torch.cat([v.reshape(-1)[::STRIDE] for v in views]).float()
    return seen.square() @ weights(len(seen), seen.device)


@lru_cache
def weights(count: int, device: torch.device) -> Tensor:
    return torch.linspace(0.5, 1.5, count, device=device) / count


def scored(make: Make) -> Callable[[Case], Callable[..., Tensor]]:
    def prepare(case: Case) -> Callable[..., Tensor]:
        made, drawn = recipe(case), []

        def run(images: Tensor) -> Tensor:
            if not drawn:
                drawn.extend(parameters(made, images))
            return score(make(made, images, drawn))

        return run

    return prepare


def parameters(made: Any, images: Tensor) -> list[Tensor]:
    return made.parameters(images, torch.arange(len(images), device=images.device), SEED)


def fastssl(case: Case) -> Callable[..., Tensor]:
    made = recipe(case)
    indices = torch.arange(case.rows, device=case.device)  # a loader gives them

    def run(images: Tensor) -> Tensor:
        return score(made(images, indices, SEED, dtype=case.torch_dtype))

    return run


def reference(made: Any, images: Tensor, drawn: list[Tensor]) -> list[Tensor]:
    import fastssl

    with fastssl.use_backend("reference"):
        return made.apply(images, drawn)


def by_torchvision(f: Any, x: Any, row: list[float], size: tuple[int, int], taps: int) -> Any:
    """What a row of parameters says, by torchvision's functions, of a tensor [C, H, W] or a Pillow
    image; without patches."""
    from fastssl.augment import Column as C
    from fastssl.reference.augment import ORDERS

    box = [int(row[i]) for i in (C.TOP, C.LEFT, C.HEIGHT, C.WIDTH)]
    x = f.resized_crop(x, *box, list(size), antialias=True)
    x = f.horizontal_flip(x) if row[C.FLIP] else x
    x = f.vertical_flip(x) if row[C.FLIP_VERTICAL] else x
    x = x.rot90(int(row[C.TURNS]), (1, 2)) if row[C.TURNS] else x
    jitter = (f.adjust_brightness, f.adjust_contrast, f.adjust_saturation, f.adjust_hue)
    neutral = (1, 1, 1, 0)
    for step in ORDERS[int(row[C.ORDER])] if row[C.ORDER] >= 0 else ():
        if row[C.BRIGHTNESS + step] != neutral[step]:
            x = jitter[step](x, row[C.BRIGHTNESS + step])
    x = f.rgb_to_grayscale(x, 3) if row[C.GREY] else x
    pillow = not isinstance(x, Tensor)
    if row[C.SIGMA] and pillow:
        from PIL import ImageFilter

        x = x.filter(ImageFilter.GaussianBlur(row[C.SIGMA]))
    elif row[C.SIGMA]:
        x = f.gaussian_blur(x, taps, [row[C.SIGMA]] * 2)
    if row[C.SOLARIZE] < 256:
        whole = pillow or not x.is_floating_point()
        x = f.solarize(x, row[C.SOLARIZE] if whole else row[C.SOLARIZE] / 255)
    return x


def steps(case: Case, pillow: bool) -> Callable[..., Tensor]:
    """torchvision's functions, an image at a time, on its tensors or on Pillow's images."""
    f = _peer("torchvision.transforms.v2.functional", "torchvision")

    def one(x: Any, row: list[float], view: Any, made: Any) -> Tensor:
        x = by_torchvision(f, x, row, view.shape, view.blur_taps)
        x = f.to_dtype(f.to_image(x), torch.float32, scale=True)
        return f.normalize(x, made.mean, made.std)

    def make(made: Any, images: Tensor, drawn: list[Tensor]) -> list[Tensor]:
        return [
            torch.stack([one(x, row, v, made) for x, row in zip(opened, p.tolist(), strict=True)])
            for v, p in zip(made.views, drawn, strict=True)
        ]

    opened: list[Any] = []

    def run(made: Any, images: Tensor, drawn: list[Tensor]) -> list[Tensor]:
        if not opened:  # decoding is nobody's here
            opened.extend(map(f.to_pil_image, images) if pillow else images)
        return make(made, images, drawn)

    return scored(run)(case)


def kornia(case: Case) -> Callable[..., Tensor]:
    """Its modules in the recipe's order, as its users chain them."""
    k = _peer("kornia.augmentation", "kornia")
    made = recipe(case)
    v = made.views[0]
    steps = [
        k.RandomResizedCrop(v.shape, scale=v.scale, ratio=v.ratio),
        k.RandomHorizontalFlip(v.flip),
        k.ColorJitter(v.brightness, v.contrast, v.saturation, v.hue, p=v.jitter),
        k.RandomGrayscale(p=v.grey),
    ]
    if v.blur:
        steps.append(k.RandomGaussianBlur((v.blur_taps, v.blur_taps), v.sigma, p=v.blur))
    steps.append(k.Normalize(torch.tensor(made.mean), torch.tensor(made.std)))
    chain = torch.nn.Sequential(*steps).to(case.device)
    torch.manual_seed(case.seed)  # of what is compared below; it draws anew at each call

    def run(images: Tensor) -> Tensor:
        x = images.float() / 255
        with torch.no_grad():
            return score([chain(x) for _ in made.views])

    return run


def triton_augment(case: Case) -> Callable[..., Tensor]:
    """Its one kernel of all that it has."""
    module = _cuda_peer("triton_augment", "triton-augment", case)
    made = recipe(case)
    v = made.views[0]
    chain = module.TritonFusedAugment(
        crop_size=v.shape,
        horizontal_flip_p=v.flip,
        brightness=v.brightness,
        contrast=v.contrast,
        saturation=v.saturation,
        grayscale_p=v.grey,
        mean=made.mean,
        std=made.std,
    )

    torch.manual_seed(case.seed)

    def run(images: Tensor) -> Tensor:
        x = images.float() / 255
        with torch.no_grad():
            return score([chain(x) for _ in made.views])

    return run


def batched(made: Any, images: Tensor, drawn: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [view(images, p, made, n, dtype) for n, p in enumerate(drawn)]


def compiled_batch(case: Case) -> Callable[..., Tensor]:
    run = compiled(batched)
    return scored(lambda *given: run(*given, case.torch_dtype))(case)


def answer(case: Case, tensors: tuple[Tensor, ...]) -> Answer:
    """By the reference, of parameters that a CPU draws."""
    made = recipe(case)
    (images,) = tensors
    drawn = [p.to(images.device) for p in parameters(made, images.cpu())]
    return Answer(score(reference(made, images, drawn)).double(), ())


def traffic(case: Case) -> float:
    height, width = source(case)
    area = 0.54 * height * width  # of the crops, on average
    return 2 * case.rows * 3 * (area + case.torch_dtype.itemsize * case.dim**2)


def benchmark(
    name: str, side: int, rows: tuple[int, ...], goals: tuple[Goal, ...], **options: Any
) -> Benchmark:
    return Benchmark(
        name=name,
        title=f"SimCLR's two views of M images: {side} pixels a side; no gradient",
        inputs=inputs,
        truth=answer,
        flops=lambda case: 0.0,
        bytes=traffic,
        rows=rows,
        goals=goals,
        dim=side,
        dtype="bfloat16",
        each=("view", 2),
        **options,
    )


WHERE = {"dtype": "bfloat16"}
PROVIDERS = (
    Provider("fastssl", fastssl),
    Provider("reference", scored(reference)),
    Provider("torch.compile", compiled_batch),
    Provider("torchvision", lambda case: steps(case, pillow=False)),
    Provider("torchvision-pillow", lambda case: steps(case, pillow=True)),
    Provider(
        "kornia",
        kornia,
        differs="resizes without antialias, one order of the jitter for a batch, float32 views, "
        "and random numbers of its own",
    ),
    Provider(
        "triton-augment",
        triton_augment,
        differs="crops without a resize, jitters every image in one order, has no hue and no blur, "
        "float32 views, and random numbers of its own",
    ),
)
# Of a batch on a GPU.
CUDA_GOALS = (
    at_least(50, "ratio", "kornia", rows=512, **BF16),
    at_least(10, "ratio", "torch.compile", rows=512, **BF16),
    at_least(4, "ratio", "triton-augment", rows=512, **BF16),
)
BENCH = benchmark(
    "augment",
    224,
    (16, 32),
    (
        at_least(6, "ratio", "torchvision-pillow", rows=16, **WHERE),
        at_least(6, "ratio", "torchvision-pillow", rows=32, **WHERE),
        at_least(30, "ratio", "kornia", rows=16, **WHERE),
        at_least(30, "ratio", "kornia", rows=32, **WHERE),
        at_most(1, "us_each", "fastssl", rows=512, **BF16),
        *CUDA_GOALS,
    ),
    providers=PROVIDERS,
    memory_rows=(16,),
    threads=1,
)
