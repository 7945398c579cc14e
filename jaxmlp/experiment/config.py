"""What is an experiment, and which values may it have?

A config is a frozen, hashable value. It is checked when it is made, and survives a round trip through JSON. It holds
everything that decides a run's bits, and nothing else. The compiled functions take the config itself as an argument:
rates, momenta, decays and the seed are leaves of its pytree; everything else is compiled in.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp.errors import ConfigError, did_you_mean
from jaxmlp.experiment import augmentations as augmentations  # Imported so that flags and JSON know the kinds.
from jaxmlp.experiment import mixing as mixing
from jaxmlp.experiment.controllers import averages, check_controllers
from jaxmlp.experiment.fields import filled_in, host, optional, parse_json, ranged
from jaxmlp.experiment.losses import ClippedCrossEntropy
from jaxmlp.experiment.metrics import Accuracy
from jaxmlp.experiment.mlp import MLP
from jaxmlp.experiment.optimizers import RMSprop
from jaxmlp.experiment.parts import Augmentation, Controller, Loss, Metric, Model, Optimizer, Part, hint_of, holding
from jaxmlp.experiment.plain import Find, from_plain, to_plain
from jaxmlp.modules import hashable


class DataConfig(Part):
    """The training examples, the held-out examples, and the scale of a pixel."""

    path: ClassVar[str] = "data"

    name: str = host("mnist")
    """Data set: mnist, fashion_mnist, mnist_5k, or a name registered with `jaxmlp.data.register`."""
    validation: float | str | None = ranged(0.1, "(0, 1)", host=True)
    """Validation examples: a fraction of the training split, the name of a split, or none.

    A fraction is cut off the end of the training split before any shuffle. The default holds out the last tenth, so
    no choice depends on test examples.
    """
    also: tuple[str, ...] = optional(())
    """More splits to score after each epoch: train, test, or another split that the data set has."""
    class_weights: tuple[float, ...] = ranged((), "[0, inf)", traced=True, optional=True)
    """Weight of each class in the training loss. Default: all classes count alike."""
    pixel_scale: float = ranged(1 / 255, "(0, inf)")
    """Factor on each pixel value. Pixels are 0 to 255."""


class ExperimentConfig(Part):
    """One experiment. Together with the data's bytes and the manifest's software it decides every bit of a run."""

    name: str = host("experiment")
    """Name of the experiment. The run's directory is named after it."""
    model: Model = MLP()
    """The network."""
    data: DataConfig = DataConfig()
    """The data set and its splits."""
    augmentation: tuple[Augmentation, ...] = holding()
    """Random changes of each training batch, applied in this order."""
    optimizer: Optimizer = RMSprop()
    """The update rule and its schedule."""
    accumulate: int = ranged(1, "[1, 65536]", optional=True)
    """Number of batches per update. The gradient is the mean over all their examples."""
    clip_norm: float | None = ranged(None, "(0, inf)", traced=True, optional=True)
    """Largest norm of the whole gradient. A longer gradient is scaled down to this norm."""
    clip_value: float | None = ranged(None, "(0, inf)", traced=True, optional=True)
    """Largest magnitude of any element of the gradient. Larger elements are clipped, before `clip_norm` applies."""
    loss: Loss = ClippedCrossEntropy()
    """The loss to minimise."""
    metrics: tuple[Metric, ...] = holding(Accuracy())
    """Metrics that each split reports beside the loss."""
    controllers: tuple[Controller, ...] = holding(optional=True)
    """Controllers, which stop the run early, change its learning rate, or average its parameters."""
    best_by: str = host("loss")
    """Validation figure that selects the best checkpoint: loss or the name of a metric. The prefix ema_ selects the
    moving average, the prefix NAME_ a split in `data.also`."""
    batch_size: int = ranged(128, "[1, 2147483647]")
    """Number of examples per batch. The last batch of an epoch may be smaller."""
    epochs: int = ranged(20, "[1, 1000000]", host=True)
    """Number of passes over the training examples."""
    shuffle: bool = True
    """Whether each epoch draws a new order of the examples, without replacement."""
    seed: int = ranged(0, "[0, 4294967295]", traced=True)
    """Seed of the initial parameters, the dropout masks and the batch order."""
    precision: Literal["float32", "tensorfloat32", "bfloat16", "portable"] = "float32"
    """Arithmetic of matrix products: float32; tensorfloat32, where the device has it; bfloat16 factors; or portable,
    which is float32 with the same bits on every machine."""
    grad_shards: int = ranged(1, "[1, 65536]")
    """Number of shards of a batch, whose gradients are added in a fixed order. Up to this many devices give the same
    bits."""
    eval_rows: int = ranged(1024, "[1, 2147483647]", optional=True)
    """Approximate number of examples evaluated at a time. Fewer need less memory. The last bits of a loss depend on
    it."""
    exact: bool = optional(True)
    """Whether the run promises the same bits. If false, devices add in any order and draw their own random bits."""
    outputs: object = filled_in()
    """Number of classes, or numbers per target. `on_data` sets it."""
    total_steps: object = filled_in(traced=True)
    """Number of updates in the whole run. `on_data` sets it."""
    zero: object = filled_in(traced=True)
    """In portable precision, a 0 that the compiler cannot see (docs/portable.md). `on_data` sets it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or not all(c.isalnum() or c in "._-" for c in self.name) or self.name.startswith("."):
            raise ConfigError(
                "name", f"must consist of letters, digits, '.', '_' and '-', and not start with '.', got {self.name!r}"
            )
        if isinstance(self.metrics, tuple) and all(isinstance(each, Metric) for each in self.metrics):
            names = ["loss", "examples", *(each.name for each in self.metrics)]
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                repeats = ", ".join(repeated)
                raise ConfigError(
                    "metrics", f"must have different names, and none may be loss or examples; repeated: {repeats}"
                )
            if isinstance(self.controllers, tuple):
                check_controllers(self)
                if self.best_by not in self.validated:
                    wanted = f"must be one of {', '.join(self.validated)}, got {self.best_by!r}"
                    hint = did_you_mean(self.best_by, self.validated)
                    raise ConfigError("best_by", f"{wanted}.{hint or ' Name its metric in metrics'}")
        # On CPUs, XLA fuses a loop over one-row products into one kernel, with other bits than the products alone.
        if self.batch_size % self.grad_shards or self.grad_shards == self.batch_size > 1:
            possible = [shards for shards in _divisors(self.batch_size) if shards <= self.batch_size // 2] or [1]
            near = sorted(sorted(possible, key=lambda shards: abs(shards - self.grad_shards))[:2])
            raise ConfigError(
                "grad_shards",
                f"must divide batch_size {self.batch_size} into shards of 2 rows or more, got {self.grad_shards}. "
                f"The nearest that do: {' and '.join(map(str, near))}",
            )

    def on_data(self, outputs: int, steps_per_epoch: int) -> Self:
        """The config as compiled functions take it: data facts filled in, leaves turned into arrays of fixed types.

        Configs that differ only in their leaves share every compiled program.

        Args:
            outputs: Number of classes, or numbers per target.
            steps_per_epoch: Number of updates in an epoch.
        """
        total_steps = _as_array(self.epochs * steps_per_epoch, jnp.int32)
        zero = _as_array(0, jnp.int32) if self.precision == "portable" else None
        return dataclasses.replace(as_arrays(self), outputs=outputs, total_steps=total_steps, zero=zero)

    @property
    def factors(self) -> Literal["float32", "bfloat16"]:
        """Type of the factors of the module's matrix products."""
        return "bfloat16" if self.precision == "bfloat16" else "float32"

    def without_precision(self) -> Self:
        """The same experiment before any arithmetic is chosen for it: portable becomes float32."""
        return dataclasses.replace(self, precision=self.factors, zero=None)

    def module(self) -> nn.Module:
        """The flax module. `on_data` must have set the number of outputs."""
        return hashable(self.model.module(typing.cast(int, self.outputs), self.factors))

    @property
    def validated(self) -> dict[str, bool]:
        """Maps each validation figure, without its prefix `val_`, to whether larger is better.

        Figures of the moving average start with `ema_`. Figures of a split in `data.also` start with the split's name.
        """
        own = {"loss": False, **{metric.name: metric.larger_is_better for metric in self.metrics}}
        own |= {f"ema_{name}": larger for name, larger in own.items()} if averages(self) else {}
        return own | {f"{split}_{name}": larger for split in self.data.also for name, larger in own.items()}

    @property
    def best_is_average(self) -> bool:
        """Whether `best_by` names a figure of the moving average."""
        names = ["loss", *(metric.name for metric in self.metrics)]
        splits = ["", *(f"{split}_" for split in self.data.also)]
        return averages(self) and self.best_by in {f"{split}ema_{name}" for split in splits for name in names}

    def score(self, figures: Mapping[str, float | None]) -> float | None:
        """The score of an epoch; lower is better. None without validation."""
        value = figures.get(f"val_{self.best_by}")
        return value if value is None or not self.validated[self.best_by] else -value

    def to_dict(self) -> dict[str, Any]:
        """Every value as JSON types. A part's `kind` is stored too; optional fields at their defaults are left out."""
        return typing.cast(dict[str, Any], to_plain(self))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], find: Find | None = None) -> Self:
        """The inverse of `to_dict`.

        Args:
            plain: JSON types.
            find: Resolves a name such as `lion.py:Lion` to code. Without it such a name is an error.

        Raises:
            ConfigError: A field is unknown or missing, or a value breaks its rule.
        """
        return typing.cast(Self, from_plain("", cls, plain, find or _no_code))

    def to_json(self) -> str:
        """`to_dict` as indented JSON with a newline at the end. Floats keep every bit."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, find: Find | None = None) -> Self:
        """The inverse of `to_json`.

        Raises:
            ConfigError: The text is not JSON, a field is unknown or missing, or a value breaks its rule.
        """
        try:
            plain = parse_json(text)
        except ValueError as error:
            raise ConfigError("config", f"must be JSON: {error}") from None
        return cls.from_dict(plain, find)


def as_arrays[P: Part](part: P) -> P:
    """The part with strongly typed leaves. A weakly typed Python float would not promote bfloat16 to float32."""
    changes: dict[str, Any] = {}
    for item in dataclasses.fields(part):  # type: ignore[arg-type]
        value = getattr(part, item.name)
        if item.metadata.get("traced") and value is not None:
            of_kind = jnp.int32 if "int" in str(hint_of(type(part), item.name)) else jnp.float32
            dtype = jnp.uint32 if item.name == "seed" else of_kind
            changes[item.name] = jax.tree.map(lambda number, dtype=dtype: _as_array(number, dtype), value)
        elif isinstance(value, Part):
            changes[item.name] = as_arrays(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Part):
            changes[item.name] = tuple(map(as_arrays, value))
    return dataclasses.replace(part, **changes)  # type: ignore[type-var]


def _as_array(number: Any, dtype: Any) -> jax.Array:
    # A user's transfer guard allows an explicit `device_put`, but not the implicit transfer of `jnp.asarray`.
    return jnp.asarray(number, dtype) if isinstance(number, jax.Array) else jax.device_put(np.asarray(number, dtype))


def _no_code(name: str) -> Any:
    raise ConfigError("experiment", f"must be given: {name} is defined in an experiment's own file")


def _divisors(number: int) -> list[int]:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})
