"""A sweep in processes of its own, killed, stopped or several at once, ends in the same JSON."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import small_sweep
from small_sweep import without_times

pytestmark = pytest.mark.optimized

experiment = small_sweep.experiment
SETS = ("--seeds", "0:3", "--set", "optimizer.learning-rate=0.0003,0.001")


def program(*words: object, devices: int | None = None) -> subprocess.Popen[str]:
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}" if devices else ""}
    command = [sys.executable, "-m", "jaxmlp", "sweep", *map(str, words), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | flags)


def answered(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


def told(document: dict[str, Any]) -> Any:
    """All that may not depend on times, folders and machines' sizes."""
    free = {"sweep_dir", "devices", "processes"}
    return without_times({name: value for name, value in document.items() if name not in free})


@pytest.fixture(scope="module")
def whole(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, float]:
    """An uninterrupted sweep, and how long it took."""
    began = time.monotonic()
    document = answered(program(experiment, *SETS, "--out", tmp_path_factory.mktemp("whole") / "sweep"))
    return told(document), time.monotonic() - began


@pytest.mark.slow
def test_killed_at_two_random_moments_a_sweep_ends_in_the_same_json(
    experiment: Path, whole: tuple[Any, float], tmp_path: Path
) -> None:
    path = tmp_path / "sweep"

    def go_on() -> subprocess.Popen[str]:
        words = ("--resume", path) if (path / "sweep.json").exists() else (experiment, *SETS, "--out", path)
        return program(*words, "--checkpoint-s", "0")

    draw = random.Random(0)
    for _ in range(2):
        process = go_on()
        time.sleep(draw.uniform(0.4, 1) * whole[1])
        process.kill()
        process.communicate()
    assert told(answered(go_on())) == whole[0]


@pytest.mark.slow
def test_two_processes_of_two_devices_give_the_same_lanes(
    experiment: Path, whole: tuple[Any, float], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = (experiment, *SETS, "--out", tmp_path / "sweep", "--checkpoint-s", "0")
    started = [program(*words, "--distributed", f"{address},2,{index}", devices=2) for index in range(2)]
    try:
        documents = [answered(process) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    for document in documents:
        assert (document["devices"], document["processes"]) == (4, 2)
        assert told(document) == whole[0]


@pytest.mark.slow
def test_a_stop_signal_saves_and_tells_how_to_go_on(experiment: Path, whole: tuple[Any, float], tmp_path: Path) -> None:
    path = tmp_path / "sweep"
    process = program(experiment, *SETS, "--epochs", "100000", "--out", path, "--checkpoint-s", "0")
    deadline = time.monotonic() + 60
    while not list(path.glob("group/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"SIGTERM: 0 of 6 lanes are done, lanes in training are saved. Go on: jaxmlp sweep --resume {path}" in err
    assert json.loads(out)["status"] == "interrupted"
    assert json.loads((path / "manifest.json").read_text())["status"] == "interrupted"
