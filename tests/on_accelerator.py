"""`make test-accelerator`: test levels of exactness, portable digests and speed on a GPU or TPU, and write a page.

It needs only jaxmlp's requirements, and no network. Pytest, Keras and PyTorch are used if they are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PROBE = (
    "import jax; found = jax.devices(); "
    "print(jax.default_backend(), len(found), found[0].device_kind, found[0].client.platform_version, sep='\\n')"
)
LEVELS = ("test_exact.py", "test_fitting.py", "test_reproduce.py", "test_doctor.py")
"""Test files for L3 and the golden integers; for L2; for L1, L3 and a planted bit flip; for the references."""
LANES = (1, 10, 100, 1000)


class Row(NamedTuple):
    """A row of a table on the page."""

    what: str
    outcome: str
    holds: bool = True


class Machine(NamedTuple):
    """The devices that JAX finds."""

    platform: str
    devices: int
    kind: str
    version: str


def main() -> int:
    """Test and write the page.

    Returns:
        Exit code: 0 if all holds or there is no GPU or TPU, 3 if something does not hold, 6 if JAX does not start.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="try it on a CPU, where there is no GPU or TPU")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "accelerator"), help="folder")
    chosen = parser.parse_args()
    machine = found()
    if machine is None:
        return 6
    if machine.platform == "cpu" and not chosen.cpu:
        print("No GPU or TPU here that JAX can use: nothing was tested. It needs an extra of jaxmlp (README).")
        return 0
    chosen.out.mkdir(parents=True, exist_ok=True)
    # Processes share the device's memory.
    os.environ |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    title = f"{machine.devices} x {machine.kind} ({machine.platform})"
    lines, holds = [f"# jaxmlp on {title}", "", machine.version, ""], True
    with tempfile.TemporaryDirectory() as scratch:
        for section in (levels, tests, portable, lanes, peers, bench):
            name = section.__name__
            lines += [f"## {name}", "", *(["| what | outcome |", "|---|---|"] if section is not bench else ["```"])]
            for row in section(machine, Path(scratch)):
                lines.append(f"| {row.what} | {row.outcome} |" if section is not bench else row.outcome)
                print(f"{name}: {row.what}: {row.outcome}", flush=True)
                holds &= row.holds
            lines += ["```"] * (section is bench) + [""]
            (chosen.out / "page.md").write_text("\n".join(lines))  # What there is, should a later part be cut off.
    print(f"{title}: {'all holds' if holds else 'something does not hold'}; the page: {chosen.out / 'page.md'}")
    return 0 if holds else 3


def found() -> Machine | None:
    """The devices that JAX finds. If JAX does not start, print its error and return None."""
    probed = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    if probed.returncode:
        print(f"JAX does not start here: {probed.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    backend, count, kind, version = probed.stdout.strip().split("\n")[:4]
    platform = backend if backend != "gpu" else "rocm" if "rocm" in version else "cuda"
    return Machine(platform, int(count), kind, version)


def levels(machine: Machine, scratch: Path) -> Iterator[Row]:
    """Test L1, L2 and L3 with the commands that a user would type."""
    run, shards = scratch / "run", ("--grad-shards", "8")
    whole = jaxmlp("train", "quickstart", *shards, "--devices", 1, "--out", run)
    yield same("L1: trained again", jaxmlp("reproduce", run).get("same"))
    killed(scratch / "cut", "train", "quickstart", *shards, "--devices", 1, "--checkpoint-s", 0)
    resumed = jaxmlp("train", "--resume", scratch / "cut")
    yield same("L2: killed and resumed", resumed.get("state_sha256") == whole.get("state_sha256"))
    if machine.devices == 1:
        yield Row("L3: on several devices", "not tested: it needs two")
    for devices in (count for count in (2, 4, 8) if count <= machine.devices):
        many = jaxmlp("train", "quickstart", *shards, "--devices", devices, "--out", scratch / f"on-{devices}")
        yield same(f"L3: on {devices} devices", many.get("state_sha256") == whole.get("state_sha256"))


def tests(machine: Machine, scratch: Path) -> Iterator[Row]:
    """Run the test files in `LEVELS`."""
    if not all(map(importlib.util.find_spec, ("pytest", "hypothesis", "beartype"))):
        yield Row("pytest", "not run: pytest, hypothesis and beartype are not all installed")
        return
    command = [sys.executable, "-m", "pytest", "-q", *(str(ROOT / "tests" / name) for name in LEVELS)]
    done = subprocess.run(
        command, env=os.environ | {"JAXMLP_TEST_DEVICE": machine.platform}, capture_output=True, text=True, check=False
    )
    yield Row("pytest", (done.stdout.strip().splitlines() or ["nothing was said"])[-1], done.returncode == 0)


def portable(machine: Machine, scratch: Path) -> Iterator[Row]:
    """Test L5: the probes and the golden digests."""
    answer = jaxmlp("doctor")
    yield same("L5: golden digests", answer.get("portable", {}).get("same"))
    yield Row(
        "probes",
        "right" if answer.get("probes") == [] else f"wrong: {answer.get('probes')}",
        not answer.get("probes", 1),
    )


def lanes(machine: Machine, scratch: Path) -> Iterator[Row]:
    """Sweep over more and more seeds at once, and report updates per second over all lanes."""
    for count in LANES[: 2 if machine.platform == "cpu" else None]:
        words = ("--seeds", f"0:{count}", "--epochs", 3, "--batching", "vmap", "--out", scratch / f"lanes-{count}")
        answer = jaxmlp("sweep", "quickstart", *words)
        if answer.get("status") != "finished":
            yield Row(f"{count} lanes", f"failed: {answer.get('error')}", False)
            continue
        steps = sum(run["epoch"] for run in answer["runs"]) * 32
        yield Row(f"{count} lanes", f"{steps / answer['train_s']:,.0f} updates/s, {answer['train_s']:.2f} s")


def peers(machine: Machine, scratch: Path) -> Iterator[Row]:
    """Time an epoch of the relu experiment with jaxmlp and other libraries, in turns."""
    words = ("--whole-runs", 0, "--epochs", 2 if machine.platform == "cpu" else 5)
    answer = json_of([sys.executable, ROOT / "experiments/benchmark_peers.py", *words, "--json"])
    for peer in answer.get("peers", []):
        yield Row(peer["name"], json.dumps({key: value for key, value in peer.items() if key != "name"}))
    if "peers" not in answer:
        yield Row("peers", f"not run: {str(answer.get('error')).splitlines()[0]}")


def bench(machine: Machine, scratch: Path) -> Iterator[Row]:
    """Run `jaxmlp bench --suite quick`. Each line of its table is a row."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxmlp", "bench", "--suite", "quick"], capture_output=True, text=True, check=False
    )
    for line in done.stdout.splitlines() or [done.stderr.strip()]:
        yield Row("bench", line, done.returncode == 0)


def same(what: str, is_same: Any) -> Row:
    """The row of a comparison of bits. `is_same` is None if nothing was compared."""
    return Row(what, {True: "the same bits", None: "not compared"}.get(is_same, "OTHER BITS"), is_same is not False)


def killed(run: Path, *words: Any) -> None:
    """Train in a process, and kill it at its first checkpoint."""
    command = [sys.executable, "-m", "jaxmlp", *map(str, words), "--out", str(run)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(run.glob("checkpoints/*.safetensors")):
            time.sleep(0.01)
        process.kill()


def jaxmlp(*words: Any) -> dict[str, Any]:
    """The JSON document that a jaxmlp command prints."""
    return json_of([sys.executable, "-m", "jaxmlp", *words, "--json"])


def json_of(command: list[Any]) -> dict[str, Any]:
    """The JSON document that a command prints. If it prints no JSON, `error` is its last line on stderr."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        return {"error": (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]}


if __name__ == "__main__":
    sys.exit(main())
