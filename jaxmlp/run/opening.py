"""How are a run's experiment and data opened? With the user's own code and data, both of which are checked.

Code in a run directory is never run. Later commands run the files that the user names, and shipped experiments that
have not changed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxmlp import data
from jaxmlp.errors import CodeError, RunError
from jaxmlp.experiment.config import DataConfig
from jaxmlp.experiment.plain import Find
from jaxmlp.run import code as stored
from jaxmlp.run.directory import RunDirectory
from jaxmlp.source.code import NONE, code_of
from jaxmlp.source.file import Changed, Code, Experiment
from jaxmlp.source.shipped import unchanged

IN_PYTHON = "Pass the data set in Python: jaxmlp.evaluate, reproduce and fit take it as `dataset`"


def open_run(
    path: str | Path,
    experiment: Experiment | Code = (),
    *,
    write: bool = False,
    longer: bool = False,
    accept_changed_code: bool = False,
) -> RunDirectory:
    """Open a run whose experiment may have parts of the user's own.

    Args:
        path: Folder of the run.
        experiment: The user's own code: files, or an `ExperimentConfig`.
        write: Whether the run is to go on. A finished run needs no code.
        longer: Whether a finished run is to go on too.
        accept_changed_code: Whether the run may continue with code that has changed. The run records the change.

    Raises:
        CodeError: Code of the run was not given; or the run is to go on, but the code has changed.
        RunError: As `RunDirectory.open`.
        UsageError: A file of `experiment` does not exist, or raises.
    """
    path, code = Path(path), experiment if isinstance(experiment, Code) else Code(experiment)
    run = RunDirectory.open(path, write=False)
    goes_on = write and (longer or run.status != "finished")
    find = finder(path, run.plain_config, run.manifest, code)
    changed = code.changed(stored.wanted(run.manifest)) if code.files or code.config else ()
    if goes_on:
        config = RunDirectory.open(path, write=False, find=find).config
        if changed and not accept_changed_code:
            raise refusal(path, changed)
    run = RunDirectory.open(path, write=write, find=find)
    run.code_changed = changed
    if code.config and code.config.to_dict() == run.plain_config:
        run.take(code.config)
    if goes_on and changed:
        run.accept_code(code_of(config))
    return run


def refusal(path: Path, changed: tuple[Changed, ...]) -> CodeError:
    """The error of a run or sweep in the folder `path` that must not continue with changed code."""
    files = "; ".join(map(str, changed))
    way = f"Its own code is in {path / stored.CODE}. Or accept the change with --accept-changed-code, which is recorded"
    return CodeError(f"{path} does not continue with changed code: {files}. {way}.", " --accept-changed-code")


def finder(path: Path, plain_config: Any, manifest: Mapping[str, Any], code: Code) -> Find:
    """A function that finds the user's own parts of the run or sweep in the folder `path`.

    It looks in the given code, then in the shipped experiments that the run used and that have not changed. It raises
    CodeError for a part that it does not find.
    """
    wanted = stored.wanted(manifest)
    names = stored.files_to_name(plain_config, manifest)
    shipped = functools.cache(lambda: Code(unchanged(wanted)))

    def find(place: str) -> Any:
        found = code.find(place, wanted)
        if found is None:
            found = shipped().find(place, wanted)
        if found is not None:
            return found
        file = place.partition(":")[0]
        changed = [each for each in code.changed(wanted) if each.file == file and each.here]
        if changed:
            raise CodeError(f"{path} uses {place}, which the given file does not have: {changed[0]}.", "")
        if file == NONE:
            raise CodeError(
                f"{path} was made in Python with {place.partition(':')[2]}, which no file defines. Pass it in "
                f"Python, such as jaxmlp.load_model({str(path)!r}, experiment=ExperimentConfig(...)).", ""
            )  # fmt: skip
        copy = f"The copy in {path / stored.CODE} is never run unasked"
        needed = " and ".join(names) or file
        raise CodeError(
            f"{path} uses {place}, code of your own. {copy}: name {needed} with --experiment.",
            stored.flags(names or [file]),
        )

    return find


def open_data(
    run: RunDirectory,
    dataset: data.Dataset | None = None,
    *,
    manual_dir: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> data.Dataset:
    """The data of a run: the given data set, or the one in its config, after checking its SHA-256 and shapes.

    Raises:
        CodeError: A file registers the data set, but was not given.
        ConfigError, DataError, DiskError: As `data.load`.
        RunError: The data differs from what the run was trained on.
    """
    return open_data_of(
        run.path, run.config.data, run.manifest, dataset, manual_dir=manual_dir, report=report
    )  # fmt: skip


def open_data_of(
    path: Path,
    config: DataConfig,
    manifest: Mapping[str, Any],
    dataset: data.Dataset | None = None,
    *,
    manual_dir: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> data.Dataset:
    """`open_data` for a run or sweep, given its folder, the data that it names, and its manifest."""
    if not dataset and config.name not in data.names():
        if names := list(stored.data_code(manifest))[:1]:
            problem = f"{path} was trained on the data set {config.name}, which {names[0]} registers"
            raise CodeError(f"{problem}: name the file with --experiment.", stored.flags(names))
        raise RunError(f"{path} was trained on {config.name}, which is not a known data set. {IN_PYTHON}.")
    found = dataset or data.load(config, manual_dir=manual_dir, report=report)
    there = (manifest.get("binding") or {}).get("data_sha256", found.sha256)
    if there != found.sha256:
        sums = f"data_sha256: {there} there, {found.sha256} here ({found.name})"
        raise RunError(f"{path} was trained on other data: {sums}. {IN_PYTHON}.")
    here = found.facts.to_plain()
    facts = manifest.get("data") or here
    other = [name for name in here if here[name] != facts.get(name)]
    wrong = [f"{name} {facts.get(name)} there, {here[name]} here" for name in other]
    if wrong:
        raise RunError(f"{path} was trained on data of another shape: {'; '.join(wrong)}. {IN_PYTHON}.")
    return found
