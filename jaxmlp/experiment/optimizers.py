"""Which optimizers ship? Each states its rule in symbols and is built from optax."""

from __future__ import annotations

from typing import ClassVar

import jax
import optax

from jaxmlp.errors import ConfigError
from jaxmlp.experiment.fields import ranged
from jaxmlp.experiment.optax_parts import matching
from jaxmlp.experiment.parts import Optimizer, RateFn, Schedule, Step
from jaxmlp.experiment.schedules import Constant


class SGD(Optimizer):
    """v = momentum * v - rate_t * g; p = p + v, or p + momentum * v - rate_t * g with Nesterov.

    Source: Keras 2.2.4, `SGD`. Differs from: `optax.sgd` and PyTorch, which apply the rate after the momentum.
    """

    kind: ClassVar[str] = "sgd"
    elementwise: ClassVar[bool] = True

    learning_rate: float = ranged(0.01, "[0, inf)", traced=True)
    """Learning rate, which the schedule multiplies by a factor."""
    momentum: float = ranged(0.0, "[0, 1)", traced=True)
    """Fraction of the velocity that is kept."""
    nesterov: bool = False
    """Use Nesterov momentum: look ahead by one momentum step."""
    schedule: Schedule = Constant()
    """Factor on the learning rate at each update."""

    def transformation(self, total_steps: Step) -> optax.GradientTransformation:
        """Scale by the learning rate, then add momentum."""
        momentum = optax.trace(decay=self.momentum, nesterov=self.nesterov)
        return optax.chain(optax.scale_by_learning_rate(self.rate(total_steps)), momentum)


class RMSprop(Optimizer):
    """a = rho * a + (1 - rho) * g^2; p = p - rate_t * g / (sqrt(a) + epsilon).

    Source: Keras 2.2.4, `RMSprop`. Differs from: Keras 3 and optax's default, which add epsilon inside the root.
    """

    kind: ClassVar[str] = "rmsprop"
    elementwise: ClassVar[bool] = True

    learning_rate: float = ranged(0.001, "[0, inf)", traced=True)
    """Learning rate, which the schedule multiplies by a factor."""
    rho: float = ranged(0.9, "[0, 1)", traced=True)
    """Fraction of the mean square that is kept."""
    epsilon: float = ranged(1e-7, "(0, inf)", traced=True)
    """Small number that keeps the divisor above zero."""
    epsilon_in_sqrt: bool = False
    """Divide by sqrt(a + epsilon), as Keras 3 does."""
    schedule: Schedule = Constant()
    """Factor on the learning rate at each update."""

    def transformation(self, total_steps: Step) -> optax.GradientTransformation:
        """RMSprop of optax, with epsilon inside the root if `epsilon_in_sqrt`."""
        return optax.rmsprop(self.rate(total_steps), self.rho, self.epsilon, eps_in_sqrt=self.epsilon_in_sqrt)


class Adam(Optimizer):
    """m, v = running means of g, g^2, bias-corrected; p = p - rate_t * m / (sqrt(v) + epsilon).

    Source: Kingma and Ba 2015, algorithm 1. Differs from: Keras, whose epsilon is added before the correction of v.
    """

    kind: ClassVar[str] = "adam"
    elementwise: ClassVar[bool] = True

    learning_rate: float = ranged(0.001, "[0, inf)", traced=True)
    """Learning rate, which the schedule multiplies by a factor."""
    b1: float = ranged(0.9, "[0, 1)", traced=True)
    """Fraction of the mean of g that is kept."""
    b2: float = ranged(0.999, "[0, 1)", traced=True)
    """Fraction of the mean of g^2 that is kept."""
    epsilon: float = ranged(1e-8, "(0, inf)", traced=True)
    """Small number that keeps the divisor above zero."""
    schedule: Schedule = Constant()
    """Factor on the learning rate at each update."""

    def transformation(self, total_steps: Step) -> optax.GradientTransformation:
        """Adam of optax."""
        return optax.adam(self.rate(total_steps), self.b1, self.b2, self.epsilon)


class AdamW(Optimizer):
    """Adam, and p = p - rate_t * weight_decay * p. Biases decay too. Source: Loshchilov and Hutter 2019."""

    kind: ClassVar[str] = "adamw"
    elementwise: ClassVar[bool] = True

    learning_rate: float = ranged(0.001, "[0, inf)", traced=True)
    """Learning rate, which the schedule multiplies by a factor."""
    b1: float = ranged(0.9, "[0, 1)", traced=True)
    """Fraction of the mean of g that is kept."""
    b2: float = ranged(0.999, "[0, 1)", traced=True)
    """Fraction of the mean of g^2 that is kept."""
    epsilon: float = ranged(1e-8, "(0, inf)", traced=True)
    """Small number that keeps the divisor above zero."""
    weight_decay: float = ranged(1e-4, "[0, inf)", traced=True)
    """Fraction of each parameter that is subtracted, times the learning rate."""
    schedule: Schedule = Constant()
    """Factor on the learning rate at each update."""

    def transformation(self, total_steps: Step) -> optax.GradientTransformation:
        """AdamW of optax."""
        rate, decay = self.rate(total_steps), self.weight_decay
        return optax.adamw(rate, self.b1, self.b2, self.epsilon, weight_decay=decay)


class LayerRates(Optimizer):
    """An optimizer whose updates are multiplied by a factor for each layer.

    If updates are proportional to the learning rate, as with all optimizers here, each layer gets its own rate.
    """

    kind: ClassVar[str] = "layer_rates"

    optimizer: Optimizer = RMSprop()
    """Optimizer whose updates are multiplied."""
    patterns: tuple[str, ...] = ("*",)
    """Patterns of parameter paths, such as Dense_0/* or */bias. The first match counts."""
    factors: tuple[float, ...] = ranged((1.0,), "[0, inf)", traced=True)
    """Factor for each pattern. 0 freezes the layer. Parameters that match no pattern have factor 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.factors, tuple) and len(self.factors) != len(self.patterns):
            wanted = f"must hold one factor for each pattern ({len(self.patterns)})"
            raise ConfigError("optimizer.factors", f"{wanted}, got {len(self.factors)}")

    def transformation(self, total_steps: Step) -> optax.GradientTransformation:
        """The transformation of the optimizer, then the factors."""

        def scaled(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
            left = jax.tree.map(lambda _: True, updates)
            for pattern, factor in zip(self.patterns, self.factors, strict=True):
                own = jax.tree.map(lambda fits, free: fits and free, matching(pattern, updates), left)
                updates = jax.tree.map(lambda leaf, is_own: leaf * factor if is_own else leaf, updates, own)  # noqa: B023
                left = jax.tree.map(lambda free, is_own: free and not is_own, left, own)
            return updates

        return optax.chain(self.optimizer.transformation(total_steps), optax.stateless(scaled))

    def rate(self, total_steps: Step) -> RateFn:
        """The learning rate of the optimizer."""
        return self.optimizer.rate(total_steps)
