"""The settings of a run: the command line and a YAML file both fill them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fastssl.errors import UserError
from fastssl.methods import METHODS
from fastssl.training.presets import settings_of

MethodName = Literal[
    "simclr",
    "moco",
    "moco-v3",
    "npid",
    "nnclr",
    "supcon",
    "end-to-end",
    "swav",
    "dino",
    "deepcluster",
    "byol",
    "simsiam",
    "barlow-twins",
    "vicreg",
]
# Settings that only some methods take: arguments of their classes, under the same names.
PARTICULAR = (
    "queue_size",
    "key_momentum",
    "bn_splits",
    "predictor_hidden",
    "freeze_patch_embedding",
    "negatives",
    "bank_momentum",
    "prototypes",
    "epsilon",
    "queue_epoch",
    "freeze_epochs",
    "teacher_temperature",
    "warmup_teacher_temperature",
    "teacher_warmup_epochs",
    "clusterings",
    "lambd",
    "invariance",
    "variance",
    "covariance",
)


class TrainConfig(BaseModel):
    """Settings of a training run. The defaults are the recipe for scikit-learn's digits."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    method: MethodName = "simclr"
    """what is trained"""
    preset: str = "digits"
    """settings by name: what learns digits, or what the method's authors did. simclr: paper |
    imagenet | v2 | cifar10; moco: v1 | v2 | simclr-v2 | cifar10; moco-v3: resnet50 | vit-small;
    npid, nnclr, end-to-end: imagenet; supcon: cifar10; swav: imagenet | imagenet-256; dino:
    vit-small | resnet50; byol: imagenet-300 | imagenet-1000; deepcluster, simsiam, barlow-twins,
    vicreg: imagenet. What is given beside it counts more"""
    data: str = "digits"
    """digits | folder:PATH, or the path alone | mnist:PATH | cifar10:PATH | hf:NAME_OR_DIR"""
    image_size: int | None = Field(None, ge=8)
    """pixels a side; None: the data's own, 16 for digits, 224 for folder and hf"""
    eval_crop: float | None = Field(None, gt=0, le=1)
    """a folder's or hf's images are judged by the square in their middle, of this share of the
    shorter side; None: 0.875, 224 of 256, where image_size is 64 or more, else 1"""
    views: str | None = None
    """recipe of the random views: digits | small | photo | simclr | moco-v1 | moco-v2, any number;
    or two of unequal strength, byol; or two with smaller crops beside them, for swav, dino,
    deepcluster: swav | dino | dino-resnet | dinov2 | digits-crops; None: what suits the data"""

    encoder: str = "small-resnet"
    """small-resnet | small-cnn | resnet18 | resnet18-cifar | resnet50 | resnet50-cifar |
    timm:NAME | torchvision:NAME"""
    head: str = "v1"
    """projection head: v1 | v2, SimCLR's of 2 or 3 layers with batch norm; simsiam, of 3 with it;
    mlp-bn | expander, of 2 or 3 with it between them; linear | mlp | dino, of 1, 2 or 3 without"""
    head_hidden: int = Field(256, gt=0)
    """width inside the head; 2048 in SimCLR, on ImageNet"""
    head_out: int = Field(64, gt=0)
    """width of the embeddings the loss compares"""
    temperature: float = Field(0.2, gt=0)
    """of the loss"""

    queue_size: int | None = Field(None, gt=0)
    """moco, nnclr, swav: embeddings kept of earlier batches"""
    key_momentum: float | None = Field(None, ge=0, le=1)
    """moco, moco-v3, dino, byol: how much of the key encoder (the teacher, the target) stays in a
    step; but for moco at first, growing to 1"""
    bn_splits: int | None = Field(None, gt=0)
    """moco: groups of a batch (or chunk) that batch norm treats apart, as on so many devices"""
    predictor_hidden: int | None = Field(None, gt=0)
    """moco-v3, nnclr, byol, simsiam: width inside the predictor"""
    freeze_patch_embedding: bool | None = None
    """moco-v3: do not train a ViT's first layer"""
    negatives: int | None = Field(None, gt=0)
    """npid: images drawn for a step to be told from"""
    bank_momentum: float | None = Field(None, ge=0, lt=1)
    """npid: how much of an image's row in the bank stays in a step"""
    prototypes: int | None = Field(None, gt=1)
    """swav, dino, deepcluster: vectors that embeddings are assigned to"""
    epsilon: float | None = Field(None, gt=0)
    """swav: temperature of the assignments"""
    queue_epoch: int | None = Field(None, ge=0)
    """swav: from this epoch on, counted from 0, the queue takes part in assignments"""
    freeze_epochs: float | None = Field(None, ge=0)
    """swav, dino: epochs in which the prototypes stay as they are, at first"""
    teacher_temperature: float | None = Field(None, gt=0)
    """dino: of the teacher's softmax"""
    warmup_teacher_temperature: float | None = Field(None, gt=0)
    """dino: the same, at first; None: no other"""
    teacher_warmup_epochs: int | None = Field(None, ge=0)
    """dino: epochs of its way from the first to the other"""
    clusterings: int | None = Field(None, gt=0)
    """deepcluster: how many times the images are clustered for an epoch"""
    lambd: float | None = Field(None, ge=0)
    """barlow-twins: weight of the correlations between features"""
    invariance: float | None = Field(None, ge=0)
    """vicreg: weight of the distance of views"""
    variance: float | None = Field(None, ge=0)
    """vicreg: weight of the features' deviations"""
    covariance: float | None = Field(None, ge=0)
    """vicreg: weight of the features' covariances"""

    epochs: int = Field(400, gt=0)
    """passes over the training images"""
    batch_size: int = Field(1024, gt=1)
    """images a step, over all ranks: the loss compares all of them"""
    chunk_size: int | None = Field(256, gt=0)
    """images embedded at a time, for the exact gradient of a large batch in little memory;
    None: the whole batch"""
    ring: bool = False
    """with several ranks, pass their embeddings around a ring, for less memory than gathering"""
    optimizer: str = "adamw"
    """sgd | adamw | lars, as SimCLR | lars-torch, as MoCo v3: the rate outside of the velocity"""
    lr: float = Field(3e-3, gt=0)
    """peak learning rate, before its scaling"""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """by the batch size B: linear, lr·B/256; sqrt, lr·√B"""
    warmup_epochs: float = Field(10, ge=0)
    """epochs of rising learning rate, before half a cosine down to 0"""
    momentum: float = Field(0.9, ge=0, lt=1)
    """of SGD; of AdamW, β₁"""
    weight_decay: float = Field(1e-4, ge=0)
    """not of biases and norms"""

    device: str = "auto"
    """auto | cpu | cuda | cuda:1 …; auto: a GPU where there is one"""
    autocast: Literal["none", "bf16", "fp16"] = "none"
    """precision of the encoder's arithmetic"""
    channels_last: bool = True
    """memory format of images and filters"""
    compile: bool = False
    """torch.compile the encoder"""
    deterministic: bool = False
    """only deterministic algorithms, also on a GPU; a CPU is deterministic without"""
    workers: int = Field(4, gt=0)
    """threads that decode image files"""
    prefetch: int = Field(2, gt=0)
    """batches that are read ahead of their use"""
    keep: Literal["auto", "decoded", "encoded", "files"] = "auto"
    """of a folder's images: decoded, their pixels; encoded, their bytes, decoded for each batch;
    files, nothing; auto: decoded with a cache or where half of the free memory holds them, else
    files"""
    cache: Path | None = None
    """directory for what is kept of a folder's images, mapped into memory and found again by the
    next run; None: it is in memory"""
    on_corrupt: Literal["raise", "skip"] = "raise"
    """a folder's image that cannot be decoded: raise stops when it is met, skip leaves it out and
    names it in unreadable.txt"""
    max_side: int | None = Field(None, gt=0)
    """a folder's larger images are made smaller, to this longer side; None: each as it is"""
    resident: bool | None = None
    """on a GPU, keep all images in its memory; None: where a quarter of what is free holds them"""
    seed: int = Field(0, ge=0)
    """of the weights, the order of images, the views, dropout"""

    run_dir: Path | None = None
    """where to write; None: runs/METHOD-DATA-TIME"""
    checkpoint_seconds: float = Field(30, ge=0)
    """at most this much work is lost when a run is killed; 0: checkpoint every step"""
    evaluate: bool = True
    """judge the encoder when training ends; without labels, by RankMe alone"""
    pictures: bool = True
    """draw the loss, views, the map of embeddings and nearest neighbours when training ends"""

    @model_validator(mode="before")
    @classmethod
    def fill_from_preset(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What is not given comes from the preset, then from the defaults."""
        method, preset = (values.get(k, cls.model_fields[k].default) for k in ("method", "preset"))
        return {**settings_of(method, preset), **values} if method in METHODS else values

    @model_validator(mode="after")
    def refuse_what_has_no_effect(self) -> TrainConfig:
        """A setting that is another method's is a mistake."""
        taken = arguments_of(self.method)
        for name in PARTICULAR:
            if name not in taken and getattr(self, name) is not None:
                raise ValueError(f"{name} is no setting of {self.method}")
        return self


def arguments_of(method: str) -> set[str]:
    """The names of what a method's class takes."""
    return set(inspect.signature(METHODS[method]).parameters)


def config_from(values: dict[str, Any], source: str) -> TrainConfig:
    """A config of these values.

    Raises:
        UserError: a key is unknown, or a value is wrong; the line names all of them.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """Pydantic's complaints in one line."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"no setting {key!r}")
        elif not key:  # of several settings together
            lines.append(str(item["ctx"]["error"]))
        else:
            lines.append(f"{key}: {item['msg']} (not {item['input']!r})")
    return "; ".join(lines)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, unchecked.

    Raises:
        UserError: there is no such file, or it is no mapping in YAML.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"{path}: {reason}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold settings such as `epochs: 10`")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def write_yaml(config: TrainConfig, path: Path) -> None:
    """Write every setting, in the order of the class."""
    values = config.model_dump(mode="json")
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
