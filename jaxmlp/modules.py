"""How is any flax module called? Variables from a key, logits from variables and inputs, in both modes.

A parameter of the module's `__call__` sets its mode, training or evaluation. An NNX module in flax's bridge
(`flax.nnx.bridge.to_linen`) is also put into its mode with `module.train()` or `module.eval()`.

A module that keeps statistics, such as BatchNorm's, keeps them in collections beside its parameters: its `variables`.
Padding enters no statistic. Flax's BatchNorm, in linen and NNX, gets a mask, so that its statistics cover the rows of
the shard, each counted once. For other statistics, rows of padding are copies of real rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, TypeAlias

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from jaxmlp.errors import ConfigError
from jaxmlp.prng import root_key

TRAIN_FLAGS: Final = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
    "eval_mode": False,
}
"""Parameters of `__call__` that set the mode, with the value that each has in training."""
SUSPICIOUS = ("train", "eval", "infer", "determin", "dropout", "running")
"""Substrings of other names that may set the mode. Such names are refused: ignoring one would silently disable
dropout."""


class Initial(NamedTuple):
    """The initial values of a module."""

    params: dict[str, Any]
    variables: dict[str, Any]
    """The other collections, by name. Empty for most modules."""


def hashable(module: nn.Module) -> nn.Module:
    """The module with lists as tuples and dicts as frozen dicts. Compiled programs are cached by its hash.

    Raises:
        ConfigError: The module has another value that cannot be hashed.
    """
    if not _has_hash(module):
        module = _frozen(module)
    if not _has_hash(module):
        bad = [
            f"{item.name} of type {type(value).__name__}"
            for item in dataclasses.fields(module)
            if not _has_hash(value := getattr(module, item.name))
        ]
        raise ConfigError("model", f"must be hashable, but has {' and '.join(bad)}")
    return module


def _has_hash(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _frozen(value: Any) -> Any:
    if isinstance(value, nn.Module):
        fields = [item.name for item in dataclasses.fields(value) if item.name not in ("parent", "name")]
        return value.clone(**{name: _frozen(getattr(value, name)) for name in fields})
    if isinstance(value, list) or type(value) is tuple:
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return flax.core.freeze({name: _frozen(item) for name, item in value.items()})
    return value


def mode(module: nn.Module, train: bool) -> dict[str, Any]:
    """The keyword arguments that set the module's mode; empty for a module without such a parameter.

    Raises:
        ConfigError: The module may take its mode in an unknown way, and would ignore the mode.
    """
    parameters = _parameters(module)
    known = {name: train is TRAIN_FLAGS[name] for name in parameters if name in TRAIN_FLAGS}
    cls = _nnx_class(module) if isinstance(module, nnx.bridge.ToLinen) else type(module)
    for item in dataclasses.fields(module):
        if item.name in TRAIN_FLAGS and item.name not in known:
            raise ConfigError("model", f"gets its mode in each call: make {item.name} a parameter of its __call__")
    for name, parameter in parameters.items():
        if name in known or parameter.kind is parameter.VAR_POSITIONAL:
            continue
        is_open = parameter.kind is parameter.VAR_KEYWORD
        if is_open or parameter.default is parameter.empty or any(word in name.lower() for word in SUSPICIOUS):
            raise ConfigError(
                "model",
                f"must be a module of one input whose mode is one of {', '.join(TRAIN_FLAGS)}, "
                f"but {cls.__name__}.__call__ takes {'**' if is_open else ''}{name}. Rename it, or wrap the module",
            )
    return known


def _parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of the module's call, without its inputs."""
    if isinstance(module, nnx.bridge.ToLinen):
        cls = _nnx_class(module)
        # `_in_mode` sets the mode of the layers inside; nnx.Sequential passes no arguments on.
        parameters = {} if issubclass(cls, nnx.Sequential) else dict(inspect.signature(cls.__call__).parameters)
        parameters.pop("self", None)
    elif type(module) is nn.Sequential:
        for layer in module.layers:
            if isinstance(layer, nn.Module) and (argument := mode(layer, True)):
                problem = f"{type(layer).__name__} takes {next(iter(argument))}, which nn.Sequential does not pass on"
                raise ConfigError(
                    "model", f"must pass the mode to its layers: {problem}. Write a module that takes train"
                )
        parameters = {}
    else:
        parameters = dict(inspect.signature(module.__call__).parameters)
    return dict(list(parameters.items())[1:])


def _nnx_class(module: nnx.bridge.ToLinen) -> type[nnx.Module]:
    """The class of the NNX module in flax's bridge.

    Raises:
        ConfigError: The bridge was given something other than a class.
    """
    cls: Any = module.nnx_class
    while isinstance(cls, functools.partial):
        cls = cls.func
    if not isinstance(cls, type):
        raise ConfigError("model", f"must bridge a class: pass a subclass of nnx.Module to to_linen, not {cls!r}")
    return cls


def init(module: nn.Module, inputs: Any, key: Key[Array, ""]) -> Initial:
    """The module's initial parameters and other variables.

    Args:
        module: Maps inputs `[batch, ...]` to logits.
        inputs: An array that holds one example, or a tree of such arrays. Only the shapes matter.
        key: Key of the INIT stream.
    """
    # NNX modules ask for all their streams when they are made, even for streams that they do not use.
    rngs = {**_streams(jax.random.fold_in(key, 0)), "params": key}
    with _in_mode(False, None):
        variables = dict(flax.core.unfreeze(module.init(rngs, inputs, **mode(module, False))))
    params = dict(variables.pop("params", {}))
    for name in ("intermediates", "losses", "perturbations"):  # Not state: flax creates them in each call.
        variables.pop(name, None)
    return Initial(params, {name: found for name, found in variables.items() if jax.tree.leaves(found)})


def apply_train(
    module: nn.Module,
    params: Any,
    variables: dict[str, Any],
    inputs: Any,
    dropout_key: Key[Array, ""],
    is_row: Bool[Array, " batch"] | None = None,
) -> tuple[Float[Array, "batch outputs"], dict[str, Any]]:
    """Float32 logits in training mode, and the variables after the call.

    Args:
        module: The module.
        params: Parameters of the module.
        variables: Other collections of the module.
        inputs: Inputs as the module takes them.
        dropout_key: Key that all random streams of the module derive from.
        is_row: False for rows of padding, which BatchNorm ignores. None if there is no padding.
    """
    given, rngs = {"params": params, **variables}, _streams(dropout_key)
    with _in_mode(True, is_row if variables else None):
        if not variables:
            return jnp.float32(module.apply(given, inputs, rngs=rngs, **mode(module, True))), variables
        logits, updated = module.apply(given, inputs, rngs=rngs, mutable=list(variables), **mode(module, True))
    return jnp.float32(logits), dict(flax.core.unfreeze(updated))


def apply_eval(module: nn.Module, params: Any, variables: dict[str, Any], inputs: Any) -> Float[Array, "batch outputs"]:
    """Float32 logits with dropout off and the kept statistics."""
    with _in_mode(False, None):
        return jnp.float32(module.apply({"params": params, **variables}, inputs, **mode(module, False)))


def _streams(key: Key[Array, ""]) -> dict[str, Key[Array, ""]]:
    """The random streams of a call. For any other stream, linen falls back to `params` and NNX to `default`."""
    return {"dropout": key, "params": jax.random.fold_in(key, 1), "default": jax.random.fold_in(key, 2)}


Interceptor: TypeAlias = Callable[..., Any]
"""A function that is called in place of a module: `interceptor(call, module, *args, **kwargs)`."""
_interceptors: ContextVar[tuple[Interceptor, ...]] = ContextVar("interceptors", default=())


@contextlib.contextmanager
def intercept(interceptor: Interceptor) -> Iterator[None]:
    """Route the calls of all modules through `interceptor` within the block, NNX modules in flax's bridge included."""
    outer = _interceptors.get()
    token = _interceptors.set((*outer, interceptor))
    try:
        with contextlib.nullcontext() if outer else nn.intercept_methods(_intercept_linen):
            yield
    finally:
        _interceptors.reset(token)


def _intercept_linen(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    if context.method_name != "__call__":
        return call(*args, **kwargs)
    if isinstance(context.module, nnx.bridge.ToLinen):
        kwargs = {**kwargs, "nnx_method": _intercepted_method(kwargs.get("nnx_method"))}
    return _through(call, context.module)(*args, **kwargs)


def _through(call: Any, module: Any) -> Any:
    for interceptor in _interceptors.get():
        call = functools.partial(interceptor, call, module)
    return call


def _intercepted_method(method: Any) -> Any:
    """What flax's bridge calls on the NNX module, which it creates for one call."""

    def on_module(module: nnx.Module, *args: Any, **kwargs: Any) -> Any:
        for _, each in list(nnx.iter_modules(module)):
            each.__class__ = _intercepted_class(type(each))
        name = method if isinstance(method, str) else getattr(method, "__name__", "__call__")
        return getattr(type(module), name)(module, *args, **kwargs)

    return on_module


@functools.cache
def _intercepted_class(cls: type[nnx.Module]) -> type[nnx.Module]:
    """A subclass whose calls go through the interceptors. NNX has no counterpart to linen's `intercept_methods`."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _through(functools.partial(cls.__call__, self), self)(*args, **kwargs)

    make: Any = type(cls)
    intercepted: type[nnx.Module] = make(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})
    return intercepted


def _in_mode(train: bool, is_row: Bool[Array, " batch"] | None) -> contextlib.AbstractContextManager[None]:
    """Set the mode of all modules within the block, and let BatchNorm ignore rows of padding."""

    def interceptor(call: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(module, nnx.bridge.ToLinen):
            kwargs = {**kwargs, "nnx_method": functools.partial(_call_in_mode, kwargs["nnx_method"], train)}
        if is_row is not None and isinstance(module, nn.BatchNorm | nnx.BatchNorm):
            kwargs = {**kwargs, "mask": _rows_mask(module, args[0], is_row, kwargs.get("mask"))}
        return call(*args, **kwargs)

    return intercept(interceptor)


def _call_in_mode(method: Any, train: bool, module: nnx.Module, *args: Any, **kwargs: Any) -> Any:
    module.train() if train else module.eval()
    return method(module, *args, **kwargs)


def _rows_mask(module: Any, x: Any, is_row: Bool[Array, " batch"], mask: Any) -> Any:
    """The mask of a BatchNorm: rows that are not padding, combined with the module's own mask."""
    if x.shape[:1] != is_row.shape:  # Rows are not the first axis: here padding holds copies of real rows.
        return mask
    kept = range(x.ndim) if module.axis == () else np.atleast_1d(module.axis) % x.ndim
    shape = [x.shape[axis] if axis in kept else 1 for axis in range(1, x.ndim)]
    # One count per feature. XLA turns a quotient by a single broadcast number into a product in some programs only.
    rows = lax.optimization_barrier(jnp.broadcast_to(is_row.reshape(-1, *(1,) * len(shape)), (len(is_row), *shape)))
    return rows if mask is None else rows & mask.astype(bool)


def check_outputs(module: nn.Module, inputs: Any, outputs: int, *, exact: bool = False) -> None:
    """Check that the module returns at least `outputs` numbers for an example. Nothing is computed.

    Args:
        module: The module.
        inputs: Shapes of one example as the module takes it, `[1, ...]` or a tree of them.
        outputs: Number of classes, or numbers per target.
        exact: Whether more numbers than `outputs` are an error too.

    Raises:
        ConfigError: The number of outputs is wrong, or the module cannot be called with such inputs.
    """
    key = jax.eval_shape(root_key, 0)
    try:
        shapes = [found.shape for found in _logits.eval_shape(module, key, inputs)]
    except ConfigError:
        raise
    except Exception as error:
        shown = jax.tree.map(lambda leaf: f"{leaf.dtype.name}{list(leaf.shape)}", inputs)
        problem = f"{type(module).__name__} raised {type(error).__name__} for inputs {shown}: {error}"
        raise ConfigError("model", f"cannot be called: {problem}") from error
    for found in shapes:
        if len(found) != 2 or found[0] != 1 or found[1] < outputs or (exact and found[1] > outputs):
            wanted = f"must return logits for one example of shape [1, {outputs}]{'' if exact else ' or wider'}"
            raise ConfigError("model", f"{wanted}, got {list(found)}")


@functools.partial(jax.jit, static_argnums=0)  # so that it is traced once, however many runs check it
def _logits(module: nn.Module, key: Key[Array, ""], inputs: Any) -> tuple[Any, Any]:
    """The logits in evaluation, and in training."""
    params, variables = init(module, inputs, key)
    trained, _ = apply_train(module, params, variables, inputs, key)
    return apply_eval(module, params, variables, inputs), trained


def fill_padding(tree: Any, is_row: Bool[Array, " batch"]) -> Any:
    """Replace rows of padding by copies of the first rows, in turn, so that no statistic sees padding.

    Rows of padding come last. If all rows are padding, all become the first row.
    """
    count = jnp.maximum(jnp.sum(is_row, dtype=jnp.int32), 1)
    index = jnp.arange(is_row.shape[0], dtype=jnp.int32) % count
    return jax.tree.map(lambda leaf: leaf[index], tree)


def num_params(params: Any) -> int:
    """Total number of elements of the parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
