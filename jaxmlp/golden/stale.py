"""Which records does no test use any more? They are moved to the test's new name, or removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxmlp.golden import records
from jaxmlp.golden.records import Record
from jaxmlp.golden.tally import Check, Tally, folder_of
from jaxmlp.run import files

_OLD_S = 3600
"""Age in seconds from which a temporary file is not being written any more."""


class _Stale(NamedTuple):
    path: Path
    record: Record
    may_go: bool
    """Whether all tests of its file ran, or the file is gone."""


def tidy(tally: Tally, *, update: bool, shown_from: Path) -> list[str]:
    """Find stale records; with `update`, move or remove them. Returns lines to print.

    A record is stale if its test no longer exists, or passed without making this check. A test that was not collected,
    was skipped, or failed keeps its records. If a check without a record has the bits of a stale record, the test was
    renamed: then the records of all platforms move to the new name.

    Raises:
        DiskError: A record could not be moved.
        OSError: A record could not be removed.
    """
    found = list(_stale(tally))
    renamed = _renamed(found, tally)
    groups: dict[tuple[Path, str], list[_Stale]] = {}
    for each in found:
        groups.setdefault((each.path.parent, each.path.name.partition(".")[0]), []).append(each)
    lines = _recorded(tally, shown_from) if update else []
    for key, group in groups.items():
        place = f"{_shown(key[0], shown_from)}/{key[1]} ({len(group)} record{'s' * (len(group) != 1)})"
        target = renamed.get(key)
        if target and update:
            for each in group:
                _move(each, target)
            lines.append(f"moved: {place}, to {_name(target.test, target.name)}, which has the same bits")
        elif target:
            lines.append(
                f"stale: {place}; {_name(target.test, target.name)} has the same bits and no record. "
                "--golden-update moves it"
            )
        elif update and all(each.may_go for each in group):
            for each in group:
                _remove(each.path)
            lines.append(f"removed: {place}, which no test uses")
        else:
            how = "--golden-update removes it" if not update else "it stays, because not all tests of its file ran"
            lines.append(f"stale: {place}, which no test uses; {how}")
    if update:
        for folder in {key[0] for key in groups}:
            files.remove_temporaries(folder, older_than_s=_OLD_S)
            if not any(folder.iterdir()):
                folder.rmdir()
    return lines


def _stale(tally: Tally) -> Iterator[_Stale]:
    used = {
        (folder_of(Path(each.test_file)), records.prefix(each.test, each.name), each.portable) for each in tally.checks
    }
    known = {folder_of(Path(file)): tests for file, tests in tally.tests.items()}
    for folder in sorted({sibling for each in known for sibling in _folders(each.parent)}):
        tests = known.get(folder)
        if tests is None and _has_test_file(folder):
            continue
        for path in sorted(folder.glob("*.json")):
            check, _, platform = path.name.partition(".")
            if (folder, check, platform == "portable.json") in used:
                continue
            try:
                record = records.read(path)
            except records.DamagedRecordError:
                # The test that owns the record fails and reports it.
                continue
            if tests is None:
                yield _Stale(path, record, may_go=True)
            elif record.test in tests.passed or not (tally.in_part or record.test in tests.exist):
                yield _Stale(path, record, may_go=not tally.in_part and tests.exist <= tests.ran)


def _folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []


def _has_test_file(folder: Path) -> bool:
    tests = folder.parent.parent
    return (tests / f"{folder.name}.py").is_file() or (tests / folder.name).is_file()


def _renamed(found: list[_Stale], tally: Tally) -> dict[tuple[Path, str], Check]:
    """The new check for each stale record, where the bits leave no doubt."""
    new = [each for each in tally.checks if each.outcome in ("new", "missing")]
    fresh = {(each.platform, each.digest): each for each in new}
    candidates = Counter((each.platform, each.digest) for each in new)
    stale = Counter((each.record.platform_tag, each.record.digest) for each in found)
    renamed = {}
    for each in found:
        bits = (each.record.platform_tag, each.record.digest)
        if candidates[bits] == 1 and stale[bits] == 1:
            renamed[each.path.parent, each.path.name.partition(".")[0]] = fresh[bits]
    return renamed


def _move(stale: _Stale, target: Check) -> None:
    folder = folder_of(Path(target.test_file))
    record = stale.record._replace(test=target.test, name=target.name)
    path = folder / record.file_name
    kept = records.values(stale.path, stale.record)
    if not path.exists() or (kept is not None and not records.values_path(path).exists()):
        records.write(folder, record, kept)
    _remove(stale.path)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    records.values_path(path).unlink(missing_ok=True)


def _recorded(tally: Tally, shown_from: Path) -> list[str]:
    count = Counter(each.outcome for each in tally.checks)
    lines = [f"{count['new']} recorded, {count['changed']} changed, {count['same']} as before"]
    changed = (each for each in tally.checks if each.outcome == "changed")
    places = ((_shown(Path(each.test_file), shown_from), _name(each.test, each.name)) for each in changed)
    return lines + [f"changed: {file}::{check}" for file, check in places]


def _name(test: str, name: str | None) -> str:
    return f"{test}, {name}" if name else test


def _shown(path: Path, shown_from: Path) -> Path:
    return path.relative_to(shown_from) if path.is_relative_to(shown_from) else path
