"""Compares the digests of `portable_digest.py` under other vector widths, flags and threads, and op by op.

`make test-portable` runs all of it. A Python for another machine (`PORTABLE_PYTHON='qemu-aarch64 ... python'`), or with
another JAX, is compared too.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

DIGEST = Path(__file__).with_name("portable_digest.py")
SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "SSE4.2": {"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2"},
    "AVX2": {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"},
    "AVX-512": {"XLA_FLAGS": "--xla_cpu_max_isa=AVX512"},
    **{f"level {level}": {"XLA_FLAGS": f"--xla_backend_optimization_level={level}"} for level in range(4)},
    "fast-math": {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"},
    "fast-math that honours nothing": {
        "XLA_FLAGS": "--xla_cpu_enable_fast_math=true --xla_cpu_fast_math_honor_infs=false "
        "--xla_cpu_fast_math_honor_nans=false --xla_cpu_fast_math_honor_division=false"
    },
    "no YNNPACK": {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type="},
    "no libraries": {
        "XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type= --xla_cpu_use_onednn=false --xla_cpu_use_xnnpack=false"
    },
    **{f"{threads} threads": {"NPROC": threads} for threads in ("1", "2", "8")},
    "one thread a product": {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"},
}
FEW = ("SSE4.2", "no libraries")
"""Those that the tests compare each time."""


def digests(setting: dict[str, str], *arguments: str, python: str = sys.executable) -> dict[str, dict[str, str]]:
    """What the script prints under these variables."""
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
    done = subprocess.run(
        [*shlex.split(python), str(DIGEST), *arguments],
        env=kept | {"JAX_PLATFORMS": "cpu"} | setting,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


def main() -> int:
    """Prints a line for each setting; 1 if a portable digest differs, or if no plain one does."""
    updates = os.environ.get("PORTABLE_UPDATES", "20")
    right: dict[str, str] = {}
    plain: dict[str, set[str]] = {}
    same = True
    rows = [(name, setting, (updates,), sys.executable) for name, setting in SETTINGS.items()]
    if os.environ.get("PORTABLE_PYTHON"):
        rows.append(("PORTABLE_PYTHON", {}, (updates,), os.environ["PORTABLE_PYTHON"]))
    for name, setting, arguments, python in rows:
        found = digests(setting, *arguments, python=python)
        right = right or found["portable"]
        same = same and found["portable"] == right
        for network, value in found["plain"].items():
            plain.setdefault(network, set()).add(value)
        print(f"{name:32} {' '.join(value[:12] for value in found['portable'].values())}", flush=True)
    few = digests({}, "2")["portable"]
    op_by_op = digests({}, "2", "op-by-op")["portable"]
    same = same and few == op_by_op
    print(f"{'2 updates, op by op':32} {' '.join(value[:12] for value in op_by_op.values())}")
    print(f"{'2 updates, compiled':32} {' '.join(value[:12] for value in few.values())}")
    for network, values in plain.items():
        print(f"{network}: 1 portable digest, {len(values)} of the plain program" if same else f"{network}: differs")
    return 0 if same and max(map(len, plain.values())) > 1 else 1


if __name__ == "__main__":
    sys.exit(main())
