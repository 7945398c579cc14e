"""The host loop's promises: chunks, checkpoints, resume, divergence, hooks. On a small MLP and random images."""

from __future__ import annotations

import dataclasses
import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import small_sweep
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import assert_names, refused

from jaxmlp import MLP, SGD, CrossEntropy, DataConfig, ExperimentConfig, Piecewise, data, train
from jaxmlp.engine import fitting, loop
from jaxmlp.engine.history import EpochRecord, History
from jaxmlp.engine.position import Position
from jaxmlp.engine.programs import Programs
from jaxmlp.engine.progress import Progress
from jaxmlp.errors import ConfigError, DivergedError, RunError
from jaxmlp.run import checkpoint
from jaxmlp.run.digest import digest, leaves
from jaxmlp.run.directory import RunDirectory
from jaxmlp.system.signals import Stop

EPOCHS, STEPS = 3, 5
DIGEST_EVERY = 2
CONFIG = ExperimentConfig(
    model=MLP(hidden_sizes=(12,), dropout_rate=0.3),
    data=DataConfig(validation="test"),
    optimizer=SGD(learning_rate=0.1, momentum=0.9),
    batch_size=16,
    epochs=EPOCHS,
)
TIMES = ("seconds",)

dataset = small_sweep.dataset


class Interrupt(Progress):
    """Sends a stop signal after so many chunks, as a user would."""

    def __init__(self, after: int | None) -> None:
        self.stop = Stop()
        self.left = after
        self.records: list[EpochRecord] = []
        self.notes: list[str] = []

    def steps_done(self, *_: Any) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                self.stop.signal = signal.SIGTERM

    def epoch_ended(self, record: EpochRecord) -> None:
        self.records.append(record)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def one_step_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no time for a chunk, each is one step, so that runs can be stopped at every step."""
    monkeypatch.setattr(loop.Loop, "chunk_s", 0.0)


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def logs(path: Path) -> list[Any]:
    with RunDirectory.open(path, write=False) as run:
        return [without_times(run.epochs()), run.digests(), run.trace()]


@pytest.fixture(scope="module")
def uninterrupted(dataset: data.Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[History, list[Any]]:
    path = tmp_path_factory.mktemp("whole") / "run"
    with RunDirectory.create(path, CONFIG, {}) as run:
        history = fitting.fit(CONFIG, dataset, run=run, digest_every=DIGEST_EVERY)
    return history, logs(path)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(stops=st.lists(st.integers(1, EPOCHS * STEPS), max_size=3), checkpoint_s=st.sampled_from([0.0, 1e9]))
def test_any_interruptions_and_resumes_give_the_uninterrupted_bits_and_logs(
    dataset: data.Dataset,
    tmp_path_factory: pytest.TempPathFactory,
    uninterrupted: tuple[History, list[Any]],
    stops: list[int],
    checkpoint_s: float,
) -> None:
    path = tmp_path_factory.mktemp("stopped") / "run"
    RunDirectory.create(path, CONFIG, {}).close()
    for after in [*stops, None]:
        with RunDirectory.open(path, write=True) as run:
            progress = Interrupt(after)
            history = fitting.fit(
                run.config,
                dataset,
                run=run,
                progress=progress,
                stop=progress.stop,
                checkpoint_s=checkpoint_s,
                digest_every=DIGEST_EVERY,
            )
        if history.status == "finished":
            break
    assert history.status == "finished"
    assert history.state_sha256 == uninterrupted[0].state_sha256
    assert logs(path) == uninterrupted[1]
    assert without_times([r.line() for r in history.records]) == uninterrupted[1][0]


def test_a_resume_from_each_kept_checkpoint_gives_the_uninterrupted_bits(
    dataset: data.Dataset, tmp_path: Path, uninterrupted: tuple[History, list[Any]]
) -> None:
    """Checkpoints of every step, each alone in a run of its own."""
    saved: list[tuple[int, Any, Any]] = []

    class Keep(RunDirectory):
        def save_checkpoint(self, step: int, arrays: Any, meta: Any, *, best: bool = False) -> Path:
            saved.append((step, arrays, meta))
            return super().save_checkpoint(step, arrays, meta, best=best)

    with Keep.create(tmp_path / "source", CONFIG, {}) as run:
        fitting.fit(CONFIG, dataset, run=run, checkpoint_s=0)
    middle = [item for item in saved if item[2]["done"] not in (0, STEPS)]
    assert middle
    for number, (step, arrays, meta) in enumerate(saved[:: len(saved) // 5]):
        with RunDirectory.create(tmp_path / str(number), CONFIG, {}) as run:
            run.save_checkpoint(step, arrays, meta)
            assert fitting.fit(CONFIG, dataset, run=run).state_sha256 == uninterrupted[0].state_sha256


def test_the_trace_holds_the_states_digests_after_every_so_many_updates_whatever_the_chunks(
    dataset: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[History, list[Any]]
) -> None:
    monkeypatch.setattr(loop.Loop, "chunk_s", 3600.0)
    with RunDirectory.create(tmp_path / "run", CONFIG, {}) as run:
        fitting.fit(CONFIG, dataset, run=run, digest_every=DIGEST_EVERY)
        trace, digests = run.trace(), run.digests()
        assert "trace.jsonl" in (run.path / "SHA256SUMS").read_text()
    assert trace == uninterrupted[1][2]
    assert [(line["epoch"], line["steps"]) for line in trace] == [
        (1, 2), (1, 4), (2, 6), (2, 8), (2, 10), (3, 12), (3, 14)
    ]  # fmt: skip
    assert trace[4] == {name: value for name, value in digests[1].items() if name != "order_sha256"}


def test_an_epochs_digests_name_every_leaf(dataset: data.Dataset, uninterrupted: tuple[History, list[Any]]) -> None:
    history, (_, digests, _) = uninterrupted
    kernel = history.state.params["Dense_0"]["kernel"]
    assert digests[-1]["leaves_sha256"]["params/Dense_0/kernel"] == digest({"params/Dense_0/kernel": kernel})
    assert set(digests[-1]["leaves_sha256"]) == {path for path in leaves(history.state._asdict()) if path != "step"}
    assert digests[-1]["params_sha256"] == history.params_sha256


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_gives_the_same_bits(
    dataset: data.Dataset, tmp_path: Path, uninterrupted: tuple[History, list[Any]]
) -> None:
    progress = Interrupt(after=8)
    with RunDirectory.create(tmp_path / "run", CONFIG, {}) as run:
        fitting.fit(CONFIG, dataset, run=run, progress=progress, stop=progress.stop, checkpoint_s=0)
    with RunDirectory.open(tmp_path / "run", write=True) as run:
        newest = run.checkpoints.paths()[0]
        damaged = bytearray(newest.read_bytes())
        damaged[-1] ^= 1
        newest.write_bytes(damaged)
        progress = Interrupt(after=None)
        assert fitting.fit(CONFIG, dataset, run=run, progress=progress).state_sha256 == uninterrupted[0].state_sha256
    assert any(newest.name in note for note in progress.notes)


def test_a_checkpoint_of_other_shapes_is_refused_by_name(dataset: data.Dataset, tmp_path: Path) -> None:
    other = ExperimentConfig(model=MLP(hidden_sizes=(13,)), optimizer=CONFIG.optimizer, batch_size=16, epochs=1)
    with RunDirectory.create(tmp_path / "other", other, {}) as run:
        fitting.fit(other, dataset, run=run)
        arrays, meta = checkpoint.load(run.checkpoints.paths()[0])
    with RunDirectory.create(tmp_path / "run", CONFIG, {}) as run:
        run.save_checkpoint(5, arrays, meta)
        with refused(RunError, "Dense_0/bias", "float32[13]", "float32[12]"):
            fitting.fit(CONFIG, dataset, run=run)


def test_a_run_goes_on_with_its_own_config_and_data_alone(dataset: data.Dataset, tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", CONFIG, {"binding": {"data_sha256": dataset.sha256}}) as run:
        for changes, named in (({"seed": 1}, "seed"), ({"epochs": 1, "batch_size": 8}, "batch_size, epochs")):
            with refused(RunError, run.path, named):
                fitting.fit(dataclasses.replace(CONFIG, **changes), dataset, run=run)
        other = dataclasses.replace(dataset, sha256="0" * 64)
        with refused(RunError, run.path, dataset.sha256, other.sha256):
            fitting.fit(CONFIG, other, run=run)
        assert (run.status, run.epochs()) == ("running", [])


def test_the_best_checkpoint_is_of_the_lowest_validation_loss(dataset: data.Dataset, tmp_path: Path) -> None:
    config = ExperimentConfig(model=CONFIG.model, optimizer=SGD(learning_rate=0.5), batch_size=16, epochs=6)
    with RunDirectory.create(tmp_path / "run", config, {}) as run:
        history = fitting.fit(config, dataset, run=run)
        best = run.checkpoints.best()
        names = [path.name for path in run.checkpoints.paths()]
    lowest = int(np.argmin(history["val_loss"]))
    assert best is not None
    assert best.step == history.records[lowest].steps
    assert best.meta["best_score"] == history["val_loss"][lowest]
    assert names[0] == f"step-{6 * STEPS:08d}.safetensors"


def test_nothing_is_written_or_digested_without_a_run_directory(dataset: data.Dataset) -> None:
    history = fitting.fit(CONFIG, dataset)
    assert history.params_sha256 == digest(history.state.params)
    assert [record.epoch for record in history.records] == [1, 2, 3]
    assert history["val_loss"][-1] == history.test_loss


DIVERGING: dict[str, tuple[SGD, int, int]] = {
    "loss": (SGD(learning_rate=1e30), 1, 1),
    # Seven updates at a rate of 0, then one at an infinite rate.
    "parameters": (SGD(learning_rate=1e38, schedule=Piecewise(boundaries=(7,), factors=(0.0, 1e38))), 7, 2),
}
"""What is not finite first, and in which step and epoch."""


@pytest.mark.parametrize("case", DIVERGING)
def test_what_is_not_finite_is_named_alike_whatever_the_chunks(
    case: str, dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step a chunk is the oracle: no step after the first bad one is made."""
    model = MLP(hidden_sizes=(12,), activation="linear", dropout_rate=0.0)
    optimizer, *place = DIVERGING[case]
    config = ExperimentConfig(model=model, optimizer=optimizer, loss=CrossEntropy(), batch_size=16)
    told = []
    for length in (1, 2, 3, STEPS):
        monkeypatch.setattr(loop, "next_chunk", lambda *_, length=length: length)
        with pytest.raises(DivergedError) as caught:
            fitting.fit(config, dataset)
        told.append(str(caught.value).partition("\n")[0])
    assert len(set(told)) == 1, told
    assert_names(told[0], case, *place, "Dense_0/bias")


def test_a_run_of_more_updates_than_int32_counts_is_refused_before_it_has_a_folder(tmp_path: Path) -> None:
    many = (np.zeros((2500, 1, 1, 1), np.uint8), np.zeros(2500, np.int32))
    dataset = data.from_arrays(many, many, num_classes=10)
    most = (2**31 - 1) // 2500
    config = dataclasses.replace(CONFIG, batch_size=1, epochs=most + 1)
    with refused(ConfigError, "epochs", most, 2500, most + 1):
        fitting.fit(config, dataset, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    fitting.check_data(dataclasses.replace(config, epochs=most), dataset)


def test_a_hook_sees_every_epoch_as_the_history_records_it_and_its_state(dataset: data.Dataset) -> None:
    seen: list[tuple[EpochRecord, int]] = []

    def hook(record: EpochRecord, state: train.TrainState) -> None:
        seen.append((record, int(state.step)))

    history = fitting.fit(CONFIG, dataset, hooks=[hook])
    assert seen == list(zip(history.records, [5, 10, 15], strict=True))


def test_chunks_grow_to_fill_their_time_and_change_no_bit(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[History, list[Any]]
) -> None:
    monkeypatch.setattr(loop.Loop, "chunk_s", 3600.0)
    lengths: list[int] = []
    real = train.train_steps

    def watch(*args: Any, **kwargs: Any) -> Any:
        lengths.append(int(args[6] - args[5]))
        return real(*args, **kwargs)

    monkeypatch.setattr(train, "train_steps", watch)
    assert fitting.fit(CONFIG, dataset).state_sha256 == uninterrupted[0].state_sha256
    assert lengths == [0, 1, 1, 3, 5, 5]  # The second chunk starts before the first chunk's time is known.


@pytest.mark.parametrize(
    ("chunk", "made", "seconds", "following"),
    [
        (100, 100, 0.5, 50),  # half as many in a quarter of a second
        (1, 1, 1e-6, 8),  # too fast to tell
        (1, 1, 3.0, 1),  # a step that takes long
        (400, 400, 0.001, 469),  # no more than an epoch, over any number of short epochs
        (400, 69, 0.0345, 469),  # the end of an epoch cut it
    ],
)
def test_a_chunk_aims_at_a_quarter_of_a_second_and_is_no_longer_than_an_epoch(
    chunk: int, made: int, seconds: float, following: int
) -> None:
    assert loop.next_chunk(chunk, made, seconds, most=469) == following


def test_a_whole_run_compiles_each_program_once(dataset: data.Dataset, compiled: Callable[[str], int]) -> None:
    jax.clear_caches()
    fitting.fit(CONFIG, dataset)
    assert (compiled("train_steps"), compiled("evaluate")) == (1, 1)


def test_no_example_is_evaluated_while_the_programs_are_compiled(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[str] = []
    evaluate = Programs.evaluate

    def counted(self: Programs, position: Position, name: str) -> list[train.Sums]:
        evaluated.append(name)
        return evaluate(self, position, name)

    monkeypatch.setattr(Programs, "evaluate", counted)
    fitting.fit(dataclasses.replace(CONFIG, epochs=2), dataset)
    assert evaluated == ["validation", "validation", "test"]


def test_the_learning_rate_of_an_epoch_is_its_last_updates(dataset: data.Dataset) -> None:
    from jaxmlp import InverseTime

    config = ExperimentConfig(
        model=CONFIG.model, optimizer=SGD(learning_rate=0.1, schedule=InverseTime(decay=0.5)), batch_size=16, epochs=2
    )
    expected = [0.1 / (1 + 0.5 * t) for t in (4, 9)]
    np.testing.assert_allclose(fitting.fit(config, dataset)["learning_rate"], expected, rtol=1e-6)  # float32


def test_runs_of_different_seeds_differ(dataset: data.Dataset) -> None:
    configs = [ExperimentConfig(model=CONFIG.model, batch_size=16, epochs=1, seed=seed) for seed in (0, 1, 0)]
    digests = [fitting.fit(config, dataset).params_sha256 for config in configs]
    assert digests[0] == digests[2] != digests[1]
    assert len(set(itertools.chain(digests))) == 2
