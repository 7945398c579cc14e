"""Optimizers and learning-rate schedules, built from optax: one function each.

Each function takes the part of the config it is built from and its traced values (`hyper`, the part's
`hyperparameters()`), so that one compiled program serves every rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxmlp import config as cfg
from jaxmlp.fields import Hyperparameters

Step: TypeAlias = int | Int[Array, ""]
ScheduleFn: TypeAlias = Callable[[Step], Float[Array, ""]]


def make_schedule(config: cfg.Schedule, hyper: Hyperparameters, total_steps: Step) -> ScheduleFn:
    """The factor on the learning rate, float32, as a function of the updates already made.

    Args:
        config: The schedule.
        hyper: `config.hyperparameters()`, or traced values in its place.
        total_steps: Updates of the whole run; the cosine's length.
    """
    match config:
        case cfg.Constant():
            return lambda step: jnp.float32(1)
        case cfg.InverseTime():
            return lambda step: 1 / (1 + hyper["decay"] * jnp.float32(step))
        case cfg.Exponential():
            return lambda step: _exponential(config, hyper, step)
        case cfg.Piecewise():
            return lambda step: _piecewise(hyper, step)
        case cfg.Cosine():
            return lambda step: _cosine(hyper, total_steps, step)


def _exponential(config: cfg.Exponential, hyper: Hyperparameters, step: Step) -> Float[Array, ""]:
    decays = jnp.float32(step) / hyper["decay_steps"]
    return jnp.float32(hyper["decay_rate"]) ** (jnp.floor(decays) if config.staircase else decays)


def _piecewise(hyper: Hyperparameters, step: Step) -> Float[Array, ""]:
    passed = jnp.sum(jnp.int32(step) >= jnp.asarray(hyper["boundaries"], jnp.int32))
    return jnp.asarray(hyper["factors"], jnp.float32)[passed]


def _cosine(hyper: Hyperparameters, total_steps: Step, step: Step) -> Float[Array, ""]:
    now, last = jnp.float32(step), jnp.float32(total_steps - 1)
    warmup = hyper["warmup_fraction"] * jnp.float32(total_steps)
    rising = now / jnp.maximum(warmup, 1)
    progress = jnp.clip((now - warmup) / jnp.maximum(last - warmup, 1), 0, 1)
    falling = hyper["end_factor"] + (1 - hyper["end_factor"]) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return jnp.where(now < warmup, rising, falling)


def learning_rate(config: cfg.Optimizer, hyper: Hyperparameters, total_steps: Step, step: Step) -> Float[Array, ""]:
    """The rate of the update after `step` others, float32."""
    factor = make_schedule(config.schedule, hyper.get("schedule", {}), total_steps)
    return jnp.float32(hyper["learning_rate"]) * factor(step)


def make_optimizer(
    config: cfg.Optimizer, hyper: Hyperparameters, total_steps: Step
) -> optax.GradientTransformationExtraArgs:
    """The update rule of `config`; its class states it in symbols.

    Args:
        config: The optimizer.
        hyper: `config.hyperparameters()`, or traced values in its place.
        total_steps: Updates of the whole run; some schedules need it.
    """

    def rate(step: Step) -> Float[Array, ""]:
        return learning_rate(config, hyper, total_steps, step)

    match config:
        case cfg.SGD():
            # optax.sgd scales after the momentum, which is another rule once the rate changes.
            momentum = optax.trace(decay=hyper["momentum"], nesterov=config.nesterov)
            return optax.chain(optax.scale_by_learning_rate(rate), momentum)
        case cfg.RMSprop():
            return optax.rmsprop(rate, hyper["rho"], hyper["epsilon"], eps_in_sqrt=config.epsilon_in_sqrt)
        case cfg.Adam():
            return optax.adam(rate, hyper["b1"], hyper["b2"], hyper["epsilon"])
        case cfg.AdamW():
            decay = hyper["weight_decay"]
            return optax.adamw(rate, hyper["b1"], hyper["b2"], hyper["epsilon"], weight_decay=decay)
