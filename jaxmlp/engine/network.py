"""What is a network made of, and what does a step cost? The program is traced, never run."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.interpreters.partial_eval import dce_jaxpr

from jaxmlp import data, modules, train
from jaxmlp.data.official import SOURCES
from jaxmlp.errors import ConfigError
from jaxmlp.experiment.config import DataConfig, ExperimentConfig
from jaxmlp.experiment.parts import PlainObject
from jaxmlp.experiment.plain import where
from jaxmlp.prng import root_key

_Path = tuple[str, ...]
"""Names of the modules from the outermost to an inner module."""

MNIST = data.Facts(data.ArrayFacts("uint8", (28, 28, 1)), data.ArrayFacts("int32", ()), 10)
"""The shapes of an example of MNIST."""


class Layer(NamedTuple):
    """A layer of the network, as a row of the table."""

    name: str
    type: str
    output_shape: tuple[int, ...]
    """Shape of the output for one example."""
    params: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """An experiment's network and its costs. `str()` is the table that Keras prints, followed by the costs."""

    name: str
    layers: tuple[Layer, ...]
    params: int
    """Number of trained parameters."""
    variables: int
    """Number of other values that the module keeps, such as BatchNorm's statistics."""
    batch_size: int
    flops_per_step: int
    """FLOPs of the matrix products and convolutions of one update on a full batch, forward and backward."""
    flops_per_evaluation: int
    """FLOPs of the matrix products and convolutions of evaluating a full batch."""
    params_bytes: int
    opt_state_bytes: int
    activations_bytes: int
    """Bytes of the innermost layers' outputs for a full batch. A layer inside a loop counts once."""

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return f"<pre>{html.escape(str(self))}</pre>"

    def __str__(self) -> str:
        rows = [("Layer (type)", "Output Shape", "Param #")]
        for layer in self.layers:
            shape = f"({', '.join(map(str, (None, *layer.output_shape)))})"
            rows.append((f"{layer.name} ({layer.type})", shape, str(layer.params)))
        first, second = (2 + max(len(row[column]) for row in rows) for column in (0, 1))
        first, second = max(first, 29), max(second, 26)
        width = first + second + 10
        head, *body = (f"{name:{first}}{shape:{second}}{params}" for name, shape, params in rows)
        return "\n".join(
            [
                f'Model: "{self.name}"',
                "_" * width,
                head,
                "=" * width,
                f"\n{'_' * width}\n".join(body),
                "=" * width,
                f"Total params: {self.params + self.variables:,}",
                f"Trainable params: {self.params:,}",
                f"Non-trainable params: {self.variables:,}",
                "_" * width,
                f"FLOPs per step of {self.batch_size}: {self.flops_per_step:,}",
                f"Bytes: parameters {self.params_bytes:,}, optimizer state {self.opt_state_bytes:,}, "
                f"activations {self.activations_bytes:,}",
            ]
        )


def summary(config: ExperimentConfig, facts: data.Facts | None = None) -> Summary:
    """The network that `fit(config)` would train, and its costs.

    Args:
        config: The experiment.
        facts: Shapes of an example. Default: MNIST's.

    Raises:
        ConfigError: The network does not fit the example, or `config` is not an `ExperimentConfig`.
    """
    if not isinstance(config, ExperimentConfig):
        wanted = "must be an ExperimentConfig. For a run: summary(load_model(RUN).config)"
        raise ConfigError("config", f"{wanted}; got {type(config).__name__}")
    facts = facts or MNIST
    check_network(config, facts)
    # Counts the network as written, whatever arithmetic computes it.
    on_data = config.without_precision().on_data(facts.outputs, 1)
    rows = config.batch_size
    inputs, one = facts.zeros(rows).inputs, train.DeviceSplit.of(facts.zeros(1))
    split = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), one)
    order = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
    state: train.TrainState = jax.eval_shape(train.init_state, on_data, inputs)
    zero = train.zero_sums(on_data, state, split)
    # The loop over an epoch's updates. Its body is counted once.
    jaxpr = jax.make_jaxpr(train.train_steps)(on_data, state, zero, split, order, 0, 1)

    def evaluate(state: train.TrainState, inputs: Any) -> Any:
        return modules.apply_eval(on_data.module(), state.params, state.variables, train.scaled(on_data, inputs))

    outputs = _outputs(on_data.module(), state, jax.eval_shape(partial(train.scaled, on_data), inputs))
    innermost = [path for path in outputs if not any(other[: len(path)] == path != other for other in outputs)]
    return Summary(
        name=config.name,
        layers=_layers(outputs, state),
        params=modules.num_params(state.params),
        variables=modules.num_params(state.variables),
        batch_size=config.batch_size,
        flops_per_step=flops(jaxpr),
        flops_per_evaluation=flops(jax.make_jaxpr(evaluate)(state, inputs)),
        params_bytes=_bytes(state.params),
        opt_state_bytes=_bytes(state.opt_state),
        activations_bytes=sum(_bytes(outputs[path][1]) for path in innermost),
    )


def facts_of(config: DataConfig) -> data.Facts:
    """The shapes of an example. For MNIST and its variants, the data need not be present.

    Raises:
        ConfigError: The data set is unknown.
        DataError: The data set cannot be read.
    """
    if config.name in SOURCES:
        source = SOURCES[config.name]
        shape = (*source.files[0].shape[1:], 1)
        return MNIST._replace(inputs=data.ArrayFacts("uint8", shape), outputs=source.num_classes)
    return data.load(config).facts


def check_network(config: ExperimentConfig, facts: data.Facts) -> None:
    """Check that network, loss and metrics fit an example and its target. Nothing is computed.

    Raises:
        ConfigError: They do not fit.
    """
    module = modules.hashable(config.model.module(facts.outputs, config.factors))
    example = jax.eval_shape(partial(train.scaled, config), facts.zeros(1).inputs)
    modules.check_outputs(module, example, facts.outputs, exact=not facts.classes)
    if not facts.classes:
        for path, part in (("loss", config.loss), *(("metrics", metric) for metric in config.metrics)):
            if getattr(part, "needs_classes", False):
                instead = "MeanSquaredError()" if path == "loss" else "(MeanAbsoluteError(),), or ()"
                problem = f"cannot be {where(part)}: the targets are numbers, but it needs classes"
                raise ConfigError(path, f"{problem}. Set {path}={instead}")
    logits, targets = np.zeros((2, facts.outputs), np.float32), facts.zeros(2).targets
    _check_rows("loss", config.loss, logits, targets)
    for metric in config.metrics:
        _check_rows("metrics", metric.of_examples, logits, targets)
    one: Any = example, targets[:1], np.ones(1, np.float32)
    batch, key = train.Batch(*one), jax.eval_shape(root_key, 0)
    for number, augment in enumerate(config.augmentation):
        if isinstance(augment, PlainObject):
            changed = _tried(f"augmentation.{number}", "a key and a Batch", augment, key, batch)
            if not isinstance(changed, train.Batch):
                raise ConfigError(f"augmentation.{number}", f"must return a Batch, got {type(changed).__name__}")
    if isinstance(config.optimizer, PlainObject):
        params, _ = jax.eval_shape(partial(modules.init, module), example, key)
        rule = config.optimizer.transformation(1)
        given = "only gradients, its state and the parameters"
        _tried("optimizer", given, lambda params: rule.update(params, rule.init(params), params), params)


def _check_rows(path: str, function: Any, logits: Any, targets: Any) -> None:
    """Check that a metric returns a row for each of two examples, and a loss one number each."""
    given = f"logits {list(logits.shape)} and targets {targets.dtype}{list(targets.shape)}"
    shapes = [leaf.shape for leaf in jax.tree.leaves(_tried(path, given, function, logits, targets))]
    if any(shape[:1] != (2,) for shape in shapes) or (path == "loss" and shapes != [(2,)]):
        raise ConfigError(path, f"must return one number for each example: shape [2] for two examples, got {shapes}")


def _tried(path: str, given: str, function: Any, *arguments: Any) -> Any:
    """The shapes of a function's result."""
    try:
        return jax.eval_shape(function, *arguments)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(path, f"cannot be called with {given}: {type(error).__name__}: {error}") from error


def _outputs(module: nn.Module, state: train.TrainState, inputs: Any) -> dict[_Path, tuple[str, Any]]:
    """Type and output of every inner module, by path, in the order of first calls."""
    found: dict[_Path, tuple[str, Any]] = {}
    nnx_paths: dict[int, _Path] = {}
    bridges: list[_Path] = []

    def record(call: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(module, nnx.bridge.ToLinen):
            bridges.append(module.path)
        if isinstance(module, nn.Module):
            path = module.path
        else:
            if id(module) not in nnx_paths:  # The bridge's own module: it is called before its inner modules.
                inside = nnx.iter_modules(module)
                nnx_paths.update((id(each), (*bridges[-1], *map(str, below))) for below, each in inside)
            path = nnx_paths[id(module)]
        if path:
            found.setdefault(path, (type(module).__name__, None))
        output = call(*args, **kwargs)
        if path:
            found[path] = (type(module).__name__, jax.tree.map(jax.typeof, output))
        return output

    with modules.intercept(record):
        jax.eval_shape(partial(modules.apply_eval, module), state.params, state.variables, inputs)
    return found


def _layers(outputs: dict[_Path, tuple[str, Any]], state: train.TrainState) -> tuple[Layer, ...]:
    """The direct inner modules, each with all numbers below it, and what the outer module holds itself."""
    trees = [state.params, *state.variables.values()]
    layers = []
    for path, (kind, output) in outputs.items():
        if len(path) == 1:
            shape = jax.tree.leaves(output)[-1].shape[1:]
            layers.append(Layer(path[0], kind, shape, sum(modules.num_params(tree.get(path[0], {})) for tree in trees)))
    others = modules.num_params(trees) - sum(layer.params for layer in layers)
    return (*layers, Layer("(its own)", "Module", (), others)) if others else tuple(layers)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def flops(jaxpr: Any) -> int:
    """Multiplications and additions of all products that the result depends on.

    A loop's body counts once per iteration, or once if the number of iterations is unknown. Of several branches, the
    most expensive counts; of branches for platforms, the default.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return sum(_equation_flops(equation) for equation in used.eqns)


def _equation_flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    outputs: int = sum(output.aval.size for output in equation.outvars)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * outputs * math.prod(int(equation.invars[0].aval.shape[axis]) for axis in contracted)
    if name == "conv_general_dilated":
        kernel: tuple[int, ...] = equation.invars[1].aval.shape
        # A transposed convolution inserts zeros between its inputs; products with those zeros do not count.
        spread = int(kernel[params["dimension_numbers"].rhs_spec[0]]) * math.prod(params["lhs_dilation"])
        return int(2 * outputs * math.prod(kernel) // spread)
    inner = [flops(leaf) for leaf in jax.tree.leaves(params, is_leaf=_is_jaxpr) if _is_jaxpr(leaf)]
    if name == "cond":
        platforms = params.get("branches_platforms") or ()
        return inner[platforms.index(None)] if None in platforms else max(inner)
    return int(params.get("length", 1)) * sum(inner)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")
