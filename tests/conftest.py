"""What all tests share: simulated devices, strict promotion, folders that are gone afterwards, and no network."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest

if TYPE_CHECKING:
    from jaxmlp.data import Dataset

DEVICES = 8
KEPT = (
    "JAXMLP_MANUAL_DIR",
    "JAXMLP_TEST_DEVICE",
    "JAXMLP_TEST_TARGETS",
    "JAXMLP_KILLS",
    "JAXMLP_PLANS",
    "JAXMLP_SWEEP",
    "JAXMLP_BISECTED",
    "JAXMLP_ALTERATIONS",
    "JAXMLP_FAULTS",
    "JAXMLP_FUZZ_SECONDS",
)
"""What a user may set: a folder with MNIST's four files; the JAX platform to test on, such as cuda or tpu; what to
compile for, tpu or gpu; how many processes are killed; how many plans of interruption are tried; how many random
networks are compared; how many runs with a wrong update are bisected; how many altered certificates, runs and keys
are verified; `all` for every fault of tests/faults; and for how many seconds each parser is fuzzed."""

UNOPTIMIZED = "JAX_DISABLE_MOST_OPTIMIZATIONS"

# Deterministic, and no test is timed.
hypothesis.settings.register_profile("jaxmlp", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("jaxmlp")


def pytest_configure(config: pytest.Config) -> None:
    assert "jax" not in sys.modules, "JAX was imported before its devices were set"
    folder = tempfile.TemporaryDirectory(prefix="jaxmlp-tests-")
    config.add_cleanup(folder.cleanup)
    # Without pytest's cache (`-p no:cacheprovider`), nothing is kept.
    cache = getattr(config, "cache", None)
    programs = cache.mkdir("programs") if cache else Path(folder.name, "programs")
    _set_environment(Path(folder.name), programs)
    _promote_strictly()
    # A shell's background job ignores Ctrl-C, nohup a hang-up; the tests' children would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _set_environment(folder: Path, programs: Path) -> None:
    """For this process and its children. Workers share the data in the folder of the process that began them.

    Compiled programs are kept for the next call too, which then compiles only what has changed. `pytest --cache-clear`
    removes them.
    """
    shared = Path(os.environ.setdefault("TESTS_OF_JAXMLP", str(folder)))
    for name in [name for name in os.environ if name.startswith(("JAX_", "JAXMLP_")) and name not in KEPT]:
        del os.environ[name]
    os.environ["JAXMLP_RUNS_DIR"] = str(folder / "runs")
    os.environ["JAXMLP_DATA_DIR"] = str(shared / "data")
    os.environ["XDG_CACHE_HOME"] = str(programs)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        os.environ.pop(name.upper(), None)
        os.environ[name] = "http://localhost:9"  # The port that discards; nobody listens.
    os.environ["no_proxy"] = "localhost,127.0.0.1"
    os.environ["JAX_PLATFORMS"] = os.environ.get("JAXMLP_TEST_DEVICE") or "cpu"
    devices = f"--xla_force_host_platform_device_count={DEVICES}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip()


def _promote_strictly() -> None:
    """In this process; children run as users do."""
    import jax
    import optax

    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    bias_correction = optax.tree.bias_correction

    def standard_bias_correction(*arguments: Any) -> Any:
        """Adam's, which raises a float to the power of an integer."""
        with jax.numpy_dtype_promotion("standard"):
            return bias_correction(*arguments)

    optax.tree.bias_correction = standard_bias_correction


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In each file, optimised tests come last, because each change discards all programs."""
    files = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}
    items.sort(key=lambda item: (files[item.path], bool(item.get_closest_marker("optimized"))))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Compile without optimisation, which takes half the time, but where a test or its file is marked `optimized`.

    For a test's own processes too, and before its fixtures.
    """
    import jax

    unoptimized = str(int(not item.get_closest_marker("optimized")))
    if os.environ.get(UNOPTIMIZED) != unoptimized:
        os.environ[UNOPTIMIZED] = unoptimized
        jax.config.update(UNOPTIMIZED.lower(), unoptimized == "1")
        jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def programs_are_let_go() -> Iterator[None]:
    """After each file: those of all files would take 10 GB of memory in each worker."""
    import jax

    yield
    jax.clear_caches()


@pytest.fixture
def compiled(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[str], int]]:
    """How often a function of this name was compiled since the test began."""
    import jax

    with jax.log_compiles():
        yield lambda name: sum(each.getMessage().startswith(f"Compiling jit({name})") for each in caplog.records)


@pytest.fixture(scope="session")
def manual_dir() -> Path:
    """The folder with MNIST's four official files."""
    folder = os.environ.get("JAXMLP_MANUAL_DIR")
    if not folder:
        pytest.skip("needs MNIST: set JAXMLP_MANUAL_DIR to a folder with its four official files")
    return Path(folder)


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of runs that commands use, not made yet."""
    monkeypatch.setenv("JAXMLP_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def small_dataset() -> Dataset:
    """320 training and 80 test images, validated on the latter: ten random pictures in noise, soon learned."""
    from jaxmlp import data

    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 128, (10, 28, 28, 1), np.uint8)
    labels = rng.integers(0, 10, 400, np.int32)
    images = pictures[labels] + rng.integers(0, 128, (400, 28, 28, 1), np.uint8)
    test = (images[320:], labels[320:])
    return data.from_arrays((images[:320], labels[:320]), test, validation=test)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that reads real digits, about 94 % of them: 784-96-64-10 relu, on mnist_5k."""
    from jaxmlp import MLP, DataConfig, ExperimentConfig, data
    from jaxmlp.engine import fitting
    from jaxmlp.run.directory import RunDirectory
    from jaxmlp.run.manifest import manifest

    config = ExperimentConfig(
        name="digits",
        model=MLP(hidden_sizes=(96, 64)),
        data=DataConfig(name="mnist_5k", validation=None),
        batch_size=64,
        epochs=12,
    )
    path = tmp_path_factory.mktemp("digits") / "run"
    dataset = data.load(config.data)
    with RunDirectory.create(path, config, manifest(config, dataset)) as run:
        history = fitting.fit(config, dataset, run=run)
    assert history.test_accuracy and history.test_accuracy > 0.9
    return path


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two small finished runs on mnist_5k, of two checkpoints each, that differ by their seed."""
    from jaxmlp.cli import main

    folder = tmp_path_factory.mktemp("two-runs")
    quickstart = str(Path(__file__).parents[1] / "experiments" / "quickstart.py")
    size = ("--model.hidden-sizes", "16", "--batch-size", "200", "--epochs", "2")
    small = (*size, "--verbose", "0", "--checkpoint-s", "0")
    for seed in ("0", "1"):
        assert main(["train", quickstart, *small, "--seed", seed, "--out", str(folder / f"seed-{seed}")]) == 0
    return folder / "seed-0", folder / "seed-1"
