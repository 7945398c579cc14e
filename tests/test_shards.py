"""Sums over the devices: the bits of the tree of pairs, and how much each device is sent."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlp import MLP, ExperimentConfig, shards, train

pytestmark = pytest.mark.optimized

BATCH = 48


def tree_sum(parts: list[Any]) -> Any:
    """Neighbours first, on the host."""
    while len(parts) > 1:
        pairs = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(pairs) * 2 :]
    return parts[0]


@pytest.mark.parametrize(("num_shards", "devices"), [(6, 1), (6, 2), (6, 6), (8, 2), (8, 8), (12, 4), (24, 8)])
def test_arrays_of_all_sizes_and_types_are_added_in_one_tree_of_pairs(num_shards: int, devices: int) -> None:
    if jax.device_count() < devices:
        pytest.skip(f"needs {devices} devices")
    rng = np.random.default_rng(num_shards)
    wide = rng.standard_normal((BATCH, 1131)) * 10.0 ** rng.integers(-6, 6, 1131)
    rows = np.split(wide.astype(np.float32), [1, 131], axis=1)
    batch = {
        "float32": rows[0][:, 0],
        "sizes": rows[1:],
        "bfloat16": rows[1].astype(jnp.bfloat16),
        "complex64": rows[1] + 1j * rows[1][::-1],
        "bool": rows[1] > 0,
        "int32": rng.integers(-(2**31), 2**31, (BATCH, 3), np.int32),
        "empty": np.zeros((BATCH, 0), np.float32),
    }

    def first_row(whole: Any, shard: Any, index: Any) -> Any:
        return {**jax.tree.map(lambda leaf: leaf[0], shard), "index": index + whole}

    firsts = [jax.tree.map(lambda leaf, row=row: leaf[row], batch) for row in range(0, BATCH, BATCH // num_shards)]
    wanted = jax.tree.map(lambda *parts: tree_sum(list(parts)), *firsts)
    wanted["index"] = np.int32(sum(range(num_shards)) + 7 * num_shards)
    mesh = shards.make_mesh(jax.devices()[:devices])

    def on_device(batch: Any) -> Any:
        own = jax.tree.map(lambda rows: shards.own_rows(rows, mesh), batch)
        return shards.sum_over_shards(first_row, jnp.int32(7), own, num_shards=num_shards, mesh=mesh)

    found = jax.jit(shards.on_devices(on_device, mesh))(batch)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.asarray(a).dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def collectives(devices: int, grad_shards: int) -> dict[str, list[int]]:
    """Of an epoch's compiled loop: the 32-bit words that a device has after each collective, by its name."""
    mesh = shards.make_mesh(jax.devices()[:devices])
    config = ExperimentConfig(model=MLP(hidden_sizes=(12, 9)), batch_size=192, grad_shards=grad_shards).on_data(10, 3)
    split = train.DeviceSplit(np.zeros((400, 5, 5, 1), np.uint8), np.zeros(400, np.int32))
    state = jax.eval_shape(train.init_state, config, split.inputs[:1])
    order = jax.eval_shape(lambda: train.epoch_order(config, 0, examples=400))
    arguments = config, state, train.zero_sums(config, state, split), split, order, jnp.int32(0), jnp.int32(3)
    compiled = train.train_steps.lower(*arguments, mesh=mesh).compile().as_text()  # type: ignore[attr-defined]
    found: dict[str, list[int]] = {}
    for result, name in re.findall(r"= (.*?) ((?:all|collective|ragged)-[a-z-]+|reduce-scatter)\(", compiled):
        sizes = [np.prod([int(n) for n in size.split(",") if n]) for size in re.findall(r"[fsu]32\[([\d,]*)\]", result)]
        found.setdefault(name, []).append(int(sum(sizes)))
    return found


def sent(sizes: list[int], devices: int) -> int:
    """Words of arrays of these sizes, each cut into a slice for each device, all slices padded to whole lanes."""
    own = sum(max(2, -(-size // devices)) for size in sizes)
    return devices * (own + -own % shards.MESSAGE_MULTIPLE)


def test_an_update_has_one_sum_over_the_devices_that_sends_no_more_to_each_where_they_are_more() -> None:
    """Of the result of each collective, a device has a part of 1 / D already; so it receives (D - 1) / D of it."""
    code = (
        "import os; os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=64'\n"
        "from tests.test_shards import collectives; print(collectives(64, 64))"
    )
    many = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    parameters = [25 * 12, 12, 12 * 9, 9, 9 * 10, 10]  # And the batch's loss, examples and correct answers.
    cases = {(64, 1): ast.literal_eval(many.stdout)}
    if jax.device_count() >= 8:
        cases |= {(2, 1): collectives(2, 8), (8, 3): collectives(8, 24)}
    for (devices, parts), found in cases.items():
        summed, mean_squares = sent([*parameters, 1, 1, 1], devices), sent(parameters, devices)
        # RMSprop's mean squares, which the devices share, are gathered once a call, not once an update.
        assert found == {"all-to-all": [parts * summed], "all-gather": [summed, mean_squares]}, devices
