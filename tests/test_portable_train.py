"""Training in portable precision: runs on other devices, in lanes and elsewhere, and what binds them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import pytest
from jax import lax
from refusals import refused

from jaxmlp import MLP, SGD, Adam, ConfigError, ExperimentConfig, data, fit, shards
from jaxmlp.proof.reproduce import reproduce
from jaxmlp.run.fingerprint import program_sha256
from jaxmlp.sweep import sweep

CONFIG = ExperimentConfig(
    model=MLP(hidden_sizes=(8,), dropout_rate=0.3),
    optimizer=SGD(learning_rate=0.1, momentum=0.9, nesterov=True),
    batch_size=64,
    epochs=2,
    grad_shards=4,
    precision="portable",
)


@pytest.fixture(scope="module")
def run(small_dataset: data.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in portable precision, trained on one device: it learns what float32 learns."""
    path = tmp_path_factory.mktemp("portable") / "run"
    history = fit(CONFIG, small_dataset, out=path, devices=1)
    plain = fit(dataclasses.replace(CONFIG, precision="float32"), small_dataset, devices=1)
    assert history.test_loss and plain.test_loss and abs(history.test_loss - plain.test_loss) < 1e-3
    return path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_portable_run_binds_its_program_and_no_platform(run: Path, small_dataset: data.Dataset) -> None:
    facts = json.loads((run / "manifest.json").read_text())
    random = {"prng", "threefry_partitionable", "random_seed_offset"}
    assert facts["binding"].keys() == {"config_sha256", "data_sha256", "program_sha256"} | random
    assert {"jax", "jaxlib", "flax", "optax", "xla_flags", "isa", "device_kind"} <= facts["not_binding"].keys()

    def program(config: ExperimentConfig = CONFIG, **changes: Any) -> str:
        return program_sha256([dataclasses.replace(config, **changes)], small_dataset)

    assert facts["binding"]["program_sha256"] == program()
    assert program() == program(seed=7, optimizer=SGD(learning_rate=0.2, momentum=0.8, nesterov=True))
    others = [program(**change) for change in ({"batch_size": 32}, {"optimizer": SGD()}, {"optimizer": Adam()})]
    assert len({program(), *others}) == 4


def test_a_portable_run_has_the_same_bits_on_other_devices_in_lanes_and_on_other_platforms(
    run: Path, small_dataset: data.Dataset
) -> None:
    manifest = run / "manifest.json"
    text, isa = manifest.read_text(), json.loads(manifest.read_text())["not_binding"]["isa"]
    devices = len(shards.pick_devices(4, 2))
    assert (found := reproduce(run, small_dataset, devices=devices)).same and found.level == "L3"
    change(manifest, isa, "another")
    assert (found := reproduce(run, small_dataset, devices=1)).same and found.level == "L5"
    manifest.write_text(text)
    params_sha256 = json.loads(text)["result"]["params_sha256"]
    lanes = sweep(CONFIG, small_dataset, seeds=range(2), batching="vmap")
    assert lanes.lanes[0].params_sha256 == params_sha256 != lanes.lanes[1].params_sha256


def test_other_bits_are_a_failure_on_any_platform_but_not_of_another_program(
    run: Path, small_dataset: data.Dataset
) -> None:
    manifest, digests = run / "manifest.json", run / "digests.jsonl"
    binding = json.loads(manifest.read_text())["binding"]
    first = json.loads(digests.read_text().splitlines()[0])
    change(digests, first["params_sha256"], "0" * 64)
    change(manifest, '"isa": "', '"isa": "another-')
    found = reproduce(run, small_dataset, devices=1)
    assert (found.level, found.same) == ("L5", False)
    change(manifest, binding["program_sha256"], "1" * 64)
    assert reproduce(run, small_dataset, devices=1).same is None


def test_what_has_no_portable_rule_is_refused_by_name_and_line(small_dataset: data.Dataset) -> None:
    def activation(x: jax.Array) -> jax.Array:
        return lax.lgamma(x)

    line = f"{Path(__file__).name}:{activation.__code__.co_firstlineno + 1}"
    with refused(ConfigError, "precision", "lgamma", line):
        fit(dataclasses.replace(CONFIG, model=MLP(hidden_sizes=(8,), activation=activation)), small_dataset)
