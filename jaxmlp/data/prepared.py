"""How do MNIST and Fashion-MNIST get from their source into memory?

Sources, in this order: the folder that the user names, verified before anything else; the decoded copy; data prepared
before; the network. tensorflow-datasets prepares files and downloads (`builders`) and is imported only for that. Later
starts read the copy decoded from the prepared data.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from jaxmlp.data import cache, official
from jaxmlp.data.dataset import Split
from jaxmlp.data.official import SOURCES
from jaxmlp.errors import DataError
from jaxmlp.experiment.fields import parse_json

Report: TypeAlias = Callable[[str], None]
"""Called with a line about anything that takes long or is damaged."""
SHUFFLED = "stock tfds order: a validation fraction takes other images than Keras"


class Loaded(NamedTuple):
    """A loaded data set."""

    train: Split
    test: Split
    sha256: str
    notes: tuple[str, ...] = ()


class Status(NamedTuple):
    """Where a data set is."""

    name: str
    where: str
    """A file, a folder, or another source. Empty if there is nothing here to load."""
    prepared: bool
    """Whether the data loads without preparation. Original files must be prepared first."""
    bytes: int
    """Bytes of the file or files at `where`."""
    sha256: str | None
    """`Dataset.sha256` of the data. None if it is known only after loading."""
    problem: str = ""
    """What is damaged or cannot be used. If `where` is empty, loading fails with this message."""


def status(name: str, manual_dir: Path | None, data_dir: Path) -> Status:
    """Where data set `name` would be loaded from. Nothing is made or downloaded.

    Raises:
        DataError: The source is missing, damaged, or cannot be read here. Loading fails with the same message.
    """
    damaged: list[str] = []
    path = copy_path(name, data_dir)
    source = find_named(name, manual_dir) if manual_dir else None
    if isinstance(source, tuple):
        found = Status(name, str(source[0].parent), False, _size(source), None)
        official.verify(name, source)
    if not isinstance(source, Path) and (loaded := _from_copy(name, data_dir, damaged)):
        return Status(name, str(path), True, _size([path]), loaded.sha256)
    problem = "".join(damaged)
    if isinstance(source, tuple):
        return found._replace(problem=problem)
    folder = source or newest_version(data_dir / f"jaxmlp_{name}") or newest_version(data_dir / name)
    if not folder:
        return Status(name, "", False, 0, None, problem)
    found = Status(name, str(folder), True, _size(folder.iterdir()), None, problem)
    _check_format(name, folder)
    return found


def _size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def copy_path(name: str, data_dir: Path) -> Path:
    """Path of the decoded copy in the files' order."""
    return data_dir / f"{name}.idx"


def load(name: str, manual_dir: Path | None, data_dir: Path, report: Report, *, stock: bool = True) -> Loaded:
    """Load data set `name` of `official.SOURCES`.

    Args:
        name: Name of the data set.
        manual_dir: Folder that the user names, or None.
        data_dir: Folder of prepared and decoded data, to read and to write.
        report: Called with a line about what happens.
        stock: Whether to accept a folder in `data_dir` that tfds itself prepared.

    Raises:
        DataError: A source is damaged or another data set, or there is no source and no network.
        DiskError: Prepared data cannot be written.
    """
    files = None
    if manual_dir:
        named = find_named(name, manual_dir)
        if isinstance(named, Path):
            return _from_folder(name, named, data_dir, report)
        official.verify(name, named)
        files = named
    damaged: list[str] = []
    if loaded := _from_copy(name, data_dir, damaged):
        return loaded
    for line in damaged:
        report(f"{line}; it will be made again")
    own = data_dir / f"jaxmlp_{name}"
    if stock and not files and not newest_version(own) and (folder := newest_version(data_dir / name)):
        return _from_folder(name, folder, data_dir, report)
    if not importlib.util.find_spec("array_record"):
        needs = "tensorflow-datasets installs array_record on Linux only"
        remedy = f"Copy {name}.idx there from a Linux machine, or use --data.name mnist_5k"
        raise DataError(f"data: {name} is not in {data_dir} and cannot be prepared here: {needs}. {remedy}")
    try:
        with cache.only_one(data_dir, report):
            return _from_copy(name, data_dir, []) or _prepare(name, files, own, report)
    except DataError as error:
        raise DataError("\n".join([str(error), *damaged])) from None


def find_named(name: str, manual_dir: Path) -> tuple[Path, ...] | Path:
    """The four files, or the folder that tfds prepared, in `manual_dir/name` or `manual_dir`.

    Raises:
        DataError: Neither is there.
    """
    for folder in (manual_dir / name, manual_dir):
        if found := official.find(name, folder) or newest_version(folder):
            return found
    wanted = ", ".join(f"{file.name}.gz" for file in SOURCES[name].files)
    if not manual_dir.is_dir():
        raise DataError(f"data: {manual_dir} is not a folder, wanted a folder with {name}'s files: {wanted}")
    there = sorted(path.name for path in manual_dir.iterdir())
    found_names = ", ".join(there[:5]) + (" and more" if len(there) > 5 else "") or "nothing"
    raise DataError(f"data: {manual_dir} has none of {name}'s files: found {found_names}; wanted {wanted}")


def newest_version(folder: Path) -> Path | None:
    """`folder` if tfds prepared it, or the newest version folder in it that tfds prepared."""

    def version(path: Path) -> list[int]:
        return [int(number) for number in path.name.split(".") if number.isdecimal()]

    infos = [*folder.glob("dataset_info.json"), *folder.glob("*.*.*/dataset_info.json")]
    return max((info.parent for info in infos), key=version, default=None)


def _from_copy(name: str, data_dir: Path, damaged: list[str]) -> Loaded | None:
    """The decoded copy in the files' order. A damaged copy is skipped and adds a line to `damaged`."""
    path, source = copy_path(name, data_dir), SOURCES[name]
    try:
        copy = cache.read_copy(path, source)
        if copy and copy[2] != source.sha256:
            raise DataError(f"data: {path} has its examples in another order")
    except DataError as error:
        damaged.append(str(error))
        return None
    return Loaded(*copy) if copy else None


def _from_folder(name: str, folder: Path, data_dir: Path, report: Report) -> Loaded:
    """The content of an array_record folder. It is decoded once; the copy's name has the hash of the folder's files."""
    _check_format(name, folder)
    try:
        sums = [_sum(path) for path in sorted(path for path in folder.iterdir() if path.is_file())]
    except OSError as error:
        raise DataError(f"data: {folder} cannot be read: {error}") from None
    path = data_dir / f"{name}-{hashlib.sha256(b''.join(sums)).hexdigest()[:16]}.idx"
    try:
        copy = cache.read_copy(path, SOURCES[name])
    except DataError as error:
        report(f"{error}; it will be made again")
        copy = None
    if not copy:
        from jaxmlp.data import builders

        report(f"data: decoding {folder}, once, for some seconds")
        train, test = builders.read(folder)
        copy = train, test, cache.checked_digest(folder, SOURCES[name], train, test)
        try:
            cache.write_copy(path, train, test)
        except OSError as error:
            report(f"data: {path} cannot be written ({error.strerror}), so the next start must decode again")
    return Loaded(*copy, notes=() if copy[2] == SOURCES[name].sha256 else (f"{folder}: {SHUFFLED}",))


def _sum(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _check_format(name: str, folder: Path) -> None:
    try:
        about = parse_json((folder / "dataset_info.json").read_bytes())
        file_format, held = about.get("fileFormat", "tfrecord"), str(about.get("name", name))
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"data: {folder / 'dataset_info.json'} cannot be read: {error}") from None
    if held.removeprefix("jaxmlp_") != name:
        raise DataError(f"data: {folder} holds {held}, wanted {name}")
    if file_format != "array_record":
        found = f"{folder} holds {name} as {str(file_format).upper()}, which only TensorFlow reads"
        raise DataError(f"data: {found}. Make a copy without TensorFlow: jaxmlp data prepare {name}")


def _prepare(name: str, files: tuple[Path, ...] | None, own: Path, report: Report) -> Loaded:
    """Read the folder `own` if it was prepared before, else prepare it; then make the decoded copy."""
    data_dir = own.parent
    if folder := newest_version(own):
        try:
            return _decode(name, folder, data_dir)
        except DataError as error:
            report(f"{error}; it will be prepared again")
    try:
        with cache.making(data_dir) as temporary:
            if not files:
                from jaxmlp.data.download import download

                files = download(name, temporary, report)
            from jaxmlp.data import builders

            report(f"data: preparing {name}, once, for some seconds")
            prepared = builders.write(name, files, temporary)
            loaded = _decode(name, prepared, data_dir)
            shutil.rmtree(own, ignore_errors=True)
            # Without locks, another process may have created `own` meanwhile. The decoded copy exists already and is
            # the same.
            with contextlib.suppress(OSError):
                prepared.parent.rename(own)
    except OSError as error:
        raise cache.unwritable(data_dir, error) from None
    return loaded


def _decode(name: str, folder: Path, data_dir: Path) -> Loaded:
    from jaxmlp.data import builders

    train, test = builders.read(folder)
    sha256 = cache.checked_digest(folder, SOURCES[name], train, test)
    if sha256 != SOURCES[name].sha256:
        raise DataError(f"data: {folder} has its examples in another order")
    cache.write_copy(copy_path(name, data_dir), train, test)
    return Loaded(train, test, sha256)
