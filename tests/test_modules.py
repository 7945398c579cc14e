"""Any flax module trains as promised: its mode is told, padding enters no statistic, and the bits are as an MLP's."""

from __future__ import annotations

import dataclasses
import functools
import signal
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from refusals import refused

from jaxmlp import MLP, DataConfig, ExperimentConfig, data, modules, train
from jaxmlp.engine import network
from jaxmlp.engine.fitting import fit
from jaxmlp.errors import ConfigError, RunError
from jaxmlp.experiment.optimizers import SGD
from jaxmlp.experiment.parts import Augmentation, Model
from jaxmlp.export import export
from jaxmlp.prng import root_key
from jaxmlp.run.digest import digest
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.manifest import manifest
from jaxmlp.sweep import sweep
from jaxmlp.system.signals import Stop
from jaxmlp.trained.inference import load_model

CLASSES, FEATURES, BATCH = 3, 5, 128


class Cnn(nn.Module):
    """BatchNorm and dropout in linen."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.Conv(4, (3, 3), strides=3)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))
        x = nn.Dropout(0.25, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(CLASSES)(x)


class NnxCnn(nnx.Module):
    """The same in NNX, which is told its mode by `train()` and `eval()`."""

    def __init__(self, classes: int, *, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 4, (3, 3), strides=3, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.25, rngs=rngs)
        self.out = nnx.Linear(16, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(images)))
        return self.out(self.dropout(x.reshape(x.shape[0], -1)))


class NnxModel(Model):
    """An NNX module as a part."""

    def module(self, outputs: int, precision: str) -> nn.Module:
        made: nn.Module = nnx.bridge.to_linen(NnxCnn, outputs)
        return made


class Norms(nn.Module):
    """BatchNorm right at the inputs, so that its statistics are theirs."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(CLASSES)(nn.BatchNorm(use_running_average=not train, momentum=0.0)(x))


class NnxNorms(nnx.Module):
    """The same in NNX, with a flag in its call."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(FEATURES, momentum=0.0, rngs=rngs)
        self.out = nnx.Linear(FEATURES, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array, use_running_average: bool = True) -> jax.Array:
        return self.out(self.norm(x, use_running_average=use_running_average))


class OwnStatistic(nn.Module):
    """A statistic that no mask reaches: the largest input of all rows."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        largest = self.variable("own", "largest", lambda: jnp.zeros(()))
        if train:
            largest.value = x.max()
        return nn.Dense(CLASSES)(x / (1 + jnp.abs(largest.value)))


NORMS = {"linen": Norms(), "nnx": nnx.bridge.to_linen(NnxNorms)}
CNNS: dict[str, Any] = {"linen": Cnn(), "nnx": NnxModel()}


@functools.cache
def pictures() -> data.Dataset:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 6, 6, 1), np.uint8), rng.integers(0, CLASSES, 40)
    return data.from_arrays((images, labels), (images[:8], labels[:8]), validation=(images[:8], labels[:8]))


def experiment(model: Any, **values: Any) -> ExperimentConfig:
    return ExperimentConfig(model=model, batch_size=16, epochs=2, grad_shards=2, **values)


def flagged(flag: str, value: bool) -> nn.Module:
    """A module of dropout alone, told its mode by `flag`, whose default is `value`."""
    source = f"def call(self, x, {flag}={value}): return nn.Dropout(0.5, deterministic=self.off({flag}))(x)"
    space: dict[str, Any] = {"nn": nn}
    exec(source, space)
    off = staticmethod(lambda given: given is not modules.TRAIN_FLAGS.get(flag, True))
    flagged: Any = type("Flagged", (nn.Module,), {"__call__": nn.compact(space["call"]), "off": off})
    made: nn.Module = flagged()
    return made


@pytest.mark.parametrize("flag", [*modules.TRAIN_FLAGS])
@pytest.mark.parametrize("default", [False, True])
def test_a_module_is_told_its_mode_by_each_name(flag: str, default: bool) -> None:
    module, x = flagged(flag, default), jnp.ones((4, 50))
    trained, _ = modules.apply_train(module, {}, {}, x, jax.random.key(0))
    assert 0 < int((trained == 0).sum()) < trained.size
    np.testing.assert_array_equal(modules.apply_eval(module, {}, {}, x), x)


class Open(nn.Module):
    def __call__(self, x: jax.Array, **kwargs: Any) -> jax.Array:
        return x


class Needs(nn.Module):
    def __call__(self, x: jax.Array, other: jax.Array) -> jax.Array:
        return x + other


class Field(nn.Module):
    train: bool = False

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class NnxIsTrain(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None: ...

    def __call__(self, x: jax.Array, is_train: bool = False) -> jax.Array:
        return x


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (flagged("is_train", True), ["Flagged", "is_train"]),
        (flagged("evaluating", True), ["evaluating"]),
        (flagged("use_dropout", True), ["use_dropout"]),
        (Open(), ["Open", "**kwargs"]),
        (Needs(), ["Needs", "other"]),
        (Field(), ["train"]),
        (nn.Sequential([nn.Dense(3), nn.Dropout(0.5)]), ["Dropout", "deterministic"]),
        (nnx.bridge.to_linen(NnxIsTrain), ["NnxIsTrain", "is_train"]),
        (nnx.bridge.to_linen(functools.partial(NnxIsTrain)), ["NnxIsTrain", "is_train"]),
        (nnx.bridge.to_linen(lambda rngs: nnx.Linear(1, 1, rngs=rngs)), ["nnx.Module", "to_linen"]),
    ],
)
def test_a_mode_that_would_be_ignored_is_refused_by_name(module: nn.Module, named: list[str]) -> None:
    with refused(ConfigError, "model", *named):
        network.check_network(experiment(module), pictures().facts)


def test_layers_without_a_mode_may_stand_in_a_row() -> None:
    row = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(4), nn.relu, nn.Dense(CLASSES)])
    network.check_network(experiment(row), pictures().facts)


def test_an_nnx_module_without_a_flag_drops_units_in_training_alone() -> None:
    module, images = nnx.bridge.to_linen(NnxCnn, CLASSES), jnp.ones((4, 6, 6, 1))
    params, variables = modules.init(module, images, jax.random.key(0))
    evaluated = [modules.apply_eval(module, params, variables, images) for _ in range(2)]
    np.testing.assert_array_equal(*evaluated)
    rows = np.asarray(evaluated[0])
    assert (rows == rows[0]).all(), "no unit is dropped in evaluation"
    # The same example twice, so that the two differ by the units dropped alone.
    varied = jnp.tile(jax.random.normal(jax.random.key(5), (2, 6, 6, 1)), (2, 1, 1, 1))
    trained = {
        key: jax.device_get(modules.apply_train(module, params, variables, varied, jax.random.key(key)))
        for key in (0, 1)
    }
    assert not (trained[0][0][:2] == trained[0][0][2:]).all(), "units are dropped in training"
    assert not (trained[0][0] == trained[1][0]).all(), "the key decides which"
    assert not (trained[0][1]["batch_stats"]["norm"]["mean"] == 0).all(), "and statistics are kept"


class NnxNoise(nnx.Module):
    """Draws from a stream of a name of its own."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.rngs = rngs

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jax.random.normal(self.rngs.noise(), x.shape)


class Noise(nn.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jax.random.normal(self.make_rng("noise"), x.shape)


@pytest.mark.parametrize("module", [nnx.bridge.to_linen(NnxNoise), Noise()])
def test_a_stream_of_any_name_draws_anew_in_each_step(module: nn.Module) -> None:
    x = jnp.zeros((2, 3))
    drawn = [modules.apply_train(module, {}, {}, x, jax.random.key(key))[0] for key in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not (drawn[0] == drawn[2]).any()


@functools.cache
def stepped(module: str, grad_shards: int) -> tuple[ExperimentConfig, train.TrainState]:
    """An experiment on numbers, and its first state."""
    named = {**NORMS, "own": OwnStatistic(), "mlp": MLP(hidden_sizes=(4,))}
    config = ExperimentConfig(
        model=named[module],
        data=DataConfig(pixel_scale=1.0),
        optimizer=SGD(),
        batch_size=BATCH,
        grad_shards=grad_shards,
    ).on_data(CLASSES, 1)
    return config, train.init_state(config, np.zeros((1, FEATURES), np.float32))


def batch_of(rows: int, padding: float) -> train.Batch:
    rng = np.random.default_rng(rows)
    inputs: Any = rng.normal(3, 2, (BATCH, FEATURES)).astype(np.float32)
    is_row = np.arange(BATCH) < rows
    inputs[~is_row] = padding
    targets = np.where(is_row, np.arange(BATCH) % CLASSES, train.PADDING).astype(np.int32)
    return train.Batch(inputs, targets, is_row.astype(np.float32))


@pytest.mark.parametrize("grad_shards", [1, 8])
@pytest.mark.parametrize("module", ["linen", "nnx", "own", "mlp"])
def test_what_lies_in_the_padding_changes_no_bit(module: str, grad_shards: int) -> None:
    config, state = stepped(module, grad_shards)
    for rows in (96, 1):
        paddings = (0.0, 1e6) if module == "mlp" else (0.0, 1e6, np.nan)
        found = [
            jax.device_get(train.train_step(config, state, batch_of(rows, padding), root_key(0)))
            for padding in paddings
        ]
        assert len({digest(each) for each in found}) == 1
        after, sums = found[0]
        assert int(sums["examples"]) == rows
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after, sums)))
        assert digest(after.params) != digest(state.params)


def test_a_loss_that_has_no_value_at_zeros_meets_none_in_the_padding() -> None:
    def of_logarithms(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.sum((logits - jnp.log(targets)) ** 2, axis=-1)

    rng = np.random.default_rng(0)
    pair: Any = rng.normal(size=(70, FEATURES)).astype(np.float32), rng.uniform(0.1, 1, (70, 2)).astype(np.float32)
    config = ExperimentConfig(
        model=MLP(hidden_sizes=(4,)), loss=of_logarithms, metrics=(), data=DataConfig(pixel_scale=1.0),
        batch_size=32, grad_shards=4, epochs=1,
    )  # fmt: skip
    history = fit(config, data.from_arrays(pair, pair), verbose=0)
    assert history.status == "finished" and np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("grad_shards", [1, 8])
@pytest.mark.parametrize("module", ["linen", "nnx"])
@pytest.mark.parametrize("rows", [128, 96, 90, 1])
def test_statistics_are_those_of_a_shards_own_rows_joined_by_their_numbers(
    module: str, grad_shards: int, rows: int
) -> None:
    config, state = stepped(module, grad_shards)
    batch = batch_of(rows, 1e6)
    after, _ = train.train_step(config, state, batch, root_key(0))
    ((found),) = after.variables["batch_stats"].values()
    size = BATCH // grad_shards
    parts: list[Any] = [np.float64(batch.inputs[first : min(first + size, rows)]) for first in range(0, rows, size)]
    mean, variance = (sum(len(part) / rows * of(part, axis=0) for part in parts) for of in (np.mean, np.var))
    # float32's; the variance is E[x^2] - E[x]^2, of squares about 13.
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(found["var"], variance, rtol=1e-5, atol=1e-4)


def test_the_module_of_a_stack_is_masked_wherever_it_stands() -> None:
    """NNX inside linen, a mask of the module's own, and an axis before the rows that no mask fits."""

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            odd = (jnp.arange(FEATURES) % 2 == 1)[None]
            nn.BatchNorm(use_running_average=not train, momentum=0.0, axis=(), name="own_mask")(x, mask=odd)
            nn.BatchNorm(use_running_average=not train, momentum=0.0, name="turned")(x.T[..., None])
            inner: jax.Array = nnx.bridge.ToLinen(NnxNorms, name="inner")(x, use_running_average=not train)
            return inner

    module, batch = Outer(), batch_of(6, 0.0)
    own, inputs = jnp.arange(8) < 6, jnp.asarray(batch.inputs[:8])
    params, variables = modules.init(module, inputs, jax.random.key(0))
    filled = modules.fill_padding(inputs, own)
    _, updated = modules.apply_train(module, params, variables, filled, jax.random.key(0), own)
    found = jax.tree.map(np.asarray, updated["batch_stats"])
    np.testing.assert_allclose(found["inner"]["norm"]["mean"], batch.inputs[:6].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["own_mask"]["mean"], batch.inputs[:6, 1::2].mean(), rtol=1e-5)
    np.testing.assert_allclose(found["turned"]["mean"], np.asarray(filled).mean(), rtol=1e-5)


@pytest.mark.optimized
def test_a_lane_has_the_bits_of_a_run_alone() -> None:
    lanes = sweep(experiment(Cnn()), pictures(), seeds=[0, 1], devices=1).lanes
    assert lanes[1].state_sha256 == fit(experiment(Cnn(), seed=1), pictures()).state_sha256 != lanes[0].state_sha256


@pytest.mark.optimized
@pytest.mark.parametrize("name", CNNS)
def test_a_run_resumed_on_eight_devices_has_the_bits_of_an_uninterrupted_run_on_one(name: str, tmp_path: Path) -> None:
    config, dataset = dataclasses.replace(experiment(CNNS[name], seed=1), grad_shards=8), pictures()
    whole = fit(config, dataset, out=tmp_path / "whole", devices=1)
    assert len({digest(whole.state.variables), digest(whole.state)}) == 2
    stop = Stop()

    def interrupt(record: Any, state: Any) -> None:
        stop.signal = signal.SIGTERM

    with RunDirectory.create(tmp_path / "cut", config, manifest(config, dataset)) as run:
        assert fit(config, dataset, run=run, hooks=[interrupt], stop=stop, devices=1).status == "interrupted"
        resumed = fit(config, dataset, run=run, devices=8)
    assert (resumed.state_sha256, resumed.test) == (whole.state_sha256, whole.test)

    model = load_model(_with_code(tmp_path / "whole", config))
    assert digest(model.variables) == digest(whole.state.variables)
    for exported in ("safetensors", "stablehlo"):
        export(model, exported, tmp_path / f"model.{exported}")
    assert b"batch_stats/" in (tmp_path / "model.safetensors").read_bytes()
    for mlps_alone in ("onnx", "web"):
        with refused(RunError, "stablehlo"):
            export(model, mlps_alone, tmp_path / "model")


def _with_code(path: Path, config: ExperimentConfig) -> RunDirectory:
    run = RunDirectory.open(path, write=False)
    return RunDirectory(path, config, run.plain_config, run.manifest, None)


def test_a_summary_shows_the_layers_of_the_module_that_trains() -> None:
    of_linen, of_nnx = (network.summary(experiment(model), pictures().facts) for model in CNNS.values())
    assert [layer.type for layer in of_linen.layers] == ["Conv", "BatchNorm", "Dropout", "Dense"]
    assert [layer.name for layer in of_nnx.layers] == ["conv", "norm", "dropout", "out"]
    for name in ("params", "variables", "flops_per_step", "params_bytes"):
        assert getattr(of_linen, name) == getattr(of_nnx, name)
    assert [layer.params for layer in of_linen.layers] == [layer.params for layer in of_nnx.layers] == [40, 16, 0, 51]
    assert of_linen.layers[0].output_shape == of_nnx.layers[0].output_shape == (2, 2, 4)
    # A convolution of 4 places of 9 pixels to 4 channels, without its input's gradient; a product 16 x 3, three times.
    assert of_linen.flops_per_step == 2 * 16 * (2 * 4 * 9 * 4 + 3 * 16 * 3)


class Mixup(Augmentation):
    """Mixes each example with the next one of its shard's own rows: targets become distributions."""

    def __call__(self, key: jax.Array, batch: train.Batch) -> train.Batch:
        part = jax.random.uniform(key)
        rows = jnp.sum(batch.mask, dtype=jnp.int32)
        partner = (jnp.arange(len(batch.mask), dtype=jnp.int32) + 1) % jnp.maximum(rows, 1)
        one_hot = jax.nn.one_hot(batch.targets, CLASSES)
        targets = part * one_hot + (1 - part) * one_hot[partner]
        return batch._replace(inputs=part * batch.inputs + (1 - part) * batch.inputs[partner], targets=targets)


def test_an_augmentation_may_make_distributions_of_labels() -> None:
    config, dataset = experiment(MLP(hidden_sizes=(4,)), augmentation=(Mixup(),)), pictures()
    mixed, plain = fit(config, dataset), fit(dataclasses.replace(config, augmentation=()), dataset)
    assert mixed.state_sha256 != plain.state_sha256
    assert fit(config, dataset, devices=1).state_sha256 == mixed.state_sha256
    assert 0 <= mixed["accuracy"][-1] <= 1
