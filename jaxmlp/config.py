"""The experiment as a value: frozen, hashable, validated where it is made, and the same after JSON.

A config holds everything that decides a run's bits, and nothing else. Fields marked *traced* (rates, momenta,
decays) reach the compiled program as arguments; all others are compiled in. So `ExperimentConfig.program`, the
config with its traced values set back to their defaults, is the same for every rate and seed, and equal programs
compile once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeAlias

from jaxmlp.errors import ConfigError
from jaxmlp.fields import Part, from_plain, parse_json, ranged, to_plain

MAX_LAYERS = 1000
"""Hidden layers that a config may have: tracing more would take hours."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Part):
    """A multilayer perceptron: Dense, activation and dropout for each hidden layer, then Dense to the classes."""

    path: ClassVar[str] = "model"

    hidden_sizes: tuple[int, ...] = ranged((512, 512), "[1, 1000000]")
    """Units of each hidden layer."""
    activation: Literal["relu", "tanh", "sigmoid", "gelu", "elu", "selu", "silu", "softplus", "linear"] = "relu"
    """After each hidden layer."""
    dropout_rate: float = ranged(0.2, "[0, 1)")
    """Fraction of units dropped after each hidden layer."""
    kernel_init: Literal[
        "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform", "lecun_normal"
    ] = "glorot_uniform"
    """Distribution of the initial kernels; biases start at zero."""
    l1: float = ranged(0.0, "[0, inf)")
    """Adds l1 * sum(|w|) over all kernels to the loss."""
    l2: float = ranged(0.0, "[0, inf)")
    """Adds l2 * sum(w^2) over all kernels to the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.hidden_sizes) > MAX_LAYERS:
            raise ConfigError(
                "model.hidden_sizes", f"must be of at most {MAX_LAYERS} layers, got {len(self.hidden_sizes)}"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig(Part):
    """Which examples are trained on, which are held out, and what a pixel means."""

    path: ClassVar[str] = "data"

    name: str = "mnist"
    """mnist, fashion_mnist, mnist_5k, or a data set registered by `jaxmlp.data.register`."""
    validation: float | str | None = ranged("test", "(0, 1)")
    """A fraction, taken from the end of the training split before any shuffle; a split's name; or none."""
    pixel_scale: float = ranged(1 / 255, "(0, inf)")
    """What a pixel of 0 to 255 is multiplied by."""


@dataclass(frozen=True, kw_only=True)
class Constant(Part):
    """factor(t) = 1."""

    path: ClassVar[str] = "optimizer.schedule"
    kind: ClassVar[str] = "constant"


@dataclass(frozen=True, kw_only=True)
class InverseTime(Part):
    """factor(t) = 1 / (1 + decay * t), t the updates already made. Source: Keras 2.2.4, `decay` of its optimizers."""

    path: ClassVar[str] = "optimizer.schedule"
    kind: ClassVar[str] = "inverse_time"

    decay: float = ranged(1e-6, "[0, inf)", traced=True)
    """Decay an update."""


@dataclass(frozen=True, kw_only=True)
class Exponential(Part):
    """factor(t) = decay_rate ^ (t / decay_steps). Source: Keras 3, `ExponentialDecay`."""

    path: ClassVar[str] = "optimizer.schedule"
    kind: ClassVar[str] = "exponential"

    decay_rate: float = ranged(0.96, "(0, inf)", traced=True)
    """What the factor is multiplied by every `decay_steps` updates."""
    decay_steps: float = ranged(1000.0, "(0, inf)", traced=True)
    """Updates a decay."""
    staircase: bool = False
    """Round t / decay_steps down."""


@dataclass(frozen=True, kw_only=True)
class Piecewise(Part):
    """factor(t) = factors[i] for boundaries[i - 1] <= t < boundaries[i]."""

    path: ClassVar[str] = "optimizer.schedule"
    kind: ClassVar[str] = "piecewise"

    boundaries: tuple[int, ...] = ranged((1000,), "[1, 2147483647]", traced=True)
    """Updates after which the next factor holds, rising."""
    factors: tuple[float, ...] = ranged((1.0, 0.1), "[0, inf)", traced=True)
    """One more than there are boundaries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ConfigError(f"{self.path}.boundaries", f"must rise, got {self.boundaries}")
        if len(self.factors) != len(self.boundaries) + 1:
            wanted = f"must hold one more than boundaries ({len(self.boundaries) + 1})"
            raise ConfigError(f"{self.path}.factors", f"{wanted}, got {len(self.factors)}")


@dataclass(frozen=True, kw_only=True)
class Cosine(Part):
    """Linear from 0 to 1 over the warm-up, then half a cosine from 1 to `end_factor` at the run's last update."""

    path: ClassVar[str] = "optimizer.schedule"
    kind: ClassVar[str] = "cosine"

    warmup_fraction: float = ranged(0.1, "[0, 1)", traced=True)
    """Part of the run's updates spent warming up."""
    end_factor: float = ranged(0.0, "[0, 1]", traced=True)
    """Factor at the end of the run."""


Schedule: TypeAlias = Constant | InverseTime | Exponential | Piecewise | Cosine


@dataclass(frozen=True, kw_only=True)
class SGD(Part):
    """v = momentum * v - rate_t * g; p = p + v, or p + momentum * v - rate_t * g with Nesterov.

    Source: Keras 2.2.4, `SGD`. Differs from: `optax.sgd` and PyTorch, which scale by the rate after the momentum.
    """

    path: ClassVar[str] = "optimizer"
    kind: ClassVar[str] = "sgd"

    learning_rate: float = ranged(0.01, "[0, inf)", traced=True)
    """Rate of the first update, times the schedule's factor."""
    momentum: float = ranged(0.0, "[0, 1)", traced=True)
    """Part of the velocity kept."""
    nesterov: bool = False
    """Look ahead by one momentum step."""
    schedule: Schedule = Constant()
    """Factor on the learning rate by update."""


@dataclass(frozen=True, kw_only=True)
class RMSprop(Part):
    """a = rho * a + (1 - rho) * g^2; p = p - rate_t * g / (sqrt(a) + epsilon).

    Source: Keras 2.2.4, `RMSprop`. Differs from: Keras 3 and optax's default, which add epsilon inside the root.
    """

    path: ClassVar[str] = "optimizer"
    kind: ClassVar[str] = "rmsprop"

    learning_rate: float = ranged(0.001, "[0, inf)", traced=True)
    """Rate of the first update, times the schedule's factor."""
    rho: float = ranged(0.9, "[0, 1)", traced=True)
    """Part of the mean square kept."""
    epsilon: float = ranged(1e-7, "(0, inf)", traced=True)
    """Keeps the divisor from zero."""
    epsilon_in_sqrt: bool = False
    """Divide by sqrt(a + epsilon), as Keras 3 does."""
    schedule: Schedule = Constant()
    """Factor on the learning rate by update."""


@dataclass(frozen=True, kw_only=True)
class Adam(Part):
    """m, v = running means of g, g^2, bias-corrected; p = p - rate_t * m / (sqrt(v) + epsilon).

    Source: Kingma and Ba 2015, algorithm 1. Differs from: Keras, whose epsilon is added before the correction of v.
    """

    path: ClassVar[str] = "optimizer"
    kind: ClassVar[str] = "adam"

    learning_rate: float = ranged(0.001, "[0, inf)", traced=True)
    """Rate of the first update, times the schedule's factor."""
    b1: float = ranged(0.9, "[0, 1)", traced=True)
    """Part of the mean of g kept."""
    b2: float = ranged(0.999, "[0, 1)", traced=True)
    """Part of the mean of g^2 kept."""
    epsilon: float = ranged(1e-8, "(0, inf)", traced=True)
    """Keeps the divisor from zero."""
    schedule: Schedule = Constant()
    """Factor on the learning rate by update."""


@dataclass(frozen=True, kw_only=True)
class AdamW(Part):
    """Adam, and p = p - rate_t * weight_decay * p. Source: Loshchilov and Hutter 2019; biases decay too."""

    path: ClassVar[str] = "optimizer"
    kind: ClassVar[str] = "adamw"

    learning_rate: float = ranged(0.001, "[0, inf)", traced=True)
    """Rate of the first update, times the schedule's factor."""
    b1: float = ranged(0.9, "[0, 1)", traced=True)
    """Part of the mean of g kept."""
    b2: float = ranged(0.999, "[0, 1)", traced=True)
    """Part of the mean of g^2 kept."""
    epsilon: float = ranged(1e-8, "(0, inf)", traced=True)
    """Keeps the divisor from zero."""
    weight_decay: float = ranged(1e-4, "[0, inf)", traced=True)
    """Part of each parameter taken off, times the rate."""
    schedule: Schedule = Constant()
    """Factor on the learning rate by update."""


Optimizer: TypeAlias = SGD | RMSprop | Adam | AdamW


@dataclass(frozen=True, kw_only=True)
class ClippedCrossEntropy(Part):
    """-log(clip(p[label], epsilon, 1 - epsilon)), p the softmax; no gradient where it clips. Source: Keras 2.2.4."""

    path: ClassVar[str] = "loss"
    kind: ClassVar[str] = "clipped_cross_entropy"

    epsilon: float = ranged(1e-7, "(0, 0.5)")
    """Probabilities are clipped to [epsilon, 1 - epsilon]."""


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Part):
    """-sum(target * log_softmax(logits)), target one-hot mixed with the uniform one by `label_smoothing`."""

    path: ClassVar[str] = "loss"
    kind: ClassVar[str] = "cross_entropy"

    label_smoothing: float = ranged(0.0, "[0, 1)")
    """Part of the target spread evenly over the classes."""


@dataclass(frozen=True, kw_only=True)
class MeanSquaredError(Part):
    """mean over the classes of (softmax(logits) - one_hot)^2."""

    path: ClassVar[str] = "loss"
    kind: ClassVar[str] = "mean_squared_error"


Loss: TypeAlias = ClippedCrossEntropy | CrossEntropy | MeanSquaredError


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(Part):
    """One experiment: with the data's bytes and the manifest's software, it decides every bit of a run."""

    name: str = "experiment"
    """Names the run's directory."""
    model: ModelConfig = ModelConfig()
    """The network."""
    data: DataConfig = DataConfig()
    """The examples."""
    optimizer: Optimizer = RMSprop()
    """The update rule and its schedule."""
    loss: Loss = ClippedCrossEntropy()
    """What is minimised."""
    batch_size: int = ranged(128, "[1, 2147483647]")
    """Examples an update; the last batch of an epoch may be smaller."""
    epochs: int = ranged(20, "[1, 1000000]")
    """Passes over the training examples."""
    shuffle: bool = True
    """Draw a new order each epoch, without replacement."""
    seed: int = ranged(0, "[0, 4294967295]")
    """Decides initial parameters, dropout masks and batch order."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the factors of products; sums, activations, parameters, optimizer and loss are float32."""
    grad_shards: int = ranged(1, "[1, 65536]")
    """Parts a batch's gradient is summed from in a fixed order: the most devices that give the same bits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or not all(c.isalnum() or c in "._-" for c in self.name) or self.name.startswith("."):
            raise ConfigError("name", f"must be letters, digits, '.', '_' and '-', got {self.name!r}")
        # XLA makes one kernel of a loop over products of one row on CPUs, whose bits are not those of the products.
        if self.batch_size % self.grad_shards or self.grad_shards == self.batch_size > 1:
            works = [shards for shards in _divisors(self.batch_size) if shards <= self.batch_size // 2] or [1]
            near = sorted(sorted(works, key=lambda v: abs(v - self.grad_shards))[:2])
            raise ConfigError(
                "grad_shards",
                f"must divide batch_size {self.batch_size} into shards of 2 rows or more, got {self.grad_shards}. "
                f"The nearest that do: {' and '.join(map(str, near))}",
            )

    def program(self) -> Self:
        """The config as compiled programs see it: traced values, seed, epochs and names at their defaults.

        Two configs with equal programs, on data of equal shapes, share every compiled program.
        """
        free: dict[str, Any] = {
            item.name: item.default
            for item in dataclasses.fields(self)
            if item.name in ("name", "epochs", "seed", "shuffle")
        }
        data = DataConfig(pixel_scale=self.data.pixel_scale)
        return dataclasses.replace(super().program(), data=data, **free)

    def to_dict(self) -> dict[str, Any]:
        """Every value, defaults too, as JSON types; a part of several kinds says its own under `kind`."""
        return typing.cast(dict[str, Any], to_plain(self))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The config that `to_dict` wrote.

        Raises:
            ConfigError: An unknown or missing field, by name, or a value that breaks its rule.
        """
        return typing.cast(Self, from_plain("", cls, plain))

    def to_json(self) -> str:
        """`to_dict` as indented JSON, ending in a newline; floats keep every bit."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config that `to_json` wrote.

        Raises:
            ConfigError: Not JSON, an unknown or missing field, by name, or a value that breaks its rule.
        """
        try:
            plain = parse_json(text)
        except ValueError as error:
            raise ConfigError("config", f"must be JSON: {error}") from None
        return cls.from_dict(plain)


def _divisors(number: int) -> list[int]:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})
