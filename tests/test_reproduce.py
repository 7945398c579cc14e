"""`reproduce` finds one flipped bit of one update: epoch, updates, leaf. It says which promise two manifests leave."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from refusals import assert_names, refused

from jaxmlp import MLP, SGD, ExperimentConfig, data, shards, train
from jaxmlp.cli import main
from jaxmlp.engine import fitting, loop
from jaxmlp.errors import RunError, UsageError
from jaxmlp.proof import reproduce as module
from jaxmlp.proof.blame import WrongPrimitive
from jaxmlp.proof.experiments import Band
from jaxmlp.proof.reproduce import reproduce
from jaxmlp.proof.training import Training
from jaxmlp.report.replay import write_replay
from jaxmlp.run.digest import leaves, restore
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.manifest import manifest
from jaxmlp.system import runtime
from jaxmlp.system.signals import Stop

STEPS, EPOCHS = 5, 3  # 320 examples in batches of 64
CONFIG = ExperimentConfig(
    model=MLP(hidden_sizes=(12,), dropout_rate=0.3),
    optimizer=SGD(learning_rate=0.1, momentum=0.9),
    batch_size=64,
    epochs=EPOCHS,
    grad_shards=4,
)
PARAMS = [f"params/Dense_{layer}/{kind}" for layer in (0, 1) for kind in ("kernel", "bias")]
MOMENTUM = [f"opt_state/1/trace/{name.removeprefix('params/')}" for name in PARAMS]
MANIFEST = "manifest.json"
BISECTED = int(os.environ.get("JAXMLP_BISECTED", "4"))


class Flip(NamedTuple):
    """One bit of one parameter, after one update."""

    step: int
    leaf: str
    bit: int

    @classmethod
    def at_random(cls, seed: int, *, of_optimizer: bool = False) -> Flip:
        """A bit that no rounding of the next update hides, and that leaves the number finite."""
        rng = random.Random(seed)
        leaves = [*PARAMS, *(MOMENTUM if of_optimizer else [])]
        return cls(rng.randint(1, EPOCHS * STEPS), rng.choice(leaves), rng.randint(8, 22))

    def of(self, state: train.TrainState) -> train.TrainState:
        arrays = {name: array.copy() for name, array in leaves(state).items()}
        arrays[self.leaf].view(np.uint32).flat[0] ^= np.uint32(1 << self.bit)
        flipped: train.TrainState = jax.device_put(restore(state, arrays), state.step.sharding)
        return flipped


@pytest.fixture
def trained(small_dataset: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Trains a run, one update a chunk, in which a bit may flip, and which may stop after an update."""

    def trained(
        flip: Flip | None = None,
        *,
        stop_after: int = 0,
        digest_every: int | None = None,
        config: ExperimentConfig = CONFIG,
    ) -> Path:
        runtime.configure()  # Before the manifest, which records what this sets.
        facts = manifest(config, small_dataset, devices=len(shards.pick_devices(config.grad_shards)))
        real, stop, path = train.train_steps, Stop(), tmp_path / "run"

        def train_steps(*args: Any, **kwargs: Any) -> Any:
            state, sums, health = real(*args, **kwargs)
            if args[5] == args[6]:  # No update: only compiled.
                return state, sums, health
            if flip and state.step == flip.step:
                state = flip.of(state)
            if state.step == stop_after:
                stop.signal = signal.SIGTERM
            return state, sums, health

        train_steps.lower = real.lower  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            patch.setattr(loop.Loop, "chunk_s", 0.0)
            patch.setattr(train, "train_steps", train_steps)
            with RunDirectory.create(path, config, facts) as run:
                fitting.fit(config, small_dataset, run=run, stop=stop, digest_every=digest_every)
        return path

    return trained


def change_manifest(path: Path, **facts: Any) -> None:
    stored = json.loads((path / MANIFEST).read_text())
    for name, value in facts.items():
        stored["binding" if name in stored["binding"] else "not_binding"][name] = value
    (path / MANIFEST).write_text(json.dumps(stored))


def test_an_untouched_run_is_reproduced_epoch_by_epoch(
    trained: Callable[..., Path], small_dataset: data.Dataset
) -> None:
    told: list[str] = []
    found = reproduce(trained(), small_dataset, report=told.append)
    assert (found.level, found.same, found.first_difference, found.steps) == ("L1", True, None, EPOCHS * STEPS)
    assert told == [f"epoch {epoch}: the same bits" for epoch in (1, 2, 3)]


@pytest.mark.slow
def test_other_counts_of_devices_leave_the_same_bits(trained: Callable[..., Path], small_dataset: data.Dataset) -> None:
    there = len(shards.pick_devices(CONFIG.grad_shards))
    others = [devices for devices in (1, 2, 4) if devices < there]
    path = trained()
    for devices in others:
        found = reproduce(path, small_dataset, devices=devices)
        assert (found.level, found.same, found.changed) == ("L3", True, (f"devices: {there} there, {devices} here",))
    if not others:
        pytest.skip("needs two devices")


@pytest.mark.parametrize("seed", range(2))
def test_a_flipped_bit_is_found_in_its_epoch(
    seed: int, trained: Callable[..., Path], small_dataset: data.Dataset
) -> None:
    flip = Flip.at_random(seed)
    found = reproduce(trained(flip), small_dataset)
    assert found.same is False and found.first_difference
    epoch = (flip.step - 1) // STEPS + 1
    assert found.first_difference.epoch == epoch
    assert found.first_difference.steps == (epoch * STEPS - STEPS + 1, epoch * STEPS)
    assert flip.leaf in found.first_difference.leaves
    assert found.steps == (epoch - 1) * STEPS


def test_with_a_trace_a_flipped_bit_is_found_in_its_update_and_leaf(
    trained: Callable[..., Path], small_dataset: data.Dataset
) -> None:
    flip = Flip.at_random(10)
    difference = reproduce(trained(flip, digest_every=1), small_dataset).first_difference
    assert difference
    assert (difference.steps, difference.leaves) == ((flip.step, flip.step), (flip.leaf,))


@pytest.mark.parametrize("seed", range(BISECTED))
def test_halving_finds_the_very_update_in_no_more_updates_than_the_run_has(
    seed: int, trained: Callable[..., Path], small_dataset: data.Dataset
) -> None:
    flip = Flip.at_random(100 + seed, of_optimizer=True)
    found = reproduce(trained(flip, digest_every=1), small_dataset, bisect=True)
    assert found.same is False and found.first_difference
    assert (found.first_difference.steps, found.first_difference.leaves) == ((flip.step, flip.step), (flip.leaf,))
    assert found.trained <= EPOCHS * STEPS + 1  # One more: the wrong update again, to show its leaves.


def test_in_portable_precision_numpy_says_whether_the_run_or_this_machine_is_wrong(
    trained: Callable[..., Path], small_dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip = Flip(step=2, leaf=PARAMS[0], bit=12)
    small = dataclasses.replace(
        CONFIG,
        model=MLP(hidden_sizes=(), dropout_rate=0.0),
        optimizer=SGD(),
        grad_shards=1,
        epochs=1,
        precision="portable",
    )
    path = trained(flip, digest_every=1, config=small)
    found = reproduce(path, small_dataset, bisect=True, devices=1)
    assert found.first_difference and found.first_difference.steps == (2, 2)
    assert found.operation == "by NumPy, this machine has the right bits and the run does not"
    shutil.rmtree(path)
    trained(digest_every=1, config=small)
    advance = Training.advance

    def wrong(training: Training, step: int, **ends: bool) -> None:
        before = training.step
        advance(training, step, **ends)
        if before < flip.step <= step:
            training.position.state = flip.of(training.position.state)

    monkeypatch.setattr(Training, "advance", wrong)
    named = WrongPrimitive("dot_general", ("float32[2,2]",), (0, 0), "1", "2", None)
    monkeypatch.setattr(module, "wrong_primitive", lambda *_: named)
    found = reproduce(path, small_dataset, bisect=True, devices=1)
    assert found.first_difference and found.first_difference.steps == (2, 2)
    assert (
        found.operation == f"by NumPy, the run has the right bits and this machine does not; wrong primitive: {named}"
    )


def test_a_part_is_trained_from_a_checkpoint_and_compared(
    trained: Callable[..., Path], small_dataset: data.Dataset, tmp_path: Path
) -> None:
    path = trained(Flip(step=3, leaf=PARAMS[0], bit=12), stop_after=8)
    shutil.copytree(path / "checkpoints", tmp_path / "kept")
    fitting.fit(CONFIG, small_dataset, run=path)
    shutil.copytree(tmp_path / "kept", path / "checkpoints", dirs_exist_ok=True)
    part = reproduce(path, small_dataset, from_step=8, to_step=10)
    assert (part.same, part.steps, part.trained) == (True, 10, 2)
    rest = reproduce(path, small_dataset, from_step=8, bisect=True)
    assert (rest.same, rest.steps, rest.trained) == (True, 15, 7)
    whole = reproduce(path, small_dataset, bisect=True)
    assert whole.first_difference and whole.first_difference.steps == (1, 5)
    out = tmp_path / "page.html"
    write_replay(whole, "a run", out)
    page = out.read_text()
    assert page.index("The first difference") < page.index("Update by update")
    assert page.count(PARAMS[0]) >= 2
    for asked, *named in [({"from_step": 7}, "--from-step", 8, 7), ({"to_step": 4}, "--to-step", "5, 8, 10", 4)]:
        with refused(UsageError, *named):
            reproduce(path, small_dataset, **asked)


def test_a_checkpoint_tells_the_leaf_the_values_and_their_distance(
    trained: Callable[..., Path], small_dataset: data.Dataset
) -> None:
    flip = Flip(step=8, leaf="params/Dense_0/kernel", bit=12)
    difference = reproduce(trained(flip, stop_after=8), small_dataset).first_difference
    assert difference
    assert (difference.epoch, difference.steps, difference.leaves) == (2, (6, 8), (flip.leaf,))
    assert difference.max_ulp == 1 << flip.bit
    assert_names(difference.problem, 1, 9408, [0, 0])


def test_another_batch_order_is_found_before_its_epoch(
    trained: Callable[..., Path], small_dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train.epoch_order

    def other_in_epoch_2(config: Any, epoch: Any, **kwargs: Any) -> Any:
        return real(config, np.int32(7) if epoch == 1 else epoch, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train, "epoch_order", other_in_epoch_2)
        path = trained()
    difference = reproduce(path, small_dataset).first_difference
    assert difference
    assert (difference.epoch, difference.steps, difference.leaf) == (2, (6, 6), "order")


def test_another_fact_of_the_manifest_is_named_and_the_same_bits_still_count(
    trained: Callable[..., Path], small_dataset: data.Dataset
) -> None:
    path = trained()
    here = manifest(CONFIG, small_dataset)["binding"]["jaxlib"]
    change_manifest(path, jaxlib="0.1.2")
    found = reproduce(path, small_dataset)
    assert (found.level, found.same, found.changed) == ("L4", True, (f"jaxlib: 0.1.2 there, {here} here",))


@pytest.mark.parametrize(
    ("facts", "bands", "same"),
    [
        ({"isa": "another"}, {}, True),  # The batch order is still promised, and is the same.
        ({"jax": "0.1.2"}, {}, None),  # Nothing is promised but a band, and none is known.
        ({"jax": "0.1.2"}, {"test_accuracy": Band(0.5, 0.2)}, True),
        ({"isa": "another"}, {"test_loss": Band(-1.0, 0.01)}, False),
    ],
)
def test_other_bits_on_another_platform_are_judged_by_order_and_band(
    facts: dict[str, str],
    bands: dict[str, Band],
    same: bool | None,
    trained: Callable[..., Path],
    small_dataset: data.Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = trained(Flip(step=3, leaf=PARAMS[0], bit=10))
    change_manifest(path, **facts)
    monkeypatch.setattr(module, "bands", lambda *_: bands)
    found = reproduce(path, small_dataset)
    assert (found.level, found.same) == ("L4", same)
    assert found.first_difference and found.first_difference.epoch == 1
    assert [judgement.figure for judgement in found.judgements] == list(bands)


def test_a_run_of_other_data_or_with_nothing_to_compare_is_refused(
    trained: Callable[..., Path], small_dataset: data.Dataset, tmp_path: Path
) -> None:
    other = dataclasses.replace(small_dataset, sha256="0" * 64)
    with refused(RunError, small_dataset.sha256, other.sha256):
        reproduce(trained(), other)
    facts = manifest(CONFIG, small_dataset)
    for name, there, named in [("empty", {}, "manifest()"), ("imported", {**facts, "imported": {}}, "imported")]:
        with RunDirectory.create(tmp_path / name, CONFIG, there) as run:
            run.save_checkpoint(0, {}, {})
        with refused(RunError, named):
            reproduce(tmp_path / name, small_dataset)
    RunDirectory.create(tmp_path / "unbegun", CONFIG, facts).close()
    with refused(RunError, tmp_path / "unbegun"):
        reproduce(tmp_path / "unbegun", small_dataset)


@pytest.mark.slow
def test_the_command_answers_0_or_3_and_names_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "run")
    quickstart = str(Path(__file__).parents[1] / "experiments" / "quickstart.py")
    assert main(["train", quickstart, "--epochs", "1", "--model.hidden-sizes", "16", "--out", path]) == 0
    capsys.readouterr()
    assert main(["reproduce", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "level": "L1", "same": True, "first_difference": None, "changed": [], "steps": 32, "judgements": [],
        "trained": 32, "operation": None,
    }  # fmt: skip
    digests = tmp_path / "run" / "digests.jsonl"
    digests.write_text(re.sub('"params_sha256": "..', '"params_sha256": "00', digests.read_text()))
    assert main(["reproduce", path, "--html", str(tmp_path / "page.html")]) == 3
    assert_names((tmp_path / "page.html").read_text(), "params")
    assert_names(capsys.readouterr().err, "L1", 1, 32, "params")
    # The answer is not lost with its page.
    assert main(["reproduce", path, "--html", str(digests / "page.html")]) == 8
    assert_names(capsys.readouterr().out, "L1", 1, 32, "params")
    monkeypatch.setitem(sys.modules, "jaxmlp.report.replay", None)
    monkeypatch.setattr("jaxmlp.proof.reproduce.reproduce", None)  # What is missing is told before the training.
    assert main(["reproduce", path, "--html", str(tmp_path / "page.html")]) == 2
