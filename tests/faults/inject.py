"""Break one change that the program makes to its files.

    python tests/faults/inject.py FOLDER AT FAULT train EXPERIMENT.py ...

A change is a call that makes, writes, syncs, renames, cuts off or removes a file or folder below FOLDER; they are
counted from 0, a write by its write(2). Change AT meets the fault:

    full      the disk is full: half of the bytes are written, and nothing more can be, from now on
    io        this one call fails, as on a bad block
    readonly  from now on every change is refused, as after a disk's errors
    kill      the process is killed before this change
    torn      the same, but half of the bytes are written
    power     the power goes: what was written and not synced is gone, but the names that files got are not
    names     the power goes: names that were given, and not synced, are as they were, too
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args
from unittest import mock

Error = Literal["full", "io", "readonly"]
Death = Literal["kill", "torn", "power", "names"]
ERRORS, DEATHS = get_args(Error), get_args(Death)
NEEDS_SPACE = ("open", "write", "mkdir", "pwrite")


class Dead(BaseException):
    """Stands for a killed process: from its moment on, no call changes a file any more."""


class Injector:
    """Counts the changes below a folder, and breaks one.

    Args:
        folder: Watched.
        at: Which change, from 0; none where there are fewer.
        fault: See above.
        die: Ends the process; by default it lets the calls after it do nothing, and raises `Dead`.
    """

    def __init__(
        self, folder: Path, at: int | None = None, fault: Error | Death = "io", die: Callable[[], None] | None = None
    ) -> None:
        self.folder, self.at, self.fault, self.die = os.path.realpath(folder), at, fault, die
        self.changes: list[str] = []
        """What was changed, in order: `write checkpoints/.jaxmlp-x.tmp`."""
        self.dead = self.aside = False
        self.synced: dict[str, int] = {}
        """Bytes on the disk, of files that have more."""
        self.renamed: list[tuple[Path, bytes | None]] = []
        """What was under names whose folders were not synced since."""

    @property
    def reached(self) -> bool:
        """Whether the change was met."""
        return self.at is not None and len(self.changes) > self.at

    def change(self, call: str, where: Any, act: Callable[[], Any], torn: Callable[[], Any] = lambda: None) -> Any:
        """Do what `act` does, unless it is the one to break; `torn` does half of it."""
        path = os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) else os.path.realpath(where)
        if self.aside or not f"{path}/".startswith(f"{self.folder}/"):
            return act()
        if self.dead:
            return None
        number = len(self.changes)
        self.changes.append(f"{call} {os.path.relpath(path, self.folder)}")
        if self.at is not None and number >= self.at:
            self.meet(number == self.at, call, torn)
        return act()

    def meet(self, first: bool, call: str, torn: Callable[[], Any]) -> None:
        """Fail, or die, where the fault says so."""
        if self.fault == "readonly":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if self.fault == "full" and call in NEEDS_SPACE:
            if first:
                torn()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.fault == "io" and first:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.fault in DEATHS and first:
            if self.fault == "torn":
                torn()
            if self.fault in ("power", "names"):
                self.cut_power()
            self.dead = True
            if self.die:
                self.die()
            raise Dead

    def cut_power(self) -> None:
        """Undo what was not synced."""
        self.aside = True
        for path, size in self.synced.items():
            if os.path.exists(path):
                os.truncate(path, size)
        for name, content in reversed(self.renamed if self.fault == "names" else []):
            if name.is_dir() or not name.parent.is_dir():
                continue  # A folder was renamed, which stays so.
            if content is None:
                name.unlink(missing_ok=True)
            else:
                name.write_bytes(content)
        self.aside = False

    def note_name(self, path: Any) -> None:
        """Remember what is under a name that is about to change, until its folder is synced."""
        path = Path(os.path.realpath(path))
        if not path.is_dir():
            self.renamed.append((path, path.read_bytes() if path.exists() else None))

    def note_sync(self, descriptor: int) -> None:
        """What is on the disk now."""
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self.synced.pop(path, None)
        self.renamed = [(name, content) for name, content in self.renamed if str(name.parent) != path]


@contextlib.contextmanager
def injected(injector: Injector) -> Iterator[Injector]:
    """Let the injector see the changes of this process, those of Python code."""
    change, real_open, real_rmtree = injector.change, io.open, shutil.rmtree
    real = {name: getattr(os, name) for name in ("open", "fsync", "replace", "mkdir", "unlink", "ftruncate", "pwrite")}

    class File(io.FileIO):
        """A file whose writes are changes."""

        def write(self, data: Any) -> int:
            data = memoryview(data).cast("B")
            half = data[: len(data) // 2]

            def write(part: memoryview) -> int:
                path = os.readlink(f"/proc/self/fd/{self.fileno()}")
                injector.synced.setdefault(path, os.fstat(self.fileno()).st_size)
                return super(File, self).write(part)

            written = change("write", self.fileno(), lambda: write(data), lambda: write(half))
            return len(data) if written is None else written

    def open_file(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        if not set(mode) & set("wax+") or "+" in mode:
            return real_open(file, mode, buffering, *rest, **named)
        if not isinstance(file, int) and injector.dead:
            return real_open(os.devnull, mode, buffering, *rest, **named)
        if not isinstance(file, int):
            change("open", file, lambda: None if os.path.exists(file) else injector.note_name(file))
        raw = File(file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **named)

    def open_descriptor(path: Any, flags: int, *rest: Any, **named: Any) -> Any:
        if not flags & os.O_CREAT:
            return real["open"](path, flags, *rest, **named)

        def make() -> Any:
            injector.note_name(path)
            return real["open"](path, flags, *rest, **named)

        return change("open", path, make)

    def replace(source: Any, target: Any) -> Any:
        def rename() -> Any:
            injector.note_name(source)
            injector.note_name(target)
            real["replace"](source, target)
            old, new = os.path.realpath(source), os.path.realpath(target)
            if old in injector.synced:
                injector.synced[new] = injector.synced.pop(old)

        return change("rename", target, rename)

    def unlink(path: Any, **named: Any) -> Any:
        def remove() -> Any:
            injector.note_name(path)
            return real["unlink"](path, **named)

        return change("unlink", path, remove) if os.path.lexists(path) else real["unlink"](path, **named)

    def fsync(descriptor: int) -> Any:
        def sync() -> None:
            injector.note_sync(descriptor)

        return change("fsync", descriptor, sync)

    def rmtree(path: Any, *rest: Any, **named: Any) -> Any:
        # A change of its own, because its calls are relative to descriptors; errors are ignored where it is called.
        with contextlib.suppress(OSError):
            change("rmtree", path, lambda: real_rmtree(path, *rest, **named))

    def on(call: str) -> Callable[..., Any]:
        return lambda where, *rest, **named: change(call, where, lambda: real[call](where, *rest, **named))

    with contextlib.ExitStack() as patches:
        for module in (io, builtins):
            patches.enter_context(mock.patch.object(module, "open", open_file))
        calls = {"open": open_descriptor, "replace": replace, "rename": replace, "unlink": unlink, "fsync": fsync}
        patches.enter_context(mock.patch.object(shutil, "rmtree", rmtree))
        for name, call in (calls | {name: on(name) for name in ("mkdir", "ftruncate", "pwrite")}).items():
            patches.enter_context(mock.patch.object(os, name, call))
        yield injector


def main() -> int:
    """Run the program with a broken change; a killed one ends by SIGKILL."""
    from faults.start import start

    folder, at, fault, *argv = sys.argv[1:]
    injector = Injector(Path(folder), int(at), fault, lambda: os.kill(os.getpid(), signal.SIGKILL))  # type: ignore[arg-type]
    with injected(injector):
        code = start(argv)
    if not injector.reached:
        print(f"There are {len(injector.changes)} changes: nothing was broken.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main())
