"""Any flax module as the step sees it: variables from a key, logits from variables and inputs, in both modes.

A module says by the parameters of its `__call__` how it is told that it trains. A module that keeps statistics, such
as BatchNorm's, keeps them in collections beside its parameters: here, its `variables`.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Final, NamedTuple

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
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
"""Parameters of `__call__` by which modules are told the mode, and the value that each has in training."""
SUSPICIOUS = ("train", "eval", "infer", "determin", "dropout", "running")
"""Parts of other names that may mean the mode: refused, because an ignored one would turn dropout off in silence."""


class Initial(NamedTuple):
    """What a module starts from."""

    params: dict[str, Any]
    variables: dict[str, Any]
    """The other collections by name; empty for most modules."""


def hashable(module: nn.Module) -> nn.Module:
    """The module, with tuples for its lists and frozen dicts for its dicts: compiled programs are found by its hash.

    Raises:
        ConfigError: It has something else that has no hash.
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
    """The keyword arguments that tell the module whether it trains; none for a module without such a parameter.

    Raises:
        ConfigError: A parameter that may mean the mode under a name that is not known, or one without a default.
    """
    call = module.nnx_class.__call__ if isinstance(module, nnx.bridge.ToLinen) else module.__call__
    names = [name for name in inspect.signature(call).parameters if name != "self"][1:]
    known = {name: train is TRAIN_FLAGS[name] for name in names if name in TRAIN_FLAGS}
    for name, parameter in inspect.signature(call).parameters.items():
        is_variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if name not in names or name in known or is_variadic:
            continue
        if parameter.default is parameter.empty or any(word in name.lower() for word in SUSPICIOUS):
            raise ConfigError(
                "model",
                f"must be a module of one input whose mode is one of {', '.join(TRAIN_FLAGS)}, "
                f"but {type(module).__name__}.__call__ takes {name}. Rename it, or wrap the module",
            )
    return known


def init(module: nn.Module, inputs: Any, key: Key[Array, ""]) -> Initial:
    """The module's initial parameters and other variables.

    Args:
        module: Maps inputs `[batch, ...]` to logits.
        inputs: An array of one example, or a tree of them, for its shapes.
        key: Of the INIT stream.
    """
    variables = dict(flax.core.unfreeze(module.init({"params": key}, inputs, **mode(module, False))))
    params = dict(variables.pop("params", {}))
    for name in ("intermediates", "losses", "perturbations"):  # Not state: flax makes them anew in each call.
        variables.pop(name, None)
    return Initial(params, {name: found for name, found in variables.items() if jax.tree.leaves(found)})


def apply_train(
    module: nn.Module, params: Any, variables: dict[str, Any], inputs: Any, dropout_key: Key[Array, ""]
) -> tuple[Float[Array, "batch outputs"], dict[str, Any]]:
    """Float32 logits in training mode, and the variables after the call."""
    given, rngs = {"params": params, **variables}, {"dropout": dropout_key}
    if not variables:
        return jnp.float32(module.apply(given, inputs, rngs=rngs, **mode(module, True))), variables
    logits, updated = module.apply(given, inputs, rngs=rngs, mutable=list(variables), **mode(module, True))
    return jnp.float32(logits), dict(flax.core.unfreeze(updated))


def apply_eval(module: nn.Module, params: Any, variables: dict[str, Any], inputs: Any) -> Float[Array, "batch outputs"]:
    """Float32 logits with dropout off and kept statistics."""
    return jnp.float32(module.apply({"params": params, **variables}, inputs, **mode(module, False)))


def check_outputs(module: nn.Module, inputs: Any, outputs: int) -> None:
    """Make sure that the module answers an example with `outputs` numbers at least; nothing is computed.

    Args:
        module: The module.
        inputs: Shapes of one example as the module takes it, `[1, ...]` or a tree of them.
        outputs: Number of classes, or of numbers in a target.

    Raises:
        ConfigError: It does not, or it cannot be called with such inputs.
    """

    def logits_of(key: Key[Array, ""], inputs: Any) -> tuple[Any, Any]:
        params, variables = init(module, inputs, key)
        trained, _ = apply_train(module, params, variables, inputs, key)
        return apply_eval(module, params, variables, inputs), trained

    key = jax.eval_shape(root_key, 0)
    try:
        shapes = [found.shape for found in jax.eval_shape(logits_of, key, inputs)]
    except ConfigError:
        raise
    except Exception as error:
        shown = jax.tree.map(lambda leaf: f"{leaf.dtype.name}{list(leaf.shape)}", inputs)
        problem = f"{type(module).__name__} raised {type(error).__name__} for inputs {shown}: {error}"
        raise ConfigError("model", f"cannot be called: {problem}") from error
    for found in shapes:
        if len(found) != 2 or found[0] != 1 or found[1] < outputs:
            wanted = f"must give an example logits of shape [1, {outputs}] or wider"
            raise ConfigError("model", f"{wanted}, got {list(found)}")


def own_rows(tree: Any, is_row: Bool[Array, " batch"]) -> Any:
    """The tree with its rows of padding replaced by its first rows, in turn, so that no statistic sees the padding.

    Rows of padding come last. With no row at all, all are the first one.
    """
    count = jnp.maximum(jnp.sum(is_row, dtype=jnp.int32), 1)
    index = jnp.arange(is_row.shape[0], dtype=jnp.int32) % count
    return jax.tree.map(lambda leaf: leaf[index], tree)


def num_params(params: Any) -> int:
    """How many numbers the parameters are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
