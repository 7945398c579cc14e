"""Which learning-rate schedules ship? Each is a factor on the rate, as a function of the updates made so far."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmlp.errors import ConfigError
from jaxmlp.experiment.fields import ranged
from jaxmlp.experiment.parts import Schedule, Step


class Constant(Schedule):
    """factor(t) = 1."""

    kind: ClassVar[str] = "constant"

    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """The constant 1."""
        return jnp.float32(1)


class InverseTime(Schedule):
    """factor(t) = 1 / (1 + decay * t), t the number of updates made so far. Source: Keras 2.2.4, `decay`."""

    kind: ClassVar[str] = "inverse_time"

    decay: float = ranged(1e-6, "[0, inf)", traced=True)
    """Decay per update."""

    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """The factor at `step`."""
        return 1 / (1 + self.decay * jnp.float32(step))


class Exponential(Schedule):
    """factor(t) = decay_rate ^ (t / decay_steps). Source: Keras 3, `ExponentialDecay`."""

    kind: ClassVar[str] = "exponential"

    decay_rate: float = ranged(0.96, "(0, inf)", traced=True)
    """Factor of the decay over `decay_steps` updates."""
    decay_steps: float = ranged(1000.0, "(0, inf)", traced=True)
    """Number of updates per decay."""
    staircase: bool = False
    """Whether t / decay_steps is rounded down."""

    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """The factor at `step`."""
        decays = jnp.float32(step) / self.decay_steps
        return jnp.float32(self.decay_rate) ** (jnp.floor(decays) if self.staircase else decays)


class Piecewise(Schedule):
    """factor(t) = factors[i] for boundaries[i - 1] <= t < boundaries[i]."""

    kind: ClassVar[str] = "piecewise"

    boundaries: tuple[int, ...] = ranged((1000,), "[1, 2147483647]", traced=True)
    """Numbers of updates at which the factor changes, in rising order."""
    factors: tuple[float, ...] = ranged((1.0, 0.1), "[0, inf)", traced=True)
    """Factors between the boundaries. There is one more factor than boundaries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.boundaries, tuple) or not all(isinstance(each, int) for each in self.boundaries):
            return
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ConfigError(f"{self.path}.boundaries", f"must be in rising order, got {self.boundaries}")
        if len(self.factors) != len(self.boundaries) + 1:
            wanted = f"must hold one more than boundaries ({len(self.boundaries) + 1})"
            raise ConfigError(f"{self.path}.factors", f"{wanted}, got {len(self.factors)}")

    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """The factor at `step`."""
        passed = jnp.sum(jnp.int32(step) >= jnp.asarray(self.boundaries, jnp.int32))
        return jnp.asarray(self.factors, jnp.float32)[passed]


class Cosine(Schedule):
    """Linear warm-up from 0 to 1, then half a cosine from 1 to `end_factor` at the run's last update."""

    kind: ClassVar[str] = "cosine"

    warmup_fraction: float = ranged(0.1, "[0, 1)", traced=True)
    """Fraction of the run's updates that are warm-up."""
    end_factor: float = ranged(0.0, "[0, 1]", traced=True)
    """Factor at the end of the run."""

    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """The factor at `step`."""
        now, last = jnp.float32(step), jnp.float32(total_steps - 1)
        warmup = self.warmup_fraction * jnp.float32(total_steps)
        rising = now / jnp.maximum(warmup, 1)
        progress = jnp.clip((now - warmup) / jnp.maximum(last - warmup, 1), 0, 1)
        falling = self.end_factor + (1 - self.end_factor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(now < warmup, rising, falling)


class CosineRestarts(Schedule):
    """Half a cosine from 1 to `end_factor`, restarted. Each cycle is `length_factor` times as long as the last.

    Cycle i starts at `height_factor` ^ i. Source: Loshchilov and Hutter 2017; Keras 3, `CosineDecayRestarts`.
    """

    kind: ClassVar[str] = "cosine_restarts"

    first_steps: int = ranged(1000, "[1, 2147483647]", traced=True)
    """Number of updates in the first cycle."""
    length_factor: float = ranged(2.0, "[1, 1000]", traced=True)
    """Ratio of each cycle's length to the length of the cycle before."""
    height_factor: float = ranged(1.0, "(0, 1]", traced=True)
    """Ratio of each cycle's height to the height of the cycle before."""
    end_factor: float = ranged(0.0, "[0, 1]", traced=True)
    """Factor at the end of each cycle."""

    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """The factor at `step`."""
        growth = jnp.float32(self.length_factor)
        now, grows = jnp.float32(step) / jnp.float32(self.first_steps), growth > 1
        by = jnp.where(grows, growth, 2)

        def start(cycle: Float[Array, ""]) -> Float[Array, ""]:
            return jnp.where(grows, (by**cycle - 1) / (by - 1), cycle)

        cycle = jnp.floor(jnp.where(grows, jnp.log1p(now * (by - 1)) / jnp.log(by), now))
        # The float32 logarithm may land in a neighbouring cycle. A power may be off by one part in ten million.
        cycle = jnp.where(now < start(cycle), jnp.maximum(cycle - 1, 0), cycle)
        cycle = jnp.where(now * (1 + 1e-6) >= start(cycle + 1), cycle + 1, cycle)
        part = jnp.clip((now - start(cycle)) / (start(cycle + 1) - start(cycle)), 0, 1)
        height = jnp.float32(self.height_factor) ** cycle
        return self.end_factor + (1 - self.end_factor) * 0.5 * height * (1 + jnp.cos(jnp.pi * part))
