"""Exact in space: one digest on any number of devices and threads. Golden hashes of what the seed alone decides."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import re
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmlp import (
    EMA,
    MLP,
    SGD,
    Adam,
    AdamW,
    ClippedCrossEntropy,
    Cosine,
    CrossEntropy,
    CutOut,
    DataConfig,
    Elastic,
    ExperimentConfig,
    InverseTime,
    LayerRates,
    MeanSquaredError,
    Mixup,
    Noise,
    RMSprop,
    Rotate,
    Scale,
    Shift,
    fit,
    shards,
    train,
)
from jaxmlp.data import Dataset
from jaxmlp.experiment.parts import Optimizer
from jaxmlp.experiment.plain import kinds
from jaxmlp.layers import Dropout
from jaxmlp.prng import Stream, root_key, stream_key
from jaxmlp.proof.promise import promise
from jaxmlp.run.digest import digest
from jaxmlp.run.manifest import manifest

pytestmark = pytest.mark.optimized

EXAMPLES, STEPS = 330, 4  # Both experiments' batch sizes leave a partial last batch, and wrap into a second epoch.

RELU = ExperimentConfig(grad_shards=8)
TANH = ExperimentConfig(
    model=MLP(hidden_sizes=(500, 500), activation="tanh", dropout_rate=0.5),
    data=DataConfig(pixel_scale=1.0),
    optimizer=SGD(momentum=0.9, nesterov=True, schedule=InverseTime()),
    batch_size=200,
    grad_shards=8,
)
CASES = {
    "relu": RELU,
    "tanh": TANH,
    "relu_bfloat16": ExperimentConfig(precision="bfloat16", grad_shards=8),
    "batch_norm": ExperimentConfig(
        model=MLP(hidden_sizes=(64,), dropout_rate=0.0, batch_norm=True), batch_size=320, grad_shards=8
    ),
}


@functools.cache
def train_on(devices: int, config: ExperimentConfig, examples: int = EXAMPLES) -> str:
    """The digest of state, training sums and evaluation sums after a few epochs on random images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples, 28, 28, 1), np.uint8)
    mesh = shards.make_mesh(jax.devices()[:devices])
    split = shards.replicate(train.DeviceSplit(images, rng.integers(0, 10, examples, np.int32)), mesh)
    steps_per_epoch = -(-examples // config.batch_size)
    on_one = config.on_data(10, steps_per_epoch)
    on_data, state = shards.replicate((on_one, train.init_state(on_one, images[:1])), mesh)
    found = []
    for epoch in range(-(-STEPS // steps_per_epoch)):
        order = shards.replicate(train.epoch_order(on_one, epoch, examples=examples), mesh)
        sums = shards.replicate(train.zero_sums(on_data, state, split), mesh)
        state, sums, _ = train.train_steps(on_data, state, sums, split, order, 0, steps_per_epoch, mesh=mesh)
        zero = shards.replicate(train.zero_sums(on_data, state, split), mesh)
        found += [sums, train.evaluate(on_data, state.params, state.variables, split, zero, mesh=mesh)]
    return digest({"state": state, "sums": found})


def available(*counts: int) -> list[int]:
    """Those of the counts that there are devices for; one alone has nothing to compare with."""
    found = [count for count in counts if count <= jax.device_count()]
    if len(found) < 2:
        pytest.skip("needs two devices")
    return found


@pytest.mark.parametrize("case", CASES)
def test_one_digest_on_1_2_4_and_8_devices(case: str) -> None:
    counts = (1, 2, 4, 8) if case == "relu" else (1, 8)
    digests = {devices: train_on(devices, CASES[case]) for devices in available(*counts)}
    assert len(set(digests.values())) == 1, digests


def test_grad_shards_that_are_no_power_of_two_give_one_digest_too() -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=(64,)), batch_size=60, grad_shards=6)
    digests = {devices: train_on(devices, config) for devices in available(1, 6)}
    assert len(set(digests.values())) == 1, digests


def drawn(seed: int) -> ExperimentConfig:
    """A small network of random sizes: what XLA fuses, opens and contracts depends on them."""
    draw = random.Random(seed)
    shards = draw.choice([2, 3, 4])
    return ExperimentConfig(
        model=MLP(
            hidden_sizes=tuple(draw.choice([3, 12, 17, 32]) for _ in range(draw.randint(1, 2))),
            activation=draw.choice(["relu", "tanh", "gelu"]),
            dropout_rate=draw.choice([0.0, 0.3]),
            l2=draw.choice([0.0, 1e-4]),
            batch_norm=draw.choice([False, True]),
        ),
        optimizer=draw.choice([SGD(momentum=0.9, nesterov=True), RMSprop(), Adam(), AdamW(schedule=Cosine())]),
        loss=draw.choice([ClippedCrossEntropy(), CrossEntropy(label_smoothing=0.1), MeanSquaredError()]),
        batch_size=shards * draw.choice([2, 3, 7, 16]),
        precision=draw.choice(["float32", "float32", "bfloat16"]),
        grad_shards=shards,
        seed=seed,
        augmentation=draw.choice([(), (Rotate(), Scale()), (Elastic(),), (Shift(), Noise(), CutOut()), (Mixup(),)]),
        clip_norm=draw.choice([None, 0.5]),
        accumulate=draw.choice([1, 2]),
    )


def lowered_step(config: ExperimentConfig, devices: int) -> tuple[Any, Any, Any]:
    """The program of an update, before XLA, with a state and a batch of 16 random images for it."""
    rng = np.random.default_rng(0)
    mesh = shards.make_mesh(jax.devices()[:devices])
    rows = train.Batch(rng.integers(0, 256, (16, 8, 8, 1), np.uint8), rng.integers(0, 10, 16), np.ones(16, np.float32))
    on_data = config.on_data(10, 1)
    state, batch = shards.replicate((train.init_state(on_data, rows.inputs[:1]), rows), mesh)
    step: Any = train.train_step
    return step.lower(on_data, state, batch, root_key(0), mesh=mesh), state, batch


def of_two_steps(config: ExperimentConfig, devices: int) -> tuple[train.TrainState, str]:
    """The state after two updates, and the program of one, before and after XLA."""
    lowered, state, batch = lowered_step(config, devices)
    compiled = lowered.compile()
    for _ in range(2):
        state, _ = compiled(config.on_data(10, 1), state, batch, root_key(0))
    return state, lowered.as_text() + compiled.as_text()


def test_what_is_not_exact_trains_by_plain_sums_and_the_devices_bits() -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=(12,), dropout_rate=0), batch_size=16, grad_shards=2)
    wanted, _ = of_two_steps(config, 1)
    *_, devices = available(1, 2)
    found, program = of_two_steps(dataclasses.replace(config, exact=False), devices)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # Sums in another order, divided by roots of their squares.
    assert "all-reduce(" in program and "all-to-all(" not in program
    dropping = dataclasses.replace(config, model=MLP(hidden_sizes=(12,)), exact=False)
    drawn, program = of_two_steps(dropping, 1)
    assert "stablehlo.rng_bit_generator" in program
    assert np.isfinite(drawn.params["Dense_0"]["kernel"]).all()


class ClippedSGD(SGD):
    """SGD of gradients with a norm of at most 0.5."""

    def transformation(self, total_steps: Any) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(0.5), super().transformation(total_steps))


SHARED: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": SGD(momentum=0.9, nesterov=True, schedule=InverseTime())},
    "rmsprop_averaged": {"optimizer": RMSprop(), "controllers": (EMA(decay=0.9),)},
    "adam_clipped": {"optimizer": Adam(), "clip_value": 0.01},
    "adamw_smoothed": {"optimizer": AdamW(schedule=Cosine()), "loss": CrossEntropy(label_smoothing=0.1)},
}
NOT_SHARED: dict[str, dict[str, Any]] = {
    "clipped_by_norm": {"clip_norm": 0.5},
    "penalty": {"model": MLP(hidden_sizes=(13,), l1=1e-5, l2=1e-4)},
    "accumulated": {"accumulate": 2},
    "of_a_subclass": {"optimizer": ClippedSGD(momentum=0.9)},
    "by_layers": {"optimizer": LayerRates(patterns=("*/bias",), factors=(0.5,))},
}


def test_every_elementwise_optimizer_that_ships_is_shared_in_a_case() -> None:
    shipped = {kind for kind, optimizer in kinds(Optimizer).items() if optimizer.elementwise}  # type: ignore[attr-defined]
    assert {case["optimizer"].kind for case in SHARED.values()} == shipped


@pytest.mark.parametrize("case", [*SHARED, *NOT_SHARED])
def test_devices_share_an_elementwise_update_to_the_same_bits_and_no_other(case: str) -> None:
    settings = {"model": MLP(hidden_sizes=(13,)), **(SHARED | NOT_SHARED)[case]}
    config = ExperimentConfig(batch_size=16, grad_shards=4, **settings)
    counts = available(1, 4)
    program = lowered_step(config, counts[-1])[0].as_text()
    if case in SHARED:
        alone, shared = (of_two_steps(config, devices)[0] for devices in counts)
        assert digest({"state": shared}) == digest({"state": alone})
    whole, own = "64x13", str(64 * 13 // 4)
    is_updated = {size: bool(re.search(rf"stablehlo.add .* tensor<{size}xf32>", program)) for size in (whole, own)}
    # The average is of whole parameters.
    assert is_updated == {whole: case in NOT_SHARED or case == "rmsprop_averaged", own: case in SHARED}


def test_no_bits_are_promised_of_what_is_not_exact(small_dataset: Dataset) -> None:
    for exact, level in ((True, "L1"), (False, "L4")):
        facts = manifest(dataclasses.replace(RELU, exact=exact), small_dataset)
        assert facts["binding"].get("exact", True) is exact
        assert promise(facts, facts).level == level
    assert "exact" not in RELU.to_dict()


def test_a_module_that_hears_nothing_of_bfloat16_is_named(
    small_dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    module = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(10)])
    fit(ExperimentConfig(model=module, precision="bfloat16", epochs=1), small_dataset)
    assert "precision: Sequential does not receive bfloat16" in "".join(capsys.readouterr())


def test_products_in_tensorfloat32_are_asked_for_in_the_users_own_modules_too() -> None:
    for model in (MLP(hidden_sizes=(12,)), nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(10)])):
        config = ExperimentConfig(model=model, batch_size=4, precision="tensorfloat32").on_data(10, 1)
        inputs = jnp.zeros((4, 8, 8, 1), jnp.uint8)
        batch = train.Batch(inputs, jnp.zeros(4, jnp.int32), jnp.ones(4))
        state = train.init_state(config, inputs[:1])
        step: Any = train.train_step
        program = step.lower(config, state, batch, root_key(0)).as_text()
        asked = re.findall(r"dot_general .*precision = \[(\w+), (\w+)\]", program)
        assert len(asked) >= 2 and set(asked) == {("HIGH", "HIGH")}


SWEEP = int(os.environ.get("JAXMLP_SWEEP") or 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SWEEP))
def test_random_small_networks_have_one_digest_on_one_device_and_on_one_a_shard(seed: int) -> None:
    """More of them: `JAXMLP_SWEEP=100 python -m pytest tests/test_exact.py -k random`."""
    config = drawn(seed)
    assert train_on(1, config, examples=130) == train_on(config.grad_shards, config, examples=130), config


def test_shards_draw_masks_of_their_own() -> None:
    """Of one example in every row, shards of one mask would drop the same units."""

    def trained(shards: int) -> Any:
        model, rows = MLP(hidden_sizes=(64,), activation="tanh", dropout_rate=0.5), 2 * shards
        config = ExperimentConfig(model=model, optimizer=SGD(), batch_size=rows, grad_shards=shards).on_data(10, 1)
        images, ones = np.full((rows, 4, 4, 1), 200, np.uint8), np.ones(rows, np.int32)
        batch = train.Batch(images, ones, np.float32(ones))
        state, _ = train.train_step(config, train.init_state(config, images[:1]), batch, root_key(0))
        return np.asarray(state.params["Dense_0"]["bias"]) != 0  # They start at 0.

    one, both = trained(1), trained(2)
    assert (both >= one).all() and 0 < one.sum() < both.sum()


@pytest.mark.slow
def test_one_digest_on_1_2_and_8_threads() -> None:
    """JAX sizes its thread pool by NPROC when it starts, so a count other than this process's has one of its own."""
    code = "from tests.test_exact import *; print(train_on(1, RELU))"
    digests = {"here": f"{train_on(1, RELU)}\n"}
    for threads in sorted({1, 2, 8} - {int(os.environ.get("NPROC") or len(os.sched_getaffinity(0)))}):
        environment = os.environ | {"NPROC": str(threads)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        digests[f"{threads} threads"] = done.stdout
    assert len(set(digests.values())) == 1, digests


def test_the_batch_order_of_both_experiments_is_the_golden_one() -> None:
    """Integers from threefry: they may change only when JAX changes its streams, and then README must say so."""
    digests = [
        digest({"order": train.epoch_order(config.on_data(10, 1), 0, examples=examples)[:examples]})
        for examples, config in [(60_000, RELU), (42_000, TANH)]
    ]
    assert digests == [
        "35c462ed61710010acae838386998ffdac00be50e6b25c5c216c8e67cac5d23a",
        "dd338f0bd401564677a10951f47752e2be12f32d4304ca88dca509d9c192efa5",
    ]


def first_masks(config: ExperimentConfig) -> str:
    """The dropout masks of the first step: a sigmoid is never zero, so what is zero was dropped."""
    module = dataclasses.replace(config.model, activation="sigmoid").module(10, "float32")  # type: ignore[call-arg]

    @jax.jit
    def of_first_step(images: jax.Array) -> Any:
        root = root_key(0)
        params = module.init(stream_key(root, Stream.INIT), images[:1])["params"]
        _, captured = module.apply(
            {"params": params},
            images,
            train=True,
            rngs={"dropout": jax.random.fold_in(stream_key(root, Stream.DROPOUT, 0), 0)},
            capture_intermediates=lambda layer, _: isinstance(layer, Dropout),
        )
        return jax.tree.map(lambda kept: kept != 0, captured["intermediates"])

    return digest(of_first_step(jnp.zeros((config.batch_size, 28, 28, 1))))


def test_the_first_dropout_masks_of_both_experiments_are_the_golden_ones() -> None:
    assert [first_masks(config) for config in (RELU, TANH)] == [
        "7821f133dc553157db4e933b2ba39e103433f3fcb6ca265ee315205729b8437d",
        "860d3b694f40d3edaa273701556c0642550779ecfa8a235cba431a4e18e9b337",
    ]


def test_the_initial_parameters_of_both_experiments_are_the_golden_ones() -> None:
    images = np.zeros((1, 28, 28, 1), np.uint8)
    digests = [digest(train.init_state(config.on_data(10, 1), images).params) for config in (RELU, TANH)]
    assert digests == [
        "65ecf7337f043b420fa5fdab6ddc5aad2a119f575d63c70bbf7970c23a36b864",
        "bce0e919c50af2f288945f22e99eb68eec7f52fdd4dc3b12f22a03c43b4e718a",
    ]
