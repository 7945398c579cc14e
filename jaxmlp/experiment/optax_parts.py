"""How does an optax optimizer become a part by its name, such as `optax.lion` or `optax.contrib.muon`?

The part is made from the factory's signature: its arguments become fields, with optax's defaults. A number is traced if
the factory accepts traced values. An argument that no flag can hold, such as a function, keeps its default.

Differs from: optax, which computes with Python's float64 before it rounds. Traced numbers are float32: for
`b2 = 0.999`, `1 - b2` is 0.00100004673, not 0.001. Of 83 factories, 47 give the bits of plain optax at their defaults.
The updates of the other 36 differ by rounding, at most 3e-5 of the largest update.
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
"""Prefix of the kinds that are made from optax."""
DEFAULTS = {"learning_rate": 1e-3, "decay": 0.9, "eta": 0.01, "gamma": 0.55}
"""Defaults of required numbers. All others default to 1."""
REFUSED = {
    "optax.contrib.differentially_private_aggregate": "it needs the gradient of each example",
    "optax.contrib.dpsgd": "it needs the gradient of each example",
    "optax.contrib.scale_by_madgrad": "it is half of a rule: use optax.contrib.madgrad",
    "optax.contrib.scale_by_muon": "it accepts only matrices: use optax.contrib.muon",
    "optax.contrib.schedule_free_adamw": "its weights to evaluate are not the weights that it trains",
    "optax.contrib.schedule_free_sgd": "its weights to evaluate are not the weights that it trains",
    "optax.keep_params_nonnegative": "it must follow the learning rate",
    "optax.scale_by_rprop": "it is half of a rule: use optax.rprop",
}
"""Factories that cannot be optimizers here although their arguments are numbers, and why."""


def from_optax(name: str, **arguments: Any) -> Optimizer:
    """Make a part from an optax optimizer.

    Args:
        name: Name of the factory, such as `optax.lion`. `optax.scale_by_learning_rate` follows a factory without a
            learning rate, such as `optax.clip`.
        arguments: Numbers, flags and words for the factory. A mask is a pattern of parameter paths, such as
            `*/kernel`. `schedule` is a factor on the learning rate.

    Raises:
        ConfigError: There is no such factory, it needs more than gradients and parameters, or an argument is wrong.
    """
    return of_arguments(optax_class(name), arguments)


@functools.cache
def optax_class(name: str) -> type[Optimizer]:
    """The class of part for an optax optimizer.

    Raises:
        ConfigError: There is no such factory, or it needs more than gradients and parameters.
    """
    factory = _factory(name)
    signature = inspect.signature(factory).parameters
    fields = {each.name: found for each in signature.values() if (found := _field(each))}
    if needed := [each for each in signature.values() if each.name not in fields and each.default is each.empty]:
        raise _refusal(name, f"its argument {needed[0].name} is not a number. In Python, pass a transformation")
    has_rate = "learning_rate" in signature
    if not has_rate:
        fields["learning_rate"] = float, DEFAULTS["learning_rate"]
    takes_schedule = not has_rate or "Callable" in str(signature["learning_rate"].annotation)

    def made(values: dict[str, Any], rate: Any) -> optax.GradientTransformation:
        values = {each: value for each, value in values.items() if not each.endswith("mask") or value is not None}
        found = factory(**{**values, **({"learning_rate": rate} if has_rate else {})})
        if not Optimizer.fits(found):
            raise _refusal(name, "it does not return a transformation")
        return found if has_rate else optax.chain(found, optax.scale_by_learning_rate(rate))

    def transformation(self: Any, total_steps: Step) -> optax.GradientTransformation:
        """The optax transformation with these fields."""
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
    values_of_fields: dict[str, Any] = {
        each: ranged(value, "[0, inf)" if each == "learning_rate" else "(-inf, inf)", traced=each in traced)
        for each, (_, value) in fields.items()
    }
    if takes_schedule:
        hints["schedule"], values_of_fields["schedule"] = Schedule, Constant()
    about = {"kind": name, "__doc__": factory.__doc__, "__module__": __name__, "__annotations__": hints}
    methods = {"transformation": transformation, "__repr__": shown}
    return type(factory.__name__, (Optimizer,), {**values_of_fields, **about, **methods})


def optax_names() -> list[str]:
    """Names of the functions in optax and optax.contrib whose return type is a transformation or is not annotated."""
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
    """Whether the path of each leaf of `params`, such as `Dense_0/kernel`, matches one of the patterns, as a tree.

    Args:
        patterns: Shell patterns such as `*/kernel`, separated by commas.
        params: The parameters.

    Raises:
        ConfigError: A pattern matches no path.
    """
    found = jax.tree.map_with_path(lambda path, _: path_of(path), params)
    paths = jax.tree.leaves(found)
    for pattern in patterns.split(","):
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise ConfigError("optimizer", f"has a pattern that matches no parameter, {pattern!r}: {', '.join(paths)}")
    return jax.tree.map(lambda path: any(fnmatchcase(path, each) for each in patterns.split(",")), found)


def path_of(keys: Any) -> str:
    """The path of a leaf in readable form: `Dense_0/kernel`."""
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
    """Type and default of the field for an argument. None if no flag can hold the argument."""
    name, default, hint = argument.name, argument.default, str(argument.annotation)
    if name.endswith("mask"):
        return None if default is argument.empty else (str | Callable[..., Any] | None, None)
    if name == "learning_rate":
        return float, default if isinstance(default, float) else DEFAULTS[name]
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
    if name == "seed":  # Deprecated: `key` replaces it.
        return None
    if "float" in hint and not re.search("Iterable|Mapping", hint) and argument.kind is not argument.VAR_POSITIONAL:
        if default is None:
            return float | None, None
        if default is argument.empty and "Callable" not in hint:
            return float, DEFAULTS.get(name, 1.0)
    return (int | None, None) if default is None and re.search(r"\bint\b", hint) and "Array" not in hint else None


def _is_number(kind: Any) -> bool:
    return not {float, int}.isdisjoint(choices(kind)) or kind == tuple[float, ...]


def _mask(path: str, given: Any) -> Any:
    return functools.partial(matching, given) if isinstance(given, str) else given


def _traced(name: str, made: Callable[[dict[str, Any]], Any], numbers: dict[str, Any]) -> set[str]:
    """Names of the numbers that the factory accepts as tracers: all, or each that works when it alone is traced.

    Raises:
        ConfigError: The factory does not return a transformation, or needs more than gradients and parameters.
    """
    params = {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32), "bias": jax.ShapeDtypeStruct((3,), jnp.float32)}

    def works(traced: dict[str, Any]) -> bool:
        def step(values: dict[str, Any], params: Any) -> Any:
            optimizer = made(values)
            return optimizer.update(params, optimizer.init(params), params)

        # A number whose default is None is probed with a value.
        given = {each: 0.5 if value is None else value for each, value in traced.items()}
        values = jax.tree.map(lambda each: jax.ShapeDtypeStruct((), jnp.result_type(type(each))), given)
        # The probe must not depend on how the process promotes types.
        promotion = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
        with promotion[0], promotion[1], warnings.catch_warnings(action="ignore"):
            jax.eval_shape(step, values, params)
        return True

    def is_traceable(some: dict[str, Any]) -> bool:
        try:
            return works(some)
        except Exception:  # A factory that needs a Python number may raise anything.
            return False

    try:
        works({})
    except ConfigError:
        raise
    except Exception as error:
        missing = re.findall(r"arguments?: (.+)", str(error))
        raise _refusal(name, f"it needs {missing[0]} besides the gradients" if missing else str(error)) from None
    return {*numbers} if is_traceable(numbers) else {each for each in numbers if is_traceable({each: numbers[each]})}
