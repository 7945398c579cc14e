"""Which data sets are known by name, and how is one loaded, prepared or looked up?"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from jaxmlp.data import cache, embedded, official, prepared
from jaxmlp.data.arrays import Pair, from_arrays
from jaxmlp.data.dataset import Dataset, make_dataset
from jaxmlp.data.prepared import Report, Status
from jaxmlp.errors import ConfigError, DataError, JaxmlpError, did_you_mean, printable
from jaxmlp.folders import chosen_folder

if TYPE_CHECKING:
    from jaxmlp.experiment.config import DataConfig

StrPath: TypeAlias = str | os.PathLike[str]
EMBEDDED = "mnist_5k"

Splits: TypeAlias = tuple[Pair, Pair] | tuple[Pair, Pair, Mapping[str, Pair]]
"""Pairs for train and test, and optionally further splits by name."""
user_data: dict[str, Callable[[], Splits]] = {}
"""The functions of registered data sets, by name."""


def names() -> list[str]:
    """Names of the known data sets."""
    return [*official.SOURCES, EMBEDDED, *user_data]


def register(name: str, function: Callable[[], Splits]) -> None:
    """Register `function` as the data set `name` for `DataConfig.name`. A second registration replaces the first.

    Args:
        name: A name that jaxmlp does not use itself.
        function: Returns train and test, each a pair of examples and targets as `as_inputs` and `as_targets` take them;
            optionally also a mapping of further splits by name.

    Raises:
        ConfigError: jaxmlp uses the name itself.
    """
    if name in official.SOURCES or name == EMBEDDED:
        raise ConfigError("data.name", f"must be a new name, got {name!r}, which jaxmlp uses already")
    user_data[name] = function


def registered(name: str) -> Callable[[], Splits] | None:
    """The function registered as the data set `name`, or None."""
    return user_data.get(name)


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def load(
    config: DataConfig,
    *,
    manual_dir: StrPath | None = None,
    data_dir: StrPath | None = None,
    report: Report = _say,
) -> Dataset:
    """Load the data set that `config` names, with its validation split, into host memory.

    Args:
        config: Name and validation. The pixel scale applies later, in the training step.
        manual_dir: Folder of original files, or a folder that tfds prepared: `manual_dir/name`, else `manual_dir`.
            Default: JAXMLP_MANUAL_DIR.
        data_dir: Folder of prepared and decoded data. Default: JAXMLP_DATA_DIR, else `jaxmlp/data` in the user's cache.
        report: Called with a line about anything that takes long or is damaged.

    Raises:
        ConfigError: The name or the validation split is unknown.
        DataError: The data is missing, damaged, or another data set.
        DiskError: Prepared data cannot be written.
    """
    name = config.name
    _check_known(name)
    if name in user_data:
        try:
            train, test, *others = user_data[name]()
        except JaxmlpError:
            raise
        except (Exception, SystemExit) as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
            where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
            said = f"the function that registers it raised {type(error).__name__}: {error}{where}"
            raise DataError(f"data: {name} cannot be loaded: {said}") from error
        return from_arrays(train, test, validation=config.validation, name=name, others=others[0] if others else None)
    if name == EMBEDDED:
        loaded = prepared.Loaded(*embedded.load(), embedded.SHA256)
        num_classes = embedded.NUM_CLASSES
    else:
        loaded = prepared.load(name, *_folders(manual_dir, data_dir), report)
        num_classes = official.SOURCES[name].num_classes
    return make_dataset(
        name,
        loaded.train,
        loaded.test,
        validation=config.validation,
        num_classes=num_classes,
        sha256=loaded.sha256,
        notes=loaded.notes,
    )


def prepare(
    name: str,
    *,
    manual_dir: StrPath | None = None,
    data_dir: StrPath | None = None,
    report: Report = _say,
) -> Status:
    """Make the decoded copy of data set `name` now, in the files' order unless `manual_dir` is a stock tfds folder.

    Args, Raises: As `load`.
    """
    _check_known(name)
    if name in official.SOURCES:
        prepared.load(name, *_folders(manual_dir, data_dir), report, stock=False)
    return _status(name, manual_dir, data_dir)


def status(*, manual_dir: StrPath | None = None, data_dir: StrPath | None = None) -> list[Status]:
    """Where each known data set is. Decoded copies are read and checked; nothing is made or downloaded.

    Args: As `load`.
    """
    return [_status(name, manual_dir, data_dir) for name in names()]


def _check_known(name: str) -> None:
    if name not in names():
        known = ", ".join(names())
        raise ConfigError("data.name", f"must be one of {known}, got {name!r}.{did_you_mean(name, names())}")


def _folders(manual_dir: StrPath | None, data_dir: StrPath | None) -> tuple[Path | None, Path]:
    return chosen_folder(manual_dir, "JAXMLP_MANUAL_DIR"), cache.data_folder(data_dir)


def _status(name: str, manual_dir: StrPath | None, data_dir: StrPath | None) -> Status:
    if name in user_data:
        return Status(name, "a registered function", True, 0, None)
    try:
        if name == EMBEDDED:
            path = embedded.path()
            return Status(name, str(path), True, path.stat().st_size, embedded.SHA256)
        return prepared.status(name, *_folders(manual_dir, data_dir))
    except (DataError, OSError) as error:
        return Status(name, "", False, 0, None, str(error))
