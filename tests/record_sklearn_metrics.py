"""What scikit-learn says of the random cases of test_metrics: writes sklearn_metrics.npz beside it.

    cd tests; ../.venv/bin/python record_sklearn_metrics.py

The environment of `make test` has scikit-learn, because mlxtend needs it. Tests read the file and need none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn import calibration, metrics
from test_metrics import CLASSES, OF_CASES, random_cases

from jaxmlp.experiment.metrics import Accuracy, BrierScore, CalibrationError, Precision, Recall, TopK

SCORES = {Precision: metrics.precision_score, Recall: metrics.recall_score}


def figure(metric: Any, probabilities: Any, labels: Any) -> float:
    """The metric of these examples."""
    answers, classes = probabilities.argmax(axis=1), range(probabilities.shape[1])
    if isinstance(metric, Accuracy):
        return float(metrics.accuracy_score(labels, answers))
    if isinstance(metric, TopK):
        scores = probabilities[:, 1] if len(classes) == 2 else probabilities
        return float(metrics.top_k_accuracy_score(labels, scores, k=metric.k, labels=classes))
    if isinstance(metric, BrierScore):
        return float(metrics.brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False))
    if isinstance(metric, CalibrationError):
        confidence, right = probabilities.max(axis=1), answers == labels
        rate, mean = calibration.calibration_curve(right, confidence, n_bins=metric.bins)
        edges = np.linspace(0, 1, metric.bins + 1)
        counts = np.bincount(np.searchsorted(edges[1:-1], confidence))
        return float(np.abs(rate - mean) @ counts[counts > 0] / len(labels))
    score = SCORES.get(type(metric), metrics.f1_score)
    chosen = {"average": "macro"} if metric.label is None else {"average": "macro", "labels": [metric.label]}
    return float(score(labels, answers, zero_division=0.0, **chosen))


def main() -> None:
    """Write the file."""
    found = {}
    for classes in CLASSES:
        logits, labels, rows = random_cases(classes)
        probabilities: Any = np.float64(jax.nn.softmax(logits))
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        cases = [(probabilities[case, :number], labels[case, :number]) for case, number in enumerate(rows)]
        for metric in OF_CASES:
            found[f"{metric.name}_of_{classes}"] = np.float32([figure(metric, *case) for case in cases])
        outputs: Any = np.float64(logits)
        found[f"mean_absolute_error_of_{classes}"] = np.float32(
            [metrics.mean_absolute_error(outputs[i, :n, ::-1], outputs[i, :n]) for i, n in enumerate(rows)]
        )
    np.savez_compressed(Path(__file__).with_name("sklearn_metrics.npz"), **found)


if __name__ == "__main__":
    main()
