"""A config is a pytree, and a part is one class: of one's own it trains, is stored, found again and varied."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refusals import refused

from jaxmlp import MLP, SGD, Adam, ConfigError, Cosine, CrossEntropy, ExperimentConfig, data, fit, ranged, train
from jaxmlp.engine.history import History
from jaxmlp.experiment.fields import MAX_NESTING, parse_json
from jaxmlp.experiment.parts import Augmentation, Batch, Loss, Metric, Model, Optimizer, Part, Schedule
from jaxmlp.experiment.plain import where, with_value
from jaxmlp.source.code import code_of
from jaxmlp.source.file import Code
from jaxmlp.sweep.start import sweep

FILE = Path(__file__).name
SMALL = ExperimentConfig(model=MLP(hidden_sizes=(4,)), batch_size=16, epochs=2)


class Lion(Optimizer):
    """Sign of an interpolated momentum. Source: Chen et al. 2023."""

    learning_rate: float = ranged(1e-3, "[0, inf)", traced=True)
    b1: float = ranged(0.9, "[0, 1)", traced=True)

    def transformation(self, total_steps: Any) -> optax.GradientTransformation:
        return optax.lion(self.rate(total_steps), self.b1)


class Halving(Schedule):
    """factor(t) = 0.5 ^ (t / steps)."""

    steps: float = ranged(4.0, "(0, inf)", traced=True)

    def factor(self, step: Any, total_steps: Any) -> Any:
        return jnp.float32(0.5) ** (jnp.float32(step) / self.steps)


class Focal(Loss):
    """-(1 - p)^gamma * log(p). Source: Lin et al. 2017."""

    gamma: float = ranged(2.0, "[0, inf)", traced=True)

    def __call__(self, logits: Any, targets: Any) -> Any:
        own = jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(targets, logits.shape[-1]), axis=-1)
        return -((1 - jnp.exp(own)) ** self.gamma) * own


class Margin(Metric):
    """How far the label's logit is above the others' mean."""

    scale: float = ranged(1.0, "(0, inf)")

    def of_examples(self, logits: Any, targets: Any) -> Any:
        own = jnp.sum(logits * jax.nn.one_hot(targets, logits.shape[-1]), axis=-1)
        return self.scale * (own - jnp.mean(logits, axis=-1))


class Noise(Augmentation):
    """Adds noise to the inputs."""

    size: float = ranged(0.1, "[0, inf)", traced=True)

    def __call__(self, key: Any, batch: Batch) -> Batch:
        return batch._replace(inputs=batch.inputs + self.size * jax.random.normal(key, batch.inputs.shape))


class Linear(Model):
    """One Dense layer of scaled inputs."""

    gain: float = ranged(1.0, "(0, inf)")

    def module(self, outputs: int, precision: str) -> nn.Module:
        return LinearModule(outputs, self.gain)


class LinearModule(nn.Module):
    outputs: int
    gain: float

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dense(self.outputs)(self.gain * images.reshape(len(images), -1))


OWN: dict[str, tuple[Part, str, float]] = {
    "model": (Linear(gain=0.5), "model.gain", 0.25),
    "optimizer": (Lion(b1=0.8), "optimizer.b1", 0.5),
    "schedule": (SGD(schedule=Halving()), "optimizer.schedule.steps", 8.0),
    "loss": (Focal(), "loss.gamma", 1.0),
    "metrics": (Margin(scale=2.0), "metrics.0.scale", 4.0),
    "augmentation": (Noise(), "augmentation.0.size", 0.5),
}
"""A part of one's own of each role, a field of it, and another value of that."""
each_role = pytest.mark.parametrize("role", OWN)


def with_own(role: str) -> ExperimentConfig:
    return replace(SMALL, **{"optimizer" if role == "schedule" else role: OWN[role][0]})


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60, np.int32)
    images = (80 * labels[:, None, None, None] + rng.integers(0, 80, (60, 3, 3, 1))).astype(np.uint8)
    test = (images[40:], labels[40:])
    return data.from_arrays((images[:40], labels[:40]), test, validation=test)


@pytest.fixture(scope="module")
def small(dataset: data.Dataset) -> History:
    """What training with the parts that ship leaves."""
    return fit(SMALL, dataset)


@each_role
def test_a_part_of_ones_own_trains_as_its_rule_says(role: str, dataset: data.Dataset, small: History) -> None:
    config = with_own(role)
    history = fit(config, dataset)
    assert history.status == "finished"
    other = fit(with_value(config, OWN[role][1], OWN[role][2]), dataset)
    if role == "metrics":  # It changes figures, and no parameter.
        assert history.params_sha256 == other.params_sha256 == small.params_sha256
        assert history["margin"] == [value / 2 for value in other["margin"]]
        assert history.test["margin"] != 0
    else:
        assert len({history.params_sha256, other.params_sha256, small.params_sha256}) == 3


@each_role
def test_a_part_of_ones_own_comes_back_from_json_where_its_file_is_given(role: str) -> None:
    config = with_own(role)
    text = config.to_json()
    assert f'"kind": "{FILE}:' in text
    found = ExperimentConfig.from_json(text, lambda place: Code(config).find(place, {}))
    assert (found, found.to_json()) == (config, text)
    with refused(ConfigError, "experiment", FILE):
        ExperimentConfig.from_json(text)
    source = code_of(config)[FILE]
    assert source and source.path == Path(str(sys.modules[__name__].__file__))


def test_fields_of_ones_own_parts_are_values_of_a_sweep(dataset: data.Dataset) -> None:
    config = replace(
        SMALL, model=Linear(), optimizer=Lion(), loss=Focal(), metrics=(Margin(),), augmentation=(Noise(),)
    )
    paths = [path for role, (_, path, _) in OWN.items() if role != "schedule"]
    values = {path: value for _, path, value in OWN.values() if path in paths}
    result = sweep(config, dataset, seeds=[0], vary={path: [value] for path, value in values.items()})
    alone = config
    for path, value in values.items():
        alone = with_value(alone, path, value)
    (lane,) = result.lanes
    assert lane.params_sha256 == fit(alone, dataset).params_sha256


def function_loss(logits: Any, targets: Any) -> Any:
    return CrossEntropy()(logits, targets)


def function_metric(logits: Any, targets: Any) -> Any:
    return jnp.argmax(logits, axis=-1) == targets


def function_augmentation(key: Any, batch: Batch) -> Batch:
    return batch._replace(inputs=-batch.inputs)


def function_schedule(step: Any) -> Any:
    return 1 / (1 + jnp.float32(step))


PLAIN: dict[str, dict[str, Any]] = {
    "model": {"model": LinearModule(3, 1.0)},
    "optimizer": {"optimizer": optax.sgd(0.1)},
    "schedule": {"optimizer": SGD(schedule=function_schedule)},  # type: ignore[arg-type]
    "loss": {"loss": function_loss},
    "metrics": {"metrics": function_metric},
    "augmentation": {"augmentation": function_augmentation},
    "activation": {"model": MLP(hidden_sizes=(4,), activation=jnp.sin)},
    "kernel_init": {"model": MLP(hidden_sizes=(4,), kernel_init=nn.initializers.orthogonal())},
}


@pytest.mark.parametrize("role", PLAIN)
def test_a_plain_object_trains_in_each_role(role: str, dataset: data.Dataset, small: History) -> None:
    config = replace(SMALL, best_by="loss", **PLAIN[role])
    history = fit(config, dataset)
    assert history.status == "finished" and np.isfinite(history["loss"]).all()
    if role == "metrics":
        assert history["function_metric"] == small["accuracy"]
    elif role == "loss":
        assert history.params_sha256 == fit(replace(SMALL, loss=CrossEntropy()), dataset).params_sha256
    else:
        assert history.params_sha256 != small.params_sha256


@pytest.mark.parametrize("parent", [SGD, Adam, CrossEntropy, Cosine, MLP, Lion])
def test_a_subclass_without_a_rule_of_its_own_is_refused(parent: Any) -> None:
    with refused(ConfigError, parent.path, "Own", parent.__name__):
        type("Own", (parent,), {"__module__": __name__})


class Ascent(SGD):
    kind: ClassVar[str] = "sgd"

    def transformation(self, total_steps: Any) -> optax.GradientTransformation:
        return optax.scale(0.1)


def test_a_subclass_with_a_rule_of_its_own_trains_as_what_it_says(dataset: data.Dataset) -> None:
    config = replace(SMALL, optimizer=Ascent())
    assert where(config.optimizer) == f"{FILE}:Ascent"
    losses = fit(config, dataset)["val_loss"]
    assert losses[-1] > losses[0]


TREES = [SMALL, replace(SMALL, optimizer=Lion(), loss=Focal(), augmentation=(Noise(),), metrics=(Margin(),))]


@pytest.mark.parametrize("config", TREES)
def test_a_config_takes_whatever_a_transformation_puts_in_its_leaves(config: ExperimentConfig) -> None:
    sentinel = object()
    filled = jax.tree.map(lambda _: sentinel, config)
    assert set(map(id, jax.tree.leaves(filled))) == {id(sentinel)}
    assert len({jax.tree.structure(each) for each in (filled, config)}) == 1
    assert jax.tree.unflatten(*reversed(jax.tree.flatten(config))) == replace(config, name="experiment", epochs=20)


@pytest.mark.parametrize("config", TREES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_leaves_enter_with_strong_types(config: ExperimentConfig, precision: Any) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(replace(config, precision=precision).on_data(3, 5))
    types = {jax.tree_util.keystr(path): jax.typeof(leaf) for path, leaf in leaves}
    assert not any(each.weak_type for each in types.values())
    whole = {".seed": jnp.uint32, ".total_steps": jnp.int32}
    assert len(types) > len(whole)
    for path, each in types.items():
        assert each.dtype == whole.get(path, jnp.float32), path


def test_a_map_over_configs_trains_lanes_of_their_own() -> None:
    configs = [replace(SMALL, seed=seed, optimizer=SGD(learning_rate=rate)).on_data(3, 5) for seed, rate in LANES]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *configs)
    images = np.zeros((1, 3, 3, 1), np.uint8)
    states = jax.vmap(train.init_state, in_axes=(0, None))(stacked, images)
    rates = jax.vmap(train.learning_rate, in_axes=(0, None))(stacked, jnp.int32(0))
    assert rates.tolist() == [np.float32(rate) for _, rate in LANES]
    for lane, config in enumerate(configs):
        own = jax.tree.map(lambda leaf, lane=lane: leaf[lane], states)
        jax.tree.map(np.testing.assert_array_equal, own, train.init_state(config, images))


LANES = [(0, 0.1), (1, 0.1), (1, 0.2)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_trace_serves_ten_rates_and_ten_seeds(precision: Any) -> None:
    traces = []

    @jax.jit
    def rate_and_key(config: ExperimentConfig, step: jax.Array) -> Any:
        traces.append(config)
        return train.learning_rate(config, step), config.seed

    found = set()
    for number in range(10):
        optimizer = SGD(learning_rate=0.1 * number, schedule=Cosine(end_factor=0.05 * number))
        for seed in range(10):
            config = replace(SMALL, optimizer=optimizer, seed=seed, precision=precision, epochs=number + 2)
            found.add(tuple(map(float, rate_and_key(config.on_data(3, 5), jnp.int32(3)))))
    assert len(traces) == 1
    assert len(found) > 90


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_experiment_that_is_built_twice_compiles_once(
    precision: Any, dataset: data.Dataset, compiled: Callable[[str], int]
) -> None:
    def build(number: int) -> ExperimentConfig:
        return ExperimentConfig(
            name=f"number-{number}",
            model=LinearModule(3, 1.0),  # type: ignore[arg-type]
            optimizer=Lion(learning_rate=0.01 * (number + 1)),
            loss=Focal(gamma=1.0 + number),
            metrics=(Margin(),),
            augmentation=(Noise(),),
            batch_size=16,
            epochs=number + 1,
            seed=number,
            precision=precision,
        )

    fit(build(0), dataset)
    fit(build(1), dataset)
    assert compiled("train_steps") == 1


class Scaled(Loss):
    """A loss with a number of any size."""

    scale: float = 1.0

    def __call__(self, logits: Any, targets: Any) -> Any:
        return self.scale * jnp.mean(logits, axis=-1)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400])
def test_a_number_without_an_interval_must_be_finite(value: float) -> None:
    """JSON holds no other number, so a run with it could not be read again."""
    with refused(ConfigError, "loss.scale", "finite"):
        Scaled(scale=value)


def test_json_nested_beyond_the_limit_and_numbers_beyond_floats_are_refused() -> None:
    assert parse_json("[" * MAX_NESTING + "]" * MAX_NESTING)
    assert parse_json(json.dumps([{"a": [1.5]}] * 1000)) == [{"a": [1.5]}] * 1000
    for text in ("[" * (MAX_NESTING + 1) + "1" + "]" * (MAX_NESTING + 1), "1e999", '{"a": -1e400}'):
        with pytest.raises(ValueError, match=r"nested|too large"):
            parse_json(text)
