"""What an experiment is made of: a part is one class, whose docstring, fields and methods are all there is to it.

A part may lie in the package or in the file of an experiment. Its fields are flags, JSON and values of a sweep; those
marked `traced` are arguments of the compiled programs, because a part is a JAX pytree whose traced fields are leaves.
A role, such as `Optimizer`, is a base class that says which methods the rule of its parts is.

    class Lion(Optimizer):
        "Sign of an interpolated momentum. Source: Chen et al. 2023."

        learning_rate: float = ranged(1e-4, "[0, inf)", traced=True)
        b1: float = ranged(0.9, "[0, 1)", traced=True)
        schedule: Schedule = Constant()

        def transformation(self, total_steps):
            return optax.lion(self.rate(total_steps), self.b1)

Where a role is wanted, the plain object will do as well: a flax module, an optax transformation, a function.
"""

from __future__ import annotations

import abc
import dataclasses
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, Num

from jaxmlp.errors import ConfigError
from jaxmlp.fields import Checked, hints, host, join_path
from jaxmlp.modules import hashable

Step: TypeAlias = int | Int[Array, ""]
RateFn: TypeAlias = Callable[[Step], Float[Array, ""]]
Logits: TypeAlias = Float[Array, "batch *outputs"]
Targets: TypeAlias = Num[Array, "batch ..."]
"""Class ids, distributions over the classes, or numbers."""
Inputs: TypeAlias = Any
"""An array `[examples, ...]`, or a tree of such arrays."""


class Batch(NamedTuple):
    """The rows of an update, or of one shard of it."""

    inputs: Inputs
    targets: Num[Array, "batch ..."]
    mask: Float[Array, " batch"]
    """1 for an example, 0 for padding."""
    weights: Float[Array, " batch"] | None = None
    """Of each example's loss, apart from the mask; None counts all alike."""


class Epoch(NamedTuple):
    """What a controller sees of an epoch that has ended."""

    figures: Mapping[str, Float[Array, ""]]
    """By the names that a line of `metrics.jsonl` has, float32; those of splits that are not there are absent."""
    larger_is_better: frozenset[str]
    """The names of the figures of which more is better."""
    params: Any
    variables: Any


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
class Part(Checked, abc.ABC):
    """A value of an experiment with fields of its own. Every subclass is a frozen dataclass and a JAX pytree.

    Fields marked `traced`, and fields that hold parts, are the pytree's children. Fields marked `host` are left out of
    it. All other fields are static: compiled programs depend on their values.
    """

    kind: ClassVar[str] = ""
    """Name of a shipped part in JSON and flags."""
    accepts: ClassVar[str] = ""
    """What a field of this role takes, for messages."""
    rule: ClassVar[tuple[str, ...]] = ()
    """The methods that a part of this role is made of; empty where the class is no role."""
    static_fields: ClassVar[tuple[str, ...]] = ()
    """The fields that compiled programs are found by."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        data: list[str] = []
        meta: list[str] = []
        dropped: list[str] = []
        for item in dataclasses.fields(cls):  # type: ignore[arg-type]
            holds_parts = isinstance(item.default, Part) or item.metadata.get("parts")
            is_data = item.metadata.get("traced") or holds_parts
            (data if is_data else dropped if item.metadata.get("host") else meta).append(item.name)
        cls.static_fields = tuple(meta)
        jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=meta, drop_fields=dropped)
        _check_rule(cls)

    def __new__(cls, *positional: Any, **named: Any) -> typing.Self:
        """Refuse values without names.

        Raises:
            TypeError: There are such values.
        """
        if positional:
            names = (item.name for item in dataclasses.fields(cls))  # type: ignore[arg-type]
            shown = ", ".join(f"{name}={value!r}" for name, value in zip(names, positional, strict=False))
            raise TypeError(f"{cls.__name__} takes its values by their names: {cls.__name__}({shown})")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            role, given = hint_of(type(self), item.name), getattr(self, item.name)
            if isinstance(role, type) and issubclass(role, Part) and role.rule:
                object.__setattr__(self, item.name, role.of(given))
            elif (several := role_of_several(self, item.name)) and type(given) is not object:
                parts = tuple(map(several.of, given if isinstance(given, list | tuple) else (given,)))
                object.__setattr__(self, item.name, parts)
        super().__post_init__()
        for name in self.static_fields:
            _check_hash(join_path(self.path, name), getattr(self, name))

    @classmethod
    def of(cls, given: Any) -> Any:
        """The part of this role that is given, or a plain object as one; a placeholder stays.

        Raises:
            ConfigError: It is neither.
        """
        if isinstance(given, cls) or type(given) is object:
            return given
        if isinstance(given, type) and issubclass(given, Part):
            raise ConfigError(cls.path, f"must be a value, got the class {given.__name__}. Write {given.__name__}()")
        if isinstance(given, Part) or not cls.fits(given):
            raise ConfigError(cls.path, f"must be {cls.accepts}, got {given!r}")
        return next(each for each in cls.__subclasses__() if issubclass(each, PlainObject))(value=given)

    @staticmethod
    def fits(value: Any) -> bool:
        """Whether a plain object may stand for a part of this role."""
        return callable(value)

    def parts(self) -> Iterator[Part]:
        """This part, and all parts in its fields, however deep."""
        yield self
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            for each in value if isinstance(value, tuple) else (value,):
                if isinstance(each, Part):
                    yield from each.parts()


def _check_rule(cls: type[Part]) -> None:
    """Refuse a subclass of a whole part without a rule of its own: it would train as its parent."""
    parent: Any = cls.__bases__[0]
    is_whole = bool(getattr(parent, "rule", ())) and "rule" not in parent.__dict__ and not parent.__abstractmethods__
    if is_whole and not any(name in cls.__dict__ for name in cls.rule):
        methods = " or ".join(cls.rule)
        raise ConfigError(
            cls.path,
            f"cannot be {cls.__name__}: it has no rule of its own, so it would train as {parent.__name__}. "
            f"Define {methods} in it, or use {parent.__name__} with other values",
        )


def _check_hash(path: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError as error:
        raise ConfigError(path, f"must be hashable, as compiled programs are found by it: {error}") from None


def holding(*parts: Part, optional: bool = False) -> Any:
    """A field that holds several parts of one role; an `optional` one is not in JSON while it is at its default."""
    return dataclasses.field(default=parts, metadata={"parts": True, "optional": optional})


class Schedule(Part):
    """A factor on the learning rate."""

    path: ClassVar[str] = "optimizer.schedule"
    accepts: ClassVar[str] = "a schedule or a function from the step to a factor"
    rule: ClassVar[tuple[str, ...]] = ("factor",)

    @abc.abstractmethod
    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """The factor on the rate of the update after `step` others, of `total_steps` in the whole run; float32."""


class Optimizer(Part):
    """An update rule: from gradients to what is added to the parameters."""

    path: ClassVar[str] = "optimizer"
    accepts: ClassVar[str] = "an optimizer or an optax.GradientTransformation"
    rule: ClassVar[tuple[str, ...]] = ("transformation",)
    elementwise: ClassVar[bool] = False
    """Whether each number's update depends on its own gradient, state and value alone.

    Several devices then share the update: each updates its slice of a row in which all parameters lie.
    """

    @abc.abstractmethod
    def transformation(self, total_steps: Step) -> optax.GradientTransformation:
        """The rule as optax states it, for a run of `total_steps` updates."""

    def rate(self, total_steps: Step) -> RateFn:
        """The learning rate as a function of the updates already made: `learning_rate` times `schedule`'s factor."""
        learning_rate, schedule = (getattr(self, name, None) for name in ("learning_rate", "schedule"))
        if learning_rate is None:
            return lambda step: jnp.float32(jnp.nan)
        if schedule is None:
            return lambda step: jnp.float32(learning_rate)
        return lambda step: jnp.float32(learning_rate) * schedule.factor(step, total_steps)

    @staticmethod
    def fits(value: Any) -> bool:
        """Whether it is an optax transformation."""
        return isinstance(value, tuple) and hasattr(value, "init") and hasattr(value, "update")


class Loss(Part):
    """What is minimised, example by example; the mean over a batch is taken where its rows are known."""

    path: ClassVar[str] = "loss"
    accepts: ClassVar[str] = "a loss or a function (logits, targets) -> loss an example"
    rule: ClassVar[tuple[str, ...]] = ("__call__",)

    @abc.abstractmethod
    def __call__(self, logits: Logits, targets: Targets) -> Float[Array, " batch"]:
        """The loss of each example, float32.

        Args:
            logits: The module's outputs, float32.
            targets: Class ids, distributions over the classes, or numbers.
        """


class Metric(Part):
    """A figure of a split: something of each example, summed over all of them in a fixed order, then reduced once."""

    path: ClassVar[str] = "metrics"
    accepts: ClassVar[str] = "a metric or a function (logits, targets) -> a number an example"
    rule: ClassVar[tuple[str, ...]] = ("of_examples",)
    larger_is_better: ClassVar[bool] = True
    """Which way is better, for `best`."""
    needs_classes: ClassVar[bool] = False
    """Whether targets must be class ids or distributions over the classes."""

    @abc.abstractmethod
    def of_examples(self, logits: Logits, targets: Targets) -> Any:
        """An array `[batch, ...]`, or a tree of them, whose sum over the examples the figure is made of."""

    def result(self, sums: Any, examples: int) -> float:
        """The figure, on the host: of the sums over the examples, and their number. Here, the mean."""
        return float(sums) / examples

    @property
    def name(self) -> str:
        """The figure's name in logs, JSON and reports."""
        return _snake_case(type(self).__name__)

    @property
    def sums_name(self) -> str:
        """The sums' name in a checkpoint."""
        return self.name


class Augmentation(Part):
    """A random change of a batch before it is trained on, on the device and within a gradient shard."""

    path: ClassVar[str] = "augmentation"
    accepts: ClassVar[str] = "an augmentation or a function (key, batch) -> batch"
    rule: ClassVar[tuple[str, ...]] = ("__call__",)
    mixes_targets: ClassVar[bool] = False
    """Whether it takes class ids as distributions over the classes; all augmentations beside it get them so too."""

    @abc.abstractmethod
    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The batch as it is trained on. Rows of padding have mask 0 and must stay.

        Args:
            key: Of this augmentation, step and shard.
            batch: The shard's rows; inputs are scaled and float32.
        """


class Model(Part):
    """A network."""

    path: ClassVar[str] = "model"
    accepts: ClassVar[str] = "a model or a flax.linen module (of NNX: flax.nnx.bridge.to_linen)"
    rule: ClassVar[tuple[str, ...]] = ("module",)

    @abc.abstractmethod
    def module(self, outputs: int, precision: str) -> nn.Module:
        """The flax module: from inputs `[batch, ...]`, scaled and float32, to logits `[batch, outputs]`.

        Args:
            outputs: Number of classes, or of numbers in a target.
            precision: bfloat16 where the experiment's is, else float32.
        """

    def penalty(self, params: Any) -> Float[Array, ""] | None:
        """What is added to the mean loss for the parameters alone; None adds nothing."""
        return None

    @staticmethod
    def fits(value: Any) -> bool:
        """Whether it is a flax module."""
        return isinstance(value, nn.Module)


class Controller(Part):
    """What steers or follows a run.

    Its state is a dict of arrays in `TrainState.controllers`: checkpointed, digested, and in a sweep a row a lane. All
    methods but `steps_left` and `why_stop` are traced.
    """

    path: ClassVar[str] = "controllers"
    accepts: ClassVar[str] = "a controller"
    rule: ClassVar[tuple[str, ...]] = ("after_update", "after_epoch", "why_stop")

    @abc.abstractmethod
    def init(self, params: Any, variables: Any) -> dict[str, Any]:
        """The state before the first update; empty where it needs none."""

    def after_update(self, own: dict[str, Any], params: Any) -> dict[str, Any]:
        """The state after an update that led to `params`."""
        return own

    def after_epoch(self, own: dict[str, Any], epoch: Epoch) -> dict[str, Any]:
        """The state after an epoch."""
        return own

    def rate_factor(self, own: dict[str, Any]) -> Float[Array, ""] | None:
        """What the learning rate of the next update is multiplied by; None leaves it alone."""
        return None

    def steps_left(self, steps: int, seconds: float) -> int | None:
        """How many more updates the run may make, asked between the updates of an epoch; None sets no bound.

        Args:
            steps: Made since the run's start.
            seconds: Of training and evaluation since then.
        """
        return None

    def why_stop(self, own: Mapping[str, Any], records: Sequence[Any]) -> str | None:
        """Why the run is to end here; None while it is to go on.

        Args:
            own: The state after the epoch, on the host, without the trees in it.
            records: An `EpochRecord` of each epoch so far.
        """
        return None

    @staticmethod
    def fits(value: Any) -> bool:
        """No plain object says how its state begins."""
        return False


class PlainObject(Part):
    """What stands for a plain object of the user's own. Each role has one."""

    value: object = None
    source: str = host("")
    """The object's place in the experiment's file."""


class FunctionSchedule(PlainObject, Schedule):
    """A function of the user's own as a schedule."""

    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """What the function says."""
        return jnp.asarray(self.value(step), jnp.float32)  # type: ignore[operator]


class OptaxOptimizer(PlainObject, Optimizer):
    """A transformation of the user's own as an optimizer; its learning rate is not known."""

    def transformation(self, total_steps: Step) -> optax.GradientTransformation:
        """The transformation itself."""
        return typing.cast(optax.GradientTransformation, self.value)


class FunctionLoss(PlainObject, Loss):
    """A function of the user's own as a loss."""

    def __call__(self, logits: Array, targets: Array) -> Float[Array, " batch"]:
        """What the function says."""
        return jnp.asarray(self.value(logits, targets), jnp.float32)  # type: ignore[operator]


class FunctionMetric(PlainObject, Metric):
    """A function of the user's own as a metric."""

    def of_examples(self, logits: Array, targets: Array) -> Any:
        """What the function says."""
        return self.value(logits, targets)  # type: ignore[operator]

    @property
    def name(self) -> str:
        """The function's name."""
        return str(getattr(self.value, "__name__", type(self.value).__name__))


class FunctionAugmentation(PlainObject, Augmentation):
    """A function of the user's own as an augmentation."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """What the function makes of the batch."""
        return typing.cast(Batch, self.value(key, batch))  # type: ignore[operator]


class FlaxModel(PlainObject, Model):
    """A flax module of the user's own as a model; it does not hear of the experiment's precision."""

    def __post_init__(self) -> None:
        if isinstance(self.value, nn.Module):
            object.__setattr__(self, "value", hashable(self.value))
        super().__post_init__()

    def module(self, outputs: int, precision: str) -> nn.Module:
        """The module itself."""
        return typing.cast(nn.Module, self.value)


def role_of(cls: type[Part]) -> type[Part]:
    """The role of a part's class, such as `Optimizer`."""
    return next(each for each in cls.__mro__ if "rule" in each.__dict__)


def role_of_several(part: Part | type[Part], name: str) -> Any:
    """The role of a field that holds several parts; None of other fields."""
    element = typing.get_args(hint_of(part if isinstance(part, type) else type(part), name))[:1]
    is_role = bool(element) and isinstance(element[0], type) and issubclass(element[0], Part)
    return element[0] if is_role else None


def hint_of(cls: type[Part], name: str) -> Any:
    """The type of a field."""
    return hints(typing.cast(Any, cls))[name]


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
