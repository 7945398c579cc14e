"""What is compiled for an experiment? The engine's own functions, traced on shapes for devices that need not exist."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmlp import data, shards, train
from jaxmlp.data.dataset import cut_validation
from jaxmlp.data.official import SOURCES
from jaxmlp.engine.network import check_network
from jaxmlp.errors import ConfigError
from jaxmlp.experiment.config import DataConfig, ExperimentConfig
from jaxmlp.sweep import over_lanes
from jaxmlp.sweep.values import Batching


class Examples(NamedTuple):
    """The data as a program sees it: shapes."""

    facts: data.Facts
    counts: dict[str, int]
    """Number of examples by split."""
    weighted: bool = False

    @classmethod
    def of(cls, config: DataConfig) -> Examples:
        """The examples of a config. For MNIST and its variants the data need not be present.

        Raises:
            ConfigError: The data set is unknown, or the validation split is wrong.
            DataError: The data cannot be read.
        """
        if config.name in SOURCES:
            source = SOURCES[config.name]
            zeros = [np.broadcast_to(np.uint8(0), (*file.shape, 1) if len(file.shape) == 3 else file.shape)
                     for file in source.files]  # fmt: skip
            whole, test = data.Split(zeros[0], zeros[1]), data.Split(zeros[2], zeros[3])
            left, validation = cut_validation(whole, test, config.validation)
            facts = data.Facts(
                data.ArrayFacts("uint8", zeros[0].shape[1:]), data.ArrayFacts("int32", ()), source.num_classes
            )
            splits, weighted = {"train": left, "validation": validation, "test": test}, False
        else:
            dataset = data.load(config)
            splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
            facts, weighted = dataset.facts, dataset.train.weights is not None
        return cls(facts, {name: len(split.targets) for name, split in splits.items() if split}, weighted)

    def split(self, name: str) -> train.DeviceSplit:
        """Shapes of all examples of a split."""
        rows = self.counts[name]
        zeros = train.DeviceSplit.of(self.facts.zeros(1))
        if self.weighted:
            zeros = zeros._replace(weights=jax.ShapeDtypeStruct((1,), np.float32))  # type: ignore[arg-type]
        whole: train.DeviceSplit = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), zeros
        )
        return whole


class Program(NamedTuple):
    """A traced function of the engine."""

    name: str
    """`train` or `evaluate`."""
    traced: Any
    """A `jax.stages.Traced`. `.lower().compile()` compiles it for its devices."""
    arguments: tuple[Any, ...]
    """Shapes of the arguments on one device."""
    outputs: tuple[Any, ...]
    """Shapes of the outputs on one device."""
    carried: tuple[Any, ...]
    """What the loop over updates, or over batches of an evaluation, changes per iteration: shapes on one device."""
    donated: int
    """Number of leading outputs that reuse the memory of donated arguments."""
    devices: int
    lanes: int | None
    batch: int
    """Number of examples per iteration, in one lane."""


def training(
    config: ExperimentConfig,
    examples: Examples,
    devices: Sequence[jax.Device],
    *,
    lanes: int | None = None,
    batching: Batching = "map",
) -> Program:
    """Trace the loop over an epoch's updates.

    Args:
        config: The experiment.
        examples: The data, all of it on the devices.
        devices: Devices that split each batch; with lanes, devices that share the lanes.
        lanes: Number of lanes of a sweep. None for a single run.
        batching: How a device trains its lanes.

    Raises:
        ConfigError: The network does not fit the data, or the number of devices does not divide the gradient shards or
            lanes.
    """
    on_data, state, sums = _of_run(config, examples, devices, lanes)
    steps = -(-examples.counts["train"] // config.batch_size)
    order = jax.ShapeDtypeStruct((steps * config.batch_size,), np.int32)
    split, bound = examples.split("train"), jax.ShapeDtypeStruct((), np.int32)
    carried, donated = jax.tree.leaves((state, sums)), len(jax.tree.leaves((state, sums)))
    mesh, whole, row = _placements(devices, lanes)
    if lanes is None:
        arguments = tuple(map(whole, (on_data, state, sums, split, order, bound, bound)))
        traced = train.train_steps.trace(*arguments, mesh=mesh)
        inside = shards.on_devices(partial(train.shard_opt_state, mesh=mesh), mesh)
        carried = jax.tree.leaves((jax.eval_shape(inside, on_data, state), sums))
    else:
        active = jax.ShapeDtypeStruct((), np.bool_)
        arguments = (*map(row, (on_data, state, sums, active, order)), None, *map(whole, (split, bound, bound)))
        traced = over_lanes.train_lanes.trace(*arguments, mesh=mesh, batching=batching)
        carried = _on_device(carried, lanes, len(devices), batching)
    ends = _ends(traced, arguments, lanes, len(devices))
    return Program("train", traced, *ends, tuple(carried), donated, len(devices), lanes, config.batch_size)


def evaluation(
    config: ExperimentConfig,
    examples: Examples,
    devices: Sequence[jax.Device],
    *,
    lanes: int | None = None,
    batching: Batching = "map",
    split: str = "test",
) -> Program:
    """Trace the loop over all examples of a split. Arguments and errors are as for `training`."""
    on_data, state, sums = _of_run(config, examples, devices, lanes)
    carried = jax.tree.leaves(sums)
    mesh, whole, row = _placements(devices, lanes)
    if lanes is None:
        arguments = tuple(map(whole, (on_data, state.params, state.variables, examples.split(split), sums)))
        traced = train.evaluate.trace(*arguments, mesh=mesh)
    else:
        arguments = (*map(row, (on_data, state.params, state.variables, sums)), whole(examples.split(split)))
        traced = over_lanes.evaluate_lanes.trace(*arguments, mesh=mesh, batching=batching)
        carried = _on_device(carried, lanes, len(devices), batching)
    batch = train.eval_batch_size(config, examples.counts[split])
    return Program(
        "evaluate",
        traced,
        *_ends(traced, arguments, lanes, len(devices)),
        tuple(carried),
        0,
        len(devices),
        lanes,
        batch,
    )


def check_devices(config: ExperimentConfig, devices: int, lanes: int | None) -> None:
    """Check that the number of devices divides the gradient shards, or the lanes.

    Raises:
        ConfigError: It does not.
    """
    of, number = ("lanes", lanes) if lanes else ("grad_shards", config.grad_shards)
    if number % devices:
        works = [count for count in range(1, number + 1) if number % count == 0]
        near = sorted(sorted(works, key=lambda count: abs(count - devices))[:2])
        nearest = " and ".join(map(str, near))
        raise ConfigError("devices", f"must divide {of} {number}, got {devices}. The nearest: {nearest}")


def _of_run(config: ExperimentConfig, examples: Examples, devices: Sequence[Any], lanes: int | None) -> Any:
    """The config as programs take it, and the shapes of one run's state and sums."""
    check_devices(config, len(devices), lanes)
    check_network(config, examples.facts)
    if config.batch_size > examples.counts["train"]:
        most = f"must be at most the {examples.counts['train']} training examples"
        raise ConfigError("batch_size", f"{most}, got {config.batch_size}")
    on_data = config.on_data(examples.facts.outputs, -(-examples.counts["train"] // config.batch_size))
    one = examples.facts.zeros(1)
    state = jax.eval_shape(train.init_state, on_data, one.inputs)
    return on_data, state, train.zero_sums(on_data, state, train.DeviceSplit.of(one))


def _ends(traced: Any, arguments: Any, lanes: int | None, devices: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Shapes of the arguments and outputs on one device. With lanes, each device has its own rows."""
    given = [
        jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(arguments)
    ]
    rows = devices if lanes else 1
    made = [
        jax.ShapeDtypeStruct((leaf.shape[0] // rows, *leaf.shape[1:]) if lanes else leaf.shape, leaf.dtype)
        for leaf in jax.tree.leaves(traced.out_info)
    ]
    return tuple(given), tuple(made)


def _placements(devices: Sequence[jax.Device], lanes: int | None) -> tuple[Mesh, Any, Any]:
    """The mesh of a run or of lanes, and functions from a tree to its shapes: whole on each device, a row per lane."""
    mesh = over_lanes.make_mesh(devices) if lanes else shards.make_mesh(devices)

    def whole(tree: Any, spec: PartitionSpec = over_lanes.WHOLE, rows: tuple[int, ...] = ()) -> Any:
        placed = partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, spec))
        return jax.tree.map(lambda leaf: placed((*rows, *leaf.shape), leaf.dtype), tree)

    return mesh, whole, partial(whole, spec=over_lanes.ROWS, rows=(lanes or 1,))


def _on_device(leaves: Sequence[Any], lanes: int, devices: int, batching: Batching) -> list[Any]:
    """The shapes in a device's loop: of one lane with `map`, of all the device's lanes with `vmap`."""
    rows = () if batching == "map" else (lanes // devices,)
    return [jax.ShapeDtypeStruct((*rows, *leaf.shape), leaf.dtype) for leaf in leaves]
