"""The algorithm: one update, the compiled loop over an epoch's updates, and evaluation. Pure functions of arrays.

    config, state, batch, key -> train_step -> state, sums     one update from one batch
    config, state, split, order -> train_steps -> state, sums  any run of an epoch's updates, one compiled loop
    config, params, split -> evaluate -> sums                  loss and metrics over all examples of a split

Metrics are sums and counts, divided once, on the host. Statistics that a module keeps, such as BatchNorm's, are of a
gradient shard's own rows, and joined by the shards' numbers of rows: see `modules`.

`config` is `ExperimentConfig.on_data(...)`: its rates, its seed and the length of the run are arguments of the compiled
programs, so that other values compile nothing anew.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, Num, Shaped

from jaxmlp import modules, shards
from jaxmlp.errors import ConfigError
from jaxmlp.experiment import controllers
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.experiment.parts import Batch as Batch
from jaxmlp.experiment.parts import Inputs
from jaxmlp.portable import Refused, portable
from jaxmlp.prng import Stream, of_the_device, root_key, stream_key

PADDING = -1
"""The place in an epoch's order of a row that is no example."""
BLOCK = 32
"""Updates in a loop whose length the compiler knows."""
FEW_TILES = 4
"""Tiles of a TPU's memory in a row, up to which the row is not filled up: too much would be zeros."""

ACCUMULATED = "accumulated"
"""Name of the state of gradients that wait for their update, among those of the controllers."""

Sums: TypeAlias = dict[str, Any]
"""Over examples, by name: `loss`, `examples`, and those of each metric."""


class TrainState(NamedTuple):
    """All that an update reads and writes."""

    step: Int[Array, ""]
    params: Any
    opt_state: optax.OptState
    variables: dict[str, Any] = {}  # noqa: RUF012
    """Statistics that the module keeps beside its parameters, by flax collection; empty for most modules."""
    controllers: dict[str, Any] = {}  # noqa: RUF012
    """State of what steers the run, such as a plateau's patience, by name; empty where nothing does."""


@partial(jax.tree_util.register_dataclass, data_fields=["flat"], meta_fields=["shape"])
@dataclass(frozen=True)
class Rows:
    """Arrays of one shape, each held as a row of numbers.

    A TPU's memory has tiles of 128 columns. It would copy an array of images, or of rows that end within a tile, into
    another layout in every call.
    """

    flat: Shaped[Array, "examples columns"]
    """Zeros fill a row of many numbers up to whole tiles."""
    shape: tuple[int, ...]
    """Shape of one example."""

    @classmethod
    def of(cls, array: np.ndarray, axes: int = 1) -> Rows:
        """An array on the host, whose first `axes` dimensions are rows."""
        rows, shape = array.shape[:axes], array.shape[axes:]
        size = math.prod(shape)
        flat = array.reshape(*rows, size)
        if size > FEW_TILES * shards.LANE and size % shards.LANE:
            flat = np.pad(flat, [*[(0, 0)] * axes, (0, -size % shards.LANE)])
        return cls(flat, shape)  # type: ignore[arg-type]  # a device has it later

    def __getitem__(self, rows: Int[Array, " rows"]) -> Shaped[Array, "rows ..."]:
        return self.flat[rows][:, : math.prod(self.shape)].reshape(len(rows), *self.shape)


class Split(NamedTuple):
    """Examples on the device; pixels are scaled in the step."""

    inputs: Any
    """`Rows` or an array, or a tree of them."""
    targets: Num[Array, "examples ..."]
    """Class ids, distributions or numbers."""
    weights: Float[Array, " examples"] | None = None
    """Weight of each example's loss; None counts all alike."""
    mask: Bool[Array, " examples"] | None = None
    """False in rows that are no examples; None where all are."""

    @classmethod
    def of(cls, split: Any, mask: Any = None) -> Split:
        """The examples of a split on the host, `[examples, ...]`; with a mask, of as many rows as it has."""
        rows = partial(Rows.of, axes=1 if mask is None else mask.ndim)
        return cls(jax.tree.map(rows, split.inputs), split.targets, split.weights, mask)


class Shared(NamedTuple):
    """A device's slices of the parameters and of the optimizer's state, while several devices share the update.

    It takes the place of `TrainState.opt_state` inside a program.
    """

    params: Any
    opt_state: optax.OptState


class Health(NamedTuple):
    """Whether a run of updates kept to finite numbers."""

    finite_params: Any
    """The parameters' tree, with whether all of a leaf is finite after the last step."""
    sums: Sums
    """The epoch's after the last step; in memory of their own, as the next updates take those of the position.

    A loss that is not finite leaves a sum that is not."""


def in_precision[F: Callable[..., Any]](function: F) -> F:
    """The function of a config and arrays in the config's precision: portable, or with TensorFloat-32 products.

    Raises:
        ConfigError: When it is called; something in the experiment has no portable rule.
    """

    @wraps(function)
    def called(config: ExperimentConfig, *arrays: Any, **static: Any) -> Any:
        if config.precision == "tensorfloat32":
            with jax.default_matmul_precision("tensorfloat32"):  # A user's own module hears of it so.
                return function(config, *arrays, **static)
        if config.precision != "portable":
            return function(config, *arrays, **static)
        try:
            return portable(partial(function, **static), zero=typing.cast(Any, config.zero))(config, *arrays)
        except Refused as error:
            raise ConfigError("precision", f"cannot be portable in this experiment: {error}") from None

    return typing.cast(F, called)


def zero_sums(config: ExperimentConfig, state: TrainState, split: Split) -> Sums:
    """The sums over no examples, of the shapes that those of `split` have; nothing is computed."""
    shapes = jax.eval_shape(_sums_of_one, config, state, split)
    zeros: Sums = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return zeros


@jax.jit  # so that it is traced once
def _sums_of_one(config: ExperimentConfig, state: TrainState, split: Split) -> Sums:
    batch = take_batch(split, jnp.zeros(1, jnp.int32), jnp.int32(0), 1)
    logits = modules.apply_eval(config.module(), state.params, state.variables, scaled(config, batch.inputs))
    return _sums(config, config.loss(logits, batch.targets), logits, batch)


@jax.jit
@in_precision
def init_state(config: ExperimentConfig, inputs: Inputs, weights: dict[str, Any] | None = None) -> TrainState:
    """The state before the first update, from the seed alone.

    Args:
        config: From `ExperimentConfig.on_data`.
        inputs: One example, `[1, ...]` or a tree of such arrays, for its shapes.
        weights: `params` and `variables` to begin with in place of the seed's.
    """
    key = stream_key(root_key(config.seed), Stream.INIT)
    params, variables = modules.init(config.module(), scaled(config, inputs), key)
    if weights:
        params, variables = weights["params"], weights["variables"]
    opt_state, states = _optimizer(config).init(params), controllers.init(config, params, variables)
    if config.accumulate > 1:
        states[ACCUMULATED] = _nothing_accumulated(params)
    return TrainState(jnp.int32(0), params, opt_state, variables, states)


@partial(jax.jit, static_argnames="mesh")
@in_precision
def train_step(
    config: ExperimentConfig, state: TrainState, batch: Batch, key: Key[Array, ""], *, mesh: Mesh | None = None
) -> tuple[TrainState, Sums]:
    """One update: gradients of the mean loss over the batch's own rows, then the optimizer's rule.

    Args:
        config: From `ExperimentConfig.on_data`.
        state: Before the update.
        batch: `config.batch_size` rows, padding included.
        key: The run's, `root_key(config.seed)`, the same in every step: dropout and augmentation draw from their
            streams at `state.step`, each shard from a part of its own.
        mesh: Whose devices share the batch; by default one device has it.

    Returns:
        The state after the update, and the batch's sums, in training mode, before it.
    """

    def on_device(config: ExperimentConfig, state: TrainState, batch: Batch, key: Key[Array, ""]) -> Any:
        own = jax.tree.map(partial(shards.own_rows, mesh=mesh), batch)
        after, sums = _train_step(config, share_update(config, state, mesh), own, jnp.sum(batch.mask), key, mesh)
        return _whole(after, like=state), sums

    updated: tuple[TrainState, Sums] = shards.on_devices(on_device, mesh)(config, state, batch, key)
    return updated


def _train_step(
    config: ExperimentConfig,
    state: TrainState,
    own: Batch,
    rows: Float[Array, ""],
    key: Key[Array, ""],
    mesh: Mesh | None,
) -> tuple[TrainState, Sums]:
    """`train_step` on a device that has its `own` rows of a batch of `rows` without its padding."""
    module = config.module()

    def shard_gradients(whole: Any, shard: Batch, index: Int[Array, ""]) -> tuple[Any, Sums, Any]:
        params, variables, dropout_key, augmentation_key, rows, row_weight = whole
        if variables:
            shard = modules.own_rows(shard, shard.mask > 0)._replace(mask=shard.mask)
        shard = shard._replace(inputs=scaled(config, shard.inputs))
        shard = augmented(config, augmentation_key, index, shard)
        if config.data.class_weights:
            shard = shard._replace(weights=_of_classes(config, shard))

        def shard_loss(params: Any) -> tuple[Float[Array, ""], Any]:
            own_key = jax.random.fold_in(dropout_key, index)
            logits, updated = modules.apply_train(module, params, variables, shard.inputs, own_key, shard.mask > 0)
            losses = config.loss(logits, shard.targets)
            return jnp.sum(losses * (_weights(shard) * row_weight)), (_sums(config, losses, logits, shard), updated)

        grads, (sums, updated) = jax.grad(shard_loss, has_aux=True)(params)
        if variables:
            grads, updated = _share_of_shard(grads, updated, jnp.sum(shard.mask), rows, index)
        return grads, sums, updated

    dropout_key = stream_key(key, Stream.DROPOUT, state.step)
    augmentation_key = stream_key(key, Stream.AUGMENTATION, state.step)
    if not config.exact:
        dropout_key, augmentation_key = of_the_device(dropout_key), of_the_device(augmentation_key)
    # A product, not a quotient: see losses.py.
    whole = (state.params, state.variables, dropout_key, augmentation_key, rows, 1 / rows)
    steered = controllers.steered(config, state.controllers)
    sum_over_shards = partial(
        shards.sum_over_shards, whole=whole, own=own, num_shards=config.grad_shards, mesh=mesh, exact=config.exact
    )
    if isinstance(state.opt_state, Shared):
        update = partial(_update_own, steered, state.opt_state)
        (params, sums, variables), opt_state = sum_over_shards(shard_gradients, update=update)
        after = controllers.after_update(steered, state._replace(params=params, opt_state=opt_state))
        return after._replace(step=state.step + 1, variables=variables), sums
    grads, sums, variables = sum_over_shards(shard_gradients)
    if config.model.penalty(state.params) is not None:
        cost, cost_grads = jax.value_and_grad(config.model.penalty)(state.params)
        grads = jax.tree.map(jnp.add, grads, cost_grads)
        sums = {**sums, "loss": sums["loss"] + cost * rows}
    after = _updated(steered, state, grads, rows)
    return after._replace(step=state.step + 1, variables=variables), sums


def _updated(config: ExperimentConfig, state: TrainState, grads: Any, rows: Float[Array, ""]) -> TrainState:
    """The state with other parameters: after each batch, or after the last of the batches that are accumulated."""

    def updated(grads: Any) -> TrainState:
        updates, opt_state = _optimizer(config).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        after: TrainState = controllers.after_update(config, state._replace(params=params, opt_state=opt_state))
        return after

    if config.accumulate == 1:
        return updated(grads)
    before = state.controllers[ACCUMULATED]
    found = {
        "grads": jax.tree.map(lambda total, each: total + each * rows.astype(each.dtype), before["grads"], grads),
        "rows": before["rows"] + rows,
        "batches": before["batches"] + 1,
    }
    share = 1 / found["rows"]
    after = updated(jax.tree.map(lambda total: total * share.astype(total.dtype), found["grads"]))
    after.controllers[ACCUMULATED] = _nothing_accumulated(state.params)
    waiting = state._replace(controllers={**state.controllers, ACCUMULATED: found})
    is_last = found["batches"] == config.accumulate
    chosen: TrainState = jax.tree.map(lambda new, old: jnp.where(is_last, new, old), after, waiting)
    return chosen


def _update_own(config: ExperimentConfig, own: Shared, grads: Any) -> tuple[Any, Shared]:
    """A device's slices of the parameters after the update, twice: to be gathered, and to be kept."""
    # Behind barriers, as on one device: fused with the cutting and joining of slices, XLA would contract other products
    # and sums into multiply-adds.
    grads, own = lax.optimization_barrier((grads, own))
    updates, opt_state = _optimizer(config).update(grads, own.opt_state, own.params)
    params = optax.apply_updates(own.params, updates)
    params, opt_state = lax.optimization_barrier((params, opt_state))
    return params, Shared(params, opt_state)


def share_update(config: ExperimentConfig, state: TrainState, mesh: Mesh | None) -> TrainState:
    """The state as a program's loop has it: with `Shared`, where each device is to update its slices; on a device."""
    if not mesh or mesh.size == 1 or not config.exact or not config.optimizer.elementwise:
        return state
    if config.clip_norm is not None or config.accumulate > 1 or config.model.penalty(state.params) is not None:
        return state
    # XLA may divide by one number in another way than it divides an array by it.
    if any(leaf.size < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(state.params)):
        return state
    own_slice = partial(shards.own_slice, mesh=mesh)
    slices = jax.tree.map(lambda leaf: own_slice(leaf) if leaf.ndim else leaf, state.opt_state)
    return state._replace(opt_state=Shared(jax.tree.map(own_slice, state.params), slices))


def _whole(state: TrainState, like: TrainState) -> TrainState:
    """The state, of the shapes of `like`, with the optimizer's slices gathered from the devices."""
    if not isinstance(state.opt_state, Shared):
        return state
    slices, structure = jax.tree.flatten(state.opt_state.opt_state)
    shapes = [leaf for leaf in jax.tree.leaves(like.opt_state) if leaf.ndim]
    found = iter(shards.gathered([leaf for leaf in slices if leaf.ndim], shapes))
    opt_state = jax.tree.unflatten(structure, [next(found) if leaf.ndim else leaf for leaf in slices])
    return state._replace(opt_state=opt_state)


def _nothing_accumulated(params: Any) -> dict[str, Any]:
    return {"grads": jax.tree.map(jnp.zeros_like, params), "rows": jnp.float32(0), "batches": jnp.int32(0)}


def augmented(config: ExperimentConfig, key: Key[Array, ""], index: Int[Array, ""] | int, shard: Batch) -> Batch:
    """A shard as it is trained on.

    Args:
        config: The experiment.
        key: Of the update, `stream_key(root_key(config.seed), Stream.AUGMENTATION, step)`.
        index: The shard's, from 0.
        shard: Its rows; inputs are scaled.
    """
    if any(augment.mixes_targets for augment in config.augmentation):
        shard = shard._replace(targets=_distribution(config, shard.targets))
    for number, augment in enumerate(config.augmentation):
        shard = augment(jax.random.fold_in(jax.random.fold_in(key, index), number), shard)
    return shard


def _share_of_shard(grads: Any, variables: Any, own_rows: Array, rows: Array, index: Array) -> tuple[Any, Any]:
    """What a shard adds to gradients and variables: nothing where it has no row, even if it computed a NaN.

    A variable of floats, such as BatchNorm's running mean, becomes sum(rows of shard / rows of batch * shard's value)
    over the shards, added in the order of all sums over shards. Other variables become the first shard's.
    """
    has_rows = own_rows > 0
    share = jnp.where(own_rows == rows, 1, own_rows * (1 / rows))

    def share_of(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.where(has_rows, leaf * share.astype(leaf.dtype), 0)
        return jnp.where(index == 0, leaf, jnp.zeros_like(leaf))

    return jax.tree.map(lambda leaf: jnp.where(has_rows, leaf, 0), grads), jax.tree.map(share_of, variables)


@partial(jax.jit, static_argnames="mesh", donate_argnames=("state", "sums"))
@in_precision
def train_steps(
    config: ExperimentConfig,
    state: TrainState,
    sums: Sums,
    split: Split,
    order: Int[Array, " padded"],
    start: Int[Array, ""],
    stop: Int[Array, ""],
    *,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Sums, Health]:
    """An epoch's updates `start` to `stop`; the bounds are arguments, so every length runs the same program.

    Args:
        config: From `ExperimentConfig.on_data`.
        state: Before update `start`; donated.
        sums: Of the epoch so far; donated.
        split: The training examples.
        order: From `epoch_order`.
        start: First update, counted within the epoch.
        stop: One past the last.
        mesh: Whose devices share each batch; by default one device has it.

    Returns:
        The state and the sums after update `stop - 1`, and what was not finite on the way.
    """
    trained: tuple[TrainState, Sums, Health]
    trained = shards.on_devices(partial(_train_steps, mesh), mesh)(config, state, sums, split, order, start, stop)
    return trained


def _train_steps(
    mesh: Mesh | None,
    config: ExperimentConfig,
    state: TrainState,
    sums: Sums,
    split: Split,
    order: Int[Array, " padded"],
    start: Int[Array, ""],
    stop: Int[Array, ""],
) -> tuple[TrainState, Sums, Health]:
    key = root_key(config.seed)

    def body(index: Int[Array, ""], carry: tuple[TrainState, Sums]) -> tuple[TrainState, Sums]:
        state, sums = carry
        rows = jnp.sum(_is_example(split, _places(order, index, config.batch_size)), dtype=jnp.float32)
        own = take_batch(split, order, index, config.batch_size, mesh=mesh)
        state, added = _train_step(config, state, own, rows, key, mesh)
        return state, _add(sums, added)

    before, carry = state, (share_update(config, state, mesh), sums)
    if order.shape[0] // config.batch_size >= BLOCK:
        # A GPU's host waits after every turn of a loop whose length nobody knows. So nearly all turns are in one of
        # known length, and the program is compiled once for every `start` and `stop` nevertheless.
        blocks = (stop - start) // BLOCK

        def block(number: Int[Array, ""], carry: Any) -> Any:
            first = start + number * BLOCK
            return lax.fori_loop(0, BLOCK, lambda index, carry: body(first + index, carry), carry)

        carry = lax.fori_loop(0, blocks, block, carry)
        start = start + blocks * BLOCK
    state, sums = lax.fori_loop(start, stop, body, carry)
    state = _whole(state, like=before)
    finite_params = jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), state.params)
    return state, sums, Health(finite_params, sums)


@partial(jax.jit, static_argnames="examples")
def epoch_order(config: ExperimentConfig, epoch: Int[Array, ""], *, examples: int) -> Int[Array, " padded"]:
    """The order of examples in an epoch, from 0: every one once, then `PADDING` up to a whole number of batches."""
    order = jnp.arange(examples, dtype=jnp.int32)
    if config.shuffle:
        order = jax.random.permutation(stream_key(root_key(config.seed), Stream.SHUFFLE, epoch), order)
    return jnp.pad(order, (0, -examples % config.batch_size), constant_values=PADDING)


def take_batch(
    split: Split, order: Int[Array, " padded"], index: Int[Array, ""], batch_size: int, *, mesh: Mesh | None = None
) -> Batch:
    """Batch `index` of an epoch in this order. With a mesh, a device's own rows of it.

    Rows of padding have mask 0 and hold some example, so that no loss, metric or module meets what is no example.
    """
    rows = shards.own_rows(_places(order, index, batch_size), mesh)
    inputs, targets, weights = jax.tree.map(
        lambda leaf: leaf[rows],
        (split.inputs, split.targets, split.weights),
        is_leaf=lambda node: isinstance(node, Rows),
    )
    return Batch(inputs, targets, _is_example(split, rows).astype(jnp.float32), weights)


def _places(order: Int[Array, " padded"], index: Int[Array, ""], batch_size: int) -> Int[Array, " batch"]:
    return lax.dynamic_slice_in_dim(order, index * batch_size, batch_size)


def _is_example(split: Split, rows: Int[Array, " rows"]) -> Bool[Array, " rows"]:
    return rows != PADDING if split.mask is None else (rows != PADDING) & split.mask[rows]


def eval_batch_size(config: ExperimentConfig, examples: int) -> int:
    """Rows evaluated at a time: all of a small split, else about `config.eval_rows`; whole shards."""
    return -(-min(config.eval_rows, examples) // config.grad_shards) * config.grad_shards


@partial(jax.jit, static_argnames="mesh")
@in_precision
def evaluate(
    config: ExperimentConfig,
    params: Any,
    variables: dict[str, Any],
    split: Split,
    sums: Sums,
    *,
    mesh: Mesh | None = None,
) -> Sums:
    """`sums`, and those over all examples of `split`, dropout off."""
    total: Sums = shards.on_devices(partial(_evaluate, mesh), mesh)(config, params, variables, split, sums)
    return total


def _evaluate(
    mesh: Mesh | None, config: ExperimentConfig, params: Any, variables: dict[str, Any], split: Split, sums: Sums
) -> Sums:
    module = config.module()
    cost = config.model.penalty(params)
    examples = split.targets.shape[0]
    batch_size = eval_batch_size(config, examples)
    order = jnp.pad(jnp.arange(examples, dtype=jnp.int32), (0, -examples % batch_size), constant_values=PADDING)

    def shard_sums(whole: Any, shard: Batch, index: Int[Array, ""]) -> Sums:
        params, variables = whole
        logits = modules.apply_eval(module, params, variables, scaled(config, shard.inputs))
        return _sums(config, config.loss(logits, shard.targets), logits, shard)

    def body(index: Int[Array, ""], sums: Sums) -> Sums:
        own = take_batch(split, order, index, batch_size, mesh=mesh)
        added = shards.sum_over_shards(
            shard_sums, (params, variables), own, num_shards=config.grad_shards, mesh=mesh, exact=config.exact
        )
        if cost is not None:
            added = {**added, "loss": added["loss"] + cost * jnp.float32(added["examples"])}
        return _add(sums, added)

    total: Sums = lax.fori_loop(0, len(order) // batch_size, body, sums)
    return total


@jax.jit
@in_precision
def learning_rate(
    config: ExperimentConfig, step: Int[Array, ""], states: dict[str, Any] | None = None
) -> Float[Array, ""]:
    """The rate of the update that starts at `step`; NaN of an optimizer whose rate is not known.

    Args:
        config: From `ExperimentConfig.on_data`.
        step: Updates made before.
        states: Of the controllers then; by default they have changed no rate.
    """
    steered: ExperimentConfig = controllers.steered(config, states or {})
    return steered.optimizer.rate(_updates(config))(step if config.accumulate == 1 else step // config.accumulate)


def scaled(config: ExperimentConfig, inputs: Inputs) -> Inputs:
    """The inputs as the module takes them: pixels and other numbers scaled and float32, whole numbers as they are."""

    def of(leaf: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
        if jnp.issubdtype(leaf.dtype, jnp.integer) and leaf.dtype != jnp.uint8:
            return leaf
        return leaf.astype(jnp.float32) * jnp.float32(config.data.pixel_scale)

    return jax.tree.map(of, inputs)


def _optimizer(config: ExperimentConfig) -> optax.GradientTransformationExtraArgs:
    """The optimizer's rule, behind what is cut off the gradients."""
    rule = optax.with_extra_args_support(config.optimizer.transformation(_updates(config)))
    if config.clip_value is None and config.clip_norm is None:
        return rule
    clip = optax.stateless(lambda grads, _: _clipped(config, grads))
    return optax.with_extra_args_support(optax.chain(clip, rule))


def _updates(config: ExperimentConfig) -> Any:
    """The run's updates of the parameters: one for each batch, unless batches are accumulated."""
    return config.total_steps if config.accumulate == 1 else typing.cast(Any, config.total_steps) // config.accumulate


def _clipped(config: ExperimentConfig, grads: Any) -> Any:
    """The gradients with no number above `clip_value`, and of a norm, as one vector, that is not above `clip_norm`."""
    if config.clip_value is not None:
        most = config.clip_value
        grads = jax.tree.map(lambda leaf: jnp.clip(leaf, -most, most), grads)
    if config.clip_norm is not None:
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)))
        # A product with one number, not a quotient: see losses.py.
        scale = jnp.minimum(1, config.clip_norm / jnp.maximum(norm, jnp.float32(np.finfo(np.float32).tiny)))
        grads = jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), grads)
    return grads


def _weights(batch: Batch) -> Float[Array, " batch"]:
    return batch.mask if batch.weights is None else batch.mask * batch.weights


def _of_classes(config: ExperimentConfig, batch: Batch) -> Float[Array, " batch"]:
    """The examples' weights times those of their classes; of a distribution, the mean over it."""
    shares = _distribution(config, batch.targets)
    weights = jnp.sum(shares * jnp.stack(config.data.class_weights)[None], axis=-1)
    return weights if batch.weights is None else weights * batch.weights


def _distribution(config: ExperimentConfig, targets: Num[Array, "batch ..."]) -> Float[Array, "batch classes"]:
    """Class ids as distributions over the classes; distributions as they are."""
    is_label = jnp.issubdtype(targets.dtype, jnp.integer)
    return jax.nn.one_hot(targets, typing.cast(int, config.outputs)) if is_label else targets


def _sums(config: ExperimentConfig, losses: Float[Array, " batch"], logits: Array, batch: Batch) -> Sums:
    present = batch.mask > 0

    def total(values: Shaped[Array, "batch ..."]) -> Shaped[Array, "..."]:
        shown = present.reshape(present.shape + (1,) * (values.ndim - 1))
        dtype = jnp.float32 if jnp.issubdtype(values.dtype, jnp.floating) else jnp.int32
        return jnp.sum(jnp.where(shown, values, jnp.zeros_like(values)), axis=0, dtype=dtype)

    sums = {
        metric.sums_name: jax.tree.map(total, metric.of_examples(logits, batch.targets)) for metric in config.metrics
    }
    examples = jnp.sum(present, dtype=jnp.int32)
    # Selected, as a row of padding may have lost its finite numbers.
    loss = jnp.sum(jnp.where(present, losses * _weights(batch), 0))
    return {"loss": loss, "examples": examples, **sums}


def _add(sums: Sums, more: Sums) -> Sums:
    total: Sums = jax.tree.map(jnp.add, sums, more)
    return total
