"""Settings by name: for each method what learns digits, and what its authors did.

A preset names some of TrainConfig's settings; the others keep their defaults. Views are those of
this package's recipes, the learning rate falls by a cosine to 0, also where authors had it fall in
steps, and the weight decay stays, which DINO's authors let grow for ViTs. Barlow Twins' give biases
and norms a smaller rate than weights; here they have the same. Biases and norms are never decayed.
"""

from __future__ import annotations

from typing import Any

from fastssl.errors import choose

Settings = dict[str, Any]  # of TrainConfig


def _joined(*parts: Settings, **more: Any) -> Settings:
    return {key: value for part in (*parts, more) for key, value in part.items()}


IMAGENET: Settings = {"views": "photo", "image_size": 224, "encoder": "resnet50"}
CIFAR10: Settings = {"views": "small", "encoder": "resnet18-cifar"}
LARS: Settings = {"optimizer": "lars", "lr_scaling": "linear", "warmup_epochs": 10}
LARS_TORCH = _joined(LARS, optimizer="lars-torch")
SGD: Settings = {"optimizer": "sgd", "weight_decay": 1e-4, "warmup_epochs": 0}
SIMCLR = _joined(IMAGENET, LARS, batch_size=4096, head_hidden=2048, head_out=128, temperature=0.1)
SIMCLR_V2 = _joined(
    SIMCLR,
    head="v2",
    lr=0.1,
    lr_scaling="sqrt",
    weight_decay=1e-4,
    epochs=800,
    warmup_epochs=40,
)
MOCO = _joined(IMAGENET, SGD, lr=0.03, batch_size=256, epochs=200, head_hidden=2048, head_out=128)
QUEUE: Settings = {"queue_size": 65_536, "key_momentum": 0.999}
MOCO_V3 = _joined(
    IMAGENET,
    batch_size=4096,
    head_hidden=4096,
    head_out=256,
    predictor_hidden=4096,
    key_momentum=0.99,
)

CLUSTERS = _joined(
    IMAGENET,
    LARS_TORCH,
    views="swav",
    lr=4.8,
    lr_scaling="none",
    weight_decay=1e-6,
    batch_size=4096,
    epochs=800,
    head="mlp-bn",
    head_hidden=2048,
    head_out=128,
    temperature=0.1,
    prototypes=3000,
)
SWAV = _joined(CLUSTERS, epsilon=0.05, freeze_epochs=1)
DINO = _joined(
    IMAGENET,
    views="dino",
    lr_scaling="linear",
    batch_size=512,
    epochs=100,
    warmup_epochs=10,
    head="dino",
    head_hidden=2048,
    head_out=256,
    temperature=0.1,
    teacher_temperature=0.04,
    prototypes=65_536,
    key_momentum=0.996,
    freeze_epochs=1,
)
BYOL = _joined(
    IMAGENET,
    LARS_TORCH,
    views="byol",
    batch_size=4096,
    head="mlp-bn",
    head_hidden=4096,
    head_out=256,
    predictor_hidden=4096,
)
REDUNDANCY = _joined(
    IMAGENET,
    LARS_TORCH,
    views="byol",
    lr=0.2,
    weight_decay=1e-6,
    batch_size=2048,
    epochs=1000,
    head="expander",
    head_hidden=8192,
    head_out=8192,
)

PRESETS: dict[str, dict[str, Settings]] = {  # method: preset: settings
    "simclr": {
        "digits": {},
        "paper": _joined(SIMCLR, lr=0.3, weight_decay=1e-6, epochs=100),
        "imagenet": _joined(SIMCLR, lr=0.075, lr_scaling="sqrt", weight_decay=1e-4, epochs=100),
        "v2": SIMCLR_V2,
        "cifar10": _joined(
            CIFAR10,
            LARS,
            lr=1.0,
            weight_decay=1e-4,
            batch_size=512,
            epochs=1000,
            head_hidden=512,
            head_out=128,
            temperature=0.5,
        ),
    },
    "moco": {
        "digits": {"queue_size": 4096, "key_momentum": 0.99},
        "v1": _joined(MOCO, QUEUE, head="linear", temperature=0.07),
        "v2": _joined(MOCO, QUEUE, head="mlp", temperature=0.2),
        "simclr-v2": _joined(SIMCLR_V2, QUEUE),  # with its memory, which is MoCo's
        "cifar10": _joined(
            CIFAR10,
            SGD,
            lr=0.06,
            weight_decay=5e-4,
            batch_size=512,
            epochs=200,
            head="linear",
            head_out=128,
            temperature=0.1,
            queue_size=4096,
            key_momentum=0.99,
            bn_splits=8,
        ),
    },
    "moco-v3": {
        "digits": {"key_momentum": 0.99, "predictor_hidden": 256},
        "resnet50": _joined(
            MOCO_V3, LARS_TORCH, lr=0.6, weight_decay=1e-6, epochs=100, head="v1", temperature=1.0
        ),
        "vit-small": _joined(
            MOCO_V3,
            encoder="timm:vit_small_patch16_224",
            optimizer="adamw",
            lr=1.5e-4,
            lr_scaling="linear",
            weight_decay=0.1,
            warmup_epochs=40,
            epochs=300,
            head="v2",
            temperature=0.2,
            freeze_patch_embedding=True,
        ),
    },
    "npid": {
        "digits": {
            **{"head": "linear", "negatives": 1024, "bank_momentum": 0.5},
            **{"batch_size": 256, "epochs": 200},
        },
        "imagenet": _joined(
            MOCO, head="linear", temperature=0.07, negatives=4096, bank_momentum=0.5
        ),
    },
    "nnclr": {
        "digits": {"queue_size": 1024, "predictor_hidden": 256},
        "imagenet": _joined(
            IMAGENET,
            LARS_TORCH,
            lr=0.3,
            weight_decay=1e-6,
            batch_size=4096,
            epochs=1000,
            head="v2",
            head_hidden=2048,
            head_out=256,
            predictor_hidden=4096,
            temperature=0.1,
            queue_size=98_304,
        ),
    },
    "supcon": {
        "digits": {},
        "cifar10": _joined(
            CIFAR10,
            SGD,
            encoder="resnet50-cifar",
            lr=0.5,
            warmup_epochs=10,
            batch_size=1024,
            epochs=1000,
            head="mlp",
            head_hidden=2048,
            head_out=128,
            temperature=0.1,
        ),
    },
    "swav": {
        "digits": {"head": "mlp-bn", "prototypes": 32, "epsilon": 0.03},
        "imagenet": SWAV,
        "imagenet-256": _joined(
            SWAV,
            lr=0.6,
            lr_scaling="none",
            warmup_epochs=0,
            batch_size=256,
            epochs=400,
            queue_size=3840,
            queue_epoch=15,
        ),
    },
    "dino": {
        "digits": {"head": "mlp-bn", "prototypes": 64, "key_momentum": 0.99},
        "vit-small": _joined(
            DINO,
            encoder="timm:vit_small_patch16_224",
            optimizer="adamw",
            lr=5e-4,
            weight_decay=0.04,
        ),
        "resnet50": _joined(DINO, SGD, views="dino-resnet", lr=0.03, warmup_epochs=10),
    },
    "deepcluster": {
        "digits": {"head": "mlp-bn", "prototypes": 64, "clusterings": 3},
        "imagenet": _joined(CLUSTERS, clusterings=3),
    },
    "byol": {
        "digits": {"predictor_hidden": 256, "key_momentum": 0.9},
        "imagenet-300": _joined(BYOL, lr=0.3, weight_decay=1e-6, epochs=300, key_momentum=0.99),
        "imagenet-1000": _joined(
            BYOL, lr=0.2, weight_decay=1.5e-6, epochs=1000, key_momentum=0.996
        ),
    },
    "simsiam": {
        "digits": {"predictor_hidden": 64},
        "imagenet": _joined(
            IMAGENET,
            SGD,
            lr=0.05,
            lr_scaling="linear",
            batch_size=512,
            epochs=100,
            head="simsiam",
            head_hidden=2048,
            head_out=2048,
            predictor_hidden=512,
        ),
    },
    "barlow-twins": {
        "digits": {"head": "expander", "head_out": 128, "lambd": 0.02},
        "imagenet": _joined(REDUNDANCY, lambd=0.0051),
    },
    "vicreg": {
        "digits": {"head": "expander", "head_out": 256},
        "imagenet": _joined(REDUNDANCY, invariance=25, variance=25, covariance=1),
    },
    "end-to-end": {
        "digits": {},
        "imagenet": _joined(
            MOCO, head="linear", batch_size=1024, lr_scaling="linear", temperature=0.07
        ),
    },
}


def settings_of(method: str, preset: str) -> Settings:
    """What a preset of a method sets.

    Raises:
        UserError: the method has no such preset.
    """
    if preset not in PRESETS[method]:
        raise choose(f"preset of {method}", preset, list(PRESETS[method]))
    return PRESETS[method][preset]
