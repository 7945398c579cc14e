"""The pytest plugin, used by projects that are not this one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxmlp.golden import records
from jaxmlp.run.digest import digest

pytest_plugins = "pytester"

ROOT = Path(__file__).parents[1]
REPOSITORY = ROOT / "docs" / "golden"
PLUGIN = "jaxmlp.golden.plugin"
IS_INSTALLED = any(point.value == PLUGIN for point in metadata.entry_points(group="pytest11"))
"""Not where jaxmlp is only on the path."""
OPTIONS = ("-p", "no:cacheprovider", "-rs", *(() if IS_INSTALLED else ("-p", PLUGIN)))
PARALLEL = ("-p", PLUGIN, "-p", "xdist", "-n", "2", "-rs")
"""Two workers; they start faster where PYTEST_DISABLE_PLUGIN_AUTOLOAD is set."""

Run = Callable[..., pytest.RunResult]

TREE = """
import numpy as np

def test_tree(golden_bits):
    golden_bits.check({"bias": np.zeros(2, "f4"), "kernel": np.array([[1, 2], [3, 4]], "f4")})
"""
FLIPPED = TREE.replace("4]]", "4.0000005]]")


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Runs pytest in a folder of its own, in this process."""
    return lambda *args: pytester.runpytest_inprocess(*OPTIONS, *args)


def write(pytester: pytest.Pytester, text: str, name: str = "test_it.py") -> None:
    """Write a test file. Python's cache goes, because it tells files apart by whole seconds."""
    shutil.rmtree(pytester.path / "__pycache__", ignore_errors=True)
    (pytester.path / name).write_text(text)


def files(pytester: pytest.Pytester, pattern: str = "*.json") -> list[Path]:
    return sorted((pytester.path / "golden_bits").rglob(pattern))


def names(pytester: pytest.Pytester) -> set[str]:
    return {path.name.partition(".")[0] for path in files(pytester)}


def plant(path: Path, **binding: str) -> Path:
    """Make a record another platform's, under the name that it would have there."""
    found = records.read(path)
    other = found._replace(platform={**found.platform, "binding": {**found.platform["binding"], **binding}})
    path.unlink()
    return records.write(path.parent, other, None)


def test_importing_the_plugin_loads_nothing_that_pytest_has_not_loaded() -> None:
    code = f"import pytest, sys; before = {{*sys.modules}}; import {PLUGIN}; print(*({{*sys.modules}} - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {*done.stdout.split()} == {"jaxmlp", "jaxmlp.golden", "jaxmlp.golden.tally", PLUGIN}


def test_the_plugin_is_an_entry_point_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"golden_bits": PLUGIN}


def test_bits_without_a_record_fail_and_recorded_bits_pass(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, TREE)
    missing = run()
    missing.assert_outcomes(failed=1)
    missing.stdout.fnmatch_lines("*no golden record of test_tree in golden_bits/test_it.*pytest --golden-update")
    recorded = run("--golden-update")
    recorded.assert_outcomes(passed=1)
    recorded.stdout.fnmatch_lines("1 recorded, 0 changed, 0 as before")
    run().assert_outcomes(passed=1)


def test_a_record_tells_digest_leaves_and_platform(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, TREE)
    run("--golden-update")
    (path,) = files(pytester)
    found = json.loads(path.read_text())
    kernel = {"kernel": np.array([[1, 2], [3, 4]], "f4")}
    assert found["digest"] == digest({"bias": np.zeros(2, "f4"), **kernel})
    assert found["leaves"]["kernel"] == {"dtype": "float32", "shape": [2, 2], "sha256": digest(kernel)}
    assert {"numpy", "blas", "isa"} <= found["platform"]["binding"].keys()
    assert files(pytester, "*.npz") == []


def test_a_flipped_last_bit_is_shown_with_its_leaf_index_values_and_distance(
    pytester: pytest.Pytester, run: Run
) -> None:
    write(pytester, TREE)
    run("--golden-update", "--golden-values")
    write(pytester, FLIPPED)
    failed = run()
    failed.assert_outcomes(failed=1)
    failed.stdout.fnmatch_lines(
        [
            "*test_tree differs from golden_bits/test_it/test_tree.*.json",
            "*1 of 2 leaves differ, recorded and here:",
            "*kernel: 1 of 4 values differ, the first at [[]1, 1[]]: 4.0 (0x40800000) and 4.0000005 (0x40800001), "
            "1 ULP apart",
        ]
    )


def test_without_values_a_failure_names_the_leaf_and_how_to_keep_them(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, TREE)
    run("--golden-update")
    write(pytester, FLIPPED.replace("zeros(2", "zeros(3"))
    failed = run()
    failed.stdout.fnmatch_lines(
        [
            "*bias: float32[[]2[]] and float32[[]3[]]",
            "*kernel: different bits in float32[[]2, 2[]]",
            "*pytest --golden-update --golden-values",
        ]
    )


def test_an_update_changes_only_what_changed_and_keeps_kept_values(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, TREE)
    run("--golden-update", "--golden-values")
    before = {path: path.stat().st_mtime_ns for path in files(pytester, "*.*")}
    run("--golden-update")
    assert {path: path.stat().st_mtime_ns for path in files(pytester, "*.*")} == before
    write(pytester, FLIPPED)
    changed = run("--golden-update")
    changed.stdout.fnmatch_lines(["0 recorded, 1 changed, 0 as before", "changed: test_it.py::test_tree"])
    (path,) = files(pytester)
    kept = records.values(path, records.read(path))
    assert kept is not None
    assert kept["kernel"][1, 1] == np.float32(4.0000005)


def test_values_of_another_record_are_not_compared(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, TREE)
    run("--golden-update", "--golden-values")
    (path,) = files(pytester)
    kept = records.values_path(path).read_bytes()
    write(pytester, FLIPPED)
    run("--golden-update")
    write(pytester, TREE)
    for damaged in (kept, kept[:100], b""):
        records.values_path(path).write_bytes(damaged)
        run().stdout.fnmatch_lines("*kernel: different bits in float32[[]2, 2[]]")


def test_keeping_values_without_recording_is_refused(run: Run) -> None:
    assert run("--golden-values").ret == pytest.ExitCode.USAGE_ERROR


def test_another_platform_is_skipped_with_the_facts_and_whether_its_bits_are_the_same(
    pytester: pytest.Pytester, run: Run
) -> None:
    write(pytester, TREE)
    run("--golden-update")
    plant(files(pytester)[0], numpy="1.0", isa="aarch64-sve-1")
    skipped = run()
    skipped.assert_outcomes(skipped=1)
    skipped.stdout.re_match_lines(
        r"SKIPPED \[1\] test_it.py:4: no golden record of test_tree for this platform "
        rf"\(numpy: 1.0 there, {np.__version__} here; isa: aarch64-sve-1 there, .+ here\); the bits here are the same"
    )
    write(pytester, FLIPPED)
    run().stdout.fnmatch_lines("*the bits here are different")
    strict = run("--golden-strict")
    strict.assert_outcomes(failed=1)
    strict.stdout.fnmatch_lines("*AssertionError: no golden record of test_tree for this platform*")
    run("--golden-update").assert_outcomes(passed=1)
    assert len(files(pytester)) == 2
    run("--golden-strict").assert_outcomes(passed=1)


def test_an_unknown_platform_hides_no_failure_later_in_the_test(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, TREE + "    assert golden_bits is None\n")
    run("--golden-update")
    plant(files(pytester)[0], numpy="1.0")
    run().assert_outcomes(failed=1)


@pytest.mark.parametrize("how", ["marker", "argument"])
def test_what_is_portable_has_one_record_for_all_machines(pytester: pytest.Pytester, run: Run, how: str) -> None:
    mark = "import pytest\npytestmark = pytest.mark.portable\n" if how == "marker" else ""
    argument = ", portable=True)" if how == "argument" else ")"
    write(pytester, mark + TREE.replace('"f4")})', '"f4")}' + argument))
    run("--golden-update", "--golden-values", "--strict-markers").assert_outcomes(passed=1)
    plant(files(pytester)[0], numpy="1.0")
    run().assert_outcomes(passed=1)
    write(pytester, mark + FLIPPED.replace('"f4")})', '"f4")}' + argument))
    run().stdout.fnmatch_lines("*Recorded elsewhere: numpy: 1.0 there, *")


def test_facts_of_a_project_s_own_bind_its_records(pytester: pytest.Pytester, run: Run) -> None:
    def own(version: str) -> str:
        return f"import pytest\n@pytest.fixture\ndef golden_facts(): return {{'solver': {version!r}}}\n"

    write(pytester, TREE + own("1"))
    run("--golden-update")
    run().assert_outcomes(passed=1)
    write(pytester, TREE + own("2"))
    run().stdout.fnmatch_lines("SKIPPED*(solver: 1 there, 2 here)*")


MANY = """
import numpy as np
import pytest

class TestStep:
    @pytest.mark.parametrize("text", ["a/b", "A/b", "a b", "x" * 300, "é", ".."])
    def test_step(self, golden_bits, text):
        golden_bits.check(np.frombuffer(text.encode(), np.uint8))
        golden_bits.check(np.zeros(len(text)), name="zeros")
"""


def test_every_parameter_and_named_check_has_a_record_of_its_own(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, MANY)
    run("--golden-update").assert_outcomes(passed=6)
    assert len({path.name.lower() for path in files(pytester)}) == 12
    assert {path.parent for path in files(pytester)} == {pytester.path / "golden_bits" / "test_it"}
    run().assert_outcomes(passed=6)


def test_two_checks_of_one_name_in_a_test_are_refused(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, TREE + "    golden_bits.check(np.zeros(2))\n")
    run("--golden-update").stdout.fnmatch_lines("*ValueError: two golden checks of test_tree have the name None*")


def test_a_damaged_record_is_named_and_replaced_by_an_update(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, TREE)
    run("--golden-update")
    (path,) = files(pytester)
    path.write_text("<<<<<<< HEAD\n" + path.read_text())
    failed = run()
    failed.assert_outcomes(failed=1)
    failed.stdout.fnmatch_lines(f"*{path} is not a golden record*")
    run("--golden-update")
    run().assert_outcomes(passed=1)


OLD = """
import numpy as np
import pytest

def test_kept(golden_bits):
    golden_bits.check(np.zeros(1))

def test_old(golden_bits):
    golden_bits.check(np.arange(3.0))
"""


def test_a_renamed_test_keeps_the_records_of_all_platforms(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, OLD)
    run("--golden-update", "--golden-values")
    old = next(path for path in files(pytester) if path.name.startswith("test_old"))
    shutil.copy(old, copied := old.with_name("test_old.copy.json"))
    elsewhere = plant(copied, numpy="1.0")
    write(pytester, OLD.replace("test_old", "test_renamed"))
    found = run()
    found.assert_outcomes(passed=1, failed=1)
    found.stdout.fnmatch_lines("stale: golden_bits/test_it/test_old (2 records); test_renamed has the same bits*")
    moved = run("--golden-update")
    moved.stdout.fnmatch_lines("moved: golden_bits/test_it/test_old (2 records), to test_renamed*")
    assert names(pytester) == {"test_kept", "test_renamed"}
    assert records.read(elsewhere.with_name(elsewhere.name.replace("old", "renamed"))).test == "test_renamed"
    assert len(files(pytester, "test_renamed*.npz")) == 1
    run().assert_outcomes(passed=2)


def test_stale_records_are_reported_and_removed_by_an_update_of_the_whole_file(
    pytester: pytest.Pytester, run: Run
) -> None:
    write(pytester, OLD)
    run("--golden-update", "--golden-values")
    write(pytester, OLD[: OLD.index("def test_old")] + "def test_other(): pass\n")
    run().stdout.fnmatch_lines("stale: golden_bits/test_it/test_old (1 record), which no test uses; --golden-update*")
    partial = run("--golden-update", "-k", "test_kept")
    partial.stdout.fnmatch_lines("stale: *; it stays, because not all tests of its file ran")
    run("--golden-update", "test_it.py::test_kept")
    assert names(pytester) == {"test_kept", "test_old"}
    run("--golden-update").stdout.fnmatch_lines("removed: golden_bits/test_it/test_old (1 record), which no test uses")
    assert names(pytester) == {"test_kept"}
    assert len(files(pytester, "*.npz")) == 1


@pytest.mark.parametrize(
    ("before", "after", "stays"),
    [
        ("def test_old(", "@pytest.mark.skip\ndef test_old(", True),
        ("    golden_bits.check(np.arange(3.0))", "    assert False", True),
        ("    golden_bits.check(np.arange(3.0))", "    pytest.exit('enough')", True),
        ("    golden_bits.check(np.arange(3.0))", "    pass", False),
    ],
)
def test_only_a_test_that_passed_without_its_check_has_a_stale_record(
    pytester: pytest.Pytester, run: Run, before: str, after: str, stays: bool
) -> None:
    write(pytester, OLD)
    run("--golden-update")
    write(pytester, OLD.replace(before, after))
    done = run("--golden-update")
    assert ("test_old" in names(pytester)) == stays
    assert ("removed: " in done.stdout.str()) == (not stays)


def test_a_file_that_cannot_be_collected_keeps_its_records(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, OLD)
    run("--golden-update")
    write(pytester, "import nothing_of_this_name\n")
    write(pytester, "def test_other(): pass\n", "test_other.py")
    assert "stale" not in run("--golden-update", "--continue-on-collection-errors").stdout.str()
    assert names(pytester) == {"test_kept", "test_old"}


def test_the_records_of_a_removed_file_are_stale(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, OLD)
    run("--golden-update")
    (pytester.path / "test_it.py").unlink()
    write(pytester, "def test_other(): pass\n", "test_other.py")
    assert run().stdout.str().count("stale: ") == 2
    run("--golden-update")
    assert list((pytester.path / "golden_bits").iterdir()) == []


KINDS = """
import ml_dtypes
import numpy as np

def test_kinds(golden_bits):
    bits = np.random.default_rng(0).integers(0, 256, 48, np.uint8)
    tree = {kind: bits.view(kind) for kind in ("f2", ">f4", "f8", "i1", "u8", "c8", "c16", "m8[s]", "M8[us]")}
    tree |= {"bfloat16": bits.view(ml_dtypes.bfloat16), "float8": bits.view(ml_dtypes.float8_e4m3fn)}
    tree |= {"bool": bits > 100, "": np.float32(1), "empty": np.zeros((0, 2)), "file": bits.reshape(6, 8, order="F")}
    golden_bits.check(CHANGE(tree))
"""


def test_arrays_of_every_kind_of_number_are_kept_and_shown(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, KINDS.replace("CHANGE", ""))
    run("--golden-update", "--golden-values").assert_outcomes(passed=1)
    (path,) = files(pytester)
    kept = records.values(path, record := records.read(path))
    assert kept is not None
    assert {array.dtype.name for array in kept.values()} == {leaf["dtype"] for leaf in record.leaves.values()}
    assert kept["bfloat16"].dtype == ml_dtypes.bfloat16
    write(pytester, KINDS.replace("CHANGE(tree)", "{k: v if k else -v for k, v in tree.items()}"))
    failed = run()
    failed.stdout.fnmatch_lines("*1 of 15 leaves differ, recorded and here:")
    failed.stdout.fnmatch_lines("*the array: 1 of 1 values differ*: 1.0 (0x3f800000) and -1.0 (0xbf800000), *")


@pytest.mark.parametrize(
    "leaf", ["np.longdouble(1)", "np.array(['a'])", "np.zeros(1, [('a', 'f4')])", "np.array([{}])"]
)
def test_what_is_no_array_of_numbers_is_refused(pytester: pytest.Pytester, run: Run, leaf: str) -> None:
    write(pytester, TREE.replace('np.zeros(2, "f4")', leaf))
    run("--golden-update").stdout.fnmatch_lines("*ValueError: golden bits need numbers of at most 64 bits: 'bias'*")


def test_a_tree_of_jax_arrays_has_the_facts_of_jax_and_of_their_device(pytester: pytest.Pytester, run: Run) -> None:
    import jax

    tree = TREE.replace("np.zeros", "jax.numpy.zeros").replace("import numpy", "import jax\nimport numpy")
    write(pytester, tree)
    run("--golden-update").assert_outcomes(passed=1)
    (path,) = files(pytester)
    binding = records.read(path).platform["binding"]
    assert binding["jax"] == jax.__version__
    assert binding["device_kind"] == jax.devices()[0].device_kind
    assert "numpy" not in binding
    plant(path, jax="0.1")
    run().stdout.fnmatch_lines(f"SKIPPED*(jax: 0.1 there, {jax.__version__} here)*")


@pytest.fixture
def repository(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository in the docs, without what this machine's cache of it may hold."""
    folder = pytester.path / "heat"
    shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    monkeypatch.chdir(folder)
    return folder


def test_the_repository_in_the_docs_passes_or_is_another_platform_s(repository: Path, run: Run) -> None:
    outcomes = run("-W", "error", repository).parseoutcomes()
    assert outcomes in ({"passed": 3}, {"passed": 1, "skipped": 2})


@pytest.mark.slow
def test_the_repository_in_the_docs_works_with_parallel_workers_and_without_jax(
    repository: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_jax = "def pytest_sessionfinish(): assert 'jax' not in sys.modules, 'JAX was imported'\n"
    (repository / "conftest.py").write_text(f"import sys\n{no_jax}")
    for path in (repository / "tests").rglob("*.json"):
        path.unlink()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.runpytest_subprocess(*PARALLEL, "--golden-update", "--golden-values").assert_outcomes(passed=3)
    heat = repository / "heat.py"
    heat.write_text(heat.read_text().replace("np.float32(rate)", "np.nextafter(np.float32(rate), np.float32(1))"))
    (other,) = (repository / "tests").rglob("test_any_time-10-*.json")
    plant(other, blas="mkl 2026")
    found = pytester.runpytest_subprocess(*PARALLEL)
    found.assert_outcomes(passed=1, failed=1, skipped=1)
    found.stdout.fnmatch_lines("*the first at*ULP apart*")
    found.stdout.fnmatch_lines("*SKIPPED*blas: mkl 2026 there*")
    assert "JAX was imported" not in found.stdout.str() + found.stderr.str()


@pytest.mark.slow
def test_workers_together_record_move_and_remove(
    pytester: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    write(pytester, MANY + OLD)
    run(*PARALLEL, "--golden-update").stdout.fnmatch_lines("14 recorded, 0 changed, 0 as before")
    write(pytester, OLD.replace("test_old", "test_new"))
    done = run(*PARALLEL, "--golden-update")
    done.stdout.fnmatch_lines("moved: *test_old (1 record), to test_new, which has the same bits")
    assert done.stdout.str().count("removed: ") == 12
    assert names(pytester) == {"test_kept", "test_new"}


@pytest.mark.slow
@pytest.mark.parametrize(("document", "tests"), [("golden.md", 3), ("exactness.md", 2)])
def test_the_examples_in_the_docs_run_and_their_tests_pass(
    pytester: pytest.Pytester, run: Run, document: str, tests: int
) -> None:
    code = re.search(r"```python\n(.+?)```", (ROOT / "docs" / document).read_text(), re.DOTALL)
    assert code
    write(pytester, code[1])
    run("--golden-update", "--strict-markers").assert_outcomes(passed=tests)
    run().assert_outcomes(passed=tests)
