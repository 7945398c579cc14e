"""What an accelerator would run of a portable training has no operation whose answer is the device's own."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Literal

import pytest

from jaxmlp import MLP, ExperimentConfig, RMSprop
from jaxmlp.compile import targets
from jaxmlp.compile.program import Examples, training
from jaxmlp.compile.report import compile_for
from jaxmlp.compile.targets import Target

PLATFORM = os.environ.get("JAXMLP_TEST_TARGETS", "tpu")
ALLOWED = {
    *("add", "subtract", "multiply", "convert", "bitcast-convert", "select", "constant", "parameter", "broadcast"),
    *("reshape", "transpose", "slice", "concatenate", "pad", "copy", "bitcast", "tuple", "get-tuple-element", "while"),
    *("fusion", "call", "conditional", "dynamic-slice", "dynamic-update-slice", "gather", "reverse", "iota"),
    *("copy-start", "copy-done", "negate", "opt-barrier"),
}
"""Operations with float results: what moves bits, and + - * and conversions. Negation flips a bit."""

pytestmark = pytest.mark.targets


def compiled(name: str, precision: Literal["float32", "portable"]) -> str:
    """The optimised program of a training."""
    config = ExperimentConfig(model=MLP(hidden_sizes=(128,)), optimizer=RMSprop(), precision=precision)
    target = Target.of(name)
    return compile_for(target, training(config, Examples.of(config.data), target.devices(1, 1))).text


@pytest.mark.parametrize("name", {"tpu": ["tpu-v5e:2x2", "tpu-v6e:2x2"], "gpu": ["h100", "b200"]}[PLATFORM])
def test_a_portable_program_has_float_sums_products_and_conversions_alone(name: str) -> None:
    text = compiled(name, "portable")
    found = re.findall(r"(%\S+) = (?:f32|bf16|f16)\[([\d,]*)\]\S* ([a-z-]+)\((%?[\w.-]*)", text)
    sizes = {result: math.prod(map(int, filter(None, shape.split(",")))) for result, shape, _, _ in found}
    # TPUs leave out axes of one element by sums along them: of one number each.
    used = {operation for result, _, operation, of in found if operation != "reduce" or sizes[result] != sizes.get(of)}
    assert used <= ALLOWED
    assert {"add", "multiply", "subtract"} <= used


@pytest.mark.skipif(PLATFORM != "gpu", reason="only GPUs have PTX")
def test_the_ptx_of_a_portable_program_rounds_each_product_and_each_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = {}
    for precision in ("portable", "float32"):
        folder = tmp_path / precision
        dump = {"xla_dump_to": str(folder), "xla_dump_emitter_re": ".*"}
        monkeypatch.setattr(targets, "GPU_FLAGS", targets.GPU_FLAGS | dump)
        compiled("h100", precision)
        code = "".join(path.read_text() for path in folder.glob("*.ptx"))
        used[precision] = set(re.findall(r"\b([a-z]+(?:\.[a-z]+)*)\.(?:f16|bf16|f32|f64)", code))
    # The comparisons are those by which XLA keeps a conversion in range.
    bits = {"selp", "copysign", "setp.nan", "setp.le", "setp.ge", "cvt.rn", "cvt.rzi.s32"}
    assert {"add.rn", "mul.rn", "sub.rn"} <= used["portable"] <= {"add.rn", "mul.rn", "sub.rn", *bits}
    assert "fma.rn" in used["float32"]
