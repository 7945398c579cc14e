"""A wrong machine is found by golden digests, probes or a burn-in, and what is wrong in it is named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax._src.interpreters import mlir

from jaxmlp import MLP, DataConfig, ExperimentConfig, data
from jaxmlp.cli import main
from jaxmlp.proof import references, right_bits
from jaxmlp.proof.burn_in import Lanes
from jaxmlp.proof.experiments import REFERENCED
from jaxmlp.proof.probes import run_probes
from jaxmlp.run.digest import leaves, restore

SMALL = ExperimentConfig(
    model=MLP(hidden_sizes=(16,)), data=DataConfig(name="mnist_5k"), batch_size=1000, epochs=1, precision="portable"
)


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Golden digests of a training of four updates; and no references of platforms."""
    monkeypatch.setattr(right_bits, "FOLDER", tmp_path)
    monkeypatch.setattr(right_bits, "GOLDEN", {"quickstart": SMALL})
    monkeypatch.setattr(references, "FOLDER", tmp_path / "none")
    monkeypatch.setitem(REFERENCED, "quickstart", dataclasses.replace(SMALL, precision="float32"))
    return right_bits.record("quickstart", data.load(SMALL.data))


@contextmanager
def planted(primitive: Any, shape: tuple[int, ...], place: int, bit: int) -> Iterator[None]:
    """A primitive of XLA's that returns one wrong bit at one place, always, wherever its result has the shape."""
    where = jax.default_backend() if primitive in mlir._platform_specific_lowerings[jax.default_backend()] else None
    table = mlir._platform_specific_lowerings[where] if where else mlir._lowerings
    right = table[primitive].rule

    def flipped(x: jax.Array) -> jax.Array:
        mask = np.zeros(shape, np.uint32)
        mask.flat[place] = 1 << bit
        whole = lax.bitcast_convert_type(x, jnp.uint32) ^ mask
        return lax.bitcast_convert_type(whole, x.dtype)

    def wrong(context: Any, *operands: Any, **parameters: Any) -> Any:
        results = right(context, *operands, **parameters)
        (out,) = context.avals_out
        if out.shape != shape or out.dtype != np.float32:
            return results
        return mlir.lower_fun(flipped, multiple_results=False)(context.replace(avals_in=[out]), *results)

    mlir.register_lowering(primitive, wrong, platform=where)
    jax.clear_caches()
    try:
        yield
    finally:
        mlir.register_lowering(primitive, right, platform=where)
        jax.clear_caches()


def test_a_flip_in_a_burn_in_is_found_with_device_update_leaf_and_bits(
    golden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real: Callable[..., Any] = Lanes.per_lane
    calls = iter(range(1000))
    # Four updates a round: the second and the third of round two.
    flips = {5: "params/Dense_0/kernel", 6: "opt_state/0/nu/Dense_1/bias"}

    def rows(lanes: Lanes, states: Any) -> Any:
        found = real(lanes, states)
        if leaf := flips.get(next(calls)):
            arrays = {name: array.copy() for name, array in leaves(found[1]).items()}
            arrays[leaf].view(np.uint32).flat[2] ^= np.uint32(1)
            found[1] = restore(found[1], arrays)
        return found

    monkeypatch.setattr(Lanes, "per_lane", rows)
    assert main(["doctor", "--burn-in", "4s", "--json"]) == 3
    burnt = json.loads(capsys.readouterr().out)["burn_in"]
    found = [(wrong["round"], wrong["update"], wrong["leaf"]) for wrong in burnt["deviations"]]
    assert found == [(2, 2, flips[5]), (2, 3, flips[6])]
    for wrong in burnt["deviations"]:
        assert wrong["device"].startswith(jax.devices()[1].platform + ":1") and "1 ULP apart" in wrong["problem"]
    assert burnt["updates"] > 6 * burnt["devices"]


def test_another_program_is_no_wrong_machine(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(golden.read_text())
    golden.write_text(json.dumps(document | {"program_sha256": "0" * 64}))
    found = right_bits.check("quickstart", data.load(SMALL.data))
    assert (found.same, found.updates) == (None, 0) and found.reason and found.reason.startswith("another program")
    states = document["states_sha256"]
    golden.write_text(json.dumps(document | {"states_sha256": [*states[:3], "0" * 64, *states[4:]]}))
    wrong = right_bits.check("quickstart", data.load(SMALL.data)).first_difference
    assert wrong and (wrong.update, wrong.leaf) == (3, None)  # NumPy computes what the device does.


@pytest.mark.parametrize("duration", ["0s", "10 minutes", "-1", "m"])
def test_a_duration_that_is_none_is_refused(duration: str) -> None:
    assert main(["doctor", f"--burn-in={duration}"]) == 2


# What plants a fault forgets all that is compiled, so it comes last.


def test_a_wrong_primitive_is_named_with_update_leaf_and_both_values(
    golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["portable"]["same"] is True and found["probes"] == []
    with planted(lax.mul_p, (16, 10), place=33, bit=3):
        assert main(["doctor", "--json"]) == 3
    wrong = json.loads(capsys.readouterr().out)["portable"]["first_difference"]
    # The first product of this shape scales the second layer's initial kernel.
    assert (wrong["update"], wrong["leaf"], wrong["primitive"]) == (0, "params/Dense_1/kernel", "mul")
    assert wrong["at"] == [3, 3] and wrong["shapes"][0] == "float32[16,10]"
    assert wrong["operation"] == "mul of float32[16,10], float32[16,10]"
    right, here = (int(wrong[name].partition("0x")[2][:8], 16) for name in ("right", "here"))
    assert right != here


def test_a_wrong_library_is_named_by_a_probe_where_nothing_is_trained() -> None:
    with planted(lax.dot_general_p, (64, 80), place=7, bit=0):
        (wrong,) = run_probes()
    assert (wrong.probe, wrong.arithmetic, wrong.at) == ("products of float32 matrices", "jnp", (0, 7))
