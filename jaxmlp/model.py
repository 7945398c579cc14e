"""The multilayer perceptron, and what any other flax module must offer to be trained in its place."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Final

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxmlp import layers
from jaxmlp.config import ModelConfig
from jaxmlp.errors import ConfigError
from jaxmlp.prng import Stream, stream_key

ACTIVATIONS: Final[dict[str, Callable[[Array], Array]]] = {
    "relu": nn.relu,
    "tanh": nn.tanh,
    "sigmoid": nn.sigmoid,
    "gelu": nn.gelu,
    "elu": nn.elu,
    "selu": nn.selu,
    "silu": nn.silu,
    "softplus": nn.softplus,
    "linear": lambda x: x,
}


class MLP(nn.Module):
    """Dense, activation and dropout for each hidden layer, then Dense to the logits.

    Parameters and activations are float32 whatever `dtype`, the precision of the factors of products.
    """

    hidden_sizes: tuple[int, ...]
    num_classes: int
    activation: str
    dropout_rate: float
    kernel_init: str
    dtype: str

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """The float32 logits of scaled images; with `train`, dropout draws from the `dropout` stream."""
        kernel_init = getattr(nn.initializers, self.kernel_init)()
        x = images.reshape(images.shape[0], -1)
        for size in self.hidden_sizes:
            x = layers.Dense(size, kernel_init, self.dtype)(x)
            x = ACTIVATIONS[self.activation](x)
            x = layers.Dropout(self.dropout_rate, deterministic=not train)(x)
        return layers.Dense(self.num_classes, kernel_init, self.dtype)(x)


def make_mlp(config: ModelConfig, num_classes: int, precision: str = "float32") -> MLP:
    """The MLP that `config` describes, computing in `precision`."""
    return MLP(
        hidden_sizes=config.hidden_sizes,
        num_classes=num_classes,
        activation=config.activation,
        dropout_rate=config.dropout_rate,
        kernel_init=config.kernel_init,
        dtype=precision,
    )


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
        raise ConfigError("module", f"must be hashable, but has {' and '.join(bad)}")
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


def init_params(module: nn.Module, image_shape: tuple[int, ...], key: Key[Array, ""]) -> dict[str, Any]:
    """The module's initial parameters.

    Args:
        module: Maps `images: float32 [batch, *image_shape]` to `logits [batch, classes]`.
        image_shape: Of one image, such as `(28, 28, 1)`.
        key: Of the INIT stream.

    Raises:
        ConfigError: The module keeps more than parameters (batch statistics, caches): a step would not be a
            pure function of its parameters.
    """
    variables = module.init({"params": key}, jnp.zeros((1, *image_shape)), **train_flag(module, False))
    if others := sorted(set(variables) - {"params"}):
        raise ConfigError(
            "module",
            f"must hold parameters only, got the collections {', '.join(others)} too. "
            "Replace layers such as BatchNorm by ones without running state, such as LayerNorm",
        )
    return dict(variables["params"])


def check_logits(module: nn.Module, image_shape: tuple[int, ...], num_classes: int) -> None:
    """Make sure that the module answers an image with a logit for every class at least; nothing is computed.

    Raises:
        ConfigError: It does not; or as `init_params`.
    """

    def logits_of(key: Key[Array, ""], images: Float[Array, "batch ..."]) -> Any:
        params = init_params(module, image_shape, key)
        return module.apply({"params": params}, images, **train_flag(module, False))

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    found = jax.eval_shape(logits_of, stream_key(0, Stream.INIT), images).shape
    if len(found) != 2 or found[0] != 1 or found[1] < num_classes:
        wanted = f"must give an image logits of shape [1, {num_classes}] or wider"
        raise ConfigError("module", f"{wanted}, got {list(found)}")


def train_flag(module: nn.Module, train: bool) -> dict[str, Any]:
    """`{"train": train}` for a module whose `__call__` takes it, else nothing: not every module has dropout."""
    return {"train": train} if "train" in inspect.signature(module.__call__).parameters else {}


def apply_train(
    module: nn.Module, params: Any, images: Float[Array, "batch ..."], dropout_key: Key[Array, ""]
) -> Float[Array, "batch classes"]:
    """Float32 logits in training mode."""
    rngs = {"dropout": dropout_key}
    return jnp.float32(module.apply({"params": params}, images, rngs=rngs, **train_flag(module, True)))


def apply_eval(module: nn.Module, params: Any, images: Float[Array, "batch ..."]) -> Float[Array, "batch classes"]:
    """Float32 logits with dropout off."""
    return jnp.float32(module.apply({"params": params}, images, **train_flag(module, False)))


def num_params(params: Any) -> int:
    """How many numbers the parameters are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
