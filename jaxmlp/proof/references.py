"""Which bits do known experiments have on known platforms? Reference digests, one file per platform.

A platform is the `binding` of a manifest without config and data. A reference has the digests after no update, one
update, one epoch and the whole run, so that a difference shows where it begins.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxmlp import data
from jaxmlp.errors import RunError
from jaxmlp.experiment.fields import parse_json
from jaxmlp.proof import evidence
from jaxmlp.proof.evidence import PARTS, Evidence, FirstDifference
from jaxmlp.proof.experiments import REFERENCED
from jaxmlp.proof.training import Training
from jaxmlp.run import files
from jaxmlp.run.digest import digest, leaf_digests
from jaxmlp.run.known import wrong_fields
from jaxmlp.run.manifest import differences, manifest

EXPERIMENT = ("config_sha256", "data_sha256")
"""The facts of a binding that say what is trained. The others are the platform's."""
FOLDER = Path(__file__).parents[1] / "references"

Verdict = Literal["same", "differs", "no reference"]


class Reference(NamedTuple):
    """A file of `FOLDER`."""

    path: Path
    platform: Mapping[str, Any]
    experiments: Mapping[str, Mapping[str, Any]]
    """By name: `config_sha256`, `data_sha256`, `order_sha256` of the first epoch, and `points` as in
    `digests.jsonl`."""


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """How this machine's bits compare with the references."""

    experiment: str
    verdict: Verdict
    reference: str | None
    """File of the nearest platform. None if there is no reference for this experiment."""
    changed: tuple[str, ...]
    """The facts in which that platform differs from this one, with both values."""
    steps: int
    """Number of updates made."""
    first_difference: FirstDifference | None
    params_sha256: str
    """Digest of the parameters after the last update."""


def self_test(name: str, dataset: data.Dataset, report: Callable[[str], object]) -> SelfTest:
    """Train an experiment of `REFERENCED` and compare it with its nearest reference.

    If that reference belongs to another platform, different bits are not a failure: the verdict is then `no reference`.
    """
    training = Training(REFERENCED[name], dataset)
    reference, changed = _nearest(name, manifest(training.config, dataset)["binding"])
    found = None
    if reference:
        stored = reference.experiments[name]
        points = [Evidence.from_line(line) for line in stored["points"]]
        found = evidence.first_difference(
            training, points, {1: stored["order_sha256"]}, lambda piece: report(f"{name}: update {piece.step}: agreed")
        )
    if not found:
        training.advance(training.last_step)
    verdict: Verdict = "no reference" if not reference or (found and changed) else "differs" if found else "same"
    return SelfTest(
        experiment=name,
        verdict=verdict,
        reference=reference and reference.path.name,
        changed=changed,
        steps=training.step,
        first_difference=found,
        params_sha256=digest(training.state().params),
    )


def record(name: str, dataset: data.Dataset) -> Path:
    """Train an experiment of `REFERENCED` and write its digests as this platform's reference. Returns the file.

    Raises:
        DiskError: The package's folder cannot be written.
    """
    training = Training(REFERENCED[name], dataset)
    here = manifest(training.config, dataset)["binding"]
    points = []
    for step in (0, 1, training.steps_per_epoch, training.last_step):
        training.advance(step)
        trees = {part: getattr(training.state(), part) for part in PARTS}
        sha256 = {f"{part}_sha256": digest(tree) for part, tree in trees.items()}
        points.append({"steps": step, **sha256, "leaves_sha256": leaf_digests(trees)})
    entry = {
        **{name: here[name] for name in EXPERIMENT},
        "order_sha256": training.order_sha256(1),
        "points": points,
    }
    path = FOLDER / _file_name(_platform(here))
    before = next((each.experiments for each in references() if each.path == path), {})
    text = json.dumps({"platform": _platform(here), "experiments": {**before, name: entry}}, indent=1)
    with files.trying_to(f"make the folder {FOLDER}"):
        FOLDER.mkdir(exist_ok=True)
    files.write(path, text.encode() + b"\n")
    return path


def references() -> list[Reference]:
    """The references that come with the package, and those that were recorded here.

    Raises:
        RunError: A reference is damaged.
    """
    return [_read(path) for path in sorted(FOLDER.glob("*.json"))]


def _read(path: Path) -> Reference:
    try:
        found = parse_json(files.read(path))
        platform, experiments = dict(found["platform"]), dict(found["experiments"])
        for each in experiments.values():
            named = {name: each[name] for name in (*EXPERIMENT, "order_sha256")}
            points = [Evidence.from_line(line) for line in each["points"]]
            if wrong_fields(named) or None in named.values() or any(wrong_fields(line) for line in each["points"]):
                raise ValueError("a field has another type")
            if [point.step for point in points] != sorted({point.step for point in points}):
                raise ValueError("points are out of order")
        return Reference(path, platform, experiments)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged: it is not a reference ({error}). Install jaxmlp again.") from error


def _platform(binding: Mapping[str, Any]) -> dict[str, Any]:
    """What the bits depend on besides the experiment."""
    return {name: value for name, value in binding.items() if name not in EXPERIMENT}


def _nearest(name: str, here: Mapping[str, Any]) -> tuple[Reference | None, tuple[str, ...]]:
    """The reference of this experiment with the fewest differing facts, and these facts."""
    found = [
        (each, tuple(differences({"binding": each.platform}, {"binding": _platform(here)})))
        for each in references()
        if name in each.experiments and all(each.experiments[name][sha256] == here[sha256] for sha256 in EXPERIMENT)
    ]
    return min(found, key=lambda pair: len(pair[1]), default=(None, ()))


def _file_name(facts: Mapping[str, Any]) -> str:
    """Name of a reference's file, such as `cpu-x86_64-avx2-1f3a0c2b-jax-0.12.0.1-5d41402a.json`."""
    named = re.sub(r"[^\w.]+", "-", f"{facts['device_kind']}-{facts['isa']}-jax-{facts['jax']}").lower()
    return f"{named}-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]}.json"
