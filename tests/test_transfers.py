"""What the host and the device exchange while a run trains: nothing hidden, and no wait between two chunks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.array import ArrayImpl  # JAX's guard does not see what is read on a CPU.

from jaxmlp import MLP, SGD, ExperimentConfig, data, evaluate, predict, train
from jaxmlp.engine import fitting, loop, programs
from jaxmlp.run.directory import RunDirectory
from jaxmlp.sweep import sweep

CONFIG = ExperimentConfig(
    model=MLP(hidden_sizes=(6,)), optimizer=SGD(), batch_size=16, epochs=2, grad_shards=2, shuffle=True
)
ROW_BYTES = 28 * 28


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (100, 28, 28, 1), np.uint8), rng.integers(0, 10, 100, np.int32)
    test = (images[80:], labels[80:])
    return data.from_arrays((images[:80], labels[:80]), test, validation=test)


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Any transfer that is not asked for by name is an error, in both directions."""
    asked: list[None] = []
    device_get = jax.device_get

    def get(tree: Any) -> Any:
        asked.append(None)
        try:
            return device_get(tree)
        finally:
            asked.pop()

    def watched(method: Any) -> Any:
        def read(self: Any, *args: Any, **kwargs: Any) -> Any:
            assert asked, f"{method.__name__} reads without jax.device_get"
            return method(self, *args, **kwargs)

        return read

    def watched_function(function: Any) -> Any:
        def read(value: Any, *args: Any, **kwargs: Any) -> Any:
            assert asked or not isinstance(value, ArrayImpl), f"{function.__name__} reads without jax.device_get"
            return function(value, *args, **kwargs)

        return read

    monkeypatch.setattr(jax, "device_get", get)
    # NumPy reads by the buffer protocol, which nothing can watch.
    for function in (np.asarray, np.array):
        monkeypatch.setattr(np, function.__name__, watched_function(function))
    for name in ("__array__", "__bool__", "__float__", "__int__", "__index__", "item", "tolist"):
        monkeypatch.setattr(ArrayImpl, name, watched(getattr(ArrayImpl, name)))
    with jax.transfer_guard("disallow"):
        yield


@pytest.mark.usefixtures("guarded")
def test_hidden_transfers_are_seen_in_both_directions() -> None:
    one = jax.device_put(np.float32(1))
    with pytest.raises(Exception, match="host-to-device"):
        jnp.float32(1)
    for read in (float, np.asarray, int, bool):
        with pytest.raises(AssertionError, match="device_get"):
            read(one)
    assert jax.device_get(one) == 1


@pytest.mark.usefixtures("guarded")
def test_runs_and_sweeps_train_and_answer_without_a_hidden_transfer(dataset: data.Dataset, tmp_path: Path) -> None:
    run = fitting.fit(CONFIG, dataset, out=tmp_path / "run", digest_every=3)
    streamed = fitting.fit(CONFIG, dataset, resident_bytes=40 * ROW_BYTES)
    swept = sweep(CONFIG, dataset, seeds=[CONFIG.seed, 1])
    assert run.state_sha256 == streamed.state_sha256 == swept.lanes[0].state_sha256
    assert evaluate(run).loss == run.test_loss
    assert len(predict(run, dataset.test.inputs[:2])) == 2


def test_the_device_has_the_next_chunk_before_the_last_ones_health_is_read_or_an_epoch_is_logged(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    events: list[Any] = []
    advance, rows = programs.Programs.advance, programs.Programs.per_lane

    def advanced(self: Any, position: Any, order: Any, stop: int) -> Any:
        events.append(("given", stop))
        return advance(self, position, order, stop)

    def read(self: Any, tree: Any) -> Any:
        if isinstance(tree, train.Health):
            events.append("read")
        return rows(self, tree)

    def logged(name: str) -> Any:
        write = getattr(RunDirectory, name)

        def write_logged(self: Any, *args: Any, **kwargs: Any) -> Any:
            events.append(name)
            return write(self, *args, **kwargs)

        return write_logged

    monkeypatch.setattr(programs.Programs, "advance", advanced)
    monkeypatch.setattr(programs.Programs, "per_lane", read)
    for name in ("append_epoch", "save_checkpoint"):
        monkeypatch.setattr(RunDirectory, name, logged(name))
    monkeypatch.setattr(loop.Loop, "chunk_s", 1e-9)  # One update a chunk.
    fitting.fit(CONFIG, dataset, out=tmp_path / "run")
    later = [
        ("given", 2),
        "read",
        ("given", 3),
        "read",
        ("given", 4),
        "read",
        ("given", 5),
        "read",
        "read",
    ]
    first = ("given", 1)
    assert events == [("given", 0), first, *later, first, "append_epoch", *later, "append_epoch", "save_checkpoint"]
