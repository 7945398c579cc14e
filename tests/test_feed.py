"""Data larger than the device may hold streams through the same programs, to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from jaxmlp import MLP, SGD, ExperimentConfig, data, train
from jaxmlp.engine import feed, fitting, loop
from jaxmlp.engine.history import History

IMAGE_BYTES = 28 * 28
BATCH = 16
EVAL_ROWS = ExperimentConfig().eval_rows
CONFIG = ExperimentConfig(
    model=MLP(hidden_sizes=(12,), dropout_rate=0.3, l2=1e-4),
    optimizer=SGD(learning_rate=0.1, momentum=0.9),
    batch_size=BATCH,
    epochs=2,
    grad_shards=2,
)


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    """The last batches of both splits are partial, of updates and of evaluation."""
    rng = np.random.default_rng(0)
    examples = 70 + 2 * EVAL_ROWS + 9
    images, labels = rng.integers(0, 256, (examples, 28, 28, 1), np.uint8), rng.integers(0, 10, examples, np.int32)
    test = (images[70:], labels[70:])
    return data.from_arrays((images[:70], labels[:70]), test, validation=test)


def figures(history: History) -> list[Any]:
    epochs = [replace(record, seconds=0) for record in history.records]
    return [epochs, history.test_loss, history.test_accuracy, history.state_sha256]


@pytest.fixture(scope="module")
def resident(dataset: data.Dataset) -> list[Any]:
    return figures(fitting.fit(CONFIG, dataset))


@pytest.mark.parametrize("rows", [1, BATCH, 3 * BATCH + 1, 70, EVAL_ROWS, 2 * EVAL_ROWS + 8])
def test_streamed_data_gives_the_bits_of_resident_data(rows: int, dataset: data.Dataset, resident: list[Any]) -> None:
    assert figures(fitting.fit(CONFIG, dataset, resident_bytes=rows * IMAGE_BYTES)) == resident


def test_streaming_compiles_one_program_more_and_sends_each_piece_once_of_no_more_than_fits(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch, compiled: Callable[[str], int]
) -> None:
    steps, evaluate, sent = train.train_steps, train.evaluate, set()
    pieces, piece = [], feed.Feed.piece

    def watch(function: Any, place: int) -> Any:
        def watched(*arguments: Any, **static: Any) -> Any:
            sent.add(len(arguments[place].targets))
            return function(*arguments, **static)

        watched.lower = function.lower  # type: ignore[attr-defined]
        return watched

    jax.clear_caches()
    monkeypatch.setattr(train, "train_steps", watch(steps, 3))
    monkeypatch.setattr(train, "evaluate", watch(evaluate, 3))

    def sends(self: feed.Feed, order: Any, first: int) -> Any:
        pieces.append(first)
        return piece(self, order, first)

    monkeypatch.setattr(feed.Feed, "piece", sends)
    monkeypatch.setattr(loop.Loop, "chunk_s", 1e-9)  # One update a chunk, several chunks a piece.
    fitting.fit(CONFIG, dataset, resident_bytes=4 * BATCH * IMAGE_BYTES)
    assert sent == {2 * BATCH, EVAL_ROWS}
    assert pieces == [0, *[0, 2, 4] * 2]  # The first one for the compilation.
    assert (compiled("train_steps"), compiled("evaluate")) == (1, 1)
