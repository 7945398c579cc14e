"""Every factory of optax is an optimizer by its name, or is refused by it: the whole list of the installed optax."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refusals import assert_names, refused

from jaxmlp import SGD, ConfigError, Constant, ExperimentConfig, InverseTime, LayerRates, from_optax
from jaxmlp.cli.experiment import parse_experiment
from jaxmlp.cli.train import TrainFlags
from jaxmlp.experiment.config import as_arrays
from jaxmlp.experiment.optax_parts import optax_class, optax_names
from jaxmlp.experiment.parts import Optimizer
from jaxmlp.experiment.plain import with_value

PARAMS = {"Dense_0": {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "bias": np.ones(3, np.float32)}}
NEEDS_MORE = {
    "lbfgs": "'value', 'grad', and 'value_fn'",
    "scale_by_backtracking_linesearch": "'value', 'grad', and 'value_fn'",
    "scale_by_zoom_linesearch": "'value', 'grad', and 'value_fn'",
    "polyak_sgd": "'value'",
    "scale_by_polyak": "'value'",
    "contrib.momo": "'value'",
    "contrib.momo_adam": "'value'",
    "contrib.reduce_on_plateau": "'value'",
    "contrib.sophia": "obj_fn",
    "contrib.hutchinson_estimator_diag_hessian": "obj_fn",
    "contrib.differentially_private_aggregate": "gradient",
    "contrib.dpsgd": "gradient",
    "contrib.schedule_free_adamw": "weights",
    "contrib.schedule_free_sgd": "weights",
    "contrib.scale_by_madgrad": "rule",
    "contrib.scale_by_muon": "matrices",
    "scale_by_rprop": "rule",
    "keep_params_nonnegative": "learning rate",
}
"""What a factory of numbers lacks, for which it is refused."""
NEEDS_PARTS = {
    "apply_if_finite": "inner", "chain": "args", "conditionally_mask": "inner", "conditionally_transform": "inner",
    "flatten": "inner", "freeze": "mask", "inject_hyperparams": "inner_factory",
    "inject_stateful_hyperparams": "inner_factory", "lookahead": "fast_optimizer", "masked": "inner",
    "measure_with_ema": "measure", "multi_transform": "transforms", "named_chain": "args", "partition": "transforms",
    "scale_by_schedule": "step_size_fn", "selective_transform": "optimizer", "snapshot": "measure_name",
    "stateless": "f", "stateless_with_tree_map": "f", "with_extra_args_support": "tx", "contrib.mechanize":
    "base_optimizer", "contrib.sam": "optimizer", "contrib.schedule_free": "base_optimizer",
    "contrib.split_real_and_imaginary": "inner",
}  # fmt: skip
"""The argument for which a factory is refused."""
ROUNDED = 5e-5
"""Of the largest update: float32's `1 - b2` is off by 5e-5 of itself, of which a root takes half; 2.4e-5 was seen."""


def says_transformation(name: str) -> bool:
    module = optax.contrib if "contrib" in name else optax
    return "GradientTransformation" in str(getattr(module, name.rpartition(".")[2]).__annotations__.get("return"))


def test_every_factory_of_the_installed_optax_is_served_or_refused_with_its_reason() -> None:
    reasons = {}
    for name in optax_names():
        try:
            optax_class(name)
        except ConfigError as error:
            reasons[name.removeprefix("optax.")] = str(error)
    is_factory = {name.removeprefix("optax.") for name in optax_names() if says_transformation(name)}
    wanted = NEEDS_MORE | NEEDS_PARTS
    assert is_factory & reasons.keys() == wanted.keys() & is_factory
    for name, why in wanted.items():
        assert_names(reasons[name], why)
    assert len(optax_names()) - len(reasons) > 80
    with refused(ConfigError, "optimizer", "optax.lionn", "optax.lion"):
        from_optax("optax.lionn")
    with refused(ConfigError, "optimizer.beta1", "optax.lion"):
        from_optax("optax.lion", beta1=0.9)


def served() -> list[str]:
    names = [name for name in optax_names() if name.removeprefix("optax.") not in {**NEEDS_MORE, **NEEDS_PARTS}]
    return [name for name in names if says_transformation(name) or name.rpartition(".")[2] in ("dog", "dowg")]


def gradients(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf - 0.3, params)


def plain_optax(part: Any) -> Any:
    """What a user of optax would write for these values, with Python's numbers."""
    module = optax.contrib if "contrib" in part.kind else optax
    factory = getattr(module, part.kind.rpartition(".")[2])
    values = {item.name: getattr(part, item.name) for item in dataclasses.fields(part) if item.name != "schedule"}
    values = {name: value for name, value in values.items() if not name.endswith("mask") and value is not None}
    rate = values.pop("learning_rate")
    if "learning_rate" in factory.__annotations__ or part.kind.endswith(("dog", "dowg")):
        return factory(**values, learning_rate=rate)
    return optax.chain(factory(**values), optax.scale_by_learning_rate(rate))


def trajectory(optimizer: Any) -> np.ndarray[Any, Any]:
    """The updates of two steps, op by op: far fewer programs to compile than one a factory."""
    params: Any = jax.tree.map(jnp.asarray, PARAMS)
    state, found = optimizer.init(params), []
    for _ in range(2):
        updates, state = optimizer.update(gradients(params), state, params)
        params = optax.apply_updates(params, updates)
        found += [np.ravel(leaf) for leaf in jax.tree.leaves(updates)]
    return np.concatenate(found)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_every_factory_by_name_is_plain_optax_and_one_trace_serves_all_its_numbers() -> None:
    """The same bits where every number is float32's as it is Python's, else the same but for roundings."""
    same = set()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for name in served():
            part = from_optax(name)
            assert ExperimentConfig.from_json(ExperimentConfig(optimizer=part).to_json()).optimizer == part
            traced = as_arrays(part)
            traces: list[Any] = []

            @jax.jit
            def step(part: Any, params: Any, traces: list[Any] = traces) -> Any:
                traces.append(part)
                optimizer = part.transformation(100)
                return optimizer.update(params, optimizer.init(params), params)

            for scale in (0.5, 1):
                step.trace(jax.tree.map(lambda number: number * number.dtype.type(scale), traced), PARAMS)  # noqa: B023
            assert len(traces) == 1, name
            found, expected = trajectory(traced.transformation(100)), trajectory(plain_optax(part))
            largest = np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=ROUNDED, atol=ROUNDED * largest, err_msg=name)
            if found.tobytes() == expected.tobytes():
                same.add(name.removeprefix("optax."))
    assert same >= {"sgd", "lion", "adagrad", "signum", "lars"}


def test_a_flag_names_a_factory_and_its_arguments_are_flags_and_values_of_a_sweep() -> None:
    words = ["quickstart", "--optimizer", "optax.lion", "--optimizer.b1", "0.8", "--optimizer.mask", "*/kernel"]
    _, config = parse_experiment(TrainFlags, words, "train")
    assert config.optimizer == from_optax("optax.lion", b1=0.8, mask="*/kernel")
    lanes = [with_value(config, "optimizer.b1", value).on_data(10, 1) for value in (0.1, 0.2)]
    structures: list[Any] = [jax.tree.structure(lane) for lane in lanes]
    assert structures[0] == structures[1]
    assert eval(repr(config.optimizer), {"from_optax": from_optax, "Constant": Constant}) == (config.optimizer)
    with refused(ConfigError, "optimizer.b1", "x"):
        parse_experiment(TrainFlags, [*words[:3], "--optimizer.b1", "x"], "train")


def updates_of(optimizer: Optimizer, grads: Any) -> Any:
    rule = as_arrays(optimizer).transformation(100)
    with jax.numpy_dtype_promotion("standard"):
        return rule.update(grads, rule.init(PARAMS), PARAMS)[0]


def test_a_mask_by_pattern_says_which_parameters_decay() -> None:
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    decayed = updates_of(from_optax("optax.adamw", weight_decay=0.1, mask="*/kernel", learning_rate=1.0), zeros)
    np.testing.assert_allclose(decayed["Dense_0"]["kernel"], -0.1 * PARAMS["Dense_0"]["kernel"], rtol=1e-6)
    assert not decayed["Dense_0"]["bias"].any()
    with refused(ConfigError, "optimizer", "Conv*", "Dense_0/bias", "Dense_0/kernel"):
        updates_of(from_optax("optax.adamw", mask="Conv*"), zeros)


def test_a_layer_has_a_rate_of_its_own_and_the_first_pattern_holds() -> None:
    rates = LayerRates(
        optimizer=SGD(learning_rate=0.5, schedule=InverseTime(decay=0.5)),
        patterns=("*/bias", "Dense_0/*"),
        factors=(0.0, 0.25),
    )
    found = updates_of(rates, PARAMS)
    assert not found["Dense_0"]["bias"].any()
    np.testing.assert_array_equal(
        found["Dense_0"]["kernel"], updates_of(SGD(learning_rate=0.125), PARAMS)["Dense_0"]["kernel"]
    )
    assert float(rates.rate(10)(2)) == 0.25
    with refused(ConfigError, "optimizer.factors", 2, 1):
        LayerRates(patterns=("*/bias", "*"), factors=(0.0,))
