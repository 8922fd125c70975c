"""What `evaluate_encoder` measures, as jobs over frozen features or over encoders."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fastssl.evaluation.clustering import clustering_scores, kmeans_predict
from fastssl.evaluation.few_labels import few_label_accuracy
from fastssl.evaluation.knn import knn_accuracy
from fastssl.evaluation.linear import linear_accuracy
from fastssl.evaluation.progress import Bar
from fastssl.evaluation.rank_me import rank_me

QUICK_TASKS = ("knn", "few-labels", "linear", "clustering", "rankme")  # of frozen features
TUNING_TASKS = ("fine-tuning", "semi-supervised")
TASKS = (*QUICK_TASKS, *TUNING_TASKS)
WITHOUT_LABELS = ("rankme",)

KNN_NEIGHBOURS = 20
KNN_TEMPERATURE = 0.07
RANK_ME = "RankMe, dimensions"

Features = tuple[Tensor, Tensor]  # of the training and of the test images, [N, D] and [Q, D]
Rows = dict[str, float]
# How often, None being once for each variant, and from a variant and a seed to rows with values.
Job = tuple[int | None, Callable[[Any, int], Rows]]
Cells = dict[str, dict[str, dict[str, float]]]  # by row, by column: mean and std


def rank_job() -> Job:
    """RankMe of the training features."""
    return None, lambda split, seed: {RANK_ME: rank_me(split[0])}


def probe_jobs(
    tasks: Sequence[str], y: Tensor, test_y: Tensor, per_class: Sequence[int], draws: int
) -> list[Job]:
    """The tasks on frozen features that need labels, y of the training and test_y of the test."""

    def knn(split: Features, seed: int) -> Rows:
        given = (split[0], y, split[1], test_y)
        return {"kNN": knn_accuracy(*given, k=KNN_NEIGHBOURS, temperature=KNN_TEMPERATURE)}

    def few(k: int) -> Callable[[Features, int], Rows]:
        row = f"{k} label{'s' if k > 1 else ''} a class"
        return lambda split, seed: {
            row: few_label_accuracy(split[0], y, split[1], test_y, per_class=k, seed=seed)
        }

    def linear(split: Features, seed: int) -> Rows:
        return {"linear probe, all labels": linear_accuracy(split[0], y, split[1], test_y)}

    def clustering(split: Features, seed: int) -> Rows:
        clusters = kmeans_predict(*split, len(y.unique()), seed=seed)
        scores = clustering_scores(test_y, clusters)
        return {f"k-means, {name}": score for name, score in scores.items()}

    jobs: dict[str, list[Job]] = {
        "knn": [(None, knn)],
        "few-labels": [(draws, few(k)) for k in per_class],
        "linear": [(None, linear)],
        "clustering": [(None, clustering)],
    }
    return [job for name, several in jobs.items() if name in tasks for job in several]


def tuning_jobs(
    tasks: Sequence[str],
    tuned_accuracy: Callable[[nn.Module, float, int], float],
    shares: Sequence[float],
    repeats: int,
) -> list[Job]:
    """The tasks that train; ``tuned_accuracy`` takes an encoder, a share of labels and a seed."""

    def of(share: float, row: str) -> Callable[[nn.Module, int], Rows]:
        return lambda encoder, seed: {row: tuned_accuracy(encoder, share, seed)}

    jobs: list[Job] = []
    if "fine-tuning" in tasks:
        jobs.append((1, of(1.0, "fine-tuning, all labels")))
    if "semi-supervised" in tasks:
        jobs += [(repeats, of(s, f"fine-tuning, {100 * s:g}% of labels")) for s in shares]
    return jobs


def measure(
    columns: Mapping[str, Sequence[Any]],
    jobs: Iterable[Job],
    cells: Cells,
    *,
    seed: int,
    title: str,
    progress: bool,
) -> None:
    """Do the jobs on every column's variants, run i on variant i mod n, and add to ``cells``."""
    jobs = list(jobs)
    total = sum(times or len(variants) for variants in columns.values() for times, _ in jobs)
    with Bar(title, total, progress and total > 0) as advance:
        for column, variants in columns.items():
            for times, job in jobs:
                values: dict[str, list[float]] = {}
                for i in range(times or len(variants)):
                    for row, value in job(variants[i % len(variants)], seed + i).items():
                        values.setdefault(row, []).append(value)
                    advance(1)
                for row, of_row in values.items():
                    summary = {"mean": statistics.fmean(of_row), "std": statistics.pstdev(of_row)}
                    cells.setdefault(row, {})[column] = summary
