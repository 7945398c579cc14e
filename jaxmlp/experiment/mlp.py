"""Which model ships? The multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmlp import layers
from jaxmlp.errors import ConfigError
from jaxmlp.experiment.fields import named, optional, ranged
from jaxmlp.experiment.parts import Model

MAX_LAYERS = 1000
"""Largest number of hidden layers. More would take hours to trace."""

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
    """Number of units in each hidden layer."""
    activation: str | Callable[[Any], Any] = named("relu", ACTIVATIONS)
    """Activation after each hidden layer: a function or the name of a function."""
    dropout_rate: float = ranged(0.2, "[0, 1)")
    """Fraction of units dropped after each hidden layer."""
    kernel_init: str | Callable[..., Any] = named("glorot_uniform", INITIALISERS)
    """Distribution of the initial kernels, or an initialiser (key, shape, dtype) -> kernel. Biases start at zero."""
    batch_norm: bool = optional(False)
    """Whether each hidden layer is normalised before its activation.

    The rule is (x - mean) / sqrt(variance + 0.001), then a trained scale and shift. In training, mean and variance are
    taken over a gradient shard's rows. In evaluation they are running means with momentum 0.99 per update. Source:
    Keras 3, `BatchNormalization`.
    """
    l1: float = ranged(0.0, "[0, inf)")
    """Factor of the L1 penalty: l1 * sum(|w|) over all kernels is added to the loss."""
    l2: float = ranged(0.0, "[0, inf)")
    """Factor of the L2 penalty: l2 * sum(w^2) over all kernels is added to the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.hidden_sizes) > MAX_LAYERS:
            raise ConfigError(
                "model.hidden_sizes", f"must have at most {MAX_LAYERS} layers, got {len(self.hidden_sizes)}"
            )

    def module(self, outputs: int, precision: str) -> nn.Module:
        """The flax module, whose matrix products are computed in `precision`."""
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
        """l1 * sum(|w|) + l2 * sum(w^2) over all leaves named `kernel`. Source: Keras, `kernel_regularizer`."""
        if not self.l1 and not self.l2:
            return None
        leaves = jax.tree_util.tree_leaves_with_path(params)
        kernels = [leaf for path, leaf in leaves if path[-1] == jax.tree_util.DictKey("kernel")]
        return sum(
            (self.l1 * jnp.sum(jnp.abs(w)) + self.l2 * jnp.sum(jnp.square(w)) for w in kernels), start=jnp.float32(0)
        )


class MLPModule(nn.Module):
    """The MLP as a flax module.

    `dtype` is the type of the factors of matrix products. Parameters and activations are always float32.
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
        """The logits of scaled inputs, float32. With `train`, dropout draws from the `dropout` stream."""
        x = inputs.reshape(inputs.shape[0], -1)
        for size in self.hidden_sizes:
            x = layers.Dense(size, self.kernel_init, self.dtype)(x)
            if self.batch_norm:
                x = nn.BatchNorm(use_running_average=not train, epsilon=1e-3)(x)
            x = self.activation(x)
            x = layers.Dropout(self.dropout_rate, deterministic=not train)(x)
        return layers.Dense(self.outputs, self.kernel_init, self.dtype)(x)
