"""Every optimizer of optax by its name, such as `optax.lion` or `optax.contrib.muon`.

The part is made from the factory's signature: its arguments are the fields, with optax's defaults. Numbers are traced
wherever the factory takes traced values. An argument that no flag can say, such as a function, keeps its default.

Traced numbers are float32, where optax computes with Python's float64 before it rounds: `1 - b2` is 0.00100004673 of
`b2 = 0.999`, not 0.001. So of 83 factories 47 have plain optax's bits at their defaults, and the updates of the others
differ from its by roundings, at most 3e-5 of the largest update.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxmlp.errors import ConfigError, did_you_mean
from jaxmlp.experiment.fields import choices, ranged
from jaxmlp.experiment.optax_schedules import of_arguments
from jaxmlp.experiment.parts import Optimizer, Schedule, Step
from jaxmlp.experiment.schedules import Constant

PREFIX = "optax."
"""How the names of these kinds begin."""
STARTS = {"learning_rate": 1e-3, "decay": 0.9, "eta": 0.01, "gamma": 0.55}
"""Defaults of required numbers; of all others 1."""
REFUSED = {
    "optax.contrib.differentially_private_aggregate": "it needs the gradient of each example",
    "optax.contrib.dpsgd": "it needs the gradient of each example",
    "optax.contrib.scale_by_madgrad": "it is half of a rule: take optax.contrib.madgrad",
    "optax.contrib.scale_by_muon": "it takes matrices alone: take optax.contrib.muon",
    "optax.contrib.schedule_free_adamw": "its weights to evaluate are not those that it trains",
    "optax.contrib.schedule_free_sgd": "its weights to evaluate are not those that it trains",
    "optax.keep_params_nonnegative": "it must follow the learning rate",
    "optax.scale_by_rprop": "it is half of a rule: take optax.rprop",
}
"""Factories of numbers alone that are no optimizers here, and why."""


def from_optax(name: str, **arguments: Any) -> Optimizer:
    """An optimizer of optax.

    Args:
        name: The factory's, such as `optax.lion`. A factory without a learning rate of its own, such as `optax.clip`,
            is followed by `optax.scale_by_learning_rate`.
        arguments: The factory's numbers, flags and words. Masks are patterns of the parameters' paths, such as
            `*/kernel`. `schedule` is a factor on the learning rate.

    Raises:
        ConfigError: There is no such factory, it needs more than gradients and parameters, or an argument is wrong.
    """
    return of_arguments(optax_class(name), arguments)


@functools.cache
def optax_class(name: str) -> type[Optimizer]:
    """The class of part for a factory of optax.

    Raises:
        ConfigError: As `from_optax`.
    """
    factory = _factory(name)
    signature = inspect.signature(factory).parameters
    fields = {each.name: found for each in signature.values() if (found := _field(each))}
    if needed := [each for each in signature.values() if each.name not in fields and each.default is each.empty]:
        raise _refusal(name, f"its argument {needed[0].name} is no number. In Python, give the transformation itself")
    has_rate = "learning_rate" in signature
    if not has_rate:
        fields["learning_rate"] = float, STARTS["learning_rate"]
    takes_schedule = not has_rate or "Callable" in str(signature["learning_rate"].annotation)

    def made(values: dict[str, Any], rate: Any) -> optax.GradientTransformation:
        values = {each: value for each, value in values.items() if not each.endswith("mask") or value is not None}
        found = factory(**{**values, **({"learning_rate": rate} if has_rate else {})})
        if not Optimizer.fits(found):
            raise _refusal(name, "it makes no transformation")
        return found if has_rate else optax.chain(found, optax.scale_by_learning_rate(rate))

    def transformation(self: Any, total_steps: Step) -> optax.GradientTransformation:
        """Optax's."""
        values = {each: getattr(self, each) for each in fields if each != "learning_rate"}
        values |= {each: _mask(f"optimizer.{each}", values[each]) for each in values if each.endswith("mask")}
        return made(values, self.rate(total_steps) if takes_schedule else self.learning_rate)

    def shown(self: Any) -> str:
        values = [f"{each.name}={getattr(self, each.name)!r}" for each in dataclasses.fields(self)]
        return f"from_optax({', '.join([repr(name), *values])})"

    def probed(values: dict[str, Any]) -> optax.GradientTransformation:
        plain = {each: value for each, (_, value) in fields.items()} | values
        rate = plain.pop("learning_rate")
        return made(plain, rate)

    traced = _traced(name, probed, {each: value for each, (kind, value) in fields.items() if _is_number(kind)})
    hints: dict[str, Any] = {each: kind for each, (kind, _) in fields.items()}
    space: dict[str, Any] = {
        each: ranged(value, "[0, inf)" if each == "learning_rate" else "(-inf, inf)", traced=each in traced)
        for each, (_, value) in fields.items()
    }
    if takes_schedule:
        hints["schedule"], space["schedule"] = Schedule, Constant()
    about = {"kind": name, "__doc__": factory.__doc__, "__module__": __name__, "__annotations__": hints}
    return type(factory.__name__, (Optimizer,), {**space, **about, "transformation": transformation, "__repr__": shown})


def optax_names() -> list[str]:
    """The factories of optax and optax.contrib: the functions that say they return a transformation, or do not say."""
    return [
        f"{module.__name__}.{name}"
        for module in (optax, optax.contrib)
        for name, found in sorted(vars(module).items())
        if inspect.isfunction(found) and not name.startswith("_")
        if _returns(found) is inspect.Signature.empty or "GradientTransformation" in str(_returns(found))
    ]


def _returns(function: Callable[..., Any]) -> Any:
    return inspect.signature(function).return_annotation


def matching(patterns: str, params: Any) -> Any:
    """The tree of `params`, with whether the path of each leaf, such as `Dense_0/kernel`, fits one of the patterns.

    Args:
        patterns: As of a shell, such as `*/kernel`, with commas between them.
        params: The parameters.

    Raises:
        ConfigError: A pattern fits no path.
    """
    found = jax.tree.map_with_path(lambda path, _: path_of(path), params)
    paths = jax.tree.leaves(found)
    for pattern in patterns.split(","):
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise ConfigError("optimizer", f"has a pattern that fits no parameter, {pattern!r}: {', '.join(paths)}")
    return jax.tree.map(lambda path: any(fnmatchcase(path, each) for each in patterns.split(",")), found)


def path_of(keys: Any) -> str:
    """A leaf's path as people write it: `Dense_0/kernel`."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _factory(name: str) -> Callable[..., Any]:
    known = optax_names()
    if name not in known:
        hint = did_you_mean(name if name.startswith(PREFIX) else PREFIX + name, known)
        raise ConfigError("optimizer", f"is {name}, which optax {optax.__version__} lacks.{hint}")
    if name in REFUSED:
        raise _refusal(name, REFUSED[name])
    module = optax.contrib if name.startswith("optax.contrib.") else optax
    return typing.cast(Callable[..., Any], getattr(module, name.rpartition(".")[2]))


def _refusal(name: str, why: str) -> ConfigError:
    return ConfigError("optimizer", f"cannot be {name} by name: {why}")


def _field(argument: inspect.Parameter) -> tuple[Any, Any] | None:
    """The type and default of a field for an argument; None where no flag can say it."""
    name, default, hint = argument.name, argument.default, str(argument.annotation)
    if name.endswith("mask"):
        return None if default is argument.empty else (str | Callable[..., Any] | None, None)
    if name == "learning_rate":
        return float, default if isinstance(default, float) else STARTS[name]
    if name == "key":
        return int, 0
    if "dtype" in name:
        return str | None, None if default is None else jnp.dtype(default).name
    if isinstance(default, bool | str):
        return type(default), default
    if isinstance(default, int | float):
        return (type(default) | None if "None" in hint else type(default)), default
    if isinstance(default, tuple) and default and all(isinstance(each, float) for each in default):
        return tuple[float, ...], default
    if name == "seed":  # Deprecated beside the key.
        return None
    if "float" in hint and not re.search("Iterable|Mapping", hint) and argument.kind is not argument.VAR_POSITIONAL:
        if default is None:
            return float | None, None
        if default is argument.empty and "Callable" not in hint:
            return float, STARTS.get(name, 1.0)
    return (int | None, None) if default is None and re.search(r"\bint\b", hint) and "Array" not in hint else None


def _is_number(kind: Any) -> bool:
    return not {float, int}.isdisjoint(choices(kind)) or kind == tuple[float, ...]


def _mask(path: str, given: Any) -> Any:
    return functools.partial(matching, given) if isinstance(given, str) else given


def _traced(name: str, made: Callable[[dict[str, Any]], Any], numbers: dict[str, Any]) -> set[str]:
    """The numbers that the factory takes as tracers: all, or those that it takes one by one.

    Raises:
        ConfigError: It makes no transformation, or one that needs more than gradients and parameters.
    """
    params = {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32), "bias": jax.ShapeDtypeStruct((3,), jnp.float32)}

    def works(traced: dict[str, Any]) -> bool:
        def step(values: dict[str, Any], params: Any) -> Any:
            optimizer = made(values)
            return optimizer.update(params, optimizer.init(params), params)

        # Of a number that may be none, as if one were given.
        given = {each: 0.5 if value is None else value for each, value in traced.items()}
        values = jax.tree.map(lambda each: jax.ShapeDtypeStruct((), jnp.result_type(type(each))), given)
        # The probe asks about numbers alone, in whatever way the process promotes types.
        promotion = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
        with promotion[0], promotion[1], warnings.catch_warnings(action="ignore"):
            jax.eval_shape(step, values, params)
        return True

    def is_traceable(some: dict[str, Any]) -> bool:
        try:
            return works(some)
        except Exception:  # Whatever a factory raises where it wants Python's number.
            return False

    try:
        works({})
    except ConfigError:
        raise
    except Exception as error:
        missing = re.findall(r"arguments?: (.+)", str(error))
        raise _refusal(name, f"it needs {missing[0]} beside the gradients" if missing else str(error)) from None
    return {*numbers} if is_traceable(numbers) else {each for each in numbers if is_traceable({each: numbers[each]})}
