"""What pre-training gave: frozen features judged beside an untrained encoder and raw pixels."""

from fastssl.evaluation.evaluate import evaluate_encoder
from fastssl.evaluation.features import extract_features, raw_pixels
from fastssl.evaluation.few_labels import draw_labels, few_label_accuracy
from fastssl.evaluation.knn import knn_accuracy, knn_predict
from fastssl.evaluation.linear import linear_accuracy
from fastssl.evaluation.report import to_markdown, to_table, write_report

__all__ = [
    "draw_labels",
    "evaluate_encoder",
    "extract_features",
    "few_label_accuracy",
    "knn_accuracy",
    "knn_predict",
    "linear_accuracy",
    "raw_pixels",
    "to_markdown",
    "to_table",
    "write_report",
]
