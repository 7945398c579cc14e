"""Every optimizer follows its rule, step by step, and every schedule its closed form; a rate compiles nothing anew."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras_reference as keras
import numpy as np
import optax
import pytest
from refusals import refused

from jaxmlp import (
    MLP,
    SGD,
    Adam,
    AdamW,
    ConfigError,
    Constant,
    Cosine,
    CosineRestarts,
    ExperimentConfig,
    Exponential,
    InverseTime,
    LayerRates,
    Piecewise,
    RMSprop,
    data,
    optax_schedule,
)
from jaxmlp.cli.experiment import parse_experiment
from jaxmlp.cli.train import TrainFlags
from jaxmlp.engine.fitting import planned_rates
from jaxmlp.experiment.config import as_arrays
from jaxmlp.experiment.optax_schedules import NAMES, REFUSED
from jaxmlp.experiment.parts import Optimizer, Schedule
from jaxmlp.experiment.plain import kinds

STEPS = 300
SHAPES = {"scale": (), "bias": (7,), "kernel": (5, 7), "filters": (3, 3, 2, 4)}
DECAYS = (1e-6, 1e-3, 1e-2, 1e-1)

Tree = dict[str, Any]


@dataclass
class PaperAdam:
    """Kingma and Ba 2015, algorithm 1; with `weight_decay` Loshchilov and Hutter 2019, algorithm 2."""

    learning_rate: float
    b1: float
    b2: float
    epsilon: float
    decay: float = 0.0
    weight_decay: float = 0.0
    t: int = 0
    m: list[keras.Array] = field(default_factory=list)
    v: list[keras.Array] = field(default_factory=list)

    def update(self, params: list[keras.Array], grads: list[keras.Array]) -> list[keras.Array]:
        self.m = self.m or [np.zeros_like(p) for p in params]
        self.v = self.v or [np.zeros_like(p) for p in params]
        rate = keras.decayed(self.learning_rate, self.decay, self.t)
        self.t += 1
        found = []
        for i, (theta, g) in enumerate(zip(params, grads, strict=True)):
            self.m[i] = self.b1 * self.m[i] + (1 - self.b1) * g
            self.v[i] = self.b2 * self.v[i] + (1 - self.b2) * g**2
            m_hat = self.m[i] / (1 - self.b1**self.t)
            v_hat = self.v[i] / (1 - self.b2**self.t)
            found.append(theta - rate * m_hat / (np.sqrt(v_hat) + self.epsilon) - rate * self.weight_decay * theta)
        return found


def as_device(value: float) -> float:
    """The float32 that reaches the device, as float64: 1 - 0.999 differs by 1e-5 between the two."""
    return float(np.float32(value))


def reference(config: Any) -> keras.Optimizer:
    """The NumPy rule that `config` names, with its traced values as the device gets them."""
    decay = as_device(config.schedule.decay) if isinstance(config.schedule, InverseTime) else 0.0
    rate = as_device(config.learning_rate)
    if isinstance(config, SGD):
        return keras.SGD(rate, as_device(config.momentum), decay, config.nesterov)
    if isinstance(config, RMSprop):
        return keras.RMSprop(rate, as_device(config.rho), as_device(config.epsilon), decay, config.epsilon_in_sqrt)
    b1, b2, epsilon = (as_device(value) for value in (config.b1, config.b2, config.epsilon))
    weight_decay = as_device(config.weight_decay) if isinstance(config, AdamW) else 0.0
    return PaperAdam(rate, b1, b2, epsilon, decay, weight_decay)


def with_decays(config: Any) -> list[Any]:
    return [config, *(replace(config, schedule=InverseTime(decay=decay)) for decay in DECAYS)]


# One table drives the tests of all optimizers: (config, scale of its gradients).
CASES: list[tuple[Any, float]] = [
    *((config, 1.0) for config in with_decays(SGD())),
    *((config, 1.0) for config in with_decays(SGD(momentum=0.9))),
    *((config, 1.0) for config in with_decays(SGD(momentum=0.9, nesterov=True))),
    *((config, 1.0) for config in with_decays(RMSprop())),
    *((config, 1.0) for config in with_decays(RMSprop(epsilon_in_sqrt=True))),
    *((config, 1e-7) for config in with_decays(RMSprop())),
    *((config, 1e-7) for config in with_decays(RMSprop(epsilon_in_sqrt=True))),
    (RMSprop(learning_rate=0.01, rho=0.5, epsilon=1e-3), 1e-3),
    *((config, 1.0) for config in with_decays(Adam())),
    (Adam(b1=0.5, b2=0.9, epsilon=1e-3), 1e-3),
    *((config, 1.0) for config in with_decays(AdamW(learning_rate=0.01, weight_decay=0.1))),
]
IDS = [f"{config.kind}-{index}" for index, (config, _) in enumerate(CASES)]
each_optimizer = pytest.mark.parametrize(("config", "scale"), CASES, ids=IDS)


def random_gradients(scale: float = 1.0, steps: int = STEPS) -> Tree:
    rng = np.random.default_rng(0)
    return {name: (scale * rng.normal(size=(steps, *shape))).astype(np.float32) for name, shape in SHAPES.items()}


def trajectory(optimizer: optax.GradientTransformation, gradients: Tree) -> Tree:
    """The parameters after each update, from zero, so that they are the sum of all updates."""

    def step(carry: Any, grads: Tree) -> Any:
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
    found: Tree = jax.lax.scan(step, (params, optimizer.init(params)), gradients)[1]
    return found


@jax.jit
def follow(config: Any, total_steps: int, gradients: Tree) -> Tree:
    return trajectory(config.transformation(total_steps), gradients)


def follow_config(config: Any, gradients: Tree) -> Tree:
    found: Tree = follow(as_arrays(config), STEPS, gradients)
    return found


def follow_reference(
    rule: keras.Optimizer, gradients: Tree, before: Callable[[int], object] = lambda step: None
) -> Tree:
    """The same in float64; `before` each update may change the rule's rate, as Keras's callbacks do."""
    names = list(gradients)
    params = [np.zeros(SHAPES[name]) for name in names]
    found = []
    for step in range(len(gradients[names[0]])):
        before(step)
        params = rule.update(params, [gradients[name][step].astype(np.float64) for name in names])
        found.append(params)
    return {name: np.stack(values) for name, values in zip(names, zip(*found, strict=True), strict=True)}


def relative_error(found: Tree, expected: Tree) -> float:
    """The largest over leaves and steps, relative to the leaf's largest value so far."""
    worst = 0.0
    for name, wanted in expected.items():
        steps = len(wanted)
        off = np.abs(found[name] - wanted).reshape(steps, -1).max(1)
        size = np.maximum.accumulate(np.abs(wanted).reshape(steps, -1).max(1))
        worst = max(worst, float((off / size).max()))
    return worst


# A rounding is 6e-8 in float32; those of 300 updates, adding up as they fall, were seen to leave at most 2e-6.
EXACT = 1e-5


@each_optimizer
def test_every_optimizer_follows_its_rule_over_300_updates(config: Any, scale: float) -> None:
    gradients = random_gradients(scale)
    expected = follow_reference(reference(config), gradients)
    assert relative_error(follow_config(config, gradients), expected) < EXACT


RULES = [SGD(momentum=0.9), SGD(momentum=0.9, nesterov=True), RMSprop(), Adam(), AdamW(weight_decay=0.1)]


def test_every_optimizer_that_ships_is_in_both_tables() -> None:
    """`LayerRates` has no rule of its own: see test_optax_parts.py."""
    shipped = {*kinds(Optimizer)} - {LayerRates.kind}
    assert {config.kind for config, _ in CASES} == shipped
    assert {config.kind for config in RULES} == shipped


@pytest.mark.parametrize("config", RULES, ids=lambda config: config.kind)
def test_every_optimizer_follows_its_rule_when_the_rate_changes(config: Any) -> None:
    rule = reference(config)
    rates = {0: config.learning_rate, 100: 0.1 * config.learning_rate, 200: 5 * config.learning_rate}

    def change_rate(step: int) -> None:
        rule.learning_rate = rates.get(step, rule.learning_rate)

    gradients = random_gradients()
    changing = replace(config, schedule=Piecewise(boundaries=(100, 200), factors=(1.0, 0.1, 5.0)))
    expected = follow_reference(rule, gradients, change_rate)
    assert relative_error(follow_config(changing, gradients), expected) < EXACT


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_rate_belongs_inside_the_velocity_where_optax_sgd_has_it_outside(nesterov: bool) -> None:
    """The two rules agree while the rate stands still, and are far apart at decay 0.1: `EXACT` tells them apart."""
    gradients = random_gradients()
    for decay, same in [(0.0, True), (0.1, False)]:
        config = SGD(momentum=0.9, nesterov=nesterov, schedule=InverseTime(decay=decay))
        other = optax.sgd(as_arrays(config).rate(STEPS), momentum=0.9, nesterov=nesterov)
        expected = follow_reference(reference(config), gradients)
        assert relative_error(follow_config(config, gradients), expected) < EXACT
        assert (relative_error(jax.jit(partial(trajectory, other))(gradients), expected) < EXACT) == same


@pytest.mark.parametrize(("scale", "apart"), [(1e-7, 0.9), (1.0, 1e-3)])
def test_epsilon_inside_the_root_is_another_rule(scale: float, apart: float) -> None:
    """At g = 1e-7 the divisor is about 2e-7 with epsilon outside and 3e-4 with it inside."""
    gradients = random_gradients(scale)
    inside = follow_config(RMSprop(epsilon_in_sqrt=True), gradients)
    outside = follow_reference(reference(RMSprop()), gradients)
    assert relative_error(inside, outside) > apart


def test_the_defaults_are_kerass() -> None:
    assert (SGD().learning_rate, SGD().momentum, SGD().nesterov) == (0.01, 0.0, False)
    assert (RMSprop().learning_rate, RMSprop().rho, RMSprop().epsilon) == (0.001, 0.9, keras.EPSILON)
    assert not RMSprop().epsilon_in_sqrt


@each_optimizer
def test_state_is_arrays_of_types_that_no_update_changes(config: Any, scale: float) -> None:
    params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
    optimizer = as_arrays(config).transformation(STEPS)
    state = optimizer.init(params)
    updates, after = optimizer.update(params, state, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
    assert jax.tree.map(jax.typeof, updates) == jax.tree.map(jax.typeof, params)


@pytest.mark.parametrize("config", RULES, ids=lambda config: config.kind)
def test_no_rate_compiles_anything_anew(config: Any) -> None:
    traces = []

    @jax.jit
    def end(config: Optimizer, gradients: Tree) -> jax.Array:
        traces.append(config)
        scale: jax.Array = trajectory(config.transformation(STEPS), gradients)["scale"]
        return scale[-1]

    gradients, ends = random_gradients(steps=3), set()
    for rate, decay in [(0.1, 0.0), (0.1, 0.5), (0.2, 0.5)]:
        other = replace(config, learning_rate=rate, schedule=InverseTime(decay=decay))
        ends.add(float(end(as_arrays(other), gradients)))
    assert len(traces) == 1
    assert len(ends) == 3


TOTAL = 1000
LAST = TOTAL - 1
DROPS = Piecewise(boundaries=(10, 500), factors=(1.0, 0.5, 0.25))
WARM = Cosine(warmup_fraction=0.1, end_factor=0.05)


def cosine(t: float, warmup: float, end: float) -> float:
    """Half a cosine from 1 at update `warmup` to `end` at the run's last update."""
    return end + (1 - end) * (1 + math.cos(math.pi * (t - warmup) / (LAST - warmup))) / 2


CLOSED_FORMS: list[tuple[Schedule, dict[int, float]]] = [
    (Constant(), {0: 1.0, 1: 1.0, LAST: 1.0}),
    *(
        (InverseTime(decay=decay), {t: 1 / (1 + decay * t) for t in (0, 1, 2, 10, 999, 16_777_216)})
        for decay in (0.0, *DECAYS)
    ),
    (Exponential(decay_rate=0.5, decay_steps=10), {0: 1.0, 5: 0.5**0.5, 10: 0.5, 25: 0.5**2.5, 100: 0.5**10}),
    (
        Exponential(decay_rate=0.5, decay_steps=10, staircase=True),
        {0: 1.0, 9: 1.0, 10: 0.5, 19: 0.5, 20: 0.25, 109: 0.5**10},
    ),
    (Exponential(decay_rate=1.01, decay_steps=1), {0: 1.0, 1: 1.01, 100: 1.01**100}),
    (DROPS, {0: 1.0, 9: 1.0, 10: 0.5, 11: 0.5, 499: 0.5, 500: 0.25, LAST: 0.25}),
    (Piecewise(boundaries=(), factors=(0.5,)), {0: 0.5, LAST: 0.5}),
    (WARM, {0: 0.0, 1: 0.01, 50: 0.5, 99: 0.99, 100: 1.0, **{t: cosine(t, 100, 0.05) for t in (101, 550, 998, LAST)}}),
    (Cosine(warmup_fraction=0.0), {0: 1.0, **{t: cosine(t, 0, 0.0) for t in (1, 250, 998, LAST)}}),
    (Cosine(warmup_fraction=0.0, end_factor=1.0), {0: 1.0, 500: 1.0, LAST: 1.0}),
]


@jax.jit
def factor(schedule: Schedule, total_steps: int, step: int) -> jax.Array:
    return schedule.factor(step, total_steps)


@pytest.mark.parametrize(("schedule", "values"), CLOSED_FORMS)
def test_every_schedule_has_its_closed_form_at_its_edges(schedule: Schedule, values: dict[int, float]) -> None:
    for step, expected in values.items():
        found = factor(as_arrays(schedule), TOTAL, step)
        assert found.dtype == jnp.float32
        # A few roundings in float32, 6e-8 each; 1e-7 around the zeros of the cosine and the warm-up.
        assert float(found) == pytest.approx(expected, rel=1e-6, abs=1e-7), step


@pytest.mark.parametrize(
    "schedule",
    [
        CosineRestarts(first_steps=7, end_factor=0.1),
        CosineRestarts(first_steps=3, length_factor=1.5, height_factor=0.9),
        CosineRestarts(first_steps=10, length_factor=1.0, height_factor=0.5),
    ],
)
def test_warm_restarts_begin_at_the_update_where_a_cycle_ends(schedule: CosineRestarts) -> None:
    found = jax.jit(jax.vmap(lambda step: as_arrays(schedule).factor(step, TOTAL)))(jnp.arange(TOTAL))
    cycle, begun, end = 0, 0.0, schedule.end_factor
    for step in range(TOTAL):
        length = schedule.first_steps * schedule.length_factor**cycle
        if step >= begun + length:
            cycle, begun = cycle + 1, begun + length
            length *= schedule.length_factor
        wave = 1 + math.cos(math.pi * (step - begun) / length)
        expected = end + (1 - end) * 0.5 * schedule.height_factor**cycle * wave
        assert float(found[step]) == pytest.approx(expected, rel=1e-5, abs=1e-6), step


def test_every_schedule_of_optax_is_its_own_by_its_name_or_refused_with_the_way() -> None:
    made = 0
    for name, factory in NAMES.items():
        if name in REFUSED:
            with refused(ConfigError, "optimizer.schedule", name):
                optax_schedule(name)
            continue
        schedule: Any = optax_schedule(name)
        arguments = {item.name: getattr(schedule, item.name) for item in dataclasses.fields(schedule)}
        steps = (1, 150, 2000)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            expected = [float(factory(**arguments)(jnp.float32(step))) for step in steps]
        found = [float(factor(as_arrays(schedule), TOTAL, step)) for step in steps]
        # Its numbers are float32 before it computes with them.
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
        config = ExperimentConfig(optimizer=SGD(schedule=schedule))
        assert ExperimentConfig.from_json(config.to_json()) == config
        assert eval(repr(schedule), {"optax_schedule": optax_schedule}) == schedule
        made += 1
    assert made > 8
    flags = ["--optimizer.schedule", "optax.linear-schedule", "--optimizer.schedule.transition-steps", "5"]
    _, config = parse_experiment(TrainFlags, ["quickstart", *flags], "train")
    assert getattr(config.optimizer, "schedule") == optax_schedule("optax.linear_schedule", transition_steps=5)  # noqa: B009
    for wrong, path, nearest in (
        ("optax.linear_schedul", "optimizer.schedule", "optax.linear_schedule"),
        ("optax.linear_schedule", "optimizer.schedule.transition_step", "transition_steps"),
    ):
        with refused(ConfigError, path, nearest):
            optax_schedule(wrong, transition_step=5)


def test_the_rates_of_a_run_are_known_before_it(small_dataset: data.Dataset) -> None:
    config = ExperimentConfig(
        model=MLP(hidden_sizes=()), optimizer=SGD(learning_rate=0.5, schedule=DROPS), batch_size=32, epochs=2
    )
    planned = planned_rates(config, small_dataset)
    assert [(step, epoch) for step, epoch, _ in planned] == [(step, step / 10) for step in range(20)]
    assert {rate for step, _, rate in planned if step < 10} == {0.5} and {rate for *_, rate in planned[10:]} == {0.25}
    halved = dataclasses.replace(config, accumulate=2)  # Schedules count updates, not batches.
    assert {rate for *_, rate in planned_rates(halved, small_dataset)} == {0.5}
    assert planned_rates(dataclasses.replace(config, optimizer=optax.sgd(0.1)), small_dataset) == []


@pytest.mark.parametrize("config", RULES, ids=lambda config: config.kind)
def test_the_learning_rate_is_the_rate_times_the_schedules_factor(config: Any) -> None:
    scheduled = replace(config, schedule=InverseTime(decay=0.5))
    found = as_arrays(scheduled).rate(TOTAL)(2)
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(config.learning_rate / 2, rel=1e-6)  # Float32.
