"""SIGKILL at random moments of real runs: no directory is left unreadable, and every resume ends in the same bits.

One kill of the quickstart by default, whose network is the relu experiment's, and its checkpoints as large. On all of
MNIST, as docs/exactness.md reports: `JAXMLP_KILLS=100 python -m pytest tests/test_kills.py`
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jaxmlp.run.directory import RunDirectory

KILLS = int(os.environ.get("JAXMLP_KILLS") or 1)
MIN_EPOCHS, MAX_EPOCHS, EXPERIMENT = (3, 5, "quickstart") if KILLS <= 10 else (2, 4, "relu_rmsprop")


def train(*arguments: object, cache: Path | None = None) -> subprocess.Popen[str]:
    """A process of its own, with checkpoints so often that kills meet their writes; a new cache makes it compile."""
    words = [sys.executable, "-m", "jaxmlp", "train", *map(str, arguments), "--checkpoint-s", "0.2", "--json"]
    environment = os.environ | ({"XDG_CACHE_HOME": str(cache)} if cache else {})
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


def logs(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    with RunDirectory.open(path, write=False) as run:
        metrics = [{name: value for name, value in line.items() if name != "seconds"} for line in run.epochs()]
        return metrics, run.digests()


@pytest.mark.slow
def test_runs_killed_at_random_moments_resume_to_the_uninterrupted_bits(tmp_path: Path) -> None:
    whole = finished(train(EXPERIMENT, "--epochs", MAX_EPOCHS, "--out", tmp_path / "whole"))
    metrics, digests = logs(tmp_path / "whole")
    run_s, start_s = whole["total_s"], whole["total_s"] - whole["train_s"] - whole["compile_s"]
    draw, kills = random.Random(0), 0
    for number in itertools.count():
        path, epochs = tmp_path / f"killed-{number}", draw.randint(MIN_EPOCHS, MAX_EPOCHS)
        while kills < KILLS:
            process = start(path, epochs)
            begin_s = min(start_s, run_s / 2)
            time.sleep(draw.uniform(begin_s, begin_s + (run_s - begin_s) * epochs / MAX_EPOCHS))
            process.kill()
            process.communicate()
            if process.returncode == 0:
                run_s *= 0.8  # It was done before: the machine is faster now.
                break
            kills += 1
            if (path / "config.json").exists():
                logs(path)
            if draw.random() < 0.3:
                break
        finished(start(path, epochs))
        assert logs(path) == (metrics[:epochs], digests[:epochs]), f"differs after kill {kills}"
        if kills == KILLS:
            return


def start(path: Path, epochs: int) -> subprocess.Popen[str]:
    """A run, or what is left of one: as a user would after a kill."""
    if (path / "config.json").exists():
        return train("--resume", path)
    return train(EXPERIMENT, "--epochs", epochs, "--out", path, cache=path.with_suffix(".cache"))
