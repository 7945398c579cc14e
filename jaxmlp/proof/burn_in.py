"""Does every device compute the right bits for minutes? The golden run is repeated on all devices at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmlp import data, shards, train
from jaxmlp.errors import RunError
from jaxmlp.proof import bits, right_bits
from jaxmlp.proof.training import Training
from jaxmlp.run.digest import digest, leaves

EACH = PartitionSpec(shards.AXIS)
WHOLE = PartitionSpec()


class Deviation(NamedTuple):
    """A wrong state of a device."""

    device: str
    """Device, such as cpu:1 (cpu)."""
    seconds: float
    """Seconds since the burn-in began."""
    round: int
    """Repetition of the golden run, from 1."""
    update: int
    leaf: str | None
    problem: str
    """What differs: the right value, then this device's, with their bits. Unknown if no device had the right state."""


class BurnIn(NamedTuple):
    """Result of a burn-in."""

    devices: int
    seconds: float
    updates: int
    """Number of updates made and compared by all devices together."""
    deviations: list[Deviation]


def burn_in(
    name: str, dataset: data.Dataset, seconds: float, report: Callable[[str], object] = lambda _: None
) -> BurnIn:
    """Train a golden run repeatedly on every device at once, and compare every state.

    A device that deviates continues from the right state.

    Args:
        name: A key of `right_bits.GOLDEN`.
        dataset: The data set.
        seconds: Duration. The update in progress is finished.
        report: Called with a line about each deviation.

    Raises:
        RunError: The golden digests are damaged, or belong to another program.
    """
    golden = right_bits.read(name)
    if golden.binding != right_bits.binding(right_bits.GOLDEN[name], dataset):
        raise RunError(
            f"{name} has no golden digests for the program that this JAX or flax traces: there is nothing to compare."
        )
    training = Training(right_bits.GOLDEN[name], dataset, devices=1)
    lanes = Lanes(training, dataset)
    first = training.state()
    if digest(first) != golden.states[0]:
        raise RunError("the initial state differs from the golden one: run `jaxmlp doctor`, which says what is wrong.")
    lanes.advance(lanes.put([first] * lanes.count), 1)  # Compiled before the clock starts.
    began, found, updates, rounds = time.monotonic(), [], 0, 0
    while time.monotonic() - began < seconds:
        rounds += 1
        states = lanes.put([first] * lanes.count)
        last: train.TrainState = first
        for update in range(1, len(golden.states)):
            states = lanes.advance(states, update)
            rows = lanes.per_lane(states)
            updates += lanes.count
            good = [row for row in rows if digest(row) == golden.states[update]]
            if len(good) < lanes.count:
                right = good[0] if good else lanes.again(last, update, golden.states[update])
                for device, row in zip(lanes.devices, rows, strict=True):
                    if digest(row) != golden.states[update]:
                        leaf: str | None = None
                        problem = "its digest differs, also when the update is repeated"
                        if right:
                            leaf, problem, _ = next(bits.differences(leaves(right), leaves(row)))
                        at = f"{device.platform}:{device.id} ({device.device_kind})"
                        found.append(Deviation(at, time.monotonic() - began, rounds, update, leaf, problem))
                        report(f"{at}: round {rounds}, update {update}, {leaf}: {problem}")
                if right is None:
                    break  # It is wrong every time, so the next round begins.
                states = lanes.put([right] * lanes.count)
            last = good[0] if good else last
            if time.monotonic() - began >= seconds:
                break
    return BurnIn(lanes.count, time.monotonic() - began, updates, found)


class Lanes:
    """The golden run on every device: one program, and a state for each device."""

    def __init__(self, training: Training, dataset: data.Dataset) -> None:
        self.devices = jax.devices()
        self.count = len(self.devices)
        self.mesh: Mesh = shards.make_mesh(self.devices)
        self._training = training
        self._split = self._whole(train.DeviceSplit.of(dataset.train))
        self._config = self._whole(training.on_data)
        self._orders = [self._whole(training.order(epoch)) for epoch in range(1, training.config.epochs + 1)]

    def _whole(self, tree: Any) -> Any:
        return jax.device_put(tree, NamedSharding(self.mesh, WHOLE))

    def put(self, states: list[train.TrainState]) -> Any:
        """Copy each state to its device."""
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
        return jax.device_put(stacked, NamedSharding(self.mesh, EACH))

    def per_lane(self, states: Any) -> list[train.TrainState]:
        """The states of the devices, on the host."""
        on_host = jax.device_get(states)
        return [jax.tree.map(itemgetter(row), on_host) for row in range(self.count)]

    def advance(self, states: Any, update: int) -> Any:
        """The states after one more update."""
        epoch, index = divmod(update - 1, self._training.steps_per_epoch)
        return _advance(self._config, states, self._split, self._orders[epoch], jnp.int32(index), mesh=self.mesh)

    def again(self, before: train.TrainState, update: int, golden: str) -> train.TrainState | None:
        """The right state after an update that all devices computed wrongly, if a device gets it right now."""
        rows = self.per_lane(self.advance(self.put([before] * self.count), update))
        return next((row for row in rows if digest(row) == golden), None)


@partial(jax.jit, static_argnames="mesh")
def _advance(config: Any, states: Any, split: Any, order: Any, index: Any, *, mesh: Mesh) -> Any:
    def one(config: Any, states: Any, split: Any, order: Any, index: Any) -> Any:
        state = jax.tree.map(lambda leaf: leaf[0], states)
        sums = train.zero_sums(config, state, split)
        own = lax.dynamic_slice_in_dim(order, index * config.batch_size, config.batch_size)
        state, _, _ = train.train_steps(config, state, sums, split, own, jnp.int32(0), jnp.int32(1))
        return jax.tree.map(lambda leaf: lax.expand_dims(leaf, [0]), state)

    specs = (WHOLE, EACH, WHOLE, WHOLE, WHOLE)
    return jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=EACH, check_vma=False)(
        config, states, split, order, index
    )
