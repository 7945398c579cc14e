"""Functions that `portable` must take: flax layers from their initialisation to their gradient, optax from A to Y."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

Case = tuple[Callable[..., Any], tuple[Any, ...]]


def array(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Dense(nn.Module):
    """Two dense layers and dropout."""

    activation: str = "relu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = getattr(nn, self.activation)(nn.Dense(8)(x.reshape(len(x), -1)))
        return nn.Dense(3)(nn.Dropout(0.25, deterministic=False)(x))


class Conv(nn.Module):
    """Convolutions, grouped and dilated too, with both poolings and a norm."""

    norm: str = "LayerNorm"
    pool: str = "max_pool"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(4, (3, 3), strides=2)(x)
        x = nn.BatchNorm(use_running_average=False)(x) if self.norm == "BatchNorm" else getattr(nn, self.norm)()(x)
        x = getattr(nn, self.pool)(nn.relu(x), (3, 3), (2, 2), "SAME")
        x = nn.Conv(4, (2, 2), kernel_dilation=2, feature_group_count=2)(x)
        return nn.Dense(3)(nn.ConvTranspose(2, (2, 2), strides=(2, 2))(x).reshape(len(x), -1))


class Text(nn.Module):
    """An embedding, an LSTM, and attention."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        states: Any = nn.RNN(nn.OptimizedLSTMCell(8))(nn.Embed(10, 8)(x))
        mask = nn.make_causal_mask(states[..., 0])
        seen = nn.MultiHeadDotProductAttention(2, qkv_features=8)(states, mask=mask)
        return nn.Dense(3)(seen[:, -1])


def trained(module: nn.Module, x: np.ndarray) -> Case:
    """The initial parameters, and the gradient there of a mean cross entropy."""

    def function(seed: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # flax's avg_pool divides a float by an integer.
            return of_seed(seed, x, y)

    def of_seed(seed: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        keys = {"params": jax.random.key(seed), "dropout": jax.random.key(seed + 1)}
        variables = module.init(keys, x)

        def loss(params: Any) -> jax.Array:
            state = {**variables, "params": params}
            logits, _ = module.apply(state, x, rngs=keys, mutable=["batch_stats"])
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

        return variables, jax.value_and_grad(loss)(variables["params"])

    return function, (np.int32(7), x, np.arange(len(x), dtype=np.int32) % 3)


ACTIVATIONS = ("relu", "tanh", "gelu", "silu", "elu", "softplus", "selu")
LAYERS: dict[str, Case] = {
    **{
        f"Dense {name}": trained(Dense(name), array(4, 6))
        for name in ["relu", "tanh", "gelu", "silu", "elu", "softplus", "selu"]
    },
    "Conv LayerNorm max_pool": trained(Conv(), array(2, 8, 8, 2)),
    "Conv BatchNorm avg_pool": trained(Conv("BatchNorm", "avg_pool"), array(2, 8, 8, 2)),
    "Embed LSTM attention": trained(Text(), np.arange(10, dtype=np.int32).reshape(2, 5) % 7),
}


def deprecated(make: Callable[[], Any]) -> Any:
    """What optax still has, and warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return make()


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    name: partial(getattr(optax, name), 0.01)
    for name in (
        *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan", "amsgrad"),
        *("fromage", "lamb", "lars", "lion", "nadam", "nadamw", "novograd", "optimistic_gradient_descent"),
        *("optimistic_adam_v2", "polyak_sgd", "radam", "rmsprop", "rprop", "sgd", "sign_sgd", "signum", "sm3", "yogi"),
    )
} | {
    "noisy_sgd": lambda: optax.noisy_sgd(0.01, key=jax.random.key(0)),
    "optimistic_adam": lambda: deprecated(lambda: optax.optimistic_adam(0.01, 0.5)),
    "adam by its schedule": lambda: optax.adam(optax.warmup_cosine_decay_schedule(0.0, 0.01, 2, 10)),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.01, momentum=0.9, nesterov=True)),
    "lbfgs": lambda: optax.lbfgs(0.01, linesearch=None),
}


def optimized(name: str, updates: int = 1) -> Case:
    """The optimizer's state, and this number of updates."""
    optimizer = optax.with_extra_args_support(OPTIMIZERS[name]())

    def function(params: Any, grads: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            state = optimizer.init(params)
            for _ in range(updates):
                more = {"value": jnp.float32(1)} if "polyak" in name else {}
                changes, state = optimizer.update(grads, state, params, **more)
                params = optax.apply_updates(params, changes)
        return params, state

    params = {"w": array(4, 3), "b": array(3, seed=1)}
    return function, (params, {"w": array(4, 3, seed=2), "b": array(3, seed=3)})


SCHEDULES: dict[str, Any] = {
    "constant": optax.constant_schedule(0.1),
    "cosine": optax.cosine_decay_schedule(0.1, 10),
    "cosine_onecycle": optax.cosine_onecycle_schedule(10, 0.1),
    "exponential": optax.exponential_decay(0.1, 3, 0.9, staircase=True),
    "linear": optax.linear_schedule(0.1, 0.01, 10),
    "linear_onecycle": optax.linear_onecycle_schedule(10, 0.1),
    "piecewise_constant": optax.piecewise_constant_schedule(0.1, {3: 0.5, 7: 0.1}),
    "piecewise_interpolate": optax.piecewise_interpolate_schedule("cosine", 0.1, {3: 0.5, 7: 0.1}),
    "polynomial": optax.polynomial_schedule(0.1, 0.01, 2, 10),
    "sgdr": optax.sgdr_schedule([{"init_value": 0.0, "peak_value": 0.1, "decay_steps": 5, "warmup_steps": 2}] * 2),
    "warmup_constant": optax.warmup_constant_schedule(0.0, 0.1, 5),
    "warmup_cosine": optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 10),
    "warmup_exponential": optax.warmup_exponential_decay_schedule(0.0, 0.1, 3, 4, 0.5),
}


def scheduled(steps: jax.Array) -> dict[str, jax.Array]:
    """Every schedule at every step."""

    def at(step: jax.Array) -> dict[str, jax.Array]:
        return {name: jnp.asarray(schedule(step), jnp.float32) for name, schedule in SCHEDULES.items()}

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        values: dict[str, jax.Array] = jax.vmap(at)(steps)
    return values
