"""Which library trains the experiment fastest? Each has its own process.

First each library trains the whole experiment alone, timed from the start of the process to its end: by default twice,
with a cache of compiled programs that is empty at first. Then all processes stay alive and train an epoch in turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlp import data
from jaxmlp.bench.peer import PEERS
from jaxmlp.bench.spread import Spread
from jaxmlp.errors import ConfigError, UsageError, did_you_mean
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.experiment.mlp import MLP
from jaxmlp.experiment.optimizers import RMSprop
from jaxmlp.experiment.plain import where
from jaxmlp.experiment.schedules import Constant

WORKER = Path(__file__).with_name("peer.py")


@dataclass(kw_only=True)
class Peer:
    """Times, accuracy and memory of one library."""

    name: str
    versions: Mapping[str, str] = field(default_factory=dict)
    first_epoch_s: float = 0.0
    """Seconds of the first epoch, including compilation. `epoch_s` leaves it out."""
    epoch_s: list[float] = field(default_factory=list)
    """Seconds of each later epoch, including the evaluation of the test split."""
    test_accuracy: float = 0.0
    """Test accuracy after the last epoch."""
    whole_s: list[float] = field(default_factory=list)
    """Seconds of each whole run, from the start of the process to its end. The first run starts with an empty cache."""
    peak_bytes: int = 0
    """Peak of main memory over the whole runs, in bytes."""

    def document(self, base: Peer) -> dict[str, Any]:
        """The peer as JSON values, with the ratio of its median to the median of `base`."""
        spread = Spread.of(self.epoch_s)
        return asdict(self) | {"epoch": spread._asdict(), "ratio": spread.median / Spread.of(base.epoch_s).median}


def race(
    config: ExperimentConfig,
    dataset: data.Dataset,
    names: Sequence[str],
    *,
    pythons: Mapping[str, Path],
    device: str = "auto",
    whole_runs: int = 2,
    tell: Callable[[str], None] = print,
) -> list[Peer]:
    """Train the experiment with each library.

    Args:
        config: The experiment, with at least two epochs. The first epoch warms up.
        dataset: The data, with a test split.
        names: Names in `PEERS`.
        pythons: Interpreters by library. Default: this interpreter.
        device: `cpu` hides accelerators from all libraries.
        whole_runs: Number of whole runs of each library.
        tell: Called with progress messages.

    Raises:
        ConfigError: The libraries cannot run this experiment.
        UsageError: A name is unknown, no library is installed, or a process failed.
    """
    _check(config, names)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxmlp-peers-")))
        (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
        np.savez(
            folder / "data.npz",
            train_images=dataset.train.inputs,
            train_labels=dataset.train.targets,
            test_images=dataset.test.inputs,
            test_labels=dataset.test.targets,
        )
        peers, workers = [], []
        for name in names:
            python = pythons.get(name.split("-")[0], Path(sys.executable))
            if not is_installed(name.split("-")[0], python, folder):
                tell(f"{name}: not installed for {python.name}; left out")
                continue
            peer = Peer(name=name)
            peer.whole_s, peer.peak_bytes = _whole_runs(name, python, device, folder, whole_runs)
            worker = subprocess.Popen(
                _command(name, python, folder), env=_environment(name, device, folder), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            stack.enter_context(worker)
            stack.callback(worker.kill)
            peers.append(peer)
            workers.append(worker)
            peer.versions = _answer(name, worker)["versions"]
            peer.first_epoch_s = _answer(name, worker)["epoch_s"]
            tell(f"{name}: whole runs {_seconds(peer.whole_s)}, first epoch {peer.first_epoch_s:.2f} s")
        if not peers:
            raise UsageError("no peer is installed: pip install '.[peers]'")
        for turn in range(1, config.epochs):
            pairs = list(zip(peers, workers, strict=True))
            # A new order in each round, so that no peer always runs on a processor that the same peer has heated.
            for peer, worker in random.Random(turn).sample(pairs, len(pairs)):
                assert worker.stdin
                with contextlib.suppress(BrokenPipeError):  # Then it gives no answer either, which `_answer` reports.
                    worker.stdin.write("\n")
                    worker.stdin.flush()
                answer = _answer(peer.name, worker)
                peer.epoch_s.append(answer["epoch_s"])
                peer.test_accuracy = answer["test_accuracy"]
            tell(f"epoch {turn + 1}: " + ", ".join(f"{peer.name} {peer.epoch_s[-1]:.2f} s" for peer in peers))
    return peers


def table(peers: Sequence[Peer]) -> str:
    """The result as a table for people."""
    rows: list[tuple[str, ...]] = [
        ("", "s an epoch", "IQR", "ratio", "test accuracy", "first start s", "next start s", "peak MiB")
    ]
    for peer in peers:
        found = peer.document(peers[0])["epoch"]
        whole = [f"{seconds:.1f}" for seconds in peer.whole_s[:2]] + ["-", "-"]
        rows.append((
            peer.name, f"{found['median']:.3f}", f"{found['iqr']:.3f}", f"{peer.document(peers[0])['ratio']:.2f}",
            f"{peer.test_accuracy:.4f}", *whole[:2], f"{peer.peak_bytes / 2**20:.0f}" if peer.peak_bytes else "-",
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{row[0]:{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def _check(config: ExperimentConfig, names: Sequence[str]) -> None:
    for name in names:
        if name not in PEERS:
            raise UsageError(f"{name} is not a peer.{did_you_mean(name, PEERS)} The peers: {', '.join(PEERS)}")
    if config.epochs < 2:
        raise ConfigError("epochs", f"must be at least 2, got {config.epochs}: the first epoch warms up")
    model, optimizer = config.model, config.optimizer
    is_rmsprop = isinstance(optimizer, RMSprop) and isinstance(optimizer.schedule, Constant)
    if not is_rmsprop or not isinstance(model, MLP) or model.activation != "relu" or model.batch_norm:
        wanted = "must be RMSprop at a constant rate, with relu: all peers are written for this experiment"
        raise ConfigError("optimizer", f"{wanted}, got {where(optimizer)} and {where(model)}")


def is_installed(library: str, python: Path, folder: Path) -> bool:
    """Whether a Python has the library. `folder` gets what the library writes."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({library!r}) is None)"
    try:
        environment = _environment(library, "auto", folder)
        return not subprocess.run([python, "-c", code], env=environment, check=False).returncode
    except OSError as error:
        raise UsageError(f"--python-{library} {python} does not start: {error.strerror}") from None


def _command(name: str, python: Path, folder: Path) -> list[str]:
    return [str(python), "-P", str(WORKER), name, str(folder / "config.json"), str(folder / "data.npz")]


def _environment(name: str, device: str, folder: Path) -> dict[str, str]:
    """The environment of this process, with a separate cache of compiled programs for the peer."""
    cache = str(folder / name)
    # If OpenBLAS kernels were forced on this process, they may not be the library's fastest kernels.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    environment |= {
        "PYTHONPATH": str(WORKER.parents[2]),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "KERAS_BACKEND": "jax",
        "KERAS_HOME": cache,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # The peers share the accelerator's memory.
        # Otherwise glibc returns large freed arrays, and the system zeroes their pages again at each step.
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    }
    return environment | ({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})


def _answer(name: str, worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdout
    line = worker.stdout.readline()
    if not line:
        raise UsageError(f"{name} ended with code {worker.wait()}: see its message above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _whole_runs(name: str, python: Path, device: str, folder: Path, count: int) -> tuple[list[float], int]:
    seconds, peak = [], 0
    for _ in range(count):
        began = time.perf_counter()
        worker = subprocess.Popen(
            _command(name, python, folder), env=_environment(name, device, folder),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        _, status, usage = os.wait4(worker.pid, 0)
        worker.returncode = os.waitstatus_to_exitcode(status)
        seconds.append(time.perf_counter() - began)
        if worker.returncode:
            raise UsageError(f"{name} ended with code {worker.returncode}: see its message above")
        peak = max(peak, usage.ru_maxrss * 1024)
    return seconds, peak


def _seconds(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f} s" for value in values) or "not asked for"
