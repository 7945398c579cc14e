"""What a run's program promises, held on the program that an accelerator would run: none is needed, its compiler is.

`make test-tpu-programs` runs this for TPUs, `make test-targets` for GPUs.
"""

from __future__ import annotations

import math
import os
from functools import cache
from typing import Any

import pytest
from planted import called_back, compiled, gathered, rules, summed

from jaxmlp import MLP, SGD, ExperimentConfig
from jaxmlp.compile import count, promises
from jaxmlp.compile.program import Examples, Program, training
from jaxmlp.compile.report import Compiled, compile_for
from jaxmlp.compile.targets import CHIPS, Target

CASES = {
    "tpu": [
        ("tpu-v4:2x2x1", 1), ("tpu-v5e:2x2", 1), ("tpu-v6e:2x2", 1), ("tpu-v5p:2x2x1", 1),
        ("tpu-v4:2x2x1", 4), ("tpu-v5e:2x2", 4), ("tpu-v6e:2x4", 8), ("tpu-v5p:4x4x4", 64), ("tpu-v5e:16x16", 256),
    ],
    "gpu": [("h100", 1), ("h200", 1), ("b200", 1), ("h100", 4), ("h100", 8), ("h100", 64), ("h100", 256)],
}  # fmt: skip
PLATFORM = os.environ.get("JAXMLP_TEST_TARGETS", "tpu")
KERNELS = {"tpu": 30, "gpu": 40}
"""At most in an update on one device."""
MANY_GATHER = {"tpu": "all-reduce", "gpu": "all-gather"}[PLATFORM]
"""What an all-gather of 64 devices is compiled to."""

pytestmark = pytest.mark.targets


@cache
def program(target: str, devices: int) -> tuple[Program, Compiled]:
    """A run's program: an MLP with dropout, momentum, and all shards that the devices need."""
    config = ExperimentConfig(
        model=MLP(hidden_sizes=(128, 128), dropout_rate=0.2),
        optimizer=SGD(momentum=0.9),
        batch_size=2 * max(devices, 32),
        grad_shards=devices,
    )
    chosen = Target.of(target)
    traced = training(config, Examples.of(config.data), chosen.devices(devices, devices))
    return traced, compile_for(chosen, traced)


@pytest.mark.skipif(PLATFORM != "tpu", reason="GPUs are counted")
@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if chip.platform == "tpu"])
def test_a_device_is_a_whole_chip_as_the_data_sheets_figures_are(name: str) -> None:
    target = Target.of(name)
    assert len(target.devices(None, 2**16)) == math.prod(map(int, target.topology.split("x")))


@pytest.mark.parametrize(("target", "devices"), CASES[PLATFORM])
def test_the_program_of_a_run_keeps_its_promises(target: str, devices: int) -> None:
    traced, found = program(target, devices)
    assert found.reading.loop
    assert promises.findings(found.reading, traced.donated) == []
    messages = [each.op for each in found.reading.collectives]
    assert messages == (["all-to-all", MANY_GATHER if devices >= 64 else "all-gather"] if devices > 1 else [])


@pytest.mark.parametrize("target", sorted({target for target, devices in CASES[PLATFORM] if devices == 1}))
def test_an_update_is_few_kernels_and_is_counted_as_the_compiler_has_it(target: str) -> None:
    traced, found = program(target, 1)
    assert list(promises.few_kernels(found.reading, KERNELS[PLATFORM])) == []
    assert count.products(traced) == found.reading.flops
    counted = count.memory(traced, Target.of(target).chip.platform)
    assert counted.arguments == pytest.approx(found.memory.arguments, rel=0.01)
    assert counted.without_code == pytest.approx(found.memory.without_code, rel=0.1)


PLANTED: list[tuple[Any, dict[str, Any], list[str]]] = [
    (gathered, {}, []),
    (summed, {}, ["no_float_sum"]),
    (gathered, {"donate": False}, ["donated"]),
    (gathered, {"length": None}, ["known_length"]),
]
if PLATFORM == "tpu":  # JAX lowers no callback for a GPU without one.
    PLANTED.append((called_back, {"devices": 1}, ["nothing_hosted"]))


@pytest.mark.parametrize(("body", "how", "broken"), PLANTED)
def test_what_is_planted_is_found(body: Any, how: dict[str, Any], broken: list[str]) -> None:
    target = Target.of({"tpu": "tpu-v5e:2x2", "gpu": "h100"}[PLATFORM])
    devices = target.devices(how.get("devices", 4), 4)
    found = compiled(body, devices, **{name: value for name, value in how.items() if name != "devices"})
    assert sorted({*rules(found)} - {"nothing_wide"}) == broken
