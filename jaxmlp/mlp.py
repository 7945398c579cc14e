"""The model that ships: the multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmlp import layers
from jaxmlp.errors import ConfigError
from jaxmlp.fields import named, optional, ranged
from jaxmlp.parts import Model

MAX_LAYERS = 1000
"""Hidden layers that a model may have: tracing more would take hours."""

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
INITIALISERS: Final[dict[str, Callable[..., Any]]] = {
    name: getattr(nn.initializers, name)()
    for name in ("glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform", "lecun_normal")
}


class MLP(Model):
    """A multilayer perceptron: Dense, activation and dropout for each hidden layer, then Dense to the outputs."""

    kind: ClassVar[str] = "mlp"

    hidden_sizes: tuple[int, ...] = ranged((512, 512), "[1, 1000000]")
    """Units of each hidden layer."""
    activation: str | Callable[[Any], Any] = named("relu", ACTIVATIONS)
    """Function after each hidden layer, or its name."""
    dropout_rate: float = ranged(0.2, "[0, 1)")
    """Fraction of units dropped after each hidden layer."""
    kernel_init: str | Callable[..., Any] = named("glorot_uniform", INITIALISERS)
    """Distribution of the initial kernels, or an initialiser (key, shape, dtype) -> kernel; biases start at zero."""
    batch_norm: bool = optional(False)
    """Normalise each hidden layer before its activation: (x - mean) / sqrt(variance + 0.001), scaled and moved.

    Mean and variance are of a gradient shard's rows in training; in evaluation, running means that keep 0.99 an update.
    Source: Keras 3, `BatchNormalization`.
    """
    l1: float = ranged(0.0, "[0, inf)")
    """Adds l1 * sum(|w|) over all kernels to the loss."""
    l2: float = ranged(0.0, "[0, inf)")
    """Adds l2 * sum(w^2) over all kernels to the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.hidden_sizes) > MAX_LAYERS:
            raise ConfigError(
                "model.hidden_sizes", f"must be of at most {MAX_LAYERS} layers, got {len(self.hidden_sizes)}"
            )

    def module(self, outputs: int, precision: str) -> nn.Module:
        """The network, computing in `precision`."""
        return MLPModule(
            hidden_sizes=self.hidden_sizes,
            outputs=outputs,
            activation=ACTIVATIONS[self.activation] if isinstance(self.activation, str) else self.activation,
            dropout_rate=self.dropout_rate,
            kernel_init=INITIALISERS[self.kernel_init] if isinstance(self.kernel_init, str) else self.kernel_init,
            dtype=precision,
            batch_norm=self.batch_norm,
        )

    def penalty(self, params: Any) -> Float[Array, ""] | None:
        """l1 * sum(|w|) + l2 * sum(w^2) over all leaves named `kernel`. Source: Keras's `kernel_regularizer`."""
        if not self.l1 and not self.l2:
            return None
        leaves = jax.tree_util.tree_leaves_with_path(params)
        kernels = [leaf for path, leaf in leaves if path[-1] == jax.tree_util.DictKey("kernel")]
        return sum(
            (self.l1 * jnp.sum(jnp.abs(w)) + self.l2 * jnp.sum(jnp.square(w)) for w in kernels), start=jnp.float32(0)
        )


class MLPModule(nn.Module):
    """The MLP in flax.

    Parameters and activations are float32 whatever `dtype`, the precision of the factors of products.
    """

    hidden_sizes: tuple[int, ...]
    outputs: int
    activation: Callable[[Any], Any]
    dropout_rate: float
    kernel_init: Callable[..., Any]
    dtype: str
    batch_norm: bool = False

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch ..."], *, train: bool = False) -> Float[Array, "batch outputs"]:
        """The float32 logits of scaled inputs; with `train`, dropout draws from the `dropout` stream."""
        x = inputs.reshape(inputs.shape[0], -1)
        for size in self.hidden_sizes:
            x = layers.Dense(size, self.kernel_init, self.dtype)(x)
            if self.batch_norm:
                x = nn.BatchNorm(use_running_average=not train, epsilon=1e-3)(x)
            x = self.activation(x)
            x = layers.Dropout(self.dropout_rate, deterministic=not train)(x)
        return layers.Dense(self.outputs, self.kernel_init, self.dtype)(x)
