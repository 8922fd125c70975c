"""What pre-training gave: features judged beside an untrained encoder and raw pixels, fine-tuning,
distillation."""

from fastssl.evaluation.clustering import clustering_scores, kmeans_predict
from fastssl.evaluation.distillation import DISTILLING, distill
from fastssl.evaluation.evaluate import evaluate_encoder
from fastssl.evaluation.features import extract_features, raw_pixels
from fastssl.evaluation.few_labels import draw_labels, draw_share, few_label_accuracy
from fastssl.evaluation.fine_tuning import fine_tune
from fastssl.evaluation.fitting import Fitting, accuracy
from fastssl.evaluation.knn import knn_accuracy, knn_predict
from fastssl.evaluation.linear import linear_accuracy
from fastssl.evaluation.rank_me import rank_me
from fastssl.evaluation.report import cell, to_markdown, to_table, write_report
from fastssl.evaluation.tasks import QUICK_TASKS, TASKS, WITHOUT_LABELS

__all__ = [
    "DISTILLING",
    "QUICK_TASKS",
    "TASKS",
    "WITHOUT_LABELS",
    "Fitting",
    "accuracy",
    "cell",
    "clustering_scores",
    "distill",
    "draw_labels",
    "draw_share",
    "evaluate_encoder",
    "extract_features",
    "few_label_accuracy",
    "fine_tune",
    "kmeans_predict",
    "knn_accuracy",
    "knn_predict",
    "linear_accuracy",
    "rank_me",
    "raw_pixels",
    "to_markdown",
    "to_table",
    "write_report",
]
