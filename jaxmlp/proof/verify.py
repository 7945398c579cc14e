"""Is a run directory as its run left it? Every file and tensor is hashed again, and files must agree. No training.

`SHA256SUMS` covers every other file, and its last line covers itself. Each checkpoint covers its own bytes.
`digests.jsonl` covers the checkpoints' tensors; `manifest.json` covers the config and the last digests. Accidental
damage is found, and so is a file from another run. A forger who rewrites every file is not found, because nothing here
is signed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from jaxmlp.errors import RunError
from jaxmlp.experiment.fields import parse_json
from jaxmlp.run import checkpoint, code, files, jsonl, sums
from jaxmlp.run.digest import digest
from jaxmlp.run.directory import CHECKPOINTS, DIGESTS, HISTORY, LOCK, SUMS, TRACE, history_table
from jaxmlp.run.lock import is_held
from jaxmlp.run.record import CONFIG, ENDS, MANIFEST, METRICS, read_manifest, read_plain_config
from jaxmlp.run.weights import as_trained, is_restored

ALWAYS = (CONFIG, MANIFEST, METRICS, DIGESTS, LOCK)
"""Files of every run. The others appear at its end."""


class Damage(NamedTuple):
    """A file that has changed since the run left it."""

    file: str
    """Path of the file in the run directory."""
    problem: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Result of `verify`."""

    files: int
    """Number of files checked."""
    tensors: int
    """Number of tensors hashed."""
    damaged: tuple[Damage, ...]
    """Damaged files. Empty if the run is undamaged."""
    not_covered: tuple[str, ...]
    """Files that no run writes, such as a report. No hash covers them."""
    ended: bool
    """Whether the run has ended and has `SHA256SUMS`. Until then no hash covers the logs."""


def verify(run: str | Path) -> Verification:
    """Hash every file and tensor of a run again, and check that its files agree with each other. Needs no JAX.

    Args:
        run: Folder of the run.

    Raises:
        RunError: The run does not exist, or a process is writing it.
    """
    path = Path(run)
    if not any(os.path.lexists(path / name) for name in (*ALWAYS, HISTORY, SUMS)):
        raise RunError(f"{path} is not a run directory, or does not exist. `jaxmlp runs` lists the runs.")
    if is_held(path / LOCK):
        raise RunError(f"{path} is in use: a process is writing it. Verify it after its end.")
    return _Verifier(path).all()


@dataclass
class _Verifier:
    path: Path
    damaged: dict[str, str] = field(default_factory=dict)

    def all(self) -> Verification:
        there = {str(each.relative_to(self.path)) for each in self.path.rglob("*") if not each.is_dir()}
        in_folder = {name for name in there if name.startswith(f"{CHECKPOINTS}/") and not name.endswith(".damaged")}
        states = {name: self.read(name, checkpoint.load) for name in sorted(in_folder)}
        manifest = self.read(MANIFEST, lambda _: read_manifest(self.path)) or {}
        ended = manifest.get("status") in ENDS or SUMS in there
        recorded = (self.read(SUMS, sums.read) or {}) if ended else {}
        for name, sha256 in code.copies(manifest).items():
            self.agree(name, "its SHA-256 differs from the one in", MANIFEST, self.read(name, sums.sha256), sha256)
        for name in sorted({*ALWAYS, *recorded, *code.copies(manifest), *([HISTORY, SUMS] if ended else [])} - there):
            self.note(name, "it is missing")
        for name in sorted(there & recorded.keys()):
            self.agree(name, "its SHA-256 differs from the one in", SUMS, self.read(name, sums.sha256), recorded[name])
        for name in sorted(in_folder - recorded.keys()) if recorded else []:
            self.note(name, f"it is not in {SUMS}")
        self.records(manifest, {name: state for name, state in states.items() if state}, ended=ended)
        covered = {*ALWAYS, *recorded, *in_folder, *code.copies(manifest), TRACE, HISTORY, SUMS} & there
        return Verification(
            files=len(covered),
            tensors=sum(len(state[0]) for state in states.values() if state),
            damaged=tuple(Damage(name, self.damaged[name]) for name in sorted(self.damaged)),
            not_covered=tuple(sorted(there - covered)),
            ended=ended,
        )

    def records(self, manifest: Mapping[str, Any], states: Mapping[str, Any], *, ended: bool) -> None:
        """Check that the files agree with each other."""
        self.read(CONFIG, lambda _: read_plain_config(self.path))
        self.read(LOCK, _check_lock)
        if bound := (manifest.get("binding") or {}).get("config_sha256"):
            self.agree(CONFIG, "its SHA-256 differs from the one in", MANIFEST, self.read(CONFIG, sums.sha256), bound)
        metrics, lines = (self.read(name, jsonl.read) or [] for name in (METRICS, DIGESTS))
        epochs = [[(line["epoch"], line.get("steps")) for line in log] for log in (metrics, lines)]
        self.agree(DIGESTS, "its epochs differ from those in", METRICS, *epochs)
        if ended:
            table = self.read(HISTORY, files.read)
            self.agree(HISTORY, "it is not the table of", METRICS, table, history_table(metrics))
        logs_by_step = {
            DIGESTS: {line.get("steps"): line for line in lines},
            TRACE: {line.get("steps"): line for line in self.read(TRACE, jsonl.read) or []},
        }
        for name, (arrays, meta) in states.items():
            step = meta.get("step", 0)
            if name != f"{CHECKPOINTS}/step-{step:08}.safetensors":
                self.note(name, f"it is the checkpoint of step {step} under another name")
            trained = as_trained(arrays)
            for part in ("params", "opt_state"):
                found = digest(_below(trained, f"state/{part}"))
                for log, by_step in logs_by_step.items():
                    logged = by_step.get(step, {}).get(f"{part}_sha256", found)
                    self.agree(name, f"its {part} differ from those in", log, found, logged)
        self.result(manifest.get("result") or {}, metrics, lines, states)

    def result(self, stored: Mapping[str, Any], metrics: Any, lines: Any, states: Mapping[str, Any]) -> None:
        """Check what the manifest says about the run's end."""
        if metrics and lines and stored:
            last = {f"train_{name}": metrics[-1].get(name) for name in ("loss", "accuracy")}
            last |= {name: metrics[-1].get(name) for name in ("val_loss", "val_accuracy")}
            for name in last.keys() & stored.keys():
                self.agree(MANIFEST, f"its {name} differs from that in", METRICS, stored.get(name), last[name])
            by_digests = [] if stored.get("status") != "finished" else ["steps", "params_sha256"]
            if any(is_restored(arrays) for arrays, _ in states.values()):
                by_digests.remove("params_sha256")  # The checkpoint's state covers them.
            for name in by_digests:
                self.agree(MANIFEST, f"its {name} differs from that in", DIGESTS, stored.get(name), lines[-1].get(name))
        for name, (arrays, meta) in states.items():
            if meta.get("step") == stored.get("steps") and "state_sha256" in stored:
                found = digest(_below(arrays, "state"))
                self.agree(MANIFEST, "its state_sha256 differs from that of", name, stored["state_sha256"], found)

    def read[T](self, name: str, reader: Callable[[Path], T]) -> T | None:
        """The reader's result for the file. If the reader fails, None and a note."""
        if not os.path.lexists(self.path / name):
            return None
        try:
            return reader(self.path / name)
        except (RunError, OSError) as error:
            self.note(name, error.strerror if isinstance(error, OSError) and error.strerror else str(error))
        return None

    def agree(self, name: str, problem: str, by: str, found: Any, wanted: Any) -> None:
        """Note that `found` in this file differs from what an undamaged file `by` says."""
        if by not in self.damaged and found is not None and found != wanted:
            self.note(name, f"{problem} {by}")

    def note(self, name: str, problem: str) -> None:
        """Keep the first problem of a file."""
        self.damaged.setdefault(name, problem)


def _below(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The arrays below a path, by the rest of their paths. The rest is empty for a tree that is a single leaf."""
    parts = {name: array for name, array in arrays.items() if f"{name}/".startswith(f"{prefix}/")}
    return {name[len(prefix) + 1 :]: array for name, array in parts.items()}


def _check_lock(path: Path) -> None:
    """Check a lock that nobody holds: it is empty, or names the process that was killed while holding it."""
    text = files.read(path)
    try:
        if not text or (type((holder := parse_json(text))["pid"]) is int and datetime.fromisoformat(holder["since"])):
            return
    except (KeyError, TypeError, ValueError):
        pass
    raise RunError("it names no process")
