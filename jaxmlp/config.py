"""The experiment as a value: frozen, hashable, validated where it is made, and the same after JSON.

A config holds everything that decides a run's bits, and nothing else. It is itself the argument of the compiled
functions: rates, momenta, decays and the seed are leaves of its pytree, all else is compiled in.
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

from jaxmlp import augmentations as augmentations  # So that flags and JSON know their kinds.
from jaxmlp import mixing as mixing
from jaxmlp.controllers import averages, check
from jaxmlp.errors import ConfigError, did_you_mean
from jaxmlp.fields import filled_in, hints, host, optional, parse_json, ranged
from jaxmlp.losses import ClippedCrossEntropy
from jaxmlp.metrics import Accuracy
from jaxmlp.mlp import MLP
from jaxmlp.modules import hashable
from jaxmlp.optimizers import RMSprop
from jaxmlp.parts import Augmentation, Controller, Loss, Metric, Model, Optimizer, Part, holding
from jaxmlp.plain import Find, from_plain, to_plain


class DataConfig(Part):
    """Which examples are trained on, which are held out, and what a pixel means."""

    path: ClassVar[str] = "data"

    name: str = host("mnist")
    """mnist, fashion_mnist, mnist_5k, or a data set registered by `jaxmlp.data.register`."""
    validation: float | str | None = ranged(0.1, "(0, 1)", host=True)
    """A fraction, taken from the end of the training split before any shuffle; a split's name; or none.

    By default no test example chooses anything: the last tenth of the training split is held out.
    """
    also: tuple[str, ...] = optional(())
    """More splits that each epoch is scored on: train, test, or those that the data set has beside these."""
    class_weights: tuple[float, ...] = ranged((), "[0, inf)", traced=True, optional=True)
    """Of each class, what its examples' losses are multiplied by in training; none counts all alike."""
    pixel_scale: float = ranged(1 / 255, "(0, inf)")
    """What a pixel of 0 to 255 is multiplied by."""


class ExperimentConfig(Part):
    """One experiment: with the data's bytes and the manifest's software, it decides every bit of a run."""

    name: str = host("experiment")
    """Names the run's directory."""
    model: Model = MLP()
    """The network."""
    data: DataConfig = DataConfig()
    """The examples."""
    augmentation: tuple[Augmentation, ...] = holding()
    """Random changes of each training batch, one after the other."""
    optimizer: Optimizer = RMSprop()
    """The update rule and its schedule."""
    accumulate: int = ranged(1, "[1, 65536]", optional=True)
    """Batches an update: the gradient is the mean over all their examples."""
    clip_norm: float | None = ranged(None, "(0, inf)", traced=True, optional=True)
    """The longest that the whole gradient may be; a longer one is shortened to it."""
    clip_value: float | None = ranged(None, "(0, inf)", traced=True, optional=True)
    """The largest magnitude of a number of the gradient; larger ones are cut to it, before `clip_norm`."""
    loss: Loss = ClippedCrossEntropy()
    """What is minimised."""
    metrics: tuple[Metric, ...] = holding(Accuracy())
    """Figures of each split beside the loss."""
    controllers: tuple[Controller, ...] = holding(optional=True)
    """What steers or follows the run: stopping, rates, averages."""
    best_by: str = host("loss")
    """Which figure of validation makes a checkpoint the best: loss or a metric's name, with ema_ before it that of the
    moving average, with NAME_ before it that of a split in `data.also`."""
    batch_size: int = ranged(128, "[1, 2147483647]")
    """Examples an update; the last batch of an epoch may be smaller."""
    epochs: int = ranged(20, "[1, 1000000]", host=True)
    """Passes over the training examples."""
    shuffle: bool = True
    """Draw a new order each epoch, without replacement."""
    seed: int = ranged(0, "[0, 4294967295]", traced=True)
    """Decides initial parameters, dropout masks and batch order."""
    precision: Literal["float32", "tensorfloat32", "bfloat16", "portable"] = "float32"
    """float32, or tensorfloat32 (where the device has it) or bfloat16 factors of products; or portable: float32 with
    the same bits on every machine."""
    grad_shards: int = ranged(1, "[1, 65536]")
    """Parts a batch's gradient is summed from in a fixed order: the most devices that give the same bits."""
    eval_rows: int = ranged(1024, "[1, 2147483647]", optional=True)
    """Examples evaluated at a time, about; fewer take less memory. Last bits of a loss depend on it."""
    exact: bool = optional(True)
    """Whether the same bits are promised; if not, devices add in any order and draw random bits of their own."""
    outputs: object = filled_in()
    """Number of classes, or of numbers in a target; `on_data` fills it in."""
    total_steps: object = filled_in(traced=True)
    """Updates of the whole run; `on_data` fills it in."""
    zero: object = filled_in(traced=True)
    """In portable precision the 0 that no compiler knows (docs/portable.md); `on_data` fills it in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or not all(c.isalnum() or c in "._-" for c in self.name) or self.name.startswith("."):
            raise ConfigError("name", f"must be letters, digits, '.', '_' and '-', got {self.name!r}")
        if isinstance(self.metrics, tuple) and all(isinstance(each, Metric) for each in self.metrics):
            names = ["loss", "examples", *(each.name for each in self.metrics)]
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ConfigError("metrics", f"must have names of their own, got {', '.join(repeated)} twice")
            if isinstance(self.controllers, tuple):
                check(self)
                if self.best_by not in self.validated:
                    wanted = f"must be one of {', '.join(self.validated)}, got {self.best_by!r}"
                    hint = did_you_mean(self.best_by, self.validated)
                    raise ConfigError("best_by", f"{wanted}.{hint or ' Name its metric in metrics'}")
        # XLA makes one kernel of a loop over products of one row on CPUs, whose bits are not those of the products.
        if self.batch_size % self.grad_shards or self.grad_shards == self.batch_size > 1:
            works = [shards for shards in _divisors(self.batch_size) if shards <= self.batch_size // 2] or [1]
            near = sorted(sorted(works, key=lambda v: abs(v - self.grad_shards))[:2])
            raise ConfigError(
                "grad_shards",
                f"must divide batch_size {self.batch_size} into shards of 2 rows or more, got {self.grad_shards}. "
                f"The nearest that do: {' and '.join(map(str, near))}",
            )

    def on_data(self, outputs: int, steps_per_epoch: int) -> Self:
        """The config as compiled functions take it: the facts of the data filled in, the leaves arrays of fixed types.

        Configs that differ in their leaves alone share every compiled program.

        Args:
            outputs: Number of classes, or of numbers in a target.
            steps_per_epoch: Updates of an epoch.
        """
        total_steps = _as_array(self.epochs * steps_per_epoch, jnp.int32)
        zero = _as_array(0, jnp.int32) if self.precision == "portable" else None
        return dataclasses.replace(as_arrays(self), outputs=outputs, total_steps=total_steps, zero=zero)

    @property
    def factors(self) -> Literal["float32", "bfloat16"]:
        """The type of the factors of products in a module."""
        return "bfloat16" if self.precision == "bfloat16" else "float32"

    def without_precision(self) -> Self:
        """The same experiment as it is written, before any arithmetic is chosen for it: portable becomes float32."""
        return dataclasses.replace(self, precision=self.factors, zero=None)

    def module(self) -> nn.Module:
        """The network in flax; `on_data` has filled in the number of its outputs."""
        return hashable(self.model.module(typing.cast(int, self.outputs), self.factors))

    @property
    def validated(self) -> dict[str, bool]:
        """The figures of validation by their names without `val_`, each with whether more is better.

        Those of the moving average have `ema_` before their names, those of a split in `data.also` its name.
        """
        own = {"loss": False, **{metric.name: metric.larger_is_better for metric in self.metrics}}
        own |= {f"ema_{name}": larger for name, larger in own.items()} if averages(self) else {}
        return own | {f"{split}_{name}": larger for split in self.data.also for name, larger in own.items()}

    @property
    def best_is_average(self) -> bool:
        """Whether the best checkpoint is that of the best moving average."""
        names = ["loss", *(metric.name for metric in self.metrics)]
        splits = ["", *(f"{split}_" for split in self.data.also)]
        return averages(self) and self.best_by in {f"{split}ema_{name}" for split in splits for name in names}

    def score(self, figures: Mapping[str, float | None]) -> float | None:
        """What the best checkpoint has the lowest of, from an epoch's figures; None without validation."""
        value = figures.get(f"val_{self.best_by}")
        return value if value is None or not self.validated[self.best_by] else -value

    def to_dict(self) -> dict[str, Any]:
        """Every value, defaults too, as JSON types; a part says its own kind under `kind`."""
        return typing.cast(dict[str, Any], to_plain(self))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], find: Find | None = None) -> Self:
        """The config that `to_dict` wrote.

        Args:
            plain: JSON types.
            find: Finds what a name such as `lion.py:Lion` stands for; without it such a name is refused.

        Raises:
            ConfigError: An unknown or missing field, by name, or a value that breaks its rule.
        """
        return typing.cast(Self, from_plain("", cls, plain, find or _no_code))

    def to_json(self) -> str:
        """`to_dict` as indented JSON, ending in a newline; floats keep every bit."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, find: Find | None = None) -> Self:
        """The config that `to_json` wrote.

        Raises:
            ConfigError: Not JSON, an unknown or missing field, by name, or a value that breaks its rule.
        """
        try:
            plain = parse_json(text)
        except ValueError as error:
            raise ConfigError("config", f"must be JSON: {error}") from None
        return cls.from_dict(plain, find)


def as_arrays[P: Part](part: P) -> P:
    """The part with strong types in its leaves: a weak Python float would leave bfloat16 in bfloat16."""
    changes: dict[str, Any] = {}
    for item in dataclasses.fields(part):  # type: ignore[arg-type]
        value = getattr(part, item.name)
        if item.metadata.get("traced") and value is not None:
            dtype = (
                jnp.uint32
                if item.name == "seed"
                else jnp.int32
                if "int" in str(_hint(part, item.name))
                else jnp.float32
            )
            changes[item.name] = jax.tree.map(lambda number, dtype=dtype: _as_array(number, dtype), value)
        elif isinstance(value, Part):
            changes[item.name] = as_arrays(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Part):
            changes[item.name] = tuple(map(as_arrays, value))
    return dataclasses.replace(part, **changes)  # type: ignore[type-var]


def _as_array(number: Any, dtype: Any) -> jax.Array:
    # Put on the device, which a user's transfer guard allows; not found there by `jnp.asarray`, which it does not.
    return jnp.asarray(number, dtype) if isinstance(number, jax.Array) else jax.device_put(np.asarray(number, dtype))


def _hint(part: Part, name: str) -> Any:
    return hints(typing.cast(Any, type(part)))[name]


def _no_code(name: str) -> Any:
    raise ConfigError("experiment", f"must be given: {name} is code of an experiment's own file")


def _divisors(number: int) -> list[int]:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})
