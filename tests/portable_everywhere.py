"""Compares digests under other vector widths, flags, threads and numbers of devices, and op by op.

They are those of `portable_digest.py`, small networks, and of `portable_experiments.py`, the package's experiments.

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
EXPERIMENTS = Path(__file__).with_name("portable_experiments.py")
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
DEVICES = {f"{count} devices": {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"} for count in (2, 4)}
"""For what shares a batch."""
FEW = ("SSE4.2", "no libraries")
"""Those that the tests compare each time."""


def digests(
    setting: dict[str, str], *arguments: str, python: str = sys.executable, script: Path = DIGEST
) -> dict[str, dict[str, str]]:
    """What a script prints under these variables."""
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
    done = subprocess.run(
        [*shlex.split(python), str(script), *arguments],
        env=kept | {"JAX_PLATFORMS": "cpu"} | setting,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


def compared(script: Path, settings: dict[str, dict[str, str]], *arguments: str) -> bool:
    """Prints a line for each setting; whether there is one portable digest, and several of plain programs."""
    rows = [(name, setting, sys.executable) for name, setting in settings.items()]
    if os.environ.get("PORTABLE_PYTHON"):
        rows.append(("PORTABLE_PYTHON", {}, os.environ["PORTABLE_PYTHON"]))
    portable: dict[str, set[str]] = {}
    plain: dict[str, set[str]] = {}
    for name, setting, python in rows:
        found = digests(setting, *arguments, python=python, script=script)
        for kind, seen in (("portable", portable), ("plain", plain)):
            for network, value in found[kind].items():
                seen.setdefault(network, set()).add(value)
        print(f"{name:32} {' '.join(value[:12] for value in found['portable'].values())}", flush=True)
    for network, values in portable.items():
        told = f", {len(plain[network])} of the plain program" if network in plain else f": {' '.join(values)}"
        print(f"{network}: {len(values)} portable{told}", flush=True)
    return max(map(len, portable.values())) == 1 < max(map(len, plain.values()))


def main() -> int:
    """1 if a portable digest differs, or if no plain one does."""
    updates = os.environ.get("PORTABLE_UPDATES", "20")
    same = compared(DIGEST, SETTINGS, updates)
    few = digests({}, "2")["portable"]
    op_by_op = digests({}, "2", "op-by-op")["portable"]
    print(f"{'2 updates, op by op':32} {' '.join(value[:12] for value in op_by_op.values())}")
    print(f"{'2 updates, compiled':32} {' '.join(value[:12] for value in few.values())}")
    same = same and few == op_by_op
    return 0 if compared(EXPERIMENTS, SETTINGS | DEVICES, updates, "golden") and same else 1


if __name__ == "__main__":
    sys.exit(main())
