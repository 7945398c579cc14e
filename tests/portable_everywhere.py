"""Compares digests under other vector widths, flags, threads and numbers of devices, and op by op.

They are those of `portable_digest.py`, small networks, and of `portable_experiments.py`, the package's experiments.

`make test-portable` runs all of it, with 20 updates; PORTABLE_UPDATES=469 makes them an epoch of MNIST's length. The
golden digests, of the quickstart and of both experiments' first epoch on MNIST, are compared whole in any case. Another
machine's Python (`PORTABLE_PYTHON='qemu-aarch64 ... python'`) is compared too, and another JAX, in the folder that
PORTABLE_OLDEST names.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
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
COUNT = "--xla_force_host_platform_device_count="
DEVICES = {
    **{f"{count} devices": {"XLA_FLAGS": f"{COUNT}{count}"} for count in (2, 4, 8)},
    "2 processes of 2 devices": {"XLA_FLAGS": f"{COUNT}2", "PROCESSES": "2"},
}
"""For what shares a batch."""
OTHERS = {
    "the oldest JAX": {"PYTHONPATH": os.environ.get("PORTABLE_OLDEST", "")},
    "PORTABLE_PYTHON": {"PORTABLE_PYTHON": os.environ.get("PORTABLE_PYTHON", "")},
}
"""What has to be installed first: left out where it is not."""
SETTINGS |= {name: setting for name, setting in OTHERS.items() if all(setting.values())}
FEW = ("SSE4.2", "no libraries")
"""Those that the tests compare each time."""


def digests(setting: dict[str, str], *arguments: str, script: Path = DIGEST) -> dict[str, dict[str, str]]:
    """What a script prints under these variables."""
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
    done = subprocess.run(
        [*shlex.split(setting.get("PORTABLE_PYTHON", sys.executable)), str(script), *arguments],
        env=kept | {"JAX_PLATFORMS": "cpu"} | setting,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(script: Path, settings: dict[str, dict[str, str]], *arguments: str) -> bool:
    """Prints a line for each setting; whether there is one portable digest, and several of plain programs."""
    portable: dict[str, set[str]] = {}
    plain: dict[str, set[str]] = {}
    for name, setting in settings.items():
        began = time.monotonic()
        found = digests(setting, *arguments, script=script)
        for kind, seen in (("portable", portable), ("plain", plain)):
            for network, value in found[kind].items():
                seen.setdefault(network, set()).add(value)
        _row(name, found["portable"], f"{time.monotonic() - began:.0f} s")
    for network, values in portable.items():
        told = f", {len(plain[network])} of the plain program" if network in plain else f": {' '.join(values)}"
        print(f"{network}: {len(values)} portable{told}", flush=True)
    return max(map(len, portable.values())) == 1 < max(map(len, plain.values()))


def op_by_op(script: Path) -> bool:
    """Whether two updates have the same digests where each operation is a program of its own."""
    compiled, each = (
        digests({}, "2", script=script)["portable"],
        digests({}, "2", "op-by-op", script=script)["portable"],
    )
    _row("2 updates, compiled", compiled)
    _row("2 updates, op by op", each)
    return compiled == each


def _row(name: str, found: dict[str, str], took: str = "") -> None:
    print(f"{name:32} {' '.join(value[:12] for value in found.values())} {took}", flush=True)


def main() -> int:
    """1 if a portable digest differs, or if no plain one does."""
    updates = os.environ.get("PORTABLE_UPDATES", "20")
    same = [
        compared(DIGEST, SETTINGS, updates),
        compared(EXPERIMENTS, SETTINGS | DEVICES, updates, "golden"),
        op_by_op(DIGEST),
        op_by_op(EXPERIMENTS),
    ]
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
