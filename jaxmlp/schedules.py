"""The learning-rate schedules that ship: each a factor on the rate, by the updates already made."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmlp.errors import ConfigError
from jaxmlp.fields import ranged
from jaxmlp.parts import Schedule, Step


class Constant(Schedule):
    """factor(t) = 1."""

    kind: ClassVar[str] = "constant"

    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """One."""
        return jnp.float32(1)


class InverseTime(Schedule):
    """factor(t) = 1 / (1 + decay * t), t the updates already made. Source: Keras 2.2.4, `decay` of its optimizers."""

    kind: ClassVar[str] = "inverse_time"

    decay: float = ranged(1e-6, "[0, inf)", traced=True)
    """Decay an update."""

    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """The rule."""
        return 1 / (1 + self.decay * jnp.float32(step))


class Exponential(Schedule):
    """factor(t) = decay_rate ^ (t / decay_steps). Source: Keras 3, `ExponentialDecay`."""

    kind: ClassVar[str] = "exponential"

    decay_rate: float = ranged(0.96, "(0, inf)", traced=True)
    """What the factor is multiplied by every `decay_steps` updates."""
    decay_steps: float = ranged(1000.0, "(0, inf)", traced=True)
    """Updates a decay."""
    staircase: bool = False
    """Round t / decay_steps down."""

    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """The rule."""
        decays = jnp.float32(step) / self.decay_steps
        return jnp.float32(self.decay_rate) ** (jnp.floor(decays) if self.staircase else decays)


class Piecewise(Schedule):
    """factor(t) = factors[i] for boundaries[i - 1] <= t < boundaries[i]."""

    kind: ClassVar[str] = "piecewise"

    boundaries: tuple[int, ...] = ranged((1000,), "[1, 2147483647]", traced=True)
    """Updates after which the next factor holds, rising."""
    factors: tuple[float, ...] = ranged((1.0, 0.1), "[0, inf)", traced=True)
    """One more than there are boundaries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.boundaries, tuple) or not all(isinstance(each, int) for each in self.boundaries):
            return
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ConfigError(f"{self.path}.boundaries", f"must rise, got {self.boundaries}")
        if len(self.factors) != len(self.boundaries) + 1:
            wanted = f"must hold one more than boundaries ({len(self.boundaries) + 1})"
            raise ConfigError(f"{self.path}.factors", f"{wanted}, got {len(self.factors)}")

    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """The rule."""
        passed = jnp.sum(jnp.int32(step) >= jnp.asarray(self.boundaries, jnp.int32))
        return jnp.asarray(self.factors, jnp.float32)[passed]


class Cosine(Schedule):
    """Linear from 0 to 1 over the warm-up, then half a cosine from 1 to `end_factor` at the run's last update."""

    kind: ClassVar[str] = "cosine"

    warmup_fraction: float = ranged(0.1, "[0, 1)", traced=True)
    """Part of the run's updates spent warming up."""
    end_factor: float = ranged(0.0, "[0, 1]", traced=True)
    """Factor at the end of the run."""

    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """The rule."""
        now, last = jnp.float32(step), jnp.float32(total_steps - 1)
        warmup = self.warmup_fraction * jnp.float32(total_steps)
        rising = now / jnp.maximum(warmup, 1)
        progress = jnp.clip((now - warmup) / jnp.maximum(last - warmup, 1), 0, 1)
        falling = self.end_factor + (1 - self.end_factor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(now < warmup, rising, falling)


class CosineRestarts(Schedule):
    """Half a cosine from 1 to `end_factor`, again and again; each cycle is `length_factor` times as long as the last.

    The height of cycle i is `height_factor` ^ i. Source: Loshchilov and Hutter 2017; Keras 3, `CosineDecayRestarts`.
    """

    kind: ClassVar[str] = "cosine_restarts"

    first_steps: int = ranged(1000, "[1, 2147483647]", traced=True)
    """Updates of the first cycle."""
    length_factor: float = ranged(2.0, "[1, 1000]", traced=True)
    """How much longer each cycle is than the one before."""
    height_factor: float = ranged(1.0, "(0, 1]", traced=True)
    """What each cycle's height is multiplied by."""
    end_factor: float = ranged(0.0, "[0, 1]", traced=True)
    """Factor at each cycle's end."""

    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """The rule."""
        growth = jnp.float32(self.length_factor)
        now, grows = jnp.float32(step) / jnp.float32(self.first_steps), growth > 1
        by = jnp.where(grows, growth, 2)

        def start(cycle: Float[Array, ""]) -> Float[Array, ""]:
            return jnp.where(grows, (by**cycle - 1) / (by - 1), cycle)

        cycle = jnp.floor(jnp.where(grows, jnp.log1p(now * (by - 1)) / jnp.log(by), now))
        # Float32 may round the logarithm to the cycle beside; a power may be off by one in ten million.
        cycle = jnp.where(now < start(cycle), jnp.maximum(cycle - 1, 0), cycle)
        cycle = jnp.where(now * (1 + 1e-6) >= start(cycle + 1), cycle + 1, cycle)
        part = jnp.clip((now - start(cycle)) / (start(cycle + 1) - start(cycle)), 0, 1)
        height = jnp.float32(self.height_factor) ** cycle
        return self.end_factor + (1 - self.end_factor) * 0.5 * height * (1 + jnp.cos(jnp.pi * part))
