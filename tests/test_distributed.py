"""Many processes on this machine stand in for many machines: the same bits, and an end for all when one is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from jaxmlp.errors import ConfigError, DeviceError, PeerLostError
from jaxmlp.run.directory import RunDirectory
from jaxmlp.system.distributed import Cluster, explained, is_lost_peer, share, supervise

pytestmark = pytest.mark.optimized

EXPERIMENT = """
from jaxmlp import DataConfig, ExperimentConfig, MLP

CONFIG = ExperimentConfig(
    name="small",
    model=MLP(hidden_sizes=(16,)),
    data=DataConfig(name="mnist_5k"),
    batch_size=200,
    epochs=3,
    grad_shards=4,
)
"""

OWN_DATA = """
import os
import numpy as np
from jaxmlp import DataConfig, DataError, ExperimentConfig, MLP
from jaxmlp import data

def load():
    if os.environ["OWN_DATA"] == "damaged":
        raise DataError("data: train-images is damaged")
    pair = np.full((64, 28, 28, 1), int(os.environ["OWN_DATA"]), np.uint8), np.arange(64) % 10
    return pair, pair

data.register("own", load)
CONFIG = ExperimentConfig(
    model=MLP(hidden_sizes=(4,)), data=DataConfig(name="own", validation=None), epochs=1, batch_size=32, grad_shards=2
)
"""

PROGRAM = [sys.executable, "-m", "jaxmlp", "train", "--json"]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "small.py"
    path.write_text(EXPERIMENT)
    return path


class Processes:
    """The processes of one distributed run, started together."""

    def __init__(
        self, words: Sequence[Sequence[object]], devices: int, environments: Sequence[dict[str, str]] | None = None
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        flags = f"--xla_force_host_platform_device_count={devices}"
        self.all = [
            subprocess.Popen(
                [*PROGRAM, *map(str, own), "--distributed", f"{address},{len(words)},{index}"],
                env=os.environ | {"XLA_FLAGS": flags} | (environments[index] if environments else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index, own in enumerate(words)
        ]

    def ends(self, timeout_s: float) -> list[tuple[int, str, str]]:
        """Exit code, stdout and stderr of each."""
        deadline = time.monotonic() + timeout_s
        ended = []
        for process in self.all:
            out, err = process.communicate(timeout=max(1, deadline - time.monotonic()))
            ended.append((process.returncode, out, err))
        return ended

    def stop(self) -> None:
        for process in self.all:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def processes(count: int, devices: int, *words: object) -> Iterator[Processes]:
    started = Processes([words] * count, devices)
    try:
        yield started
    finally:
        started.stop()


def alone(devices: int, *words: object) -> dict[str, Any]:
    """The result of one process."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    done = subprocess.run([*PROGRAM, *map(str, words)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def wait_for_a_checkpoint(run: Path) -> None:
    deadline = time.monotonic() + 60
    while not list(run.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def uninterrupted(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return alone(1, experiment, "--out", tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.parametrize(
    "text", ["auto!", "host,2,0", "host:1,2", "host:1,2,2", "host:1,0,0", "host:1,2,-1", "host:1,two,0"]
)
def test_a_cluster_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="distributed must be auto or HOST:PORT,PROCESSES,INDEX"):
        Cluster.parse(text)


def test_a_cluster_is_detected_or_told() -> None:
    assert Cluster.parse("auto") == Cluster()
    assert Cluster.parse("node1:1234,8,7") == Cluster("node1:1234", 8, 7)


WORDS_OF_A_LOST_PEER = (
    "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:589] "
    "Connection closed by peer [127.0.0.1]:4711",
    "INTERNAL: Gloo all-gather failed: Read error [10.0.0.2]:25266: Connection reset by peer",
    "Gloo all-reduce failed: Timed out waiting 1800000ms for recv operation to complete",
    "NCCL operation ncclAllReduce failed: remote process exited or there was a network error",
    "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats): /job:jax_worker/task:1. "
    "The coordination service ends this one.",
)
WORDS_OF_ANOTHER_FAULT = (
    "INTERNAL: NCCL operation ncclCommInitRank(&comm, nranks, id, rank) failed: unhandled cuda error",
    "NCCL operation ncclGetUniqueId(&id) failed: Unable to load NCCL library. Multi-GPU collectives will not work.",
    "ncclInvalidUsage: This usually reflects invalid usage of NCCL library. Duplicate GPU detected : rank 1 and rank 0",
    "INVALID_ARGUMENT: Gloo does not support this reduction type",
)


@pytest.mark.parametrize("words", WORDS_OF_A_LOST_PEER)
def test_a_connection_that_broke_is_a_lost_peer_and_keeps_its_cause(words: str) -> None:
    error = explained(RuntimeError(f"{words}\nmore"), "sweep")
    assert isinstance(error, PeerLostError) and is_lost_peer(RuntimeError(words))
    assert str(error) == f"distributed: another process of this sweep is gone: {words}"


@pytest.mark.parametrize("words", WORDS_OF_ANOTHER_FAULT)
def test_another_fault_of_the_transport_is_no_lost_peer_and_keeps_its_cause(words: str) -> None:
    error = explained(RuntimeError(words))
    assert isinstance(error, DeviceError) and not is_lost_peer(RuntimeError(words))
    assert words in str(error) and "gone" not in str(error)


def test_an_error_that_only_looks_like_one_of_the_transport_is_left_as_it_is() -> None:
    for words in ("Broken pipe", "shapes (3,) and (4,) differ", "no such file: Gloom.py"):
        assert explained(OSError(words)) is None and not is_lost_peer(OSError(words))


ABORTS = """
import os, sys
print({text!r}, file=sys.stderr, flush=True)
os.abort()
"""


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("F0101 00:00:00 1 pjrt.cc:1] Check failed: size >= 0", 134, "Check failed: size >= 0"),
        ("E0101 00:00:00 1 client.cc:1] (stopped sending heartbeats): 1", 9, "distributed: process 1 is gone"),
    ],
)
def test_a_process_that_aborts_blames_another_one_only_where_it_was_lost(
    text: str, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = subprocess.Popen
    program = [sys.executable, "-c", ABORTS.format(text=text)]
    monkeypatch.setattr(subprocess, "Popen", lambda command, **named: real(program, **named))
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert supervise(["train"]) == code
    assert said in capfd.readouterr().err


def test_bytes_of_more_than_2_gib_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def first_of(padded: np.ndarray) -> np.ndarray:
        sizes.append(padded.size)
        return padded[:3]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda values: np.stack([values, 0 * values]))
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", first_of)
    # Zeros that nobody touches take no memory.
    assert share(bytes((2 << 30) + 7)) == bytes(3)
    assert sizes == [(2 << 30) + 7]


@pytest.fixture(scope="module")
def left_with_a_stopped_process(
    experiment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Future[tuple[int, str]]]:
    """How a process ends whose only peer is stopped: it begins with the first test, because the end takes a while."""
    out = tmp_path_factory.mktemp("stopped") / "run"

    def stop_one(started: Processes) -> tuple[int, str]:
        wait_for_a_checkpoint(out)
        child = int(Path(f"/proc/{started.all[1].pid}/task/{started.all[1].pid}/children").read_text())
        os.kill(child, signal.SIGSTOP)
        _, err = started.all[0].communicate(timeout=60)
        return started.all[0].returncode, err

    words = (experiment, "--epochs", "100000", "--out", out, "--checkpoint-s", "0")
    with processes(2, 1, *words) as started, ThreadPoolExecutor(1) as pool:
        yield pool.submit(stop_one, started)


@pytest.mark.slow
@pytest.mark.usefixtures("left_with_a_stopped_process")
def test_a_run_killed_on_two_processes_goes_on_with_one_device_of_each_to_the_same_bits(
    experiment: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    with processes(2, 2, experiment, "--out", out, "--checkpoint-s", "0") as started:
        wait_for_a_checkpoint(out)
    assert started.all[0].returncode == -signal.SIGKILL
    with processes(2, 2, "--resume", out, "--devices", "2") as started:
        ended = started.ends(120)
    assert [code for code, _, _ in ended] == [0, 0], ended
    results = [json.loads(said) for _, said, _ in ended]
    wanted = {name: uninterrupted[name] for name in ("state_sha256", "test_loss", "epochs")}
    wanted |= {"processes": 2, "devices": 2}
    assert [{name: result[name] for name in wanted} for result in results] == [wanted, wanted]


@pytest.mark.slow
def test_when_one_process_is_killed_the_others_end_with_a_message_within_a_minute(
    experiment: Path, tmp_path: Path
) -> None:
    """Process 0, where all meet, and process 1: two runs side by side."""
    outs = [tmp_path / f"lost-{lost}" for lost in (0, 1)]
    with contextlib.ExitStack() as runs:
        started = [
            runs.enter_context(processes(2, 1, experiment, "--epochs", "100000", "--out", out, "--checkpoint-s", "0"))
            for out in outs
        ]
        for lost, out in enumerate(outs):
            wait_for_a_checkpoint(out)
            started[lost].all[lost].kill()
        ends = [run.ends(60) for run in started]
    for lost, out in enumerate(outs):
        code, _, err = ends[lost][1 - lost]
        assert code == 9, err
        assert "is gone" in err
        assert f"jaxmlp train --resume {out}" in err
        assert "Traceback" not in err
        with RunDirectory.open(out, write=False) as run:
            assert run.newest_checkpoint(warn=pytest.fail) is not None


@contextlib.contextmanager
def processes_with_data(data: Sequence[str], folder: Path, seeds: Sequence[int] = (0, 0)) -> Iterator[Processes]:
    """Processes with these seeds, which find these data where the experiment names one."""
    folder.mkdir()
    (folder / "own.py").write_text(OWN_DATA)
    words = [[folder / "own.py", "--out", folder / "run", "--seed", seed] for seed in seeds]
    started = Processes(words, 1, [{"OWN_DATA": each} for each in data])
    try:
        yield started
    finally:
        started.stop()


@pytest.mark.slow
def test_processes_that_differ_end_and_say_in_what(tmp_path: Path) -> None:
    with processes_with_data(["1", "2"], tmp_path / "other", seeds=(0, 1)) as started:
        ended = started.ends(100)
    assert [code for code, _, _ in ended] == [5, 5], ended
    for _, _, err in ended:
        assert "data_sha256: " in err
        assert "seed: 0 on process 0; 1 on process 1" in err


@pytest.mark.slow
def test_a_process_that_fails_alone_keeps_its_code_and_message_and_the_others_end_too(tmp_path: Path) -> None:
    """Process 0, where all meet, and process 1: two runs side by side, because their ends take a while."""
    with (
        processes_with_data(["damaged", "1"], tmp_path / "0") as first_fails,
        processes_with_data(["1", "damaged"], tmp_path / "1") as second_fails,
    ):
        ends = [first_fails.ends(100), second_fails.ends(100)]
    for failing, ended in enumerate(ends):
        assert ended[failing][0] == 4, ended
        # JAX tells of conftest's proxies.
        said = [line for line in ended[failing][2].splitlines() if not line.startswith("JAX detected proxy")]
        assert said == ["data: train-images is damaged"]
        assert ended[1 - failing][0] == 9, ended
        assert "distributed: " in ended[1 - failing][2] and "is gone" in ended[1 - failing][2]


@pytest.mark.slow
def test_a_finished_run_resumed_on_two_processes_shows_its_result_on_both(
    uninterrupted: dict[str, Any],
) -> None:
    with processes(2, 1, "--resume", uninterrupted["run_dir"]) as started:
        ended = started.ends(100)
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert {json.loads(out)["state_sha256"] for _, out, _ in ended} == {uninterrupted["state_sha256"]}


@pytest.mark.slow
def test_a_stop_signal_to_any_process_saves_and_ends_all(
    experiment: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    with processes(2, 1, experiment, "--out", out, "--checkpoint-s", "0") as started:
        wait_for_a_checkpoint(out)
        started.all[1].send_signal(signal.SIGTERM)
        ended = started.ends(60)
    assert [code for code, _, _ in ended] == [143, 143], ended
    assert alone(1, "--resume", out)["state_sha256"] == uninterrupted["state_sha256"]


@pytest.mark.slow
def test_when_one_process_is_stopped_the_others_end_with_a_message_within_a_minute(
    left_with_a_stopped_process: Future[tuple[int, str]],
) -> None:
    """It keeps its connections, so that only the heartbeat can tell."""
    code, err = left_with_a_stopped_process.result()
    assert code == 9, err
    assert "distributed: process 1 is gone" in err
