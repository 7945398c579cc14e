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
import functools
import re
import sys
import sysconfig
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Num

from jaxmlp.errors import ConfigError, did_you_mean
from jaxmlp.fields import Checked, choices, hints, host, join_path
from jaxmlp.modules import hashable

Step: TypeAlias = int | Int[Array, ""]
RateFn: TypeAlias = Callable[[Step], Float[Array, ""]]
Logits: TypeAlias = Float[Array, "batch *outputs"]
Targets: TypeAlias = Num[Array, "batch ..."]
"""Class ids, distributions over the classes, or numbers."""
Find: TypeAlias = Callable[[str], Any]
"""The class, function or object of a user's own file that a name such as `lion.py:Lion` stands for."""
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

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            role, given = _hint(type(self), item.name), getattr(self, item.name)
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
        """The part of this role that is given, or a plain object as one.

        Raises:
            ConfigError: It is neither.
        """
        return cls._taken(given, lambda value: False, None)

    @classmethod
    def _taken(cls, given: Any, fits: Callable[[Any], bool], wrapper: Any) -> Any:
        """The part of this role that is given, or the wrapper of a plain object that fits; a placeholder stays."""
        if isinstance(given, cls) or type(given) is object:
            return given
        if isinstance(given, type) and issubclass(given, Part):
            raise ConfigError(cls.path, f"must be a value, got the class {given.__name__}. Write {given.__name__}()")
        if isinstance(given, Part) or not fits(given):
            raise ConfigError(cls.path, f"must be {cls.accepts}, got {given!r}")
        return wrapper(value=given)

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


def holding(*parts: Part) -> Any:
    """A field that holds several parts of one role."""
    return dataclasses.field(default=parts, metadata={"parts": True})


class Schedule(Part):
    """A factor on the learning rate."""

    path: ClassVar[str] = "optimizer.schedule"
    accepts: ClassVar[str] = "a schedule or a function from the step to a factor"
    rule: ClassVar[tuple[str, ...]] = ("factor",)

    @abc.abstractmethod
    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """The factor on the rate of the update after `step` others, of `total_steps` in the whole run; float32."""

    @classmethod
    def of(cls, given: Any) -> Any:
        """The part, or a function from the step to the factor as one."""
        return cls._taken(given, callable, FunctionSchedule)


class Optimizer(Part):
    """An update rule: from gradients to what is added to the parameters."""

    path: ClassVar[str] = "optimizer"
    accepts: ClassVar[str] = "an optimizer or an optax.GradientTransformation"
    rule: ClassVar[tuple[str, ...]] = ("transformation",)

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

    @classmethod
    def of(cls, given: Any) -> Any:
        """The part, or an optax transformation as one."""

        def fits(value: Any) -> bool:
            return isinstance(value, tuple) and hasattr(value, "init") and hasattr(value, "update")

        return cls._taken(given, fits, OptaxOptimizer)


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

    @classmethod
    def of(cls, given: Any) -> Any:
        """The part, or a function of logits and targets as one."""
        return cls._taken(given, callable, FunctionLoss)


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

    @classmethod
    def of(cls, given: Any) -> Any:
        """The part, or a function of logits and targets as one, whose figure is a mean over examples."""
        return cls._taken(given, callable, FunctionMetric)


class Augmentation(Part):
    """A random change of a batch before it is trained on, on the device and within a gradient shard."""

    path: ClassVar[str] = "augmentation"
    accepts: ClassVar[str] = "an augmentation or a function (key, batch) -> batch"
    rule: ClassVar[tuple[str, ...]] = ("__call__",)

    @abc.abstractmethod
    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The batch as it is trained on. Rows of padding have mask 0 and must stay.

        Args:
            key: Of this augmentation, step and shard.
            batch: The shard's rows; inputs are scaled and float32.
        """

    @classmethod
    def of(cls, given: Any) -> Any:
        """The part, or a function of key and batch as one."""
        return cls._taken(given, callable, FunctionAugmentation)


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
            precision: The experiment's.
        """

    def penalty(self, params: Any) -> Float[Array, ""] | None:
        """What is added to the mean loss for the parameters alone; None adds nothing."""
        return None

    @classmethod
    def of(cls, given: Any) -> Any:
        """The part, or a flax module as one."""

        def fits(value: Any) -> bool:
            return isinstance(value, nn.Module)

        return cls._taken(given, fits, FlaxModel)


class FunctionSchedule(Schedule):
    """A function of the user's own as a schedule."""

    value: object = None
    source: str = host("")

    def factor(self, step: Step, total_steps: Step) -> Float[Array, ""]:
        """What the function says."""
        return jnp.asarray(self.value(step), jnp.float32)  # type: ignore[operator]


class OptaxOptimizer(Optimizer):
    """A transformation of the user's own as an optimizer; its learning rate is not known."""

    value: object = None
    source: str = host("")

    def transformation(self, total_steps: Step) -> optax.GradientTransformation:
        """The transformation itself."""
        return typing.cast(optax.GradientTransformation, self.value)


class FunctionLoss(Loss):
    """A function of the user's own as a loss."""

    value: object = None
    source: str = host("")

    def __call__(self, logits: Array, targets: Array) -> Float[Array, " batch"]:
        """What the function says."""
        return jnp.asarray(self.value(logits, targets), jnp.float32)  # type: ignore[operator]


class FunctionMetric(Metric):
    """A function of the user's own as a metric."""

    value: object = None
    source: str = host("")

    def of_examples(self, logits: Array, targets: Array) -> Any:
        """What the function says."""
        return self.value(logits, targets)  # type: ignore[operator]

    @property
    def name(self) -> str:
        """The function's name."""
        return str(getattr(self.value, "__name__", type(self.value).__name__))


class FunctionAugmentation(Augmentation):
    """A function of the user's own as an augmentation."""

    value: object = None
    source: str = host("")

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """What the function makes of the batch."""
        return typing.cast(Batch, self.value(key, batch))  # type: ignore[operator]


class FlaxModel(Model):
    """A flax module of the user's own as a model; it does not hear of the experiment's precision."""

    value: object = None
    source: str = host("")

    def __post_init__(self) -> None:
        if isinstance(self.value, nn.Module):
            object.__setattr__(self, "value", hashable(self.value))
        super().__post_init__()

    def module(self, outputs: int, precision: str) -> nn.Module:
        """The module itself."""
        return typing.cast(nn.Module, self.value)


WRAPPERS = (FunctionSchedule, OptaxOptimizer, FunctionLoss, FunctionMetric, FunctionAugmentation, FlaxModel)


def where(part: Part) -> str:
    """What JSON calls a part: its `kind` if it ships with the package, else its place, such as `lion.py:Lion`."""
    if isinstance(part, WRAPPERS):
        return part.source or place_of(part.value)
    cls = type(part)
    return cls.kind if is_shipped(cls) else place_of(cls)


def is_shipped(thing: Any) -> bool:
    """Whether a class or function is the package's own."""
    return str(getattr(thing, "__module__", "")).partition(".")[0] == __name__.partition(".")[0]


def is_installed(file: str | Path) -> bool:
    """Whether a file belongs to Python or to an installed package: then it is nobody's own code."""
    path = Path(file)
    stdlib = Path(sysconfig.get_path("stdlib"))
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts) or path.is_relative_to(stdlib)


class Placed:
    """A function that an experiment's file has, but does not define by a name: a lambda, or a library's function.

    Args:
        function: The function; it is what is called.
        place: Where the file has it, such as `exp.py:CONFIG.model.activation`.
        file: The file.
    """

    def __init__(self, function: Callable[..., Any], place: str, file: str) -> None:
        self.function, self.place, self.file = function, place, file

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What the function says."""
        return self.function(*arguments, **named)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Placed) and (self.function, self.place) == (other.function, other.place)

    def __hash__(self) -> int:
        return hash((self.function, self.place))


def place_of(thing: Any) -> str:
    """The file and name of a class or function, such as `lion.py:Lion`; `none:Lion` where no file has it by a name."""
    if isinstance(thing, Placed):
        return thing.place
    defined = defined_by(thing)
    # An object is made with arguments, which no class knows.
    is_named = defined is thing and "<" not in defined.__qualname__
    file = file_of(defined) if is_named else None
    is_part = isinstance(thing, type) and issubclass(thing, Part)
    where_from = Path(file).name if file and (is_part or not is_installed(file)) else "none"
    return f"{where_from}:{defined.__qualname__}"


def file_of(thing: Any) -> str | None:
    """The file that defines a class or function, or the class of an object."""
    if isinstance(thing, Placed):
        return thing.file
    thing = defined_by(thing)
    # A module that is imported anew leaves sys.modules to the new one, but its classes keep its globals.
    function = vars(thing).get("__init__") if isinstance(thing, type) else thing
    scope: Mapping[str, Any] = getattr(function, "__globals__", {})
    if scope.get("__name__") != thing.__module__:
        scope = getattr(sys.modules.get(thing.__module__), "__dict__", {})
    return scope.get("__file__")


def defined_by(thing: Any) -> Any:
    """The class or function that says what a thing is: of an NNX module in flax's bridge, the module's class."""
    if isinstance(thing, nnx.bridge.ToLinen):
        thing = thing.nnx_class
    while isinstance(thing, functools.partial):
        thing = thing.func
    return thing if hasattr(thing, "__qualname__") else type(thing)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def kinds(role: type[Part]) -> dict[str, type[Part]]:
    """The shipped parts of a role, by kind."""
    found = {}
    for cls in role.__subclasses__():
        if is_shipped(cls) and cls.kind and not cls.__abstractmethods__:
            found[cls.kind] = cls
        found |= kinds(cls)
    return found


def to_plain(value: Any) -> Any:
    """A part or value as JSON types. A part of a role says its kind; a plain object is its place alone."""
    if isinstance(value, WRAPPERS):
        return {"kind": where(value)}
    if isinstance(value, Part):
        plain: dict[str, Any] = {"kind": where(value)} if value.rule else {}
        return plain | {item.name: to_plain(getattr(value, item.name)) for item in stored_fields(value)}
    if isinstance(value, list | tuple):
        return [to_plain(each) for each in value]
    return place_of(value) if callable(value) else value


def stored_fields(part: Part | type[Part]) -> list[dataclasses.Field[Any]]:
    """The fields that JSON has: all but those that training fills in."""
    return [item for item in dataclasses.fields(part) if not item.metadata.get("filled_in")]  # type: ignore[arg-type]


def from_plain(path: str, hint: Any, plain: Any, find: Find) -> Any:
    """The part or value of type `hint` that `plain`, read from JSON, stands for.

    Raises:
        ConfigError: A field that is unknown or missing, or a value that breaks its rule.
    """
    if typing.get_origin(hint) is tuple and isinstance(plain, list):
        element = typing.get_args(hint)[0]
        return tuple(from_plain(f"{path}.{index}", element, each, find) for index, each in enumerate(plain))
    parts = [each for each in choices(hint) if isinstance(each, type) and issubclass(each, Part)]
    if not parts:
        return find(plain) if is_place(plain) and _takes_functions(hint) else plain
    (cls,) = parts
    if not isinstance(plain, Mapping):
        raise ConfigError(path or "config", f"must be a JSON object, got {plain!r}")
    plain = dict(plain)
    if cls.rule:
        kind = plain.pop("kind", None)
        cls = _class(f"{path}.kind", cls, kind, find)
        if not isinstance(cls, type):  # A plain object.
            return dataclasses.replace(cls, source=kind)
    known = [item.name for item in stored_fields(cls)]
    for name in plain:
        if name not in known:
            raise ConfigError(join_path(path, str(name)), f"is not a field.{did_you_mean(str(name), known)}")
    for name in known:
        if name not in plain:
            raise ConfigError(join_path(path, name), "is missing")
    return cls(**{name: from_plain(join_path(path, name), _hint(cls, name), plain[name], find) for name in known})


def is_place(value: Any) -> bool:
    """Whether a JSON value is the place of code, such as `lion.py:Lion`."""
    return isinstance(value, str) and re.fullmatch(r"[^/:]+:[\w.<>]+", value) is not None


def _takes_functions(hint: Any) -> bool:
    return any(each is object for each in choices(hint)) or "Callable" in str(hint)


def _hint(cls: type[Part], name: str) -> Any:
    return hints(typing.cast(Any, cls))[name]


def _class(path: str, role: Any, kind: Any, find: Find) -> Any:
    """The class of a kind, or the part that wraps a plain object."""
    shipped = kinds(role)
    if isinstance(kind, str) and kind in shipped:
        return shipped[kind]
    if not is_place(kind):
        raise ConfigError(path, f"must be one of {', '.join(shipped)}, got {kind!r}.{did_you_mean(str(kind), shipped)}")
    found = find(kind)
    found = found.function if isinstance(found, Placed) else found
    if isinstance(found, type) and issubclass(found, Part):
        if not issubclass(found, role):
            raise ConfigError(path, f"must be {role.__name__}, got {kind}, which is not")
        return found
    return role.of(found)


def role_of(cls: type[Part]) -> type[Part]:
    """The role of a part's class, such as `Optimizer`."""
    return next(each for each in cls.__mro__ if "rule" in each.__dict__)


def roles_of(part: Part, prefix: str = "") -> dict[str, Part]:
    """The parts that have a role in an experiment, by the dotted paths of their fields."""
    found: dict[str, Part] = {}
    for item in dataclasses.fields(part):  # type: ignore[arg-type]
        value = getattr(part, item.name)
        if isinstance(value, Part):
            found |= {prefix + item.name: value} if value.rule else {}
            found |= roles_of(value, f"{prefix}{item.name}.")
    return found


def of_kind(role: type[Part], path: str, kind: str) -> Part:
    """A part of a role by the word for its kind, with its defaults: a shipped kind, or a class of the user's own.

    Raises:
        ConfigError: There is no such kind.
    """
    own = {cls.__name__: cls for cls in _own_parts(role)}
    known: dict[str, type[Part]] = {**kinds(role), **own}
    near = {place_of(cls).lower().replace("-", "_"): cls for cls in own.values()}
    near |= {name.lower().replace("-", "_"): cls for name, cls in known.items()}
    cls = known.get(kind) or near.get(kind.lower().replace("-", "_"))
    if not cls:
        raise ConfigError(path, f"must be one of {', '.join(known)}, got {kind!r}.{did_you_mean(kind, known)}")
    return cls()


def role_of_several(part: Part | type[Part], name: str) -> Any:
    """The role of a field that holds several parts; None of other fields."""
    element = typing.get_args(_hint(part if isinstance(part, type) else type(part), name))[:1]
    is_role = bool(element) and isinstance(element[0], type) and issubclass(element[0], Part)
    return element[0] if is_role else None


def _own_parts(role: type[Part]) -> Iterator[type[Part]]:
    """The user's own parts of a role, in the order in which they were made."""
    for cls in role.__subclasses__():
        # A class that was refused while it was made has no list of abstract methods.
        if not is_shipped(cls) and not getattr(cls, "__abstractmethods__", True):
            yield cls
        yield from _own_parts(cls)


def _find_own(place: str) -> type[Part]:
    """The class of the user's own, among those that are loaded, at a place; the newest of several."""
    found = [cls for cls in _own_parts(Part) if place_of(cls) == place]
    if not found:
        raise ConfigError("kind", f"is {place}, and no part of that place is loaded")
    return found[-1]


def with_value[P: Part](part: P, path: str, value: Any) -> P:
    """The part with another value in a field, by its dotted path.

    In a role's field, a word chooses a kind of part, and a mapping as JSON has it is the whole part.

    Raises:
        ConfigError: There is no such field, or the value breaks its rule.
    """
    return typing.cast(P, _with_value(part, path.split("."), value, path))


def _with_value(part: Any, names: list[str], value: Any, path: str) -> Any:
    name, *rest = names
    changed: Any
    if isinstance(part, tuple):
        if not name.isdecimal() or int(name) >= len(part):
            raise ConfigError(path, f"is not a field: there are {len(part)} parts, counted from 0")
        changed = _with_value(part[int(name)], rest, value, path)
        return (*part[: int(name)], changed, *part[int(name) + 1 :])
    known = [item.name for item in stored_fields(part)] if isinstance(part, Part) else []
    if name not in known:
        raise ConfigError(path, f"is not a field of this experiment.{did_you_mean(name, known)}")
    old = getattr(part, name)
    several = role_of_several(part, name)
    if several and not rest and isinstance(value, str):
        changed = tuple(of_kind(several, path, word) for word in value.split(",") if word)
    elif rest:
        changed = _with_value(old, rest, value, path)
    elif isinstance(old, Part) and isinstance(value, str) and old.rule:
        # The same place keeps its values: `--optimizer lion` of a file whose optimizer is Lion changes nothing.
        role = role_of(type(old))
        changed = old if value in (where(old), type(old).__name__) else of_kind(role, path, value)
    elif isinstance(old, Part) and isinstance(value, Mapping) and old.rule:
        changed = from_plain(path, role_of(type(old)), value, _find_own)
    else:
        changed = value
    return dataclasses.replace(part, **{name: changed})


def value_at(part: Part, path: str) -> Any:
    """The value of a field by its dotted path, as JSON says it; a part of a role is its kind.

    Raises:
        ConfigError: There is no such field.
    """
    found: Any = part
    for name in path.split("."):
        if isinstance(found, tuple) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, Part) and name in {item.name for item in stored_fields(found)}:
            found = getattr(found, name)
        else:
            raise ConfigError(path, "is not a field of this experiment")
    return where(found) if isinstance(found, Part) and found.rule else to_plain(found)


def paths(part: Part, prefix: str = "") -> Iterator[str]:
    """The dotted paths of all fields that JSON has, those of parts too."""
    for item in stored_fields(part):
        value = getattr(part, item.name)
        yield prefix + item.name
        for name, each in enumerate(value) if isinstance(value, tuple) else [("", value)]:
            if isinstance(each, Part) and not isinstance(each, WRAPPERS):
                yield from paths(each, f"{prefix}{item.name}.{f'{name}.' if isinstance(value, tuple) else ''}")
