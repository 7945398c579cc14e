"""How many seconds does a recipe need to reach a mean test accuracy over many seeds?"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlp import data
from jaxmlp.bench.spread import Spread
from jaxmlp.engine.fitting import fit
from jaxmlp.engine.history import History
from jaxmlp.errors import ConfigError
from jaxmlp.experiment.config import ExperimentConfig


def speedrun(
    config: ExperimentConfig,
    dataset: data.Dataset,
    seeds: Sequence[int],
    *,
    target: float,
    out: Path | None = None,
    started: float | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train the recipe with every seed, one after the other.

    Args:
        config: The recipe. If it validates, the times include the validations. If it validates on the test split, they
            also show when the target was reached.
        dataset: The data. The test split scores the last parameters, outside the times.
        seeds: Two or more seeds.
        target: Test accuracy that the mean must reach.
        out: New folder with a run of each seed, `seed-N`, as `jaxmlp train` writes it. The times include the writing.
            Default: nothing is written.
        started: `time.perf_counter()` at the start of the process, from which the first seed is also timed.
        tell: Called with the figures of each seed.

    Returns:
        Times, accuracies, digests of the last states, mean and spread, and the one-sided p-value of a mean at or below
        the target (Student's t). If the recipe validates on the test split, also the first epoch whose mean accuracy
        reached the target.
    """
    from scipy.stats import ttest_1samp

    if "accuracy" not in (metric.name for metric in config.metrics):
        raise ConfigError("metrics", "must contain accuracy, which the target is of")
    histories: list[History] = []
    from_start_s = None
    for seed in seeds:
        run = out / f"seed-{seed}" if out else None
        histories.append(fit(dataclasses.replace(config, seed=seed), dataset, out=run))
        if started is not None and from_start_s is None:
            from_start_s = time.perf_counter() - started
        tell(f"seed {seed}: {histories[-1].train_s:.3f} s, test accuracy {histories[-1].test['accuracy']:.4f}")
    seconds, accuracies = zip(*((each.train_s, each.test["accuracy"]) for each in histories), strict=True)
    found = {
        "seeds": list(seeds),
        "train_s": list(seconds),
        "train": Spread.of(seconds)._asdict(),
        "compile_s": histories[0].compile_s,
        "first_seed_from_process_start_s": from_start_s,
        "test_accuracy": list(accuracies),
        "state_sha256": [each.state_sha256 for each in histories],
        "mean_test_accuracy": float(np.mean(accuracies)),
        "std_test_accuracy": float(np.std(accuracies, ddof=1)),
        "target": target,
        "p": float(ttest_1samp(accuracies, target, alternative="greater").pvalue),
    }
    return found | (_reached(histories, target) if config.data.validation == "test" else {})


def line(name: str, found: dict[str, Any]) -> str:
    """The result as a line for people."""
    figures = (
        f"{name}: {found['train']['median']:.3f} s (IQR {found['train']['iqr']:.3f}) from the first step to the last, "
        f"compile {found['compile_s']:.1f} s; mean test accuracy {found['mean_test_accuracy']:.4f} "
        f"+- {found['std_test_accuracy']:.4f}, n = {len(found['seeds'])}, p = {found['p']:.2g} for {found['target']}"
    )
    if epoch := found.get("epoch_reached"):
        figures += f"; reached after epoch {epoch}, in {found['reached_s']:.3f} s"
    return figures


def _reached(histories: Sequence[History], target: float) -> dict[str, Any]:
    """The first epoch whose mean accuracy over the seeds reaches the target, and the median time to its end."""
    means = np.mean([history["val_accuracy"] for history in histories], axis=0)
    if not (means >= target).any():
        return {"epoch_reached": None, "reached_s": None}
    epoch = int(np.argmax(means >= target)) + 1
    times = [sum(history["seconds"][:epoch]) for history in histories]
    return {"epoch_reached": epoch, "reached_s": Spread.of(times).median}
