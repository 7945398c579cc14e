"""How is a tree compared with its record, and what does a failure say?"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from jaxmlp.golden import records
from jaxmlp.golden.facts import facts_of
from jaxmlp.golden.records import Record
from jaxmlp.golden.tally import Check, Outcome, Tally, folder_of
from jaxmlp.run.digest import digest, leaf_digests, leaves
from jaxmlp.run.manifest import differences as changed_facts


class GoldenBits:
    """The fixture `golden_bits` of one test."""

    def __init__(
        self,
        *,
        test_file: Path,
        test: str,
        portable: bool,
        facts: Mapping[str, Any],
        update: bool,
        values: bool,
        strict: bool,
        shown_from: Path,
        tally: Tally,
    ) -> None:
        self.unknown: list[str] = []
        """Reasons why checks found no record for this platform. If there are any, the test is skipped."""
        self._test_file, self._test, self._portable, self._facts = test_file, test, portable, dict(facts)
        self._update, self._values, self._strict = update, values, strict
        self._folder = folder_of(test_file)
        self._shown_from = shown_from
        self._tally = tally
        self._names: set[str | None] = set()

    def check(self, tree: Any, name: str | None = None, *, portable: bool | None = None) -> None:
        """Fail unless a tree has the bits of its record. With `--golden-update`, record the bits instead.

        If there are records only for other platforms, the test runs on and is skipped at its end.

        Args:
            tree: Any JAX pytree of arrays of numbers. A tree of plain containers and NumPy arrays needs no JAX.
            name: Name of the check in its test. A test with several checks must name each.
            portable: Whether one record serves all machines. Default: whether the test is marked `portable`.

        Raises:
            AssertionError: The bits differ, there is no record, or with `--golden-strict` none for this platform.
            ValueError: The test has already used the name, or a leaf is not an array of numbers.
            DiskError: The record could not be written.
        """
        __tracebackhide__ = True  # pytest then shows the test's line.
        if name in self._names:
            raise ValueError(f"two golden checks of {self._test} have the name {name!r}: give each check its own name")
        self._names.add(name)
        arrays = _numbers(tree)
        portable = self._portable if portable is None else portable
        facts = facts_of(tree)
        facts = {**facts, "binding": {**facts["binding"], **self._facts}}
        # Compared after a round trip through JSON, like the record.
        here = Record(self._test, name, portable, digest(arrays), {}, json.loads(json.dumps(facts)))
        if self._update:
            self._record(here, arrays)
        elif failure := self._failure(here, arrays):
            raise AssertionError(failure)

    def _failure(self, here: Record, arrays: Mapping[str, NDArray[Any]]) -> str | None:
        try:
            path = self._folder / here.file_name
            if path.is_file():
                known = {path: records.read(path)}
            else:
                known = records.find(self._folder, records.prefix(here.test, here.name), portable=here.portable)
        except records.DamagedRecordError as error:
            return f"{error} Restore it, or delete it and record again with --golden-update."
        if not known:
            self._note(here, "missing")
            kind = " for all machines" if here.portable else ""
            return (
                f"no golden record{kind} of {self._named(here)} in {self._shown(self._folder)}. "
                "If its bits are right, record them: pytest --golden-update"
            )
        self._note(here, "checked")
        for path, record in known.items():
            if here.portable or record.platform["binding"] == here.platform["binding"]:
                return None if record.digest == here.digest else self._difference(path, record, here, arrays)
        changed = min((changed_facts(record.platform, here.platform) for record in known.values()), key=len)
        same = any(record.digest == here.digest for record in known.values())
        reason = (
            f"no golden record of {self._named(here)} for this platform ({'; '.join(changed)}); "
            f"the bits here are {'the same' if same else 'different'}"
        )
        if self._strict:
            return reason
        self.unknown.append(reason)
        return None

    def _difference(self, path: Path, record: Record, here: Record, arrays: Mapping[str, NDArray[Any]]) -> str:
        from jaxmlp.proof.bits import SHOWN, differences

        lines = [f"{self._named(here)} differs from {self._shown(path)}"]
        kept = records.values(path, record)
        if kept is None:
            found = list(_changed_leaves(record.leaves, _about(arrays)))
            hint = ["The record has no values to compare. To keep them: pytest --golden-update --golden-values"]
        else:
            found = [(each.leaf, each.problem) for each in differences(kept, arrays)]
            hint = []
        lines.append(f"{len(found)} of {len(record.leaves.keys() | arrays.keys())} leaves differ, recorded and here:")
        lines += [f"{leaf or 'the array'}: {problem}" for leaf, problem in found[:SHOWN]]
        lines += [f"... and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        kinds = ("binding", "not_binding") if here.portable else ("not_binding",)
        changed = [fact for kind in kinds for fact in changed_facts(record.platform, here.platform, kind)]
        lines += [f"Recorded elsewhere: {'; '.join(changed)}"] if changed else []
        return "\n".join(lines + hint)

    def _record(self, here: Record, arrays: Mapping[str, NDArray[Any]]) -> None:
        path = self._folder / here.file_name
        before = None
        if path.is_file():
            # A damaged file, or a file edited for another platform, is replaced.
            with contextlib.suppress(records.DamagedRecordError):
                found = records.read(path)
                if here.portable or found.platform["binding"] == here.platform["binding"]:
                    before = found
        is_same = before is not None and before.digest == here.digest
        # A record that has values keeps them.
        keep = self._values or records.values_path(path).is_file()
        self._note(here, "same" if is_same else "changed" if before else "new")
        if not (before and is_same and (not keep or records.values(path, before) is not None)):
            records.write(self._folder, here._replace(leaves=_about(arrays)), arrays if keep else None)

    def _note(self, here: Record, outcome: Outcome) -> None:
        place = (str(self._test_file), here.test, here.name, here.portable, here.platform_tag)
        self._tally.checks.append(Check(*place, here.digest, outcome))

    def _named(self, here: Record) -> str:
        return f"{here.test}, {here.name}" if here.name else here.test

    def _shown(self, path: Path) -> Path:
        return path.relative_to(self._shown_from) if path.is_relative_to(self._shown_from) else path


def _numbers(tree: Any) -> dict[str, NDArray[Any]]:
    """The leaves by path, in this machine's byte order.

    Raises:
        ValueError: A leaf is not an array of numbers of at most 64 bits, whose bits alone determine its value.
    """
    arrays = leaves(tree)
    for path, array in arrays.items():
        kind, size = array.dtype.kind, array.dtype.itemsize
        if kind == "V":
            import ml_dtypes

            fits = hasattr(ml_dtypes, array.dtype.name)
        else:
            fits = kind in "biufcmM" and size <= (16 if kind == "c" else 8)
            arrays[path] = array.astype(array.dtype.newbyteorder("="), copy=False)
        if not fits:
            raise ValueError(f"golden bits need numbers of at most 64 bits: {path!r} has dtype {array.dtype}")
    return arrays


def _about(arrays: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, Any]]:
    sums = leaf_digests(arrays)
    return {
        path: {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": sums[path]}
        for path, array in arrays.items()
    }


def _changed_leaves(
    there: Mapping[str, Mapping[str, Any]], here: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Path and problem of each leaf that differs, found from digests only."""
    found = []
    for path in sorted(there.keys() | here.keys()):
        pair = [f"{leaf['dtype']}{leaf['shape']}" if (leaf := side.get(path)) else "absent" for side in (there, here)]
        if pair[0] != pair[1]:
            found.append((path, f"{pair[0]} and {pair[1]}"))
        elif there[path]["sha256"] != here[path]["sha256"]:
            found.append((path, f"different bits in {pair[0]}"))
    return found
