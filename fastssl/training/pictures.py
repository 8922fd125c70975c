"""Pictures of a run: the loss, views, a map of the embeddings, nearest neighbours."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from fastssl.data import Images, Split, Views, reader
from fastssl.evaluation import extract_features

MAPPED = 1000  # images on the map, and among which neighbours are sought
SHOWN = 10


def draw_pictures(
    path: Path,
    metrics: list[dict[str, float]],
    encoder: nn.Module,
    data: Split,
    recipe: Views,
    device: torch.device,
) -> None:
    """Write loss.png, views.png, map.png and neighbours.png into a run directory.

    Args:
        path: the directory.
        metrics: a dict for each step, with "step" and "loss".
        encoder: on ``device``.
        data: its test images are mapped, or those trained on where there are none.
        recipe: whose views are shown, and whose normalisation the encoder expects.
        device: of the encoder.
    """
    first = torch.arange(min(SHOWN, len(data.train)))
    images = data.train[first]
    save(loss_curve(metrics), path / "loss.png")
    views = recipe(reader(data.train, recipe)(first), first, 0)
    rows = [images.float() / 255, *(recipe.denormalize(view) for view in views)]
    save(
        image_grid(rows, ["image", *(f"view {i + 1}" for i in range(recipe.views))]),
        path / "views.png",
    )

    shown, labels = some_images(data.test or data.train)
    if len(shown) < 5:
        return
    features = extract_features(encoder, shown, transform=recipe.normalize, device=device)
    save(embedding_map(features, labels), path / "map.png")
    save(neighbours(features, shown), path / "neighbours.png")


def loss_curve(metrics: list[dict[str, float]]) -> Figure:
    """The loss of each step."""
    figure, axes = blank(6, 4)
    axes.plot([m["step"] for m in metrics], [m["loss"] for m in metrics])
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    return figure


def image_grid(rows: list[Tensor], names: list[str]) -> Figure:
    """Rows of images, [n, C, H, W] in [0, 1] each, a name beside every row; the first are as wide
    as any."""
    width = rows[0].shape[3]
    heights = [row.shape[2] + 2 for row in rows]  # with a frame
    figure, axes = blank(1.0 * len(rows[0]) + 1, 1.05 * sum(heights) / heights[0])
    lines = []
    for row in rows:
        framed = F.pad(row, (1, 1 + width - row.shape[3], 1, 1), value=1)
        lines.append(torch.cat(list(framed), dim=2))
    picture = torch.cat(lines, dim=1)  # [C, the heights' sum, n·(W + 2)]
    picture = picture.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1)
    axes.imshow(picture.numpy(), interpolation="nearest")
    axes.set_xticks([])
    middles = [sum(heights[:i]) + height / 2 for i, height in enumerate(heights)]
    axes.set_yticks(middles, names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def embedding_map(features: Tensor, labels: Tensor | None) -> Figure:
    """Features [n, F] in two dimensions, by PCA to at most 50 and t-SNE; colours are labels."""
    x = F.normalize(features).numpy()
    perplexity = min(30, (len(x) - 1) / 3)
    with threadpool_limits(1):  # for so few points threads cost more than they bring
        x = PCA(min(50, *x.shape), random_state=0).fit_transform(x)
        places = TSNE(2, perplexity=perplexity, init="random", random_state=0).fit_transform(x)
    figure, axes = blank(6, 6)
    x, y = places.T
    if labels is None:
        axes.scatter(x, y, s=8)
    else:
        dots = axes.scatter(x, y, s=8, c=labels.numpy(), cmap="tab10")
        if len(labels.unique()) <= 10:
            axes.legend(*dots.legend_elements(), title="label", fontsize="small")
    axes.set_xticks([])
    axes.set_yticks([])
    return figure


def neighbours(features: Tensor, images: Tensor, queries: int = 8, count: int = 8) -> Figure:
    """Every row an image and those with the nearest features, nearest first."""
    x = F.normalize(features)
    chosen = torch.linspace(0, len(x) - 1, min(queries, len(x))).long()
    similarity = x[chosen] @ x.T
    similarity[torch.arange(len(chosen)), chosen] = 2  # the image itself stands first
    nearest = similarity.topk(min(count + 1, len(x))).indices
    figure = image_grid([images[row].float() / 255 for row in nearest], [""] * len(chosen))
    figure.suptitle("an image, then those whose features are nearest")
    return figure


def some_images(images: Images) -> tuple[Tensor, Tensor | None]:
    """At most MAPPED images, spread over the set, uint8 [n, C, H, W], and their labels."""
    indices = torch.linspace(0, len(images) - 1, min(MAPPED, len(images))).long()
    return images[indices], None if images.labels is None else images.labels[indices]


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure that belongs to no window and no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
