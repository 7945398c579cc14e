"""The algorithm: one update, the compiled loop over an epoch's updates, and evaluation. Pure functions of arrays.

    state -> train_step -> state          one update from one batch and one dropout key
    state -> train_steps -> state         any run of an epoch's updates, one compiled loop, whatever its bounds
    params -> evaluate -> sums            loss and hits over all examples of a split

Metrics are sums and counts, divided once, on the host. `config` is `ExperimentConfig.program()`: rates, seed and
length of the run arrive as arguments (`Hyper`), so that they compile nothing anew.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, Shaped

from jaxmlp import model, objective, optim, shards
from jaxmlp.config import ExperimentConfig
from jaxmlp.fields import Hyperparameters
from jaxmlp.prng import Stream, stream_key

EVAL_ROWS = 1024
"""Rows evaluated at a time, about."""
PADDING = -1
"""The label, and the place in an epoch's order, of a row that is no example."""
NEVER = np.iinfo(np.int32).max
"""`Health.bad_loss_step` while every loss is finite."""


class TrainState(NamedTuple):
    """All that an update reads and writes."""

    step: Int[Array, ""]
    params: Any
    opt_state: optax.OptState


class Hyper(NamedTuple):
    """All that a run varies without another program."""

    optimizer: Hyperparameters
    seed: Int[Array, ""]
    total_steps: Int[Array, ""]


class Split(NamedTuple):
    """Examples on the device; pixels are scaled in the step."""

    images: Shaped[Array, "examples height width channels"]
    labels: Int[Array, " examples"]
    """Or `PADDING`."""


class Batch(NamedTuple):
    """One update's examples; weight 0 marks padding, 1 the rest."""

    images: Shaped[Array, "batch height width channels"]
    labels: Int[Array, " batch"]
    weights: Float[Array, " batch"]


class Sums(NamedTuple):
    """Over examples; divide by their number for means."""

    loss: Float[Array, ""]
    correct: Int[Array, ""]
    examples: Int[Array, ""]

    @classmethod
    def zero(cls) -> Sums:
        """Of no examples."""
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0))


class Health(NamedTuple):
    """Where a run of updates left the finite numbers."""

    bad_loss_step: Int[Array, ""]
    """First step whose loss was not finite, or `NEVER`."""
    finite_params: Any
    """The parameters' tree, with whether all of a leaf is finite after the last step."""


def make_hyper(config: ExperimentConfig, steps_per_epoch: int) -> Hyper:
    """The config's traced values, as arrays of fixed types."""
    return Hyper(
        optimizer=jax.tree.map(_as_array, config.optimizer.hyperparameters()),
        seed=jnp.uint32(config.seed),
        total_steps=jnp.int32(config.epochs * steps_per_epoch),
    )


def _as_array(value: float) -> Shaped[Array, ""]:
    return jnp.asarray(value, jnp.int32 if isinstance(value, int) else jnp.float32)


@partial(jax.jit, static_argnames=("config", "module", "image_shape"))
def init_state(
    hyper: Hyper, *, config: ExperimentConfig, module: nn.Module, image_shape: tuple[int, ...]
) -> TrainState:
    """The state before the first update, from the seed alone."""
    params = model.init_params(module, image_shape, stream_key(hyper.seed, Stream.INIT))
    optimizer = optim.make_optimizer(config.optimizer, hyper.optimizer, hyper.total_steps)
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def _train_step(
    state: TrainState,
    batch: Batch,
    dropout_key: Key[Array, ""],
    hyper: Hyper,
    *,
    config: ExperimentConfig,
    module: nn.Module,
    mesh: Mesh,
) -> tuple[TrainState, Sums]:
    """One update: gradients of the mean loss over the batch's own rows, then the optimizer's rule.

    Args:
        state: Before the update.
        batch: `config.batch_size` rows, padding included.
        dropout_key: `stream_key(seed, Stream.DROPOUT, state.step)`; a shard folds its index into it.
        hyper: From `make_hyper`.
        config: `ExperimentConfig.program()`.
        module: Maps scaled images to logits.
        mesh: Whose devices share the batch.

    Returns:
        The state after the update, and the batch's sums, in training mode, before it.
    """
    loss_fn = objective.make_loss(config.loss)
    rows = jnp.sum(batch.weights)

    def shard_gradients(whole: Any, shard: Batch, index: Int[Array, ""]) -> tuple[Any, Sums]:
        params, dropout_key, row_weight = whole

        def shard_loss(params: Any) -> tuple[Float[Array, ""], Sums]:
            images = _scaled(shard.images, config)
            logits = model.apply_train(module, params, images, jax.random.fold_in(dropout_key, index))
            losses = loss_fn(logits, shard.labels)
            return jnp.sum(losses * (shard.weights * row_weight)), _sums(losses, logits, shard)

        grads, sums = jax.grad(shard_loss, has_aux=True)(params)
        return grads, sums

    # A product, not a quotient: see objective.py.
    whole = (state.params, dropout_key, 1 / rows)
    grads, sums = shards.sum_over_shards(shard_gradients, whole, batch, num_shards=config.grad_shards, mesh=mesh)
    if config.model.l1 or config.model.l2:
        cost, cost_grads = jax.value_and_grad(partial(objective.penalty, config.model))(state.params)
        grads = jax.tree.map(jnp.add, grads, cost_grads)
        sums = sums._replace(loss=sums.loss + cost * rows)
    optimizer = optim.make_optimizer(config.optimizer, hyper.optimizer, hyper.total_steps)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), sums


train_step = jax.jit(_train_step, static_argnames=("config", "module", "mesh"))


@partial(jax.jit, static_argnames=("config", "module", "mesh"), donate_argnames=("state", "sums"))
def train_steps(
    state: TrainState,
    sums: Sums,
    split: Split,
    order: Int[Array, " padded"],
    start: Int[Array, ""],
    stop: Int[Array, ""],
    hyper: Hyper,
    *,
    config: ExperimentConfig,
    module: nn.Module,
    mesh: Mesh,
) -> tuple[TrainState, Sums, Health]:
    """An epoch's updates `start` to `stop`; the bounds are arguments, so every length runs the same program.

    Args:
        state: Before update `start`; donated.
        sums: Of the epoch so far; donated.
        split: The training examples.
        order: From `epoch_order`.
        start: First update, counted within the epoch.
        stop: One past the last.
        hyper: From `make_hyper`.
        config: `ExperimentConfig.program()`.
        module: Maps scaled images to logits.
        mesh: Whose devices share each batch.

    Returns:
        The state and the sums after update `stop - 1`, and what was not finite on the way.
    """

    def body(index: Int[Array, ""], carry: tuple[TrainState, Sums, Int[Array, ""]]) -> Any:
        state, sums, bad_loss_step = carry
        batch = take_batch(split, order, index, config.batch_size)
        dropout_key = stream_key(hyper.seed, Stream.DROPOUT, state.step)
        next_state, added = _train_step(state, batch, dropout_key, hyper, config=config, module=module, mesh=mesh)
        bad_now = jnp.where(jnp.isfinite(added.loss), NEVER, state.step)
        return next_state, _add(sums, added), jnp.minimum(bad_loss_step, bad_now)

    state, sums, bad_loss_step = lax.fori_loop(start, stop, body, (state, sums, jnp.int32(NEVER)))
    finite_params = jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), state.params)
    return state, sums, Health(bad_loss_step, finite_params)


@partial(jax.jit, static_argnames=("examples", "batch_size", "shuffle"))
def epoch_order(
    seed: Int[Array, ""], epoch: Int[Array, ""], *, examples: int, batch_size: int, shuffle: bool
) -> Int[Array, " padded"]:
    """The epoch's order of examples, every one once, then `PADDING` up to a whole number of batches."""
    order = jnp.arange(examples, dtype=jnp.int32)
    if shuffle:
        order = jax.random.permutation(stream_key(seed, Stream.SHUFFLE, epoch), order)
    return jnp.pad(order, (0, -examples % batch_size), constant_values=PADDING)


def take_batch(split: Split, order: Int[Array, " padded"], index: Int[Array, ""], batch_size: int) -> Batch:
    """Batch `index` of an epoch in this order; padding has weight 0."""
    rows = lax.dynamic_slice_in_dim(order, index * batch_size, batch_size)
    labels = jnp.where(rows == PADDING, PADDING, split.labels[rows])
    return Batch(split.images[rows], labels, (labels != PADDING).astype(jnp.float32))


def eval_batch_size(examples: int, grad_shards: int) -> int:
    """Rows evaluated at a time: all of a small split, else about `EVAL_ROWS`; whole shards."""
    return -(-min(EVAL_ROWS, examples) // grad_shards) * grad_shards


@partial(jax.jit, static_argnames=("config", "module", "mesh"))
def evaluate(params: Any, split: Split, sums: Sums, *, config: ExperimentConfig, module: nn.Module, mesh: Mesh) -> Sums:
    """`sums`, and those over all examples of `split`, dropout off."""
    loss_fn = objective.make_loss(config.loss)
    cost = objective.penalty(config.model, params)
    examples = split.labels.shape[0]
    batch_size = eval_batch_size(examples, config.grad_shards)
    order = jnp.pad(jnp.arange(examples, dtype=jnp.int32), (0, -examples % batch_size), constant_values=PADDING)

    def shard_sums(params: Any, shard: Batch, index: Int[Array, ""]) -> Sums:
        logits = model.apply_eval(module, params, _scaled(shard.images, config))
        return _sums(loss_fn(logits, shard.labels), logits, shard)

    def body(index: Int[Array, ""], sums: Sums) -> Sums:
        batch = take_batch(split, order, index, batch_size)
        added = shards.sum_over_shards(shard_sums, params, batch, num_shards=config.grad_shards, mesh=mesh)
        return _add(sums, added._replace(loss=added.loss + cost * jnp.float32(added.examples)))

    total: Sums = lax.fori_loop(0, len(order) // batch_size, body, sums)
    return total


@partial(jax.jit, static_argnames="config")
def learning_rate(step: Int[Array, ""], hyper: Hyper, *, config: ExperimentConfig) -> Float[Array, ""]:
    """The rate of the update that starts at `step`."""
    return optim.learning_rate(config.optimizer, hyper.optimizer, hyper.total_steps, step)


def _scaled(images: Shaped[Array, "batch ..."], config: ExperimentConfig) -> Float[Array, "batch ..."]:
    return images.astype(jnp.float32) * jnp.float32(config.data.pixel_scale)


def _sums(losses: Float[Array, " batch"], logits: Float[Array, "batch classes"], batch: Batch) -> Sums:
    present = batch.weights > 0
    hits = present & objective.correct(logits, batch.labels)
    return Sums(
        loss=jnp.sum(losses * batch.weights),
        correct=jnp.sum(hits, dtype=jnp.int32),
        examples=jnp.sum(present, dtype=jnp.int32),
    )


def _add(sums: Sums, more: Sums) -> Sums:
    return Sums(*map(jnp.add, sums, more))
