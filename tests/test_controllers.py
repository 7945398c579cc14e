"""What steers a run: as Keras's callbacks do, to the same bits however the run was interrupted, and to its own end."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxmlp import (
    EMA,
    MLP,
    SGD,
    Budget,
    ClippedCrossEntropy,
    ConfigError,
    Controller,
    Cosine,
    CutOut,
    DataConfig,
    DataError,
    EarlyStopping,
    Elastic,
    ExperimentConfig,
    InverseTime,
    Mixup,
    Noise,
    ReduceOnPlateau,
    RMSprop,
    Rotate,
    Scale,
    Shift,
    data,
    evaluate,
    fit,
    prng,
    reproduce,
    train,
    verify,
)
from jaxmlp.engine import fitting
from jaxmlp.engine.history import EpochRecord, History
from jaxmlp.engine.progress import Progress
from jaxmlp.experiment.config import as_arrays
from jaxmlp.experiment.mixing import symmetric_beta
from jaxmlp.experiment.parts import Epoch
from jaxmlp.run.digest import digest, leaves
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.manifest import manifest
from jaxmlp.sweep import resume, sweep
from jaxmlp.system.signals import Stop
from jaxmlp.trained import inference

PLANS = int(os.environ.get("JAXMLP_PLANS", "1"))
"""Random plans of interruption that are tried; the second is of portable precision, the third of bfloat16."""
STOPS = EarlyStopping(monitor="val_accuracy", patience=2, restore_best=True)
ALL = (STOPS, ReduceOnPlateau(patience=1, factor=0.5), EMA(decay=0.9))


@functools.cache
def noise() -> data.Dataset:
    """Random labels: a network soon does worse on others than it did."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (120, 6, 6, 1), np.uint8), rng.integers(0, 3, 120)
    weights, test = rng.uniform(0.5, 2, 120).astype(np.float32), (images[:32], labels[:32])
    return data.from_arrays((images, labels), test, validation=test, weights=weights)


def experiment(*controllers: Controller, **values: Any) -> ExperimentConfig:
    known: dict[str, Any] = {"batch_size": 16, "epochs": 10, "grad_shards": 4, "optimizer": RMSprop(learning_rate=0.01)}
    return ExperimentConfig(model=MLP(hidden_sizes=(8,)), controllers=controllers, **{**known, **values})


CHANGES = (Shift(pixels=1), Rotate(), Scale(), Elastic(), Noise(), CutOut(size=2))


def everything(plan: random.Random, **values: Any) -> ExperimentConfig:
    """All that has a state, and all that changes a gradient."""
    return experiment(
        *ALL,
        Budget(steps=plan.choice([19, 29, 77])),
        data=DataConfig(class_weights=(0.5, 1.0, 3.0), also=("test",)),
        best_by="test_ema_loss",
        augmentation=(*plan.sample(CHANGES, 2), Mixup()),
        loss=ClippedCrossEntropy(label_smoothing=0.1),
        accumulate=3,
        clip_norm=1.0,
        clip_value=0.5,
        **values,
    )


def recorded() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path(__file__).with_name("keras_callbacks.json").read_text())["cases"]
    return found


@jax.jit
def after_epochs(part: Controller, figures: jax.Array) -> Any:
    """The states before each epoch of these figures, and after the last; a weight is its epoch's number."""

    def one(own: Any, figure: Any) -> Any:
        number, value = figure
        return part.after_epoch(own, Epoch({"val": value}, frozenset(), number, {})), own

    numbers = jnp.arange(1, len(figures) + 1, dtype=jnp.int32)
    last, before = jax.lax.scan(one, part.init(jnp.int32(0), {}), (numbers, figures))
    return jax.tree.map(lambda rows, row: jnp.concatenate([rows, row[None]]), before, last)


def test_stopping_and_plateau_are_those_of_keras_3() -> None:
    cases = recorded()
    assert len({case["stopped_after"] for case in cases}) > 8
    for case in cases:
        figures, direction = jnp.float32(case["figures"]), case["direction"]
        stops = EarlyStopping(monitor="val", direction=direction, restore_best=True, **case["stopping"])
        states = jax.device_get(after_epochs(as_arrays(stops), figures))
        rows = [jax.tree.map(lambda leaf, row=row: leaf[row], states) for row in range(len(figures) + 1)]
        log = [EpochRecord(number, 0, {"val": value}, None, 0.0) for number, value in enumerate(case["figures"], 1)]
        ends = [epoch for epoch in range(1, len(rows)) if stops.why_stop(rows[epoch], log)]
        assert (ends[0] if ends else None) == case["stopped_after"]
        end = rows[ends[0] if ends else -1]
        assert int(end["weights"]["params"]) == int(end["best_epoch"]) == case["restored"]
        slows = ReduceOnPlateau(monitor="val", direction=direction, **case["plateau"])
        factors = np.asarray(after_epochs(as_arrays(slows), figures)["factor"])
        np.testing.assert_array_equal(factors[:-1], np.float32(case["factors"]))


def test_a_controller_that_finds_nothing_to_watch_or_to_change_is_refused_by_name() -> None:
    import optax

    for monitor, hint in (("val_acuracy", "Did you mean val_accuracy"), ("val_ema_loss", "figures are loss, accuracy")):
        with pytest.raises(ConfigError, match=rf"controllers\.0\.monitor must be a figure.*{hint}"):
            fit(experiment(EarlyStopping(monitor=monitor)), noise())
    with pytest.raises(ConfigError, match="no learning_rate field"):
        experiment(ReduceOnPlateau(), optimizer=optax.sgd(0.1))
    with pytest.raises(ConfigError, match="at most one with restore_best, got 2"):
        experiment(STOPS, dataclasses.replace(STOPS, monitor="loss"))
    with pytest.raises(ConfigError, match="must be a controller"):
        experiment(lambda record: True)  # type: ignore[arg-type]


def test_an_experiment_without_controllers_says_nothing_of_them() -> None:
    assert "controllers" not in experiment().to_dict()
    config = experiment(*ALL)
    assert ExperimentConfig.from_json(config.to_json()) == config


def test_the_part_of_a_mixture_is_drawn_from_the_beta_distribution() -> None:
    keys = jax.vmap(lambda step: prng.stream_key(prng.root_key(0), prng.Stream.AUGMENTATION, step))(jnp.arange(4000))
    draw = jax.jit(jax.vmap(symmetric_beta, in_axes=(0, None)))
    for alpha in (0.2, 1.0):
        drawn = np.asarray(draw(keys, jnp.float32(alpha)))
        for value in (0.01, 0.1, 0.5, 0.9):  # Four standard deviations of 4,000 draws are 0.032.
            assert abs((drawn < value).mean() - special.betainc(alpha, alpha, value)) < 0.032


def numpys(config: ExperimentConfig) -> tuple[Any, Any]:
    """Kernel and bias of a softmax regression, and their moving averages, after a run of the experiment; float64."""
    on_data, rows = config.on_data(3, 8), noise().train
    optimizer: Any = config.optimizer
    of_examples: Any = rows.weights
    state = train.init_state(on_data, noise().facts.zeros(1).inputs)
    params = {name: np.float64(leaf) for name, leaf in state.params["Dense_0"].items()}
    velocity, total, average = ({name: 0 * leaf for name, leaf in params.items()} for _ in range(3))
    waiting, batches, is_begun = 0, 0, False
    for step in range(config.epochs * 8):
        order = np.asarray(train.epoch_order(on_data, jnp.int32(step // 8), examples=120))
        chosen = [row for row in order[step % 8 * 16 :][:16] if row >= 0]
        x, labels = rows.inputs[chosen].reshape(len(chosen), -1) / 255, rows.targets[chosen]
        logits = x @ params["kernel"] + params["bias"]
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        weights = np.float64(of_examples[chosen]) * np.array(config.data.class_weights or (1, 1, 1))[labels]
        errors = (p - np.eye(3)[labels]) * weights[:, None]
        total = {"kernel": total["kernel"] + x.T @ errors, "bias": total["bias"] + errors.sum(axis=0)}
        waiting, batches = waiting + len(chosen), batches + 1
        if batches == config.accumulate:
            grads = {name: leaf / waiting for name, leaf in total.items()}
            if config.clip_value:
                grads = {name: np.clip(leaf, -config.clip_value, config.clip_value) for name, leaf in grads.items()}
            norm = np.sqrt(sum(np.square(leaf).sum() for leaf in grads.values()))
            if config.clip_norm and norm > config.clip_norm:
                grads = {name: leaf * config.clip_norm / norm for name, leaf in grads.items()}
            rate, momentum = optimizer.learning_rate, optimizer.momentum
            velocity = {name: momentum * velocity[name] - rate * grads[name] for name in grads}
            params = {name: params[name] + velocity[name] for name in params}
            total, waiting, batches = {name: 0 * leaf for name, leaf in params.items()}, 0, 0
            kept = 0.98 if is_begun else 0.0
            average, is_begun = {name: kept * average[name] + (1 - kept) * params[name] for name in params}, True
    return params, average


@pytest.mark.parametrize(
    "values",
    [
        {"data": DataConfig(class_weights=(0.5, 1.0, 3.0))},
        {"accumulate": 3, "clip_value": 0.02, "clip_norm": 0.1},
    ],
)
def test_weights_average_clipping_and_accumulation_are_numpys_after_200_updates(values: dict[str, Any]) -> None:
    optimizer = SGD(learning_rate=0.02, momentum=0.9)
    config = experiment(EMA(decay=0.98), optimizer=optimizer, epochs=25, **values)
    config = dataclasses.replace(config, model=MLP(hidden_sizes=()))
    history = fit(config, noise(), devices=1)
    assert int(history.state.step) == 200
    params, average = numpys(config)
    for found, wanted in ((history.state.params, params), (history.state.controllers["ema"]["params"], average)):
        for name, leaf in wanted.items():
            # Float32's rounding, 200 times over; without any one of these rules it is 1e-2 and more.
            np.testing.assert_allclose(found["Dense_0"][name], leaf, rtol=2e-4, atol=2e-5)


class Interrupt(Progress):
    """Stops a run after so many updates."""

    def __init__(self, stop: Stop, at: int) -> None:
        self.stop, self.at = stop, at

    def steps_done(self, epoch: int, done: int, total: int, figures: Mapping[str, float]) -> None:
        if (epoch - 1) * total + done >= self.at:
            self.stop.signal = signal.SIGTERM


def interrupted(config: ExperimentConfig, path: Path, plan: random.Random) -> History:
    """The run, stopped at random updates and gone on with on random numbers of devices."""
    at, history, counts = 0, None, plan.sample([1, 2, 4], 2)
    with RunDirectory.create(path, config, manifest(config, noise())) as run:
        while history is None or history.status == "interrupted":
            at += plan.randrange(1, 30)
            stop = Stop()
            devices = plan.choice(counts)
            if len(run.checkpoints.paths()) > 1 and plan.random() < 0.5:  # As a kill before the newest was written.
                run.checkpoints.paths()[0].unlink()
            history = fit(config, noise(), run=run, devices=devices, stop=stop, progress=Interrupt(stop, at))
    return history


@pytest.mark.optimized
@pytest.mark.parametrize("seed", range(PLANS))
def test_every_plan_of_interruptions_devices_and_lanes_ends_in_the_same_bits(seed: int, tmp_path: Path) -> None:
    plan = random.Random(seed)
    config = everything(plan, precision=("float32", "portable", "bfloat16")[seed % 3], seed=plan.randrange(9))
    whole = fit(config, noise(), devices=plan.choice([1, 2, 4]), out=tmp_path / "whole")
    assert whole.stopped and 1 < len(whole.records) < 10
    again = interrupted(config, tmp_path / "cut", plan)
    assert (again.state_sha256, again.test, again.stopped) == (whole.state_sha256, whole.test, whole.stopped)
    logs = [(tmp_path / name / "digests.jsonl").read_bytes() for name in ("cut", "whole")]
    assert logs[0] == logs[1]
    folder, stop, last_epoch = tmp_path / "sweep", Stop(), plan.randrange(1, len(whole.records))

    def interrupt(lane: Any, record: Any, state: Any) -> None:
        if record.epoch == last_epoch:
            stop.signal = signal.SIGTERM

    how: dict[str, Any] = {"seeds": [9, config.seed], "devices": plan.choice([1, 2]), "out": folder, "keep_runs": True}
    assert sweep(config, noise(), **how, hooks=[interrupt], stop=stop).status == "interrupted"
    lanes = resume(folder, noise(), devices=plan.choice([1, 2])).lanes
    assert (lanes[1].state_sha256, lanes[1].test, lanes[1].stopped) == (whole.state_sha256, whole.test, whole.stopped)
    assert [record.figures for record in lanes[1].metrics] == [record.figures for record in whole.records]
    kept, alone = folder / "runs" / f"0001-s{config.seed}", tmp_path / "whole"
    last = max((alone / "checkpoints").iterdir()).name
    for name in ("digests.jsonl", f"checkpoints/{last}"):
        assert (kept / name).read_bytes() == (alone / name).read_bytes()
    assert verify(kept).damaged == ()


def test_a_run_that_restores_its_best_weights_can_be_verified_reproduced_and_loaded(tmp_path: Path) -> None:
    config, path = experiment(*ALL), tmp_path / "run"
    history = fit(config, noise(), out=path)
    with RunDirectory.open(path, write=False) as run:
        best = min(run.epochs(), key=lambda line: -line["val_accuracy"])
        told = run.digests()[best["epoch"] - 1]
        of_loss = min(run.epochs(), key=lambda line: line["val_loss"])["epoch"]
        best_sha256 = run.digests()[of_loss - 1]["params_sha256"]
        assert run.manifest["result"]["stopped"] == history.stopped
        assert str(history.stopped).startswith("early_stopping: val_accuracy has not improved for 2 epochs;")
    # The last weights are those of the best epoch; the log tells of the epochs as they were trained.
    assert best["epoch"] < len(history.records)
    assert history.params_sha256 == digest(history.state.params) == told["params_sha256"]
    assert history.test["accuracy"] == best["val_accuracy"]
    assert verify(path).damaged == ()
    found = reproduce(path, noise())
    assert (found.same, found.steps) == (True, history.records[-1].steps)
    # Opened for writing, a finished run is ended once more: restored once is restored.
    with RunDirectory.open(path, write=True) as run:
        run.begin_again()
        assert fit(config, noise(), run=run).state_sha256 == history.state_sha256
    last, average, by_loss = (inference.load_model(path, which) for which in ("last", "ema", "best"))
    assert digest(by_loss.params) == best_sha256 != history.params_sha256
    assert digest(last.params) == history.params_sha256
    assert digest(average.params) == digest(history.state.controllers["ema"]["params"])
    assert inference.evaluate_split(average, noise().test, "test").accuracy == history.test["ema_accuracy"]
    assert history.metrics()["ema_accuracy"]["val"] == history["val_ema_accuracy"][-1]


def test_a_budget_a_hook_and_a_stop_by_a_hook_in_a_sweep_say_why(tmp_path: Path) -> None:
    config = experiment(Budget(steps=17), epochs=9)
    spent = fit(config, noise())
    assert spent.stopped == "budget: 17 updates are made"
    assert [record.steps for record in spent.records] == [8, 16, 17]  # The last of the third epoch's first batch alone.
    assert spent.test_accuracy is not None and spent["val_loss"][2] != spent["val_loss"][1]
    timed = fit(experiment(Budget(seconds=1e-9), *ALL, epochs=9), noise(), out=tmp_path / "timed")
    assert (timed.stopped, len(timed.records), timed.status) == ("budget: 1e-09 s are used up", 1, "finished")
    # Where the clock ended it is in its log: the same updates give the same bits.
    steps = int(timed.state.step)
    assert verify(tmp_path / "timed").damaged == ()
    found = reproduce(tmp_path / "timed", noise())
    assert (found.same, found.steps) == (True, steps)
    with RunDirectory.open(tmp_path / "timed", write=True) as run:
        assert run.manifest["result"]["steps"] == steps < 8
        run.begin_again()  # Ended once more, it is as it was.
        again = fit(run=run, dataset=noise())
    assert (again.state_sha256, len(again.records)) == (timed.state_sha256, 1)

    def enough(record: Any, state: Any) -> bool:
        return bool(record.epoch == 2)

    asked = fit(
        experiment(Budget(), epochs=9), noise(), hooks=[lambda record, state: "no reason", enough], out=tmp_path / "run"
    )
    assert (asked.stopped, len(asked.records), asked.status) == ("the hook enough asked for it", 2, "finished")
    assert asked.test_accuracy is not None
    # Killed before it could say so, it knows from its checkpoint that it was stopped.
    with RunDirectory.open(tmp_path / "run", write=True) as run:
        run.begin_again()
        again = fit(run=run, dataset=noise())
    assert (again.stopped, again.state_sha256) == (asked.stopped, asked.state_sha256)

    def of_second(lane: Any, record: Any, state: Any) -> bool:
        return bool(lane.seed == 1 and record.epoch == 2)

    how: dict[str, Any] = {"seeds": [0, 1], "devices": 1, "batching": "vmap"}
    lanes = sweep(experiment(epochs=4), noise(), **how, hooks=[of_second]).lanes
    assert [(len(lane.metrics), lane.epoch, lane.stopped) for lane in lanes] == [
        (4, 4, None),
        (2, 2, "the hook of_second asked for it"),
    ]
    assert lanes[1].state_sha256 == sweep(experiment(epochs=2), noise(), **how).lanes[1].state_sha256


@pytest.mark.optimized
def test_lanes_end_within_an_epoch_each_at_its_own_update(tmp_path: Path) -> None:
    config, stop = experiment(Budget(steps=19), EMA(decay=0.5), epochs=4), Stop()

    def interrupt(lane: Any, record: Any, state: Any) -> None:
        if record.steps == 11:
            stop.signal = signal.SIGTERM

    vary: dict[str, Any] = {"controllers.0.steps": [11, 19, 99]}
    how: dict[str, Any] = {"seeds": [0], "vary": vary, "devices": 1, "out": tmp_path / "sweep", "keep_runs": True}
    assert sweep(config, noise(), **how, hooks=[interrupt], stop=stop).status == "interrupted"
    for lane, run in zip(
        resume(tmp_path / "sweep", noise(), devices=1).lanes,
        sorted((tmp_path / "sweep" / "runs").iterdir()),
        strict=True,
    ):
        alone = fit(RunDirectory.open(run, write=False).config, noise(), out=tmp_path / run.name)
        assert (lane.state_sha256, lane.test, lane.stopped) == (alone.state_sha256, alone.test, alone.stopped)
        assert [record.figures for record in lane.metrics] == [record.figures for record in alone.records]
        last = f"checkpoints/step-{int(alone.state.step):08}.safetensors"
        for name in ("digests.jsonl", last):
            assert (run / name).read_bytes() == (tmp_path / run.name / name).read_bytes()


def test_each_epoch_is_scored_on_more_splits_and_the_best_may_be_an_average_on_one_of_them(tmp_path: Path) -> None:
    images, labels = noise().train[:2]
    pairs = [(images[rows], labels[rows]) for rows in (slice(0, 70), slice(70, 90), slice(90, 120))]
    dataset = data.from_arrays(pairs[0], pairs[1], validation=0.2, others={"far": pairs[2]})
    config = experiment(
        EMA(decay=0.5),
        EarlyStopping(monitor="val_far_ema_accuracy", patience=2),
        data=DataConfig(also=("far", "test")),
        best_by="far_ema_accuracy",
        batch_size=8,
    )
    history = fit(config, dataset, out=tmp_path / "run")
    best, last = (inference.load_model(tmp_path / "run", which) for which in ("best", "last"))
    far = history["val_far_ema_accuracy"]
    assert inference.evaluate_split(best, dataset.others["far"], "far").accuracy == max(far)
    assert best.step == history["steps"][far.index(max(far))] < last.step
    assert history.stopped and len(far) == far.index(max(far)) + 3 < 10
    assert evaluate(last, "far", dataset=dataset).loss == pytest.approx(history["val_far_loss"][-1], rel=1e-6)
    assert history["val_test_accuracy"][-1] == history.test["accuracy"] == history.metrics()["accuracy"]["val_test"]
    for field, values in (("best_by", {"best_by": "far_loss"}), ("data.also", {"data": DataConfig(also=("fra",))})):
        with pytest.raises(ConfigError, match=rf"^{field} "):
            fit(experiment(**values), dataset)
    with pytest.raises(DataError, match="'ema'"):
        data.from_arrays(pairs[0], pairs[1], others={"ema": pairs[2]})
    assert data.from_arrays(pairs[0], pairs[1]).sha256 != dataset.sha256


def test_what_a_hook_raises_loses_nothing(tmp_path: Path) -> None:
    config = experiment(Budget(), epochs=3)

    def fails(record: Any, state: Any) -> None:
        if record.epoch == 2:
            raise ZeroDivisionError("in the hook")

    with pytest.raises(ZeroDivisionError) as raised:
        fit(config, noise(), hooks=[fails], out=tmp_path / "run")
    history: History = raised.value.history  # type: ignore[attr-defined]
    assert (len(history.records), history.status, int(history.state.step)) == (2, "interrupted", 16)
    assert str(tmp_path / "run") in raised.value.__notes__[0]
    with RunDirectory.open(tmp_path / "run", write=False) as run:
        assert run.status == "interrupted"
    assert fit(run=tmp_path / "run", dataset=noise()).state_sha256 == fit(config, noise()).state_sha256


def test_a_finished_run_goes_on_to_the_bits_of_a_longer_one(tmp_path: Path) -> None:
    patient = (dataclasses.replace(STOPS, patience=99), *ALL[1:])
    longer = fit(experiment(*patient, epochs=4), noise(), out=tmp_path / "longer")
    fit(experiment(*patient, epochs=2), noise(), out=tmp_path / "run")
    again = fit(run=tmp_path / "run", dataset=noise(), epochs=4)
    assert (again.state_sha256, again.test) == (longer.state_sha256, longer.test)
    for name in ("config.json", "digests.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "longer" / name).read_bytes()
    assert verify(tmp_path / "run").damaged == ()
    with RunDirectory.open(tmp_path / "run", write=False) as run:
        assert run.manifest["lengthened"] == [{"after": 2, "from": 2, "to": 4, "same_bits": True}]
        told = run.manifest["binding"]
    with RunDirectory.open(tmp_path / "longer", write=False) as run:
        assert told == run.manifest["binding"]
    with pytest.raises(ConfigError, match="epochs must be at least the 4 epochs that are done, got 3"):
        fit(run=tmp_path / "run", dataset=noise(), epochs=3)

    # One that stopped would have stopped there, had it been longer.
    stopped = fit(experiment(*ALL), noise(), out=tmp_path / "stopped")
    again = fit(run=tmp_path / "stopped", dataset=noise(), epochs=20)
    assert (again.state_sha256, again.stopped) == (stopped.state_sha256, stopped.stopped)


def test_a_rate_that_depends_on_the_number_of_epochs_is_known() -> None:
    import optax

    assert fitting.reads_length(experiment(optimizer=SGD(schedule=Cosine())), noise())
    for optimizer in (SGD(schedule=InverseTime()), optax.adam(0.1)):
        assert not fitting.reads_length(experiment(optimizer=optimizer), noise())


def test_a_run_that_begins_with_the_weights_of_another_keeps_them_and_can_be_reproduced(tmp_path: Path) -> None:
    first = fit(experiment(*ALL, epochs=1, seed=1), noise(), out=tmp_path / "first")
    config, stop = experiment(*ALL, epochs=2, seed=2), Stop()
    whole = fit(config, noise(), start=tmp_path / "first")
    assert whole.state_sha256 != fit(config, noise()).state_sha256
    stop.signal = signal.SIGTERM  # Before its first update.
    begun = fit(config, noise(), start=tmp_path / "first", stop=stop, out=tmp_path / "run")
    assert begun.params_sha256 == first.params_sha256
    shutil.rmtree(tmp_path / "first")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    assert fit(run=tmp_path / "run", dataset=noise()).state_sha256 == whole.state_sha256
    with RunDirectory.open(tmp_path / "run", write=False) as run:
        weights = {f"state/params/{name}": leaf for name, leaf in leaves(first.state.params).items()}
        assert run.manifest["start"] == {"sha256": digest(weights)}
    assert verify(tmp_path / "run").damaged == ()
    assert reproduce(tmp_path / "run", noise()).same
