"""Which lanes share compiled programs, and how many of them train at once?"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxmlp import train
from jaxmlp.engine.network import check_network
from jaxmlp.engine.position import Position
from jaxmlp.engine.programs import Programs, as_seen, known, without_trees
from jaxmlp.sweep import kept, memory
from jaxmlp.sweep.job import Job
from jaxmlp.sweep.lanes import Lane
from jaxmlp.sweep.over_lanes import (
    ROWS,
    WHOLE,
    control_lanes,
    epoch_orders,
    evaluate_lanes,
    init_lanes,
    learning_rates,
    put,
    swap_best_weights_of_lanes,
    to_host,
    train_lanes,
)
from jaxmlp.sweep.values import MAX_LANES
from jaxmlp.system import distributed


def side_by_side(job: Job, lane: Lane) -> Any:
    """A key that is equal for lanes that can train side by side: same program, same number of epochs."""
    return jax.tree.structure(job.on_data(lane)), lane.config.epochs


class LanePrograms(Programs):
    """The programs of a run over lanes. Every array has a row per lane.

    Args:
        job: The sweep.
        lanes: Lanes with equal `side_by_side`.
        slots: Number of rows. Rows beyond the lanes repeat the last lane, which does not train there.
    """

    def __init__(self, job: Job, lanes: Sequence[Lane], slots: int) -> None:
        self._job, self._slots, self._lanes = job, slots, len(lanes)
        self.dataset, self.mesh, self.examples = job.dataset, job.mesh, job.examples
        self.steps_per_epoch = job.steps_per_epoch(lanes[0])
        rows = [*lanes, *[lanes[-1]] * (slots - len(lanes))]
        self.config = self.put_rows(_stacked([job.on_data(lane) for lane in rows]))
        splits = dict.fromkeys([*job.splits, *lanes[0].config.data.also])
        self.feeds = {name: job.feed(name, lanes[0].config, slots) for name in splits}
        self.freeze([True] * len(lanes))

    def put[T](self, tree: T) -> T:
        """Copy arrays to the devices, in full on each device."""
        return put(tree, self.mesh, WHOLE)

    def put_rows[T](self, tree: T) -> T:
        """Copy arrays to the devices, which share the rows."""
        return put(tree, self.mesh, ROWS)

    def freeze(self, going: Sequence[bool]) -> None:
        """Stop training the lanes that are not going, and the rows beyond the lanes."""
        self._active = self.put_rows(np.asarray([*going, *[False] * (self._slots - self._lanes)]))

    def per_lane[T](self, tree: T) -> list[T]:
        """The tree on the host, one per lane."""
        on_host = to_host(tree, self.mesh)
        return [jax.tree.map(itemgetter(row), on_host) for row in range(self._lanes)]

    def first(self) -> Position:
        """The position before the first update."""
        state = init_lanes(self.config, self.put(self.dataset.facts.zeros(1).inputs), mesh=self.mesh)
        return Position(state, self.put_rows(self._zero(state)))

    def _zero(self, state: Any) -> train.Sums:
        config, state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (self.config, state)
        )
        sums = train.zero_sums(config, state, train.DeviceSplit.of(self.dataset.facts.zeros(1)))
        zeros: train.Sums = jax.tree.map(lambda leaf: np.zeros((self._slots, *leaf.shape), leaf.dtype), sums)
        return zeros

    def placed(self, position: Position) -> Position:
        """The position with its arrays on the devices."""
        return position.holding(*self.put_rows((position.state, position.sums)))

    def zero_sums(self, position: Position) -> train.Sums:
        """The sums at the start of an epoch."""
        return self.put_rows(self._zero(position.state))

    def order(self, epoch: int) -> jax.Array:
        """The order of examples in epoch `epoch`, from 1, for each lane, padded to whole batches."""
        from_0 = self.put(np.int32(epoch - 1))
        orders: jax.Array = epoch_orders(self.config, from_0, examples=self.examples, mesh=self.mesh)
        return orders

    def steps(self, position: Position, split: Any, order: Any, start: int, stop: int) -> Any:
        """`train_lanes` on these examples. The position's arrays are donated."""
        own, shared = (None, split) if self.feeds["train"].resident else (split, None)
        bounds = self.put((np.int32(start), np.int32(stop)))
        arguments = self.config, position.state, position.sums, self._active, order, own, shared, *bounds
        return self._job.compiled(train_lanes, *arguments)(*arguments)

    def learning_rates(self, position: Position) -> list[float | None]:
        """The learning rate of the last update before the position, for each lane."""
        state = position.state
        rates = learning_rates(self.config, state.step, state.controllers, mesh=self.mesh)
        return [known(rate) for rate in self.per_lane(rates)]

    def control(self, position: Position, found: Sequence[dict[str, float | None] | None]) -> list[dict[str, Any]]:
        """Let the controllers of lanes with figures see them.

        Returns each lane's controller states, as for a single run.
        """
        some = next(filter(None, found), None)
        if position.state.controllers and some:
            active = [each is not None for each in found] + [False] * (self._slots - self._lanes)
            seen = [as_seen(each or some) for each in found]
            figures = self.put_rows(_stacked(seen + seen[-1:] * (self._slots - self._lanes)))
            arguments = self.config, position.state, figures, self.put_rows(np.asarray(active))
            position.state = control_lanes(*arguments, mesh=self.mesh)
        return self.per_lane(without_trees(position.state.controllers))

    def swap_best_weights(self, position: Position, *, back: bool = False) -> None:
        """Replace each lane's last weights by its best epoch's weights."""
        if position.state.controllers:
            position.state = swap_best_weights_of_lanes(position.state, mesh=self.mesh)

    def _evaluated(self, state: train.TrainState, piece: train.DeviceSplit, sums: train.Sums) -> Any:
        arguments = self.config, state.params, state.variables, sums, piece
        return self._job.compiled(evaluate_lanes, *arguments)(*arguments)

    def compile(self, position: Position) -> None:
        """Compile everything that the lanes will call, before their clock starts."""
        state, sums = position.state, position.sums
        for feed in (feed for name, feed in self.feeds.items() if name != "train"):
            self._job.compiled(evaluate_lanes, self.config, state.params, state.variables, sums, next(feed.pieces()))
        jax.block_until_ready((self.order(position.epoch), self.learning_rates(position)))


def groups(job: Job, lanes: Sequence[Lane], *, together: bool = False) -> tuple[list[Sequence[Lane]], int]:
    """Split the lanes into as few groups as memory and open files allow. Returns the groups and the slots of a group.

    Args:
        job: The sweep.
        lanes: Lanes with equal `side_by_side`.
        together: Whether all lanes must form one group, because they have begun.
    """
    began = time.perf_counter()
    devices = job.mesh.size
    check_network(lanes[0].config, job.dataset.facts)
    budget = int(memory.SHARE * memory.free_bytes(job.mesh)) >> 20
    most_lanes = kept.most_at_once() if job.keep_runs else MAX_LANES
    if jax.process_count() > 1:
        budget, most_lanes = distributed.gather([budget, most_lanes]).min(axis=0).tolist()
    _, states, _, _, orders, *_ = _shapes(job, lanes[0], devices)
    fits = max(1, min((budget << 20) // memory.lane_bytes(states, orders), most_lanes // devices))
    while True:
        most = len(lanes) if together else min(len(lanes), fits * devices)
        count = -(-len(lanes) // most)
        per_device = -(-len(lanes) // (count * devices))
        *_, shared, _, _ = arguments = _shapes(job, lanes[0], per_device * devices)
        taken = memory.program_bytes(job.compiled(train_lanes, *arguments))
        taken -= sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shared))
        if together or per_device == 1 or taken <= budget << 20:
            break
        # The memory for computing comes on top of the lanes' own; with vmap it is large.
        fits = max(1, min(per_device - 1, per_device * (budget << 20) // taken))
    job.compile_s += time.perf_counter() - began
    split = f"{len(lanes)} lanes in {count} {'group' if count == 1 else 'groups'} of up to {per_device * devices}"
    took = f"{taken / per_device / 1e6:,.1f} MB per lane, {(budget << 20) / 1e9:,.1f} GB for lanes on each device"
    job.progress.note(f"{split} on {devices} {'device' if devices == 1 else 'devices'}: {took}")
    cuts = [len(lanes) * number // count for number in range(count + 1)]
    return [lanes[first:last] for first, last in itertools.pairwise(cuts)], per_device * devices


def _shapes(job: Job, lane: Lane, slots: int) -> list[Any]:
    """Shapes of the arguments of `train_lanes`."""
    config, example = job.on_data(lane), job.dataset.facts.zeros(1)
    state = jax.eval_shape(train.init_state, config, example.inputs)
    sums = train.zero_sums(config, state, train.DeviceSplit.of(example))
    order = jax.ShapeDtypeStruct((job.steps_per_epoch(lane) * lane.config.batch_size,), np.int32)
    active = jax.ShapeDtypeStruct((), np.bool_)
    rows = partial(jax.tree.map, lambda leaf: jax.ShapeDtypeStruct((slots, *leaf.shape), leaf.dtype))
    lanes = [_placed(job, rows(tree), ROWS) for tree in (config, state, sums, active, order)]
    feed = job.feed("train", lane.config, slots)
    own = shared = None
    if feed.resident:
        shared = _placed(job, feed.resident, WHOLE)
    else:
        lanes[-1] = _placed(job, jax.ShapeDtypeStruct((slots, feed.steps * lane.config.batch_size), np.int32), ROWS)
        rows_of = job.dataset.facts.zeros(feed.steps * lane.config.batch_size)
        if job.dataset.train.weights is not None:
            rows_of = rows_of._replace(weights=np.zeros(len(rows_of.targets), np.float32))
        window = train.DeviceSplit.of(rows_of, mask=np.zeros(len(rows_of.targets), np.bool_))
        own = _placed(job, rows(window), ROWS)
    bound = _placed(job, np.int32(0), WHOLE)
    return [*lanes, own, shared, bound, bound]


def _placed(job: Job, tree: Any, spec: PartitionSpec) -> Any:
    sharding = NamedSharding(job.mesh, spec)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _stacked[T](trees: Sequence[T]) -> T:
    stacked: T = jax.tree.map(lambda *leaves: np.stack(leaves), *map(jax.device_get, trees))
    return stacked
