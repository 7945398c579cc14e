"""The manifest tells what a run's bits depend on, and names no user."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from run_stand_in import CONFIG, MANIFEST

from jaxmlp import MLP, ExperimentConfig, fit
from jaxmlp.data import Dataset, Facts
from jaxmlp.errors import RunError
from jaxmlp.proof.promise import promise
from jaxmlp.proof.reproduce import reproduce
from jaxmlp.run.manifest import binding_flags, differences, instruction_set, manifest
from jaxmlp.run.record import FORMAT, read_manifest


def test_the_manifest_tells_what_the_bits_depend_on(monkeypatch: pytest.MonkeyPatch, small_dataset: Dataset) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true --xla_force_host_platform_device_count=8")
    facts = manifest(CONFIG, small_dataset, devices=4)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["binding"]["config_sha256"] == hashlib.sha256(CONFIG.to_json().encode()).hexdigest()
    assert facts["binding"]["data_sha256"] == small_dataset.sha256
    assert facts["binding"]["xla_flags"] == "--xla_gpu_deterministic_ops=true"
    assert {"jax", "jaxlib", "flax", "optax", "prng", "matmul_precision", "x64", "device_kind", "isa"} <= facts[
        "binding"
    ].keys()
    assert facts["not_binding"].keys() == {"devices", "processes", "threads", "python", "os"}
    assert facts["not_binding"]["devices"] == 4
    assert Facts.from_plain(facts["data"]) == small_dataset.facts


def test_a_runs_manifest_tells_which_program_xla_made_and_is_not_bound_by_it(
    tmp_path: Path, small_dataset: Dataset
) -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=(6,)), batch_size=32, epochs=1, grad_shards=2)
    told = {}
    for name, devices, seed in (("a", 1, 0), ("b", 1, 1), ("c", 2, 0)):
        fit(dataclasses.replace(config, seed=seed), small_dataset, out=tmp_path / name, devices=devices)
        told[name] = read_manifest(tmp_path / name)
    compiled = {name: each["compiled_sha256"] for name, each in told.items()}
    assert re.fullmatch(r"[0-9a-f]{64}", compiled["a"])
    assert compiled["a"] == compiled["b"] != compiled["c"]
    other = {**told["a"], "compiled_sha256": "0" * 64}
    assert promise(other, told["a"]).level == "L1"
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(other))
    said: list[str] = []
    assert reproduce(tmp_path / "a", small_dataset, devices=1, report=said.append).same
    assert any("compiled" in line for line in said)


@pytest.mark.parametrize(
    "part",
    [
        {"accepted_code": {"x": 1}}, {"accepted_code": [1]}, {"lengthened": 5}, {"lengthened": [1]}, {"data": [1]},
        {"binding": "jax"}, {"not_binding": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_whose_parts_are_of_other_types_is_refused(part: dict[str, Any], tmp_path: Path) -> None:
    whole = {"format": FORMAT, "status": "running", **MANIFEST}
    (tmp_path / "manifest.json").write_text(json.dumps(whole))
    assert read_manifest(tmp_path)["binding"] == MANIFEST["binding"]
    (tmp_path / "manifest.json").write_text(json.dumps(whole | part))
    with refused(RunError, tmp_path):
        read_manifest(tmp_path)


def test_an_empty_part_of_a_manifest_counts_as_missing(tmp_path: Path) -> None:
    empty = dict.fromkeys(("binding", "not_binding", "accepted_code", "lengthened", "data"))
    (tmp_path / "manifest.json").write_text(json.dumps({"format": FORMAT, "status": "running", **empty}))
    assert read_manifest(tmp_path) == {"format": FORMAT, "status": "running", "result": None}


def test_differences_name_the_binding_facts_with_both_values() -> None:
    here: dict[str, Any] = {"binding": {"jax": "0.13.0", "x64": False, "isa": "aarch64"}, "not_binding": {"devices": 1}}
    assert differences(MANIFEST, here) == ["jax: 0.12.0 there, 0.13.0 here", "isa: None there, aarch64 here"]
    assert differences(MANIFEST, {**MANIFEST, "not_binding": {"devices": 1}, "status": "finished"}) == []


@pytest.mark.parametrize(
    ("flags", "binding"),
    [
        ("", ""),
        ("--xla_b=1 --xla_a=2", "--xla_a=2 --xla_b=1"),
        ("--xla_a=1 --xla_a=2", "--xla_a=2"),
        ("--xla_flag", "--xla_flag"),
        ("--xla_force_host_platform_device_count=8 --xla_dump_to=/home/ann/x --xla_dump_hlo_as_text", ""),
        ("--xla_gpu_cuda_data_dir=/home/ann/cuda-13", "--xla_gpu_cuda_data_dir=cuda-13"),
    ],
)
def test_flags_that_change_no_bit_or_name_a_user_are_left_out(flags: str, binding: str) -> None:
    assert binding_flags(flags) == binding


def test_the_instruction_set_is_a_name_that_a_folder_can_have() -> None:
    assert re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_]+-[0-9a-f]{8})?", instruction_set())


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "name"),
    [
        ("x86_64", "flags\t\t: fpu sse4_2 avx avx2 fma hypervisor\n", "x86_64-avx2-"),
        ("x86_64", "flags\t\t: fpu avx512f avx2 avx512_bf16 amx_tile\n", "x86_64-amx_tile-"),
        ("aarch64", "Features\t: fp asimd sve\n", "aarch64-sve-"),
    ],
)
def test_the_instruction_set_is_named_by_its_widest_vectors(
    monkeypatch: pytest.MonkeyPatch, machine: str, cpuinfo: str, name: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpuinfo)
    assert instruction_set().startswith(name)


def test_only_vector_instructions_of_the_cpu_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    names = []
    for flags in ("avx2 fma", "fma avx2 hypervisor md_clear", "avx2"):
        monkeypatch.setattr(Path, "read_text", lambda *_, flags=flags, **__: f"flags : {flags}\n")
        names.append(instruction_set())
    assert names[0] == names[1] != names[2]
