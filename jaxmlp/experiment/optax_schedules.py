"""How does an optax schedule become a part by its name, such as `optax.cosine_decay_schedule`?

All schedules whose arguments are numbers are available. The part's fields come from the factory's signature, as in
`optax_parts`. The schedule's value is a factor on the optimizer's learning rate, so heights default to 1. A number is
traced if the factory accepts traced values; numbers of updates are not traced.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxmlp.errors import ConfigError, did_you_mean
from jaxmlp.experiment.fields import ranged
from jaxmlp.experiment.parts import Part, Schedule, Step

NAMES = {
    f"optax.{name}": getattr(optax, name)
    for name in ("exponential_decay", *sorted(each for each in vars(optax) if each.endswith("_schedule")))
    if name != "scale_by_schedule"
}
DEFAULTS = {"init_value": 1.0, "peak_value": 1.0, "value": 1.0, "end_value": 0.0, "power": 1.0, "decay_rate": 0.96}
"""Defaults of required numbers. `init_value` before a warm-up defaults to 0."""
STEPS = {"warmup_steps": 100}
"""Defaults of required numbers of updates. All others default to 1,000."""
REFUSED = {
    "optax.piecewise_constant_schedule": "its boundaries are a table. Use piecewise",
    "optax.piecewise_interpolate_schedule": "its boundaries are a table",
    "optax.sgdr_schedule": "its cycles are tables. Use cosine_restarts",
}
"""Schedules whose arguments cannot be flags, and what to use instead."""


def optax_schedule(name: str, **arguments: Any) -> Schedule:
    """Make a part from an optax schedule.

    Args:
        name: Name of the factory, such as `optax.cosine_decay_schedule`.
        arguments: Arguments of the factory. Its values are factors on the optimizer's learning rate.

    Raises:
        ConfigError: There is no such schedule, or an argument is wrong.
    """
    return of_arguments(schedule_class(name), arguments)


def of_arguments[P: Part](cls: type[P], arguments: Mapping[str, Any]) -> P:
    """The part of class `cls` with these arguments.

    Raises:
        ConfigError: An argument is unknown or wrong.
    """
    known = [item.name for item in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for each in arguments:
        if each not in known:
            raise ConfigError(f"{cls.path}.{each}", f"is not an argument of {cls.kind}.{did_you_mean(each, known)}")
    return cls(**arguments)


@functools.cache
def schedule_class(name: str) -> type[Schedule]:
    """The class of part for an optax schedule.

    Raises:
        ConfigError: There is no such schedule, or its arguments are not numbers.
    """
    path = Schedule.path
    if name in REFUSED:
        raise ConfigError(path, f"cannot be {name} by name: {REFUSED[name]}. In Python, pass the function itself")
    if name not in NAMES:
        raise ConfigError(path, f"is {name}, which optax {optax.__version__} lacks.{did_you_mean(name, NAMES)}")
    factory: Callable[..., Any] = NAMES[name]
    fields = {each.name: _field(each, "warmup" in name) for each in inspect.signature(factory).parameters.values()}

    def factor(self: Any, step: Step, total_steps: Step) -> Float[Array, ""]:
        """The value of the optax schedule."""
        values = {each: getattr(self, each) for each in fields}
        # Optax adds booleans to numbers, which the process may have forbidden.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return jnp.asarray(factory(**values)(jnp.float32(step)), jnp.float32)

    def takes(argument: str) -> bool:
        """Whether the factory accepts a traced number for this argument."""
        plain = {each: value for each, (_, value) in fields.items()}
        number = jax.ShapeDtypeStruct((), jnp.float32)
        try:
            jax.eval_shape(lambda traced: factory(**{**plain, argument: traced})(jnp.float32(1)), number)
        except Exception:  # Factories raise various errors if they need a Python number.
            return False
        return True

    def shown(self: Any) -> str:
        return f"optax_schedule({', '.join([repr(name), *(f'{each}={getattr(self, each)!r}' for each in fields)])})"

    floats = [each for each, (kind, value) in fields.items() if kind is float and value is not None]
    values_of_fields: dict[str, Any] = {
        each: ranged(value, "[0, 2147483647]" if kind is int else "(-inf, inf)", traced=each in floats and takes(each))
        for each, (kind, value) in fields.items()
    }
    hints = {each: kind if value is not None else kind | None for each, (kind, value) in fields.items()}
    about = {"kind": name, "__doc__": factory.__doc__, "__module__": __name__, "__annotations__": hints}
    return type(factory.__name__, (Schedule,), {**values_of_fields, **about, "factor": factor, "__repr__": shown})


def _field(argument: inspect.Parameter, warms_up: bool) -> tuple[Any, Any]:
    """Type and default of the field for an argument."""
    name, default = argument.name, argument.default
    if default is argument.empty:
        if argument.annotation is int or "steps" in name:
            return int, STEPS.get(name, 1000)
        return float, 0.0 if warms_up and name == "init_value" else DEFAULTS[name]
    if isinstance(default, bool):
        return bool, default
    is_count = ("int" in str(argument.annotation) and "steps" in name) or name == "transition_begin"
    return (int if is_count else float), default
