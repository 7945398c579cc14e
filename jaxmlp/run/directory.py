"""What is in a run directory? Everything that a run leaves and a resume needs.

config.json       every value, written once           manifest.json   what the bits depend on, status and result
metrics.jsonl     one line per epoch                  digests.jsonl   SHA-256 of state and batch order after each epoch
history.csv       the metrics as a table              trace.jsonl     SHA-256 of the state every N updates, on request
SHA256SUMS        of all these files, at the end      lock            the process that writes here
code/             the user's own code, to compare: nothing here is ever run
start.safetensors the initial weights, if they come from another run
checkpoints/step-00009380.safetensors: the last two and the best
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

from jaxmlp.errors import RunError
from jaxmlp.run import checkpoint, code, files, jsonl, sums
from jaxmlp.run.checkpoint_folder import Checkpoint, CheckpointFolder
from jaxmlp.run.digest import digest
from jaxmlp.run.lock import Lock, is_held, lock_folder
from jaxmlp.run.manifest import COMPILED
from jaxmlp.run.record import (
    CONFIG,
    ENDS,
    FORMAT,
    MANIFEST,
    METRICS,
    read_config,
    read_manifest,
    read_plain_config,
    taken,
)

if TYPE_CHECKING:
    from jaxmlp.data import Facts
    from jaxmlp.experiment.config import ExperimentConfig
    from jaxmlp.experiment.plain import Find
    from jaxmlp.source.code import Sources
    from jaxmlp.source.file import Changed

DIGESTS, TRACE, HISTORY, SUMS = "digests.jsonl", "trace.jsonl", "history.csv", "SHA256SUMS"
CHECKPOINTS, LOCK, START = "checkpoints", "lock", "start.safetensors"


class RunDirectory:
    """One run on disk. Made by `create` or `open`. Close it, or use it in a `with` block, to release its lock.

    Attributes:
        path: The folder.
        plain_config: The experiment's values as JSON types.
        manifest: `binding`, `not_binding`, `data`, `status` and `result`, as in `manifest.json`.
        code_changed: Files of the user's own code that have changed since the run was made.
        checkpoints: The checkpoints. `save_checkpoint` writes them, and `newest_checkpoint` reads the newest.
    """

    def __init__(
        self,
        path: Path,
        config: ExperimentConfig | None,
        plain_config: dict[str, Any],
        manifest: dict[str, Any],
        lock: Lock | None,
        find: Find | None = None,
    ) -> None:
        self.path = path
        self.plain_config = plain_config
        self._config, self._find = config, find
        self.manifest = manifest
        self.code_changed: tuple[Changed, ...] = ()
        self._lock = lock
        self.checkpoints = CheckpointFolder(path / CHECKPOINTS)

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: ExperimentConfig,
        manifest: Mapping[str, Any],
        start: Mapping[str, NDArray[Any]] | None = None,
    ) -> RunDirectory:
        """Begin a run in a new folder, or in a folder without `config.json`.

        Files that the run would overwrite are set aside.

        Args:
            path: The folder.
            config: The experiment.
            manifest: From `jaxmlp.run.manifest.manifest`.
            start: Initial weights, by their paths in a checkpoint. Default: the weights of the seed.

        Raises:
            RunError: The folder already holds a run, or another process uses it. The message says what to do.
            DiskError: The folder cannot be written.
        """
        path = Path(path)
        lock = lock_folder(path, LOCK)
        try:
            if os.path.lexists(path / CONFIG):
                raise RunError(taken(path))
            from jaxmlp.source.code import code_of, data_code_of

            facts = {"format": FORMAT, **manifest, "status": "running", "result": None}
            run = cls(path, config, config.to_dict(), facts, lock)
            run._begin(data_code_of(config) | code_of(config), start)
            return run
        except BaseException:
            lock.release()
            raise

    def _begin(self, sources: Sources, start: Mapping[str, NDArray[Any]] | None) -> None:
        ours = (MANIFEST, METRICS, DIGESTS, TRACE, HISTORY, SUMS, CHECKPOINTS, START, code.CODE)
        stale = [name for name in ours if os.path.lexists(self.path / name)]
        with files.trying_to(f"begin a run in {self.path}"):
            files.remove_temporaries(self.path)
            if stale:
                aside = tempfile.mkdtemp(prefix="set-aside-", dir=self.path)
                for name in stale:
                    os.rename(self.path / name, Path(aside, name))
            (self.path / CHECKPOINTS).mkdir(mode=0o700)
            files.sync(self.path.parent)
        code.copy(self.path / code.CODE, sources)
        if start:
            checkpoint.save(self.path / START, start, {})
            self.manifest["start"] = {"sha256": digest(start)}
        self._write_manifest()
        files.write(self.path / METRICS)
        files.write(self.path / DIGESTS)
        # Last, because config.json makes the folder a run.
        files.write(self.path / CONFIG, (json.dumps(self.plain_config, indent=2) + "\n").encode())

    @classmethod
    def open(cls, path: str | Path, *, write: bool, find: Find | None = None) -> RunDirectory:
        """Open an existing run. Only one process at a time may open it for writing.

        Opening for writing makes an unfinished run `running` again and removes what a killed process left half written.

        Args:
            path: The folder.
            write: Whether to open the run for writing.
            find: Resolves the user's own parts of the config, as in `ExperimentConfig.from_dict`.

        Raises:
            RunError: There is no run, it cannot be read, or another process uses it; the message names the process.
            DiskError: The folder cannot be written.
        """
        path = Path(path)
        if not os.path.isdir(path):
            raise RunError(f"{path} does not exist, or cannot be read. `jaxmlp runs` lists the runs.")
        if not os.path.lexists(path / CONFIG):
            raise RunError(f"{path} is not a run directory: it has no {CONFIG}. `jaxmlp runs` lists the runs.")
        lock = Lock(path / LOCK) if write else None
        try:
            run = cls(path, None, read_plain_config(path), read_manifest(path), lock, find)
            if write and run.status != "finished":
                run.begin_again()
            return run
        except BaseException:
            if lock:
                lock.release()
            raise

    def begin_again(self) -> None:
        """Make the run, which is open for writing, `running` again. Its result and its hashes are removed."""
        with files.trying_to(f"write in {self.path}"):
            files.remove_temporaries(self.path)
            files.remove_temporaries(self.checkpoints.path)
            # Before any file changes that the hashes cover.
            (self.path / SUMS).unlink(missing_ok=True)
        self.cut_back()
        self.manifest.update(status="running", result=None)
        self._write_manifest()

    def lengthen(self, epochs: int, *, same_bits: bool) -> None:
        """Let the run, which is open for writing, go on to another number of epochs. Config and manifest record it.

        Args:
            epochs: Total number of epochs.
            same_bits: Whether a run with this many epochs from its start would have the same bits so far.

        Raises:
            DiskError: It cannot be written.
        """
        self.begin_again()
        before = self.plain_config["epochs"]
        self.plain_config = {**self.plain_config, "epochs": epochs}
        if self._config:
            self._config = dataclasses.replace(self._config, epochs=epochs)
        text = (json.dumps(self.plain_config, indent=2) + "\n").encode()
        files.write(self.path / CONFIG, text)
        if "binding" in self.manifest:
            self.manifest["binding"]["config_sha256"] = hashlib.sha256(text).hexdigest()
        record = {"after": len(self.epochs()), "from": before, "to": epochs, "same_bits": same_bits}
        self.manifest["lengthened"] = [*(self.manifest.get("lengthened") or []), record]
        self._write_manifest()

    def start(self) -> dict[str, NDArray[Any]] | None:
        """The initial weights, by their paths in a checkpoint; None if they are the seed's weights.

        Raises:
            RunError: They are damaged or missing.
        """
        start = self.manifest.get("start")
        if not start:
            return None
        arrays = checkpoint.load(self.path / START)[0]
        if digest(arrays) != start.get("sha256"):
            raise RunError(f"{self.path / START} differs from its digest in {MANIFEST}. Restore it from a copy.")
        return arrays

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock. Idempotent."""
        if self._lock:
            self._lock.release()
            self._lock = None

    @property
    def config(self) -> ExperimentConfig:
        """The experiment.

        Raises:
            RunError: `config.json` is damaged, or has parts of the user's own that were not given.
        """
        self._config = self._config or read_config(self.path, self._find)
        return self._config

    def take(self, config: ExperimentConfig) -> None:
        """Use this experiment, which has the values of `config.json`, and its parts."""
        self._config = config

    def compiled_as(self, sha256: str) -> None:
        """Record the hash of the program that XLA compiled here.

        Bits do not depend on it, but it can explain differences.
        """
        self.manifest[COMPILED] = sha256
        self._write_manifest()

    def accept_code(self, sources: Sources) -> None:
        """Record that the run, which is open for writing, continues with changed code."""
        from jaxmlp.source.code import sums_of

        code.accept(self.path, self.manifest, {"epochs": len(self.epochs()), code.CODE: sums_of(sources)}, sources)
        self._write_manifest()

    @property
    def facts(self) -> Facts:
        """Shapes and types of the training examples.

        Raises:
            RunError: The manifest does not have them.
        """
        from jaxmlp.data import Facts

        try:
            return Facts.from_plain(self.manifest.get("data"))
        except ValueError as error:
            problem = f"{self.path / MANIFEST} does not say which examples the run was trained on ({error})"
            raise RunError(f"{problem}. Create runs with manifest().") from error

    @property
    def status(self) -> str:
        """Status of the run. A run that was killed is `interrupted`, although it could not record that."""
        status: str = self.manifest["status"]
        if status == "running" and not self._lock and not is_held(self.path / LOCK):
            return "interrupted"
        return status

    def epochs(self) -> list[dict[str, Any]]:
        """The metrics of each epoch so far."""
        return jsonl.read(self.path / METRICS)

    def digests(self) -> list[dict[str, Any]]:
        """The digests after each epoch so far."""
        return jsonl.read(self.path / DIGESTS)

    def append_epoch(self, metrics: Mapping[str, Any], digests: Mapping[str, Any]) -> None:
        """Add an epoch's line to both logs. Each line has the `epoch`. A figure that is not finite becomes null."""
        jsonl.append(self.path / METRICS, metrics)
        jsonl.append(self.path / DIGESTS, digests)

    def trace(self) -> list[dict[str, Any]]:
        """The digests taken within epochs. Empty if none were requested."""
        return jsonl.read(self.path / TRACE) if TRACE in self._logs() else []

    def append_trace(self, digests: Mapping[str, Any]) -> None:
        """Add a line to the trace. It has the `epoch` and the number of `steps`."""
        if TRACE not in self._logs():
            # Created in full first, so that a power cut cannot lose the file's name.
            files.write(self.path / TRACE)
        jsonl.append(self.path / TRACE, digests)

    def cut_back(self, epoch: float = math.inf, steps: float = math.inf) -> None:
        """Keep the logs' lines before `epoch`, and the trace's lines up to `steps`.

        A resume writes the others again.
        """
        for name in self._logs():
            if name == TRACE:
                jsonl.cut_back(self.path / name, lambda line: line.get("steps", 0) <= steps)
            else:
                jsonl.cut_back(self.path / name, lambda line: line["epoch"] < epoch)

    def _logs(self) -> list[str]:
        return [METRICS, DIGESTS, *([TRACE] if os.path.lexists(self.path / TRACE) else [])]

    def save_checkpoint(
        self, step: int, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any], *, best: bool = False
    ) -> Path:
        """Write the checkpoint of `step`, and keep the last two and the best. See `CheckpointFolder.save`."""
        # After a power cut, the logs must hold every epoch that a checkpoint covers.
        self.sync_logs()
        return self.checkpoints.save(step, arrays, meta, best=best)

    def newest_checkpoint(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest good checkpoint; None if there are no checkpoint files. See `CheckpointFolder.newest`."""
        return self.checkpoints.newest(warn, set_aside=self._lock is not None)

    def finish(self, status: str, result: Mapping[str, Any] | None) -> None:
        """Record how the run ended, and the hashes of its files in the format of `sha256sum -c SHA256SUMS`.

        Args:
            status: One of `ENDS`.
            result: JSON values for the manifest. A figure that is not finite becomes null.

        Raises:
            DiskError: It could not be written.
        """
        if status not in ENDS:
            raise ValueError(f"status must be one of {', '.join(ENDS)}, got {status!r}")
        files.write(self.path / HISTORY, history_table(self.epochs()))
        self.manifest.update(status=status, result=jsonl.finite(result))
        self.sync_logs()
        with files.trying_to(f"write in {self.path}"):
            # A power cut must not bring back a removed checkpoint, because no hash covers it.
            files.sync(self.checkpoints.path)
        copies = sorted(code.copies(self.manifest))
        start = [START] if self.manifest.get("start") else []
        covered = [self.path / name for name in (CONFIG, *self._logs(), HISTORY, *start, *copies)]
        sums.write(self.path / SUMS, (*covered, *self.checkpoints.paths()), {MANIFEST: self._manifest_text()})
        # Last, because a run that says it has finished is not opened for writing again.
        self._write_manifest()

    def sync_logs(self) -> None:
        """Wait until the logs are on the disk. Called before writing a checkpoint that covers them.

        Raises:
            DiskError: The system cannot confirm it.
        """
        with files.trying_to(f"write the logs of {self.path}"):
            for name in self._logs():
                files.sync(self.path / name)

    def _write_manifest(self) -> None:
        files.write(self.path / MANIFEST, self._manifest_text())

    def _manifest_text(self) -> bytes:
        return (json.dumps(self.manifest, indent=2, allow_nan=False) + "\n").encode()


def history_table(epochs: Sequence[Mapping[str, Any]]) -> bytes:
    """The epochs' metrics as the text of `history.csv`."""
    table = io.StringIO()
    columns = list(dict.fromkeys(name for line in epochs for name in line))
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(epochs)
    return table.getvalue().encode()
