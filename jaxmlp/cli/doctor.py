"""`jaxmlp doctor`: what is on this machine, and whether it computes the reference bits."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxmlp
from jaxmlp import runtime
from jaxmlp.cli import Answer, flags, say
from jaxmlp.errors import CheckFailed
from jaxmlp.folders import user_cache

if TYPE_CHECKING:
    from jaxmlp.proof.references import SelfTest

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets")


@dataclass(frozen=True, kw_only=True)
class DoctorFlags(flags.DataFlags, flags.DeviceFlags):
    """Show what is on this machine, and train for seconds: are the bits those of its platform's reference?"""

    full: flags.Switch = False
    """Train both experiments of the tutorial too, to their end: some minutes, on MNIST."""
    record: flags.Switch = False
    """Write what is trained as this platform's reference, into the package; add the file to the repository."""


def run(argv: Sequence[str]) -> Answer:
    """Examine this machine; one that leaves its platform's reference bits ends with 3."""
    chosen, _ = flags.parse(DoctorFlags(), argv, "doctor")
    runtime.configure(chosen.device)
    from jaxmlp import data
    from jaxmlp.proof.experiments import REFERENCED
    from jaxmlp.proof.references import record, self_test

    found = facts(chosen.manual_dir)
    say("\n".join(_fact_lines(found)))
    tests = []
    for name in REFERENCED if chosen.full else ["quickstart"]:
        dataset = data.load(REFERENCED[name].data, manual_dir=chosen.manual_dir, report=say)
        if chosen.record:
            say(f"recorded: {record(name, dataset)}")
        tests.append(self_test(name, dataset, report=lambda _: None))
        say("\n".join(_test_lines(tests[-1])))
    document = {**found, "self_tests": [_plain(test) for test in tests]}
    left = [test.experiment for test in tests if test.verdict == "differs"]
    if not left:
        return Answer(document)
    return Answer(document, CheckFailed.exit_code, f"this machine leaves the reference bits: {', '.join(left)}")


def facts(manual_dir: Path | None) -> dict[str, Any]:
    """What is here, as JSON values."""
    import jax

    from jaxmlp import data
    from jaxmlp.run.find import runs_dir
    from jaxmlp.run.manifest import instruction_set

    folders = {"runs": runs_dir().absolute(), "cache": user_cache()}
    return {
        "versions": {
            "jaxmlp": jaxmlp.__version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in LIBRARIES},
        },
        "devices": [{"platform": device.platform, "kind": device.device_kind} for device in jax.devices()],
        "isa": instruction_set(),
        "flags": {
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
            "matmul_precision": jax.config.jax_default_matmul_precision,
            "threefry_partitionable": jax.config.jax_threefry_partitionable,
            "x64": jax.config.jax_enable_x64,
        },
        "data": [each._asdict() for each in data.status(manual_dir=manual_dir)],
        "disk": [
            {"what": what, "path": str(path), "free_bytes": _free(path)} for what, path in folders.items() if path
        ],
    }


def _free(path: Path) -> int:
    """Where the folder is, or would be made."""
    return shutil.disk_usage(next(each for each in (path, *path.parents) if each.exists())).free


def _fact_lines(found: dict[str, Any]) -> Iterator[str]:
    yield "versions: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    kinds = [f"{device['platform']} ({device['kind']})" for device in found["devices"]]
    yield f"devices: {len(kinds)} of {', '.join(sorted(set(kinds)))}; processor {found['isa']}"
    yield "flags: " + ", ".join(f"{name} {value}" for name, value in found["flags"].items())
    for each in found["data"]:
        said = " - ".join(filter(None, (each["where"], each["problem"]))) or "not on this machine"
        yield f"data: {each['name']}: {said}"
    for each in found["disk"]:
        yield f"disk: {each['free_bytes'] / 1e9:.1f} GB free for {each['what']}, {each['path']}"


def _test_lines(test: SelfTest) -> Iterator[str]:
    said = f"self-test: {test.experiment}, {test.steps} updates"
    if test.verdict == "differs":
        yield f"{said}: other bits than the reference"
    elif test.verdict == "same" and not test.changed:
        yield f"{said}: this machine computes the reference bits"
    elif test.verdict == "same":
        yield f"{said}: the bits of the reference for another platform ({'; '.join(test.changed)})"
    elif test.verdict == "no reference" and test.reference:
        yield f"{said}: no reference for this platform. The nearest, {test.reference}, has others:"
        yield from (f"  {changed}" for changed in test.changed)
    elif test.verdict == "no reference":
        yield f"{said}: no reference for this experiment"
    if test.first_difference:
        yield f"  leaves the bits of {test.reference} in {test.first_difference}"
    yield f"  params_sha256 {test.params_sha256}"
    if test.verdict == "no reference":
        yield "  jaxmlp doctor --record adds this platform's reference"


def _plain(test: SelfTest) -> dict[str, Any]:
    return asdict(test) | {"first_difference": test.first_difference and test.first_difference._asdict()}
