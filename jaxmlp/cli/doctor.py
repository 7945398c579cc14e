"""`jaxmlp doctor`: what is on this machine, and does it compute the right bits and its platform's reference bits?"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxmlp
from jaxmlp.cli import Answer, flags, say
from jaxmlp.errors import CheckFailed, ConfigError, DataError
from jaxmlp.folders import user_cache
from jaxmlp.system import runtime

if TYPE_CHECKING:
    from jaxmlp.proof.burn_in import BurnIn
    from jaxmlp.proof.references import SelfTest
    from jaxmlp.proof.right_bits import BitsCheck

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets")


@dataclass(frozen=True, kw_only=True)
class DoctorFlags(flags.DataFlags, flags.DeviceFlags):
    """Show this machine, and train for seconds: are the bits right, and do they match the platform's reference?

    In portable precision there is one right answer on every machine. If an answer is wrong, doctor names the update,
    the leaf, and the primitive that computes it.
    """

    full: flags.Switch = False
    """Also train both experiments of the tutorial to their end: some minutes, on MNIST."""
    burn_in: str | None = None
    """Duration, such as 30s, 10m or 2h, to train on every device at once. Every wrong state is reported."""
    record: flags.Switch = False
    """Write the results into the package as this platform's reference. Add the file to the repository."""


def run(argv: Sequence[str]) -> Answer:
    """Examine this machine. Exit code 3 if it computes wrong bits or differs from its platform's reference."""
    chosen, _ = flags.parse(DoctorFlags(), argv, "doctor")
    seconds = _seconds(chosen.burn_in)
    # A burn-in uses every core, as one device each.
    runtime.configure(chosen.device, cpu_devices=os.cpu_count() if seconds else None)
    import jax

    with jax.transfer_guard("allow"):  # The checks run programs operation by operation.
        return _examined(chosen, seconds)


def _examined(chosen: DoctorFlags, seconds: float | None) -> Answer:
    from jaxmlp import data
    from jaxmlp.proof import burn_in, probes, references, right_bits
    from jaxmlp.proof.experiments import REFERENCED

    found = facts(chosen.manual_dir)
    say("\n".join(_fact_lines(found)))
    wrong_answers = probes.run_probes()
    say(
        "\n".join(map(str, wrong_answers))
        or f"probes: all {len(probes.probes())} answers, known from integers, are right"
    )
    checks = [_check(name, chosen) for name in right_bits.GOLDEN if chosen.full or name == "quickstart"]
    say("\n".join(map(_check_line, checks)))
    tests = []
    for name in REFERENCED if chosen.full else ["quickstart"]:
        dataset = data.load(REFERENCED[name].data, manual_dir=chosen.manual_dir, report=say)
        if chosen.record:
            say(f"recorded: {references.record(name, dataset)}")
        tests.append(references.self_test(name, dataset, report=lambda _: None))
        say("\n".join(_test_lines(tests[-1])))
    burnt = None
    if seconds:
        quickstart = data.load(right_bits.GOLDEN["quickstart"].data, report=say)
        burnt = burn_in.burn_in("quickstart", quickstart, seconds, report=say)
        say(_burn_in_line(burnt))
    document = {
        **found,
        "probes": [wrong._asdict() for wrong in wrong_answers],
        "portable": _together(checks),
        "self_tests": [
            asdict(test) | {"first_difference": test.first_difference and test.first_difference._asdict()}
            for test in tests
        ],
        "burn_in": burnt and burnt._asdict() | {"deviations": [each._asdict() for each in burnt.deviations]},
    }
    problems = [f"{wrong.probe} in {wrong.arithmetic}" for wrong in wrong_answers]
    problems += [each.experiment for each in checks if each.same is False]
    if problems:
        return Answer(document, CheckFailed.exit_code, f"this machine computes wrong bits: {', '.join(problems)}")
    if burnt and burnt.deviations:
        devices = sorted({each.device for each in burnt.deviations})
        said = f"{len(burnt.deviations)} wrong states in {burnt.seconds:.0f} s, on {', '.join(devices)}"
        return Answer(document, CheckFailed.exit_code, said)
    left = [test.experiment for test in tests if test.verdict == "differs"]
    if not left:
        return Answer(document)
    return Answer(document, CheckFailed.exit_code, f"this machine differs from the reference bits: {', '.join(left)}")


def _seconds(duration: str | None) -> float | None:
    """Seconds of a duration such as 30s, 10m or 2h."""
    if duration is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(duration))
    if not found or not float(found[1]):
        raise ConfigError("burn_in", f"must be a duration such as 30s, 10m or 2h, got {duration!r}")
    return float(found[1]) * {"s": 1, "": 1, "m": 60, "h": 3600}[found[2]]


def _check(name: str, chosen: DoctorFlags) -> BitsCheck:
    from jaxmlp import data
    from jaxmlp.proof import right_bits

    config = right_bits.GOLDEN[name].data
    if not any(each.name == config.name and each.where for each in data.status(manual_dir=chosen.manual_dir)):
        return right_bits.BitsCheck(experiment=name, same=None, updates=0, reason="not run: no data")
    try:
        dataset = data.load(config, manual_dir=chosen.manual_dir, report=say)
    except DataError as error:
        return right_bits.BitsCheck(experiment=name, same=None, updates=0, reason=f"not run: {error}")
    return right_bits.check(name, dataset, by_rule=chosen.full and name == "quickstart")


def _check_line(check: BitsCheck) -> str:
    said = f"portable: {check.experiment}"
    if check.same:
        return f"{said}, {check.updates} updates: this machine computes the right bits"
    if check.same is None:
        return f"{said}: {check.reason}"
    return f"{said}: this machine computes WRONG bits, first in {check.first_difference}"


def _together(checks: Sequence[BitsCheck]) -> dict[str, Any]:
    """The checks together: false if any check is false, else true if any is true, else None."""
    answers = [check.same for check in checks]
    same = False if False in answers else True if True in answers else None
    found = [check.to_plain() for check in checks]
    first = next((each["first_difference"] for each in found if each["first_difference"]), None)
    return {"same": same, "first_difference": first, "experiments": found}


def _burn_in_line(burnt: BurnIn) -> str:
    wrong = f"{len(burnt.deviations)} wrong" if burnt.deviations else "all right"
    return f"burn-in: {burnt.updates:,} updates in {burnt.seconds:.0f} s on {burnt.devices} devices at once: {wrong}"


def facts(manual_dir: Path | None) -> dict[str, Any]:
    """What is on this machine, as JSON values."""
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
    """Free bytes on the disk where the folder is or would be created."""
    return shutil.disk_usage(next(each for each in (path, *path.parents) if os.path.exists(each))).free


def _fact_lines(found: dict[str, Any]) -> Iterator[str]:
    yield "versions: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    kinds = [f"{device['platform']} ({device['kind']})" for device in found["devices"]]
    yield f"devices: {len(kinds)} x {', '.join(sorted(set(kinds)))}; processor {found['isa']}"
    yield "flags: " + ", ".join(f"{name} {value}" for name, value in found["flags"].items())
    for each in found["data"]:
        said = " - ".join(filter(None, (each["where"], each["problem"]))) or "not on this machine"
        yield f"data: {each['name']}: {said}"
    for each in found["disk"]:
        yield f"disk: {each['free_bytes'] / 1e9:.1f} GB free for {each['what']}, {each['path']}"


def _test_lines(test: SelfTest) -> Iterator[str]:
    said = f"self-test: {test.experiment}, {test.steps} updates"
    if test.verdict == "differs":
        yield f"{said}: the bits differ from the reference"
    elif test.verdict == "same" and not test.changed:
        yield f"{said}: the same bits as the reference"
    elif test.verdict == "same":
        yield f"{said}: the same bits as the reference of another platform ({'; '.join(test.changed)})"
    elif test.verdict == "no reference" and test.reference:
        yield f"{said}: no reference for this platform. The nearest, {test.reference}, differs in:"
        yield from (f"  {changed}" for changed in test.changed)
    elif test.verdict == "no reference":
        yield f"{said}: no reference for this experiment"
    if test.first_difference:
        yield f"  first difference from {test.reference}: {test.first_difference}"
    yield f"  params_sha256 {test.params_sha256}"
    if test.verdict == "no reference":
        yield "  `jaxmlp doctor --record` adds a reference for this platform"
