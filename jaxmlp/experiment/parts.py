"""What is a part of an experiment, and which roles are there?

A part is one class: its docstring, its fields and its methods. It may live in the package or in an experiment's file.
Its fields become flags, JSON keys and values of a sweep. A part is a JAX pytree whose leaves are the fields marked
`traced`: compiled programs take them as arguments. A role, such as `Optimizer`, is a base class that names the methods
its parts define.

    class Lion(Optimizer):
        "Sign of an interpolated momentum. Source: Chen et al. 2023."

        learning_rate: float = ranged(1e-4, "[0, inf)", traced=True)
        b1: float = ranged(0.9, "[0, 1)", traced=True)
        schedule: Schedule = Constant()

        def transformation(self, total_steps):
            return optax.lion(self.rate(total_steps), self.b1)

A plain object works too wherever a role is wanted: a flax module, an optax transformation, a function.
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
from jaxmlp.experiment.fields import Checked, hints, host, join_path
from jaxmlp.modules import hashable

Step: TypeAlias = int | Int[Array, ""]
RateFn: TypeAlias = Callable[[Step], Float[Array, ""]]
Logits: TypeAlias = Float[Array, "batch *outputs"]
Targets: TypeAlias = Num[Array, "batch ..."]
"""Class ids, distributions over the classes, or numbers."""
Inputs: TypeAlias = Any
"""An array `[examples, ...]`, or a tree of such arrays."""


class Batch(NamedTuple):
    """The rows of one update, or of one shard of it."""

    inputs: Inputs
    targets: Num[Array, "batch ..."]
    mask: Float[Array, " batch"]
    """1 for an example, 0 for a row of padding."""
    weights: Float[Array, " batch"] | None = None
    """Weight of each example's loss, apart from the mask. None: all examples count alike."""


class Epoch(NamedTuple):
    """What a controller sees after an epoch."""

    figures: Mapping[str, Float[Array, ""]]
    """Figures of the epoch, float32, named as in `metrics.jsonl`. Figures of missing splits are absent."""
    larger_is_better: frozenset[str]
    """Names of the figures for which larger is better."""
    params: Any
    variables: Any


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
class Part(Checked, abc.ABC):
    """A part of an experiment. Every subclass is a frozen dataclass and a JAX pytree.

    Fields marked `traced`, and fields that hold parts, are the pytree's children. The pytree leaves out fields marked
    `host`. All other fields are static: compiled programs depend on their values.
    """

    kind: ClassVar[str] = ""
    """Name of a shipped part in JSON and flags."""
    accepts: ClassVar[str] = ""
    """What a field of this role accepts, in the words of error messages."""
    rule: ClassVar[tuple[str, ...]] = ()
    """Names of the methods that define a part of this role. Empty if the class is not a role."""
    static_fields: ClassVar[tuple[str, ...]] = ()
    """Names of the static fields. Compiled programs are cached by their values."""

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
        """Refuse positional arguments.

        Raises:
            TypeError: There are positional arguments.
        """
        if positional:
            names = (item.name for item in dataclasses.fields(cls))  # type: ignore[arg-type]
            shown = ", ".join(f"{name}={value!r}" for name, value in zip(names, positional, strict=False))
            raise TypeError(f"{cls.__name__} takes keyword arguments only: {cls.__name__}({shown})")
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
        """The given part of this role, or a part that wraps the given plain object. Placeholders stay unchanged.

        Raises:
            ConfigError: The value is neither a part of this role nor a plain object that fits it.
        """
        if isinstance(given, cls) or type(given) is object:
            return given
        if isinstance(given, type) and issubclass(given, Part):
            raise ConfigError(
                cls.path, f"must be an instance, got the class {given.__name__}. Write {given.__name__}()"
            )
        if isinstance(given, Part) or not cls.fits(given):
            raise ConfigError(cls.path, f"must be {cls.accepts}, got {given!r}")
        return next(each for each in cls.__subclasses__() if issubclass(each, PlainObject))(value=given)

    @staticmethod
    def fits(value: Any) -> bool:
        """Whether a plain object can stand for a part of this role."""
        return callable(value)

    def parts(self) -> Iterator[Part]:
        """This part and all parts in its fields, at any depth."""
        yield self
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            for each in value if isinstance(value, tuple) else (value,):
                if isinstance(each, Part):
                    yield from each.parts()


def _check_rule(cls: type[Part]) -> None:
    """Refuse a subclass of a concrete part that defines no rule of its own: it would train as its parent."""
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
        raise ConfigError(path, f"must be hashable, because compiled programs are cached by it: {error}") from None


def holding(*parts: Part, optional: bool = False) -> Any:
    """A field that holds several parts of one role. JSON leaves out an `optional` field at its default."""
    return dataclasses.field(default=parts, metadata={"parts": True, "optional": optional})


class Schedule(Part):
    """A factor on the learning rate."""

    path: ClassVar[str] = "optimizer.schedule"
    accepts: ClassVar[str] = "a schedule or a function from the step to a factor"
    rule: ClassVar[tuple[str, ...]] = ("factor",)

    @abc.abstractmethod
    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """Factor on the learning rate of the update that follows `step` updates, in a run of `total_steps`; float32."""


class Optimizer(Part):
    """An update rule: it turns gradients into what is added to the parameters."""

    path: ClassVar[str] = "optimizer"
    accepts: ClassVar[str] = "an optimizer or an optax.GradientTransformation"
    rule: ClassVar[tuple[str, ...]] = ("transformation",)
    elementwise: ClassVar[bool] = False
    """Whether each number's update depends only on its own gradient, state and value.

    Several devices then share the update: each updates its slices of the parameters. A subclass does not inherit it,
    because a subclass has another rule.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.elementwise = vars(cls).get("elementwise", False)

    @abc.abstractmethod
    def transformation(self, total_steps: Step) -> optax.GradientTransformation:
        """The rule as an optax transformation, for a run of `total_steps` updates."""

    def rate(self, total_steps: Step) -> RateFn:
        """Learning rate as a function of the updates made so far: `learning_rate` times `schedule`'s factor."""
        learning_rate, schedule = (getattr(self, name, None) for name in ("learning_rate", "schedule"))
        if learning_rate is None:
            return lambda step: jnp.float32(jnp.nan)
        if schedule is None:
            return lambda step: jnp.float32(learning_rate)
        return lambda step: jnp.float32(learning_rate) * schedule.factor(step, total_steps)

    @staticmethod
    def fits(value: Any) -> bool:
        """Whether the value is an optax transformation."""
        return isinstance(value, tuple) and hasattr(value, "init") and hasattr(value, "update")


class Loss(Part):
    """The loss of each example. The caller takes the mean over a batch, because it knows which rows are padding."""

    path: ClassVar[str] = "loss"
    accepts: ClassVar[str] = "a loss or a function (logits, targets) -> the loss of each example"
    rule: ClassVar[tuple[str, ...]] = ("__call__",)

    @abc.abstractmethod
    def __call__(self, logits: Logits, targets: Targets) -> Float[Array, " batch"]:
        """The loss of each example, float32.

        Args:
            logits: Outputs of the module, float32.
            targets: Class ids, distributions over the classes, or numbers.
        """


class Metric(Part):
    """A figure of a split: values of each example, summed over all examples in a fixed order, then reduced once."""

    path: ClassVar[str] = "metrics"
    accepts: ClassVar[str] = "a metric or a function (logits, targets) -> a number for each example"
    rule: ClassVar[tuple[str, ...]] = ("of_examples",)
    larger_is_better: ClassVar[bool] = True
    """Whether a larger figure is better. `best` depends on it."""
    needs_classes: ClassVar[bool] = False
    """Whether the metric needs targets that are class ids or distributions over the classes."""

    @abc.abstractmethod
    def of_examples(self, logits: Logits, targets: Targets) -> Any:
        """An array `[batch, ...]`, or a tree of such arrays. The figure is computed from its sums over the examples."""

    def result(self, sums: Any, examples: int) -> float:
        """The figure, from the sums over the examples and their number; computed on the host. Default: the mean."""
        return float(sums) / examples

    @property
    def name(self) -> str:
        """Name of the figure in logs, JSON and reports."""
        return _snake_case(type(self).__name__)

    @property
    def sums_name(self) -> str:
        """Name of the sums in a checkpoint."""
        return self.name


class Augmentation(Part):
    """A random change of a training batch, made on the device within a gradient shard."""

    path: ClassVar[str] = "augmentation"
    accepts: ClassVar[str] = "an augmentation or a function (key, batch) -> batch"
    rule: ClassVar[tuple[str, ...]] = ("__call__",)
    mixes_targets: ClassVar[bool] = False
    """Whether the augmentation needs class ids as distributions. If so, all augmentations beside it get them too."""

    @abc.abstractmethod
    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The changed batch. Rows of padding have mask 0 and must stay.

        Args:
            key: Key of this augmentation, step and shard.
            batch: Rows of the shard. Inputs are scaled and float32.
        """


class Model(Part):
    """A network, as a rule that makes a flax module."""

    path: ClassVar[str] = "model"
    accepts: ClassVar[str] = "a model or a flax.linen module (for NNX: flax.nnx.bridge.to_linen)"
    rule: ClassVar[tuple[str, ...]] = ("module",)

    @abc.abstractmethod
    def module(self, outputs: int, precision: str) -> nn.Module:
        """The flax module, from inputs `[batch, ...]`, scaled and float32, to logits `[batch, outputs]`.

        Args:
            outputs: Number of classes, or numbers per target.
            precision: bfloat16 if the experiment's precision is bfloat16, else float32.
        """

    def penalty(self, params: Any) -> Float[Array, ""] | None:
        """Penalty on the parameters, added to the mean loss. None adds nothing."""
        return None

    @staticmethod
    def fits(value: Any) -> bool:
        """Whether the value is a flax module."""
        return isinstance(value, nn.Module)


class Controller(Part):
    """Stops a run, changes its learning rate, or follows it.

    The state of a controller, `own` in its methods, is a dict of arrays in `TrainState.controllers`. It is checkpointed
    and digested, and in a sweep it has a row per lane. All methods but `steps_left` and `why_stop` are traced.
    """

    path: ClassVar[str] = "controllers"
    accepts: ClassVar[str] = "a controller"
    rule: ClassVar[tuple[str, ...]] = ("after_update", "after_epoch", "why_stop")

    @abc.abstractmethod
    def init(self, params: Any, variables: Any) -> dict[str, Any]:
        """The state before the first update. Empty if the controller needs no state."""

    def after_update(self, own: dict[str, Any], params: Any) -> dict[str, Any]:
        """The state after an update, whose result is `params`."""
        return own

    def after_epoch(self, own: dict[str, Any], epoch: Epoch) -> dict[str, Any]:
        """The state after an epoch."""
        return own

    def rate_factor(self, own: dict[str, Any]) -> Float[Array, ""] | None:
        """Factor on the learning rate of the next update. None leaves the rate alone."""
        return None

    def steps_left(self, steps: int, seconds: float) -> int | None:
        """How many more updates the run may make. Asked between the updates of an epoch. None sets no limit.

        Args:
            steps: Number of updates since the run's start.
            seconds: Seconds of training and evaluation since the run's start.
        """
        return None

    def why_stop(self, own: Mapping[str, Any], records: Sequence[Any]) -> str | None:
        """Why the run must end after this epoch; None if it continues.

        Args:
            own: The controller's state after the epoch, on the host, without nested trees.
            records: One `EpochRecord` for each epoch so far.
        """
        return None

    @staticmethod
    def fits(value: Any) -> bool:
        """False: a plain object cannot say what its initial state is."""
        return False


class PlainObject(Part):
    """Wraps a plain object of the user's own. Each role has a subclass."""

    value: object = None
    source: str = host("")
    """Place of the object in the experiment's file."""


class FunctionSchedule(PlainObject, Schedule):
    """Wraps a function as a schedule."""

    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """The function's value at `step`."""
        return jnp.asarray(self.value(step), jnp.float32)  # type: ignore[operator]


class OptaxOptimizer(PlainObject, Optimizer):
    """Wraps an optax transformation as an optimizer. Its learning rate is not known."""

    def transformation(self, total_steps: Step) -> optax.GradientTransformation:
        """The wrapped transformation."""
        return typing.cast(optax.GradientTransformation, self.value)


class FunctionLoss(PlainObject, Loss):
    """Wraps a function as a loss."""

    def __call__(self, logits: Array, targets: Array) -> Float[Array, " batch"]:
        """The function's value."""
        return jnp.asarray(self.value(logits, targets), jnp.float32)  # type: ignore[operator]


class FunctionMetric(PlainObject, Metric):
    """Wraps a function as a metric."""

    def of_examples(self, logits: Array, targets: Array) -> Any:
        """The function's value."""
        return self.value(logits, targets)  # type: ignore[operator]

    @property
    def name(self) -> str:
        """Name of the function."""
        return str(getattr(self.value, "__name__", type(self.value).__name__))


class FunctionAugmentation(PlainObject, Augmentation):
    """Wraps a function as an augmentation."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The batch that the function returns."""
        return typing.cast(Batch, self.value(key, batch))  # type: ignore[operator]


class FlaxModel(PlainObject, Model):
    """Wraps a flax module as a model. The module does not receive the experiment's precision."""

    def __post_init__(self) -> None:
        if isinstance(self.value, nn.Module):
            object.__setattr__(self, "value", hashable(self.value))
        super().__post_init__()

    def module(self, outputs: int, precision: str) -> nn.Module:
        """The wrapped module."""
        return typing.cast(nn.Module, self.value)


def role_of(cls: type[Part]) -> type[Part]:
    """The role of a part's class, such as `Optimizer`."""
    return next(each for each in cls.__mro__ if "rule" in each.__dict__)


def role_of_several(part: Part | type[Part], name: str) -> Any:
    """The role of a field that holds several parts; None for any other field."""
    element = typing.get_args(hint_of(part if isinstance(part, type) else type(part), name))[:1]
    is_role = bool(element) and isinstance(element[0], type) and issubclass(element[0], Part)
    return element[0] if is_role else None


def hint_of(cls: type[Part], name: str) -> Any:
    """The type of a field."""
    return hints(typing.cast(Any, cls))[name]


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
