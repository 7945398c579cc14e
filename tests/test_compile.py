"""What a program compiled for a device says of itself: the reader finds what is planted, and our counts are its own."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import command_line
import jax
import jax.numpy as jnp
import pytest
from command_line import QUICKSTART, SMALL, Program, assert_refused
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from planted import NBYTES, called_back, compiled, gathered, rules, summed
from refusals import assert_names

from jaxmlp import MLP, SGD, ExperimentConfig, shards
from jaxmlp.bench import roof
from jaxmlp.cli.compile import CompileFlags
from jaxmlp.compile import count, hlo, promises, reading, targets
from jaxmlp.compile.program import Examples, evaluation, training
from jaxmlp.compile.report import compile_for
from jaxmlp.compile.targets import Target
from jaxmlp.source.file import load_experiment

program = command_line.program

CPU = Target.of("cpu")


def test_a_clean_program_keeps_its_promises_and_what_is_planted_is_found() -> None:
    devices = jax.devices()
    clean = compiled(gathered, devices)
    assert rules(clean) == []
    (message,) = clean.collectives
    assert (message.op, message.devices, message.received) == ("all-gather", 8, 7 * NBYTES)
    assert clean.trip_count == 3
    psum = compiled(summed, devices)
    assert rules(psum) == ["no_float_sum"]
    assert psum.collectives[0].received == 2 * 7 * NBYTES // 8
    whole_numbers = compiled(lambda state: state + lax.psum(jnp.int32(state), shards.AXIS).astype(jnp.float32), devices)
    assert rules(whole_numbers) == []
    assert "nothing_hosted" in rules(compiled(called_back, devices[:1]))
    assert rules(compiled(gathered, devices, donate=False)) == ["donated"]
    assert rules(compiled(gathered, devices, length=None)) == ["known_length"]
    assert rules(compiled(lambda state: state.at[state[:, 0].astype(jnp.int32)].add(1.0), devices)) == ["scatters"]
    assert list(promises.few_kernels(clean, 0))
    assert list(promises.few_kernels(clean, clean.kernels_per_turn)) == []
    with jax.enable_x64(True):
        wide = compiled(lambda state: (state.astype(jnp.float64) + 1).astype(jnp.float32), devices)
    assert "nothing_wide" in rules(wide)


def test_a_message_that_only_the_partitioner_wrote_is_found() -> None:
    mesh = shards.make_mesh(jax.devices())
    rows = NamedSharding(mesh, PartitionSpec(shards.AXIS))
    whole = jax.jit(lambda x: jnp.sum(x), out_shardings=NamedSharding(mesh, PartitionSpec()))
    text = whole.lower(jax.ShapeDtypeStruct((64,), jnp.float32, sharding=rows)).compile().as_text()
    found = reading.read(hlo.parse(text), ())
    assert {each.rule for each in promises.no_unwritten(found)} == {"no_unwritten"}
    assert {each.rule for each in promises.no_float_sum(found)} == {"no_float_sum"}


CONFIG = ExperimentConfig(model=MLP(hidden_sizes=(24, 16)), optimizer=SGD(momentum=0.9), batch_size=64, grad_shards=4)
KINDS = {"train": training, "evaluate": evaluation}


@pytest.mark.parametrize(
    ("kind", "devices", "lanes", "batching"),
    [("train", 4, None, "map"), ("train", 2, 4, "vmap"), ("evaluate", 2, 4, "map")],
)
def test_memory_and_products_are_counted_as_the_compiler_has_them(
    kind: str, devices: int, lanes: int | None, batching: Any
) -> None:
    config = dataclasses.replace(CONFIG, grad_shards=1) if lanes else CONFIG
    traced = KINDS[kind](config, Examples.of(config.data), jax.devices()[:devices], lanes=lanes, batching=batching)
    found = compile_for(CPU, traced)
    counted = count.memory(traced, "cpu")
    assert counted.arguments == pytest.approx(found.memory.arguments, rel=0.001)
    assert counted.without_code == pytest.approx(found.memory.without_code, rel=0.1)
    assert count.products(traced) == found.reading.flops > 0
    assert found.reading.loop
    assert bool(found.reading.collectives) == (devices > 1 and lanes is None)


def test_compile_tells_of_an_experiment_what_was_asked(program: Program, tmp_path: Path) -> None:
    ended = program("compile", QUICKSTART, *SMALL, "--json", "--hlo", str(tmp_path / "program.txt"))
    document = ended.document
    assert ended.code == 0
    assert {
        *("program", "target", "devices", "lanes", "compile_s", "memory", "memory_counted", "flops_per_step"),
        *("flops_per_step_counted", "bytes_per_step", "kernels_per_step", "kernels", "collectives"),
        *("known_trip_count", "findings", "lower_bound_s_per_step", "lower_bounds_s", "source", "flags"),
        "largest_that_fits",
    } == set(document)
    assert set(document["memory"]) == {"arguments", "outputs", "temporaries", "code", "total", "device", "fits"}
    assert (document["target"], document["devices"], document["memory"]["fits"]) == ("cpu", 1, True)
    assert document["flops_per_step"] == document["flops_per_step_counted"]
    assert document["memory_counted"]["total"] == pytest.approx(document["memory"]["total"], rel=0.1)
    assert document["findings"] == [] or set(document["findings"][0]) == {"rule", "what", "where", "flags"}
    assert document["lower_bound_s_per_step"] is None
    assert (tmp_path / "program.txt").read_text().startswith("HloModule")
    assert "FLOPs of products" in ended.stderr
    lanes = program("compile", QUICKSTART, *SMALL, "--lanes", "2", "--evaluate", "--json").document
    assert (lanes["program"], lanes["lanes"], lanes["known_trip_count"]) == ("evaluate", 2, True)


def test_a_program_that_does_not_fit_ends_in_6_with_the_largest_that_does(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickstart = load_experiment(Path(QUICKSTART)).config
    config = dataclasses.replace(quickstart, model=MLP(hidden_sizes=(16,)), batch_size=512)
    needs = count.memory(training(config, Examples.of(config.data), jax.devices()[:1]), "cpu").total
    monkeypatch.setitem(targets.CHIPS, "cpu", targets.Chip(platform="cpu", memory=needs))
    ended = program("compile", QUICKSTART, *SMALL, "--batch-size", "2048", "--json")
    assert ended.code == 6
    assert ended.document["memory"]["fits"] is False
    assert 480 <= ended.document["largest_that_fits"] <= 512
    assert_names(ended.stderr, ended.document["largest_that_fits"])


@pytest.mark.parametrize(("target", "extra"), [("tpu-v5e:2x2", "tpu"), ("h100", "cuda13")])
def test_without_the_compiler_the_extra_is_named(
    target: str, extra: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "has_compiler", lambda platform: False)
    ended = program("compile", QUICKSTART, "--for", target)
    assert_refused(ended, 6, extra)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--for tpu-v5", "--for tpu-v5 tpu-v4"),
        ("--for h100:2x2", "--for h100 h100:2x2"),
        ("--devices 3 --grad-shards 4", "--devices grad_shards 4 3 2"),
        ("--devices 3 --lanes 4", "--devices lanes 4 3 2"),
        ("--batch-size 5000", "--batch-size 4000 5000"),
    ],
)
def test_a_wrong_target_or_number_is_a_wrong_command_line(words: str, named: str, program: Program) -> None:
    ended = program("compile", QUICKSTART, *words.split())
    assert_refused(ended, 2, *named.split())


@pytest.mark.parametrize("name", targets.CHIPS)
def test_a_targets_figures_have_their_source(name: str) -> None:
    chip = targets.CHIPS[name]
    assert ("https://" in chip.source) == bool(chip.flops) == (chip.platform != "cpu")
    page = (command_line.ROOT / "docs" / "accelerators.md").read_text()
    assert all(link.rstrip(";") in page for link in chip.source.split() if link.startswith("https://"))


def test_every_target_is_in_all_lists_of_targets() -> None:
    docs = command_line.ROOT / "docs"
    text, table = (docs / "accelerators.md").read_text().split("## Sources of the figures")
    (row,) = (line for line in (docs / "reference.md").read_text().splitlines() if line.startswith("| `compile "))
    help_of_for = inspect.getsource(CompileFlags)
    for name in targets.CHIPS:
        assert name == "cpu" or f"| `{name}` |" in table
        assert name == "cpu" or name in roof.KINDS.values()
        assert f"`{name}" in text
        assert f"`{name}" in row
        assert re.search(rf"\b{name}\b", help_of_for)
