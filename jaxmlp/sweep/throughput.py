"""How fast is a sweep over seeds, compared with the same runs one after another?"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from jaxmlp import data
from jaxmlp.engine.fitting import fit
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.sweep.start import sweep
from jaxmlp.sweep.values import Batching
from jaxmlp.system import runtime


def time_sweep_and_runs(
    config: ExperimentConfig,
    dataset: data.Dataset,
    *,
    seeds: Sequence[int] = range(16),
    rounds: int = 3,
    batching: Batching = "map",
) -> dict[str, Any]:
    """Train every seed as a sweep and with `fit`, in turns, and compare medians of `train_s`, without compile and test.

    Args:
        config: The experiment.
        dataset: The data set.
        seeds: Seeds. Each is trained twice per round.
        rounds: Number of rounds. The order alternates.
        batching: How the sweep trains its lanes.

    Returns:
        `speedup`: the median time of the solo runs divided by the sweep's median time; both medians and all times in s;
        `updates_per_s` of both; `same_bits`: whether each lane's state has the digest of its solo run.
    """
    runtime.configure(cpu_devices=len(seeds))
    times: dict[str, list[float]] = {"sweep": [], "solo": []}
    digests: dict[str, list[str | None]] = {}
    for number in range(rounds):
        for way in ("sweep", "solo") if number % 2 == 0 else ("solo", "sweep"):
            if way == "sweep":
                result = sweep(config, dataset, seeds=seeds, batching=batching)
                times[way].append(result.train_s)
                digests[way] = [lane.state_sha256 for lane in result.lanes]
            else:
                runs = [fit(dataclasses.replace(config, seed=seed), dataset, devices=1) for seed in seeds]
                times[way].append(sum(run.train_s for run in runs))
                digests[way] = [run.state_sha256 for run in runs]
    updates = len(seeds) * config.epochs * -(-len(dataset.train.targets) // config.batch_size)
    medians = {way: statistics.median(values) for way, values in times.items()}
    return {
        "speedup": medians["solo"] / medians["sweep"],
        "same_bits": digests["sweep"] == digests["solo"],
        "lanes": len(seeds),
        "devices": result.devices,
        "median_s": medians,
        "times_s": times,
        "updates_per_s": {way: updates / value for way, value in medians.items()},
    }
