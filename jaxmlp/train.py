"""What is one update? Also here: the compiled loops over an epoch's updates and over a split.

    init_state(config, inputs) -> state                                           before the first update
    train_step(config, state, batch, key) -> state, sums                          one update from one batch
    train_steps(config, state, sums, split, order, start, stop) -> state, sums, health    an epoch's updates, in a loop
    evaluate(config, params, variables, split, sums) -> sums                      loss and metrics over a split

All are pure functions; `train_steps` takes over the memory of the state and sums that it gets. What the host calls
comes first. `_train_step`, `_train_steps` and `_evaluate` are what each device runs.

Metrics are sums and counts, which the host divides once. A module's statistics, such as BatchNorm's, are computed on
the rows of one gradient shard and averaged over the shards, weighted by their numbers of rows: see `modules`.

`config` is `ExperimentConfig.on_data(...)`. Its rates, its seed and the length of the run are arguments of the compiled
programs, so other values compile nothing again.

An update here is the work on one batch, which `state.step` counts. With `config.accumulate` = n, the parameters change
after the last of n such updates: see `_after_gradients`.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, Num, Shaped

from jaxmlp import modules, shards
from jaxmlp.batches import PADDING as PADDING
from jaxmlp.batches import DeviceSplit as DeviceSplit
from jaxmlp.batches import epoch_order as epoch_order
from jaxmlp.batches import num_examples
from jaxmlp.batches import take_batch as take_batch
from jaxmlp.errors import ConfigError
from jaxmlp.experiment import controllers
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.experiment.parts import Batch as Batch
from jaxmlp.experiment.parts import Inputs
from jaxmlp.portable import Refused, portable
from jaxmlp.prng import Stream, of_the_device, root_key, stream_key

BLOCK = 32
"""Number of updates in the loop whose length the compiler knows."""
ACCUMULATED = "accumulated"
"""Key in `TrainState.controllers` of the gradients that are accumulated until the next update."""

Sums: TypeAlias = dict[str, Any]
"""Sums over examples, by name: `loss`, `examples`, and the sums of each metric."""


class TrainState(NamedTuple):
    """Everything that an update reads and writes."""

    step: Int[Array, ""]
    params: Any
    opt_state: optax.OptState
    variables: dict[str, Any] = {}  # noqa: RUF012
    """Statistics of the module that are not parameters, by flax collection. Empty for most modules."""
    controllers: dict[str, Any] = {}  # noqa: RUF012
    """State of the controllers, such as the patience of a plateau, by name. Empty without controllers."""


class ShardedOptState(NamedTuple):
    """One device's slices of the parameters and of the optimizer state, while several devices share the update.

    Inside a program, it takes the place of `TrainState.opt_state`.

    The field calls this cross-replica sharding of the weight update (Xu et al., 2020).
    """

    params: Any
    opt_state: optax.OptState


class Health(NamedTuple):
    """Whether the numbers stayed finite during a call of `train_steps`."""

    finite_params: Any
    """For each leaf of the parameters, whether all its numbers are finite after the last update."""
    sums: Sums
    """A copy of the epoch's sums after the last update. The next call takes over the memory of the originals.

    If a loss is not finite, its sum is not finite either."""


def in_precision[F: Callable[..., Any]](function: F) -> F:
    """Run a function of a config and arrays in the config's precision: portable, or with TensorFloat-32 products.

    float32 and bfloat16 need nothing here: the module gets bfloat16 when it is made.

    Raises:
        ConfigError: On a call, if an operation of the experiment has no portable rule.
    """

    @wraps(function)
    def called(config: ExperimentConfig, *arrays: Any, **static: Any) -> Any:
        if config.precision == "tensorfloat32":
            with jax.default_matmul_precision("tensorfloat32"):  # A user's own module obeys it too.
                return function(config, *arrays, **static)
        if config.precision != "portable":
            return function(config, *arrays, **static)
        try:
            return portable(partial(function, **static), zero=typing.cast(Any, config.zero))(config, *arrays)
        except Refused as error:
            raise ConfigError("precision", f"cannot be portable in this experiment: {error}") from None

    return typing.cast(F, called)


@jax.jit
@in_precision
def init_state(config: ExperimentConfig, inputs: Inputs, given: dict[str, Any] | None = None) -> TrainState:
    """The state before the first update, which depends on the seed alone.

    Args:
        config: From `ExperimentConfig.on_data`.
        inputs: One example, `[1, ...]` or a tree of such arrays. Only its shapes matter.
        given: Initial `params` and `variables`. Default: the module's own, which are random.
    """
    key = stream_key(root_key(config.seed), Stream.INIT)
    params, variables = modules.init(config.module(), scaled(config, inputs), key)
    if given:
        params, variables = given["params"], given["variables"]
    opt_state, states = _optimizer(config).init(params), controllers.init(config, params, variables)
    if config.accumulate > 1:
        states[ACCUMULATED] = _nothing_accumulated(params)
    return TrainState(jnp.int32(0), params, opt_state, variables, states)


@partial(jax.jit, static_argnames="mesh")
@in_precision
def train_step(
    config: ExperimentConfig, state: TrainState, batch: Batch, key: Key[Array, ""], *, mesh: Mesh | None = None
) -> tuple[TrainState, Sums]:
    """One update: the gradient of the mean loss over the batch without its padding, then the optimizer's rule.

    With `config.accumulate` = n, the optimizer's rule follows only the last of n updates.

    Args:
        config: From `ExperimentConfig.on_data`.
        state: The state before the update.
        batch: `config.batch_size` rows, padding included.
        key: The run's key, `root_key(config.seed)`, the same in every update. Dropout and augmentation use its streams
            at `state.step`, and fold in the number of the shard.
        mesh: The devices that split the batch. Default: one device computes all of it.

    Returns:
        The state after the update, and the batch's sums in training mode, with the parameters before the update.
    """

    def on_device(
        config: ExperimentConfig, state: TrainState, batch: Batch, key: Key[Array, ""]
    ) -> tuple[TrainState, Sums]:
        own = jax.tree.map(partial(shards.own_rows, mesh=mesh), batch)
        before = shard_opt_state(config, state, mesh)
        after, sums = _train_step(config, before, own, jnp.sum(batch.mask), key, mesh)
        return _gather_opt_state(after, like=state), sums

    return shards.on_devices(on_device, mesh)(config, state, batch, key)


@partial(jax.jit, static_argnames="mesh", donate_argnames=("state", "sums"))
@in_precision
def train_steps(
    config: ExperimentConfig,
    state: TrainState,
    sums: Sums,
    split: DeviceSplit,
    order: Int[Array, " padded"],
    start: Int[Array, ""],
    stop: Int[Array, ""],
    *,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Sums, Health]:
    """The updates `start` to `stop` of an epoch. The bounds are arguments, so every length runs the same program.

    Args:
        config: From `ExperimentConfig.on_data`.
        state: The state before update `start`. Donated.
        sums: The sums of the epoch so far. Donated.
        split: The training examples.
        order: From `epoch_order`.
        start: Number of the first update, counted from 0 within the epoch.
        stop: One past the number of the last update.
        mesh: The devices that split each batch. Default: one device computes all of it.

    Returns:
        The state and the sums after update `stop - 1`, and whether all numbers stayed finite.
    """
    return shards.on_devices(partial(_train_steps, mesh), mesh)(config, state, sums, split, order, start, stop)


@partial(jax.jit, static_argnames="mesh")
@in_precision
def evaluate(
    config: ExperimentConfig,
    params: Any,
    variables: dict[str, Any],
    split: DeviceSplit,
    sums: Sums,
    *,
    mesh: Mesh | None = None,
) -> Sums:
    """Add the sums over all examples of `split` to `sums`. Dropout is off."""
    return shards.on_devices(partial(_evaluate, mesh), mesh)(config, params, variables, split, sums)


def eval_batch_size(config: ExperimentConfig, examples: int) -> int:
    """Number of rows evaluated at a time: `config.eval_rows` or, if fewer, all; rounded up to whole shards."""
    return -(-min(config.eval_rows, examples) // config.grad_shards) * config.grad_shards


@jax.jit
@in_precision
def learning_rate(
    config: ExperimentConfig, step: Int[Array, ""], states: dict[str, Any] | None = None
) -> Float[Array, ""]:
    """The learning rate of the update that starts at `step`. NaN if the optimizer's rate is not known.

    Args:
        config: From `ExperimentConfig.on_data`.
        step: `TrainState.step` before the update.
        states: States of the controllers at this step. Default: no controller has changed the rate.
    """
    steered: ExperimentConfig = controllers.steered(config, states or {})
    return steered.optimizer.rate(_updates(config))(step if config.accumulate == 1 else step // config.accumulate)


def zero_sums(config: ExperimentConfig, state: TrainState, split: DeviceSplit) -> Sums:
    """Sums over no examples, with the shapes of the sums over `split`. Nothing is computed."""
    shapes = jax.eval_shape(_sums_of_one, config, state, split)
    zeros: Sums = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return zeros


@jax.jit  # traced once for all calls
def _sums_of_one(config: ExperimentConfig, state: TrainState, split: DeviceSplit) -> Sums:
    batch = take_batch(split, jnp.zeros(1, jnp.int32), jnp.int32(0), 1)
    logits = modules.apply_eval(config.module(), state.params, state.variables, scaled(config, batch.inputs))
    return _sums(config, config.loss(logits, batch.targets), logits, batch)


def _train_step(
    config: ExperimentConfig,
    state: TrainState,
    own: Batch,
    num_rows: Float[Array, ""],
    key: Key[Array, ""],
    mesh: Mesh | None,
) -> tuple[TrainState, Sums]:
    """`train_step` on one device, with its `own` rows of a batch with `num_rows` rows, padding not counted."""
    dropout_key = stream_key(key, Stream.DROPOUT, state.step)
    augmentation_key = stream_key(key, Stream.AUGMENTATION, state.step)
    if not config.exact:
        dropout_key, augmentation_key = of_the_device(dropout_key), of_the_device(augmentation_key)
    # A product, not a quotient: see experiment/losses.py.
    whole = (state.params, state.variables, dropout_key, augmentation_key, num_rows, 1 / num_rows)
    steered = controllers.steered(config, state.controllers)
    sum_over_shards = partial(
        shards.sum_over_shards,
        partial(_shard_gradients, config),
        whole=whole,
        own=own,
        num_shards=config.grad_shards,
        mesh=mesh,
        exact=config.exact,
    )
    if isinstance(state.opt_state, ShardedOptState):  # Then there is neither a penalty nor accumulation.
        update = partial(_update_own, steered, state.opt_state)
        (params, sums, variables), opt_state = sum_over_shards(update=update)
        after = controllers.after_update(steered, state._replace(params=params, opt_state=opt_state))
        return after._replace(step=state.step + 1, variables=variables), sums
    grads, sums, variables = sum_over_shards()
    if config.model.penalty(state.params) is not None:
        cost, cost_grads = jax.value_and_grad(config.model.penalty)(state.params)
        grads = jax.tree.map(jnp.add, grads, cost_grads)
        sums = {**sums, "loss": sums["loss"] + cost * num_rows}
    after = _after_gradients(steered, state, grads, num_rows)
    return after._replace(step=state.step + 1, variables=variables), sums


def _shard_gradients(
    config: ExperimentConfig, whole: Any, shard: Batch, index: Int[Array, ""]
) -> tuple[Any, Sums, Any]:
    """What a gradient shard adds to the batch's gradients, to its sums, and to the module's statistics.

    Args:
        config: The experiment.
        whole: What is the same for all shards, from `_train_step`.
        shard: Rows of the shard.
        index: Number of the shard, from 0.
    """
    params, variables, dropout_key, augmentation_key, num_rows, share_of_row = whole
    module = config.module()
    if variables:  # No statistic sees padding, but the mask still leaves it out of the loss.
        shard = modules.fill_padding(shard, shard.mask > 0)._replace(mask=shard.mask)
    shard = shard._replace(inputs=scaled(config, shard.inputs))
    shard = augmented(config, augmentation_key, index, shard)
    if config.data.class_weights:
        shard = shard._replace(weights=_times_class_weights(config, shard))

    def shard_loss(params: Any) -> tuple[Float[Array, ""], Any]:
        own_key = jax.random.fold_in(dropout_key, index)
        logits, after = modules.apply_train(module, params, variables, shard.inputs, own_key, shard.mask > 0)
        losses = config.loss(logits, shard.targets)
        return jnp.sum(losses * (_row_weights(shard) * share_of_row)), (_sums(config, losses, logits, shard), after)

    grads, (sums, variables_after) = jax.grad(shard_loss, has_aux=True)(params)
    if variables:
        grads, variables_after = _share_of_shard(grads, variables_after, jnp.sum(shard.mask), num_rows, index)
    return grads, sums, variables_after


def _share_of_shard(grads: Any, variables: Any, own_rows: Array, rows: Array, index: Array) -> tuple[Any, Any]:
    """What a shard adds to the gradients and variables of the batch. A shard without rows adds 0, even if it has NaNs.

    A variable of floats, such as BatchNorm's running mean, becomes the sum over the shards of (rows of the shard / rows
    of the batch * value of the shard), in the fixed order of all sums over shards. A variable of another type, such as
    a counter, gets the first shard's value.
    """
    has_rows = own_rows > 0
    share = jnp.where(own_rows == rows, 1, own_rows * (1 / rows))

    def share_of(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.where(has_rows, leaf * share.astype(leaf.dtype), 0)
        return jnp.where(index == 0, leaf, jnp.zeros_like(leaf))

    return jax.tree.map(lambda leaf: jnp.where(has_rows, leaf, 0), grads), jax.tree.map(share_of, variables)


def _after_gradients(config: ExperimentConfig, state: TrainState, grads: Any, num_rows: Float[Array, ""]) -> TrainState:
    """The state after the gradients of a batch: the optimizer's rule changes the parameters.

    With accumulation, the gradients are first added to those of the batches before, each times its number of rows. The
    rule gets their mean over all rows. Every batch computes two states, after the rule and without it, and selects one:
    only the last of `config.accumulate` batches selects the state after the rule.
    """

    def after_rule(grads: Any) -> TrainState:
        updates, opt_state = _optimizer(config).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        after: TrainState = controllers.after_update(config, state._replace(params=params, opt_state=opt_state))
        return after

    if config.accumulate == 1:
        return after_rule(grads)
    before = state.controllers[ACCUMULATED]
    so_far = {
        "grads": jax.tree.map(lambda total, each: total + each * num_rows.astype(each.dtype), before["grads"], grads),
        "rows": before["rows"] + num_rows,
        "batches": before["batches"] + 1,
    }
    share = 1 / so_far["rows"]
    changed = after_rule(jax.tree.map(lambda total: total * share.astype(total.dtype), so_far["grads"]))
    changed.controllers[ACCUMULATED] = _nothing_accumulated(state.params)
    waiting = state._replace(controllers={**state.controllers, ACCUMULATED: so_far})
    is_last = so_far["batches"] == config.accumulate
    selected: TrainState = jax.tree.map(lambda new, old: jnp.where(is_last, new, old), changed, waiting)
    return selected


def _nothing_accumulated(params: Any) -> dict[str, Any]:
    """The sum of the gradients, each times its number of rows; the number of rows, and of batches."""
    return {"grads": jax.tree.map(jnp.zeros_like, params), "rows": jnp.float32(0), "batches": jnp.int32(0)}


def _update_own(config: ExperimentConfig, own: ShardedOptState, grads: Any) -> tuple[Any, ShardedOptState]:
    """`_after_gradients` on the device's own slices: the new parameters, to be gathered, and what the device keeps."""
    # Without these barriers XLA would fuse the update with the slicing. It would then contract other products and sums
    # into multiply-adds than on one device, and last bits would change.
    grads, own = lax.optimization_barrier((grads, own))
    updates, opt_state = _optimizer(config).update(grads, own.opt_state, own.params)
    params = optax.apply_updates(own.params, updates)
    params, opt_state = lax.optimization_barrier((params, opt_state))
    return params, ShardedOptState(params, opt_state)


def shard_opt_state(config: ExperimentConfig, state: TrainState, mesh: Mesh | None) -> TrainState:
    """Replace `opt_state` by `ShardedOptState` if each device can update its own slices.

    Call it inside `shards.on_devices`. The state is sharded if there are several devices, the experiment is exact, the
    optimizer is elementwise, every leaf of the parameters has two floats or more, and the experiment has no clipping by
    norm, no penalty and no accumulation. It is not sharded on CPUs of several processes: see docs/distributed.md.
    """
    if not mesh or mesh.size == 1 or shards.is_joined_by_gloo(mesh) or not config.exact:
        return state
    if not config.optimizer.elementwise or config.clip_norm is not None or config.accumulate > 1:
        return state
    # XLA may divide a single number and an array of numbers in different ways.
    are_arrays = all(
        leaf.size > 1 and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(state.params)
    )
    if not are_arrays or config.model.penalty(state.params) is not None:
        return state
    own_slice = partial(shards.own_slice, mesh=mesh)
    slices = jax.tree.map(lambda leaf: own_slice(leaf) if leaf.ndim else leaf, state.opt_state)
    return state._replace(opt_state=ShardedOptState(jax.tree.map(own_slice, state.params), slices))


def _gather_opt_state(state: TrainState, like: TrainState) -> TrainState:
    """The inverse of `shard_opt_state`: gather the slices of the optimizer state into the shapes of `like`."""
    if not isinstance(state.opt_state, ShardedOptState):
        return state
    slices, structure = jax.tree.flatten(state.opt_state.opt_state)
    shapes = [leaf for leaf in jax.tree.leaves(like.opt_state) if leaf.ndim]
    found = iter(shards.gathered([leaf for leaf in slices if leaf.ndim], shapes))
    opt_state = jax.tree.unflatten(structure, [next(found) if leaf.ndim else leaf for leaf in slices])
    return state._replace(opt_state=opt_state)


def _train_steps(
    mesh: Mesh | None,
    config: ExperimentConfig,
    state: TrainState,
    sums: Sums,
    split: DeviceSplit,
    order: Int[Array, " padded"],
    start: Int[Array, ""],
    stop: Int[Array, ""],
) -> tuple[TrainState, Sums, Health]:
    key = root_key(config.seed)

    @jax.jit  # traced once, for all loops
    def update(index: Int[Array, ""], carry: tuple[TrainState, Sums]) -> tuple[TrainState, Sums]:
        state, sums = carry
        num_rows = num_examples(split, order, index, config.batch_size)
        own = take_batch(split, order, index, config.batch_size, mesh=mesh)
        state, added = _train_step(config, state, own, num_rows, key, mesh)
        return state, _add(sums, added)

    def in_one_loop(start: Int[Array, ""], carry: Any) -> Any:
        return lax.fori_loop(start, stop, update, carry)

    def in_blocks(start: Int[Array, ""], carry: Any) -> Any:
        blocks = (stop - start) // BLOCK

        def block(number: Int[Array, ""], carry: Any) -> Any:
            first = start + number * BLOCK
            return lax.fori_loop(0, BLOCK, lambda index, carry: update(first + index, carry), carry)

        return in_one_loop(start + blocks * BLOCK, lax.fori_loop(0, blocks, block, carry))

    before, carry = state, (shard_opt_state(config, state, mesh), sums)
    if order.shape[0] // config.batch_size < BLOCK:
        carry = in_one_loop(start, carry)
    else:
        # If the compiler does not know the length of a loop, a GPU's host waits after every iteration. So nearly all
        # updates run in inner loops of a known length, and one program still serves every `start` and `stop`. A CPU
        # would only compile the update twice.
        carry = lax.platform_dependent(start, carry, cpu=in_one_loop, default=in_blocks)
    state, sums = carry
    state = _gather_opt_state(state, like=before)
    finite_params = jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), state.params)
    # The two results `sums` have memory of their own: the next call takes over that of the first.
    return state, sums, Health(finite_params, sums)


def _evaluate(
    mesh: Mesh | None, config: ExperimentConfig, params: Any, variables: dict[str, Any], split: DeviceSplit, sums: Sums
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


def scaled(config: ExperimentConfig, inputs: Inputs) -> Inputs:
    """The inputs of the module: pixels and floats are scaled and become float32; other integers stay as they are."""

    def of(leaf: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
        if jnp.issubdtype(leaf.dtype, jnp.integer) and leaf.dtype != jnp.uint8:
            return leaf
        return leaf.astype(jnp.float32) * jnp.float32(config.data.pixel_scale)

    return jax.tree.map(of, inputs)


def augmented(config: ExperimentConfig, key: Key[Array, ""], index: Int[Array, ""] | int, shard: Batch) -> Batch:
    """The rows of a shard after all augmentations.

    Args:
        config: The experiment.
        key: The update's key, `stream_key(root_key(config.seed), Stream.AUGMENTATION, step)`.
        index: Number of the shard, from 0.
        shard: The rows, with scaled inputs.
    """
    if any(augment.mixes_targets for augment in config.augmentation):
        shard = shard._replace(targets=_distribution(config, shard.targets))
    for number, augment in enumerate(config.augmentation):
        shard = augment(jax.random.fold_in(jax.random.fold_in(key, index), number), shard)
    return shard


def _distribution(config: ExperimentConfig, targets: Num[Array, "batch ..."]) -> Float[Array, "batch classes"]:
    """Class ids become one-hot distributions over the classes. Distributions stay as they are."""
    is_label = jnp.issubdtype(targets.dtype, jnp.integer)
    return jax.nn.one_hot(targets, typing.cast(int, config.outputs)) if is_label else targets


def _times_class_weights(config: ExperimentConfig, batch: Batch) -> Float[Array, " batch"]:
    """Weights of the examples times the weights of their classes. A distribution has its mean class weight."""
    targets = _distribution(config, batch.targets)
    weights = jnp.sum(targets * jnp.stack(config.data.class_weights)[None], axis=-1)
    return weights if batch.weights is None else weights * batch.weights


def _row_weights(batch: Batch) -> Float[Array, " batch"]:
    """Weight of each row's loss: the example's weight, 0 for padding."""
    return batch.mask if batch.weights is None else batch.mask * batch.weights


def _sums(config: ExperimentConfig, losses: Float[Array, " batch"], logits: Array, batch: Batch) -> Sums:
    """The batch's sums, padding left out."""
    present = batch.mask > 0

    def total(values: Shaped[Array, "batch ..."]) -> Shaped[Array, "..."]:
        shown = present.reshape(present.shape + (1,) * (values.ndim - 1))
        dtype = jnp.float32 if jnp.issubdtype(values.dtype, jnp.floating) else jnp.int32
        return jnp.sum(jnp.where(shown, values, jnp.zeros_like(values)), axis=0, dtype=dtype)

    sums = {
        metric.sums_name: jax.tree.map(total, metric.of_examples(logits, batch.targets)) for metric in config.metrics
    }
    examples = jnp.sum(present, dtype=jnp.int32)
    # A row of padding may hold NaN, so it is left out by selection, not by a product with 0.
    loss = jnp.sum(jnp.where(present, losses * _row_weights(batch), 0))
    return {"loss": loss, "examples": examples, **sums}


def _add(sums: Sums, more: Sums) -> Sums:
    total: Sums = jax.tree.map(jnp.add, sums, more)
    return total


def _optimizer(config: ExperimentConfig) -> optax.GradientTransformationExtraArgs:
    """The optimizer's rule, after gradient clipping."""
    rule = optax.with_extra_args_support(config.optimizer.transformation(_updates(config)))
    if config.clip_value is None and config.clip_norm is None:
        return rule
    clip = optax.stateless(lambda grads, _: _clipped(config, grads))
    return optax.with_extra_args_support(optax.chain(clip, rule))


def _updates(config: ExperimentConfig) -> Any:
    """How often the run changes its parameters: once per `config.accumulate` batches."""
    return config.total_steps if config.accumulate == 1 else typing.cast(Any, config.total_steps) // config.accumulate


def _clipped(config: ExperimentConfig, grads: Any) -> Any:
    """The gradients with each element clipped to `clip_value`, and then their joint norm to `clip_norm`."""
    if config.clip_value is not None:
        most = config.clip_value
        grads = jax.tree.map(lambda leaf: jnp.clip(leaf, -most, most), grads)
    if config.clip_norm is not None:
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)))
        # A product with one number, not a quotient: see experiment/losses.py.
        scale = jnp.minimum(1, config.clip_norm / jnp.maximum(norm, jnp.float32(np.finfo(np.float32).tiny)))
        grads = jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), grads)
    return grads
