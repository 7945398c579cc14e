"""The algorithm's promises: batches, padding, order, evaluation, compilation. On a small MLP and random images."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxmlp import MLP, SGD, DataConfig, ExperimentConfig, InverseTime, Piecewise, shards, train
from jaxmlp.prng import root_key
from jaxmlp.run.digest import digest

pytestmark = pytest.mark.optimized

EXAMPLES, BATCH = 70, 16
STEPS = 5  # The last batch has 6 rows.
EVAL_ROWS = ExperimentConfig().eval_rows
CONFIG = ExperimentConfig(
    model=MLP(hidden_sizes=(12, 9), dropout_rate=0.3),
    optimizer=SGD(momentum=0.9, nesterov=True, schedule=InverseTime(decay=1e-2)),
    batch_size=BATCH,
    epochs=3,
)


def random_split(examples: int = EXAMPLES, seed: int = 0) -> train.DeviceSplit:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (examples, 28, 28, 1), np.uint8)
    return train.DeviceSplit(images, rng.integers(0, 10, examples, np.int32))


class Program:
    """The functions of `train` bound to one config, on the first device."""

    def __init__(self, config: ExperimentConfig = CONFIG) -> None:
        self.mesh = shards.make_mesh(jax.devices()[:1])
        self.config = self.put(config.on_data(10, STEPS))

    def put[T](self, tree: T) -> T:
        return shards.replicate(tree, self.mesh)

    def init(self) -> train.TrainState:
        state: train.TrainState = train.init_state(self.config, np.zeros((1, 28, 28, 1), np.uint8))
        return self.put(state)

    def zero(self) -> train.Sums:
        return self.put(train.zero_sums(self.config, self.init(), random_split(1)))

    def order(self, epoch: int = 0) -> jax.Array:
        order: jax.Array = train.epoch_order(self.config, jnp.int32(epoch), examples=EXAMPLES)
        return self.put(order)

    def steps(self, state: Any, sums: Any, split: Any, order: Any, start: int, stop: int) -> Any:
        bounds = jnp.int32(start), jnp.int32(stop)
        return train.train_steps(self.config, state, sums, split, order, *bounds, mesh=self.mesh)


@pytest.fixture(scope="module")
def program() -> Program:
    return Program()


@pytest.fixture(scope="module")
def whole_epoch(program: Program) -> str:
    split, zero = program.put(random_split()), program.zero()
    state, sums, _ = program.steps(program.init(), zero, split, program.order(), 0, STEPS)
    return digest({"state": state, "sums": sums})


def test_a_plain_python_loop_over_train_step_gives_the_same_bits(program: Program, whole_epoch: str) -> None:
    split, order = program.put(random_split()), program.order()
    state, total = program.init(), program.zero()
    for index in range(STEPS):
        batch = train.take_batch(split, order, jnp.int32(index), BATCH)
        state, sums = train.train_step(program.config, state, batch, root_key(CONFIG.seed), mesh=program.mesh)
        total = jax.tree.map(jnp.add, total, sums)
    assert digest({"state": state, "sums": total}) == whole_epoch


@settings(max_examples=20, deadline=None, derandomize=True)
@given(cuts=st.sets(st.integers(1, STEPS - 1)))
def test_any_chunking_of_an_epoch_gives_the_same_bits(program: Program, whole_epoch: str, cuts: set[int]) -> None:
    bounds = [0, *sorted(cuts), STEPS]
    split, order = program.put(random_split()), program.order()
    state, sums = program.init(), program.zero()
    for start, stop in itertools.pairwise(bounds):
        state, sums, _ = program.steps(state, sums, split, order, start, stop)
    assert digest({"state": state, "sums": sums}) == whole_epoch


def test_no_update_leaves_every_bit_as_it_was(program: Program) -> None:
    split, zero = program.put(random_split()), program.zero()
    state, sums, _ = program.steps(program.init(), zero, split, program.order(), 3, 3)
    assert digest(state) == digest(program.init())
    assert int(sums["examples"]) == 0


def test_padding_rows_touch_neither_parameters_nor_sums(program: Program) -> None:
    split, order = program.put(random_split()), program.order()
    last = train.take_batch(split, order, jnp.int32(STEPS - 1), BATCH)
    assert last.mask.tolist() == [1.0] * 6 + [0.0] * 10
    other = last._replace(inputs=last.inputs.at[6:].set(255), targets=last.targets.at[6:].set(7))
    key = root_key(0)
    results = [
        train.train_step(program.config, program.init(), batch, key, mesh=program.mesh) for batch in (last, other)
    ]
    assert digest(results[0]) == digest(results[1])
    assert int(results[0][1]["examples"]) == 6


def test_an_epoch_takes_every_example_once_in_a_new_order_each_epoch_and_seed(program: Program) -> None:
    orders = [np.asarray(program.order(epoch)) for epoch in range(2)]
    other_seed = train.epoch_order(replace(CONFIG, seed=1).on_data(10, STEPS), jnp.int32(0), examples=EXAMPLES)
    for order in [*orders, np.asarray(other_seed)]:
        assert sorted(order[:EXAMPLES]) == list(range(EXAMPLES))
        assert len(order) == STEPS * BATCH
    assert len({tuple(order) for order in [*orders, np.asarray(other_seed)]}) == 3
    plain = train.epoch_order(replace(CONFIG, shuffle=False).on_data(10, STEPS), jnp.int32(0), examples=EXAMPLES)
    assert plain[:EXAMPLES].tolist() == list(range(EXAMPLES))


def test_an_evaluation_takes_as_many_rows_at_a_time_as_the_experiment_says_in_whole_shards() -> None:
    config = replace(CONFIG, eval_rows=10, batch_size=32, grad_shards=4)
    assert [train.eval_batch_size(config, examples) for examples in (3, 10, 100)] == [4, 12, 12]


@pytest.mark.parametrize("examples", [1, 9, EVAL_ROWS, EVAL_ROWS + 1, 2 * EVAL_ROWS + 7])
def test_evaluation_counts_all_examples(program: Program, examples: int) -> None:
    split = random_split(examples)
    params = program.init().params
    sums = train.evaluate(program.config, params, {}, program.put(split), program.zero(), mesh=program.mesh)
    logits = program.config.module().apply({"params": params}, jnp.float32(split.inputs) / 255)
    assert int(sums["examples"]) == examples
    assert int(sums["correct"]) == int(np.sum(np.argmax(logits, -1) == split.targets))
    expected = -jax.nn.log_softmax(logits)[np.arange(examples), split.targets].sum()
    # Float32 sums of up to 2,055 terms in another order, and pixels divided instead of multiplied.
    np.testing.assert_allclose(sums["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_program_serves_every_chunk_rate_seed_and_length(precision: Any, compiled: Callable[[str], int]) -> None:
    jax.clear_caches()
    for seed in range(10):
        rate = 0.01 * (seed + 1)
        optimizer = SGD(learning_rate=rate, momentum=0.9, schedule=InverseTime(decay=rate))
        config = replace(CONFIG, name=str(seed), optimizer=optimizer, seed=seed, epochs=1 + seed, precision=precision)
        program = Program(config)
        split, order = program.put(random_split()), program.order()
        state, sums = program.init(), program.zero()
        for start, stop in [(0, 0), (0, 1), (1, STEPS)]:
            state, sums, _ = program.steps(state, sums, split, order, start, stop)
    assert compiled("train_steps") == 1


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_health_tells_a_loss_and_a_leaf_that_are_not_finite(bad: float) -> None:
    program = Program()
    state = program.init()
    state.params["Dense_1"]["bias"] = state.params["Dense_1"]["bias"].at[0].set(bad)
    zero = program.zero()
    _, _, health = program.steps(program.put(state), zero, program.put(random_split()), program.order(), 0, 2)
    assert not np.isfinite(health.sums["loss"])
    assert not health.finite_params["Dense_1"]["bias"]


def test_health_of_finite_steps_is_good(program: Program) -> None:
    split, zero = program.put(random_split()), program.zero()
    _, _, health = program.steps(program.init(), zero, split, program.order(), 0, STEPS)
    assert np.isfinite(health.sums["loss"])
    assert all(jax.tree.leaves(health.finite_params))


def test_pixels_are_scaled_in_the_step() -> None:
    """Raw pixels under scale 1 are the same images as pixels a quarter as large under scale 4: exact in binary."""
    split = random_split()
    small = train.DeviceSplit(split.inputs // 4, split.targets)
    large = train.DeviceSplit(small.inputs * 4, split.targets)
    digests = []
    for data, scale in [(small, 4.0), (large, 1.0)]:
        program = Program(ExperimentConfig(model=CONFIG.model, data=DataConfig(pixel_scale=scale), batch_size=BATCH))
        zero = program.zero()
        state, _, _ = program.steps(program.init(), zero, program.put(data), program.order(), 0, STEPS)
        digests.append(digest(state.params))
    assert digests[0] == digests[1]


def test_a_boundary_that_float32_cannot_hold_is_met_to_the_step() -> None:
    boundary = 2**24 + 1
    optimizer = SGD(learning_rate=1.0, schedule=Piecewise(boundaries=(boundary,), factors=(1.0, 0.5)))
    config = ExperimentConfig(optimizer=optimizer).on_data(10, STEPS)
    rates = [train.learning_rate(config, jnp.int32(step)) for step in (boundary - 1, boundary)]
    assert rates == [1.0, 0.5]


def test_updates_in_blocks_of_a_known_length_give_the_bits_of_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """This processor computes what accelerators do."""
    monkeypatch.setattr(lax, "platform_dependent", lambda *values, cpu, default: default(*values))
    examples, batch_size = 70, 2
    program = Program(replace(CONFIG, batch_size=batch_size))
    split = program.put(random_split(examples))
    order = program.put(train.epoch_order(program.config, jnp.int32(0), examples=examples))
    steps = len(order) // batch_size
    assert train.BLOCK < steps < 2 * train.BLOCK
    digests = set()
    for cuts in ([], [1, 1 + train.BLOCK], [train.BLOCK - 1]):
        state, sums = program.init(), program.zero()
        for start, stop in itertools.pairwise([0, *cuts, steps]):
            state, sums, _ = program.steps(state, sums, split, order, start, stop)
        digests.add(digest({"state": state, "sums": sums}))
    assert len(digests) == 1
    arguments = program.config, program.init(), program.zero(), split, order, jnp.int32(0), jnp.int32(steps)
    function: Any = train.train_steps
    compiled = function.lower(*arguments, mesh=program.mesh).compile().as_text()
    assert f'"known_trip_count":{{"n":"{train.BLOCK}"}}' in compiled
