"""What is installed has the experiments of the tree, and finds them by name: as a wheel, from source, and editable."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from jaxmlp.source.file import load_experiment
from jaxmlp.source.shipped import experiment_path, shipped

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys; from hatchling import build; getattr(build, sys.argv[1])(sys.argv[2])"
NAMES = [
    "benchmark_peers", "best_mlp", "quickstart", "relu_rmsprop", "speedrun", "speedrun_985", "speedrun_990",
    "tanh_sgd_nesterov",
]  # fmt: skip


class Built(NamedTuple):
    """What the build makes of the tree."""

    wheel: Path
    wheel_from_source: Path
    editable: Path
    source: Path


def build(kind: str, tree: Path, folder: Path) -> Path:
    """The one file that the build backend leaves, as pip calls it: in the tree, and in a process of its own."""
    folder.mkdir()
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(folder)]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    source = build("sdist", ROOT, folder / "source")
    with tarfile.open(source) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return Built(
        wheel=build("wheel", ROOT, folder / "wheel"),
        wheel_from_source=build("wheel", unpacked, folder / "wheel-from-source"),
        editable=build("editable", ROOT, folder / "editable"),
        source=source,
    )


def tree() -> dict[str, bytes]:
    """The tree's files that are installed, by the place that a wheel gives them."""
    files = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "jaxmlp").rglob("*") if path.is_file()}
    files |= {f"jaxmlp/experiments/{path.name}": path for path in (ROOT / "experiments").glob("*.py")}
    return {name: path.read_bytes() for name, path in files.items() if "__pycache__" not in name}


def files_of(wheel: Path) -> dict[str, bytes]:
    """The files that a wheel installs, less what it says of itself."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_has_the_trees_files_and_no_other(built: Built) -> None:
    assert files_of(built.wheel) == tree()


def test_the_source_archive_has_the_same_files_and_makes_the_same_wheel(built: Built) -> None:
    with tarfile.open(built.source) as archive:
        inside = {member.name.partition("/")[2]: archive.extractfile(member) for member in archive if member.isfile()}
        files = {name: file.read() for name, file in inside.items() if file}
    for name, content in tree().items():
        assert files[name.replace("jaxmlp/experiments/", "experiments/")] == content
    assert built.wheel_from_source.read_bytes() == built.wheel.read_bytes()


def test_an_editable_install_copies_no_file(built: Built) -> None:
    (name,) = files = files_of(built.editable)
    assert name.endswith(".pth")
    assert Path(files[name].decode().strip()).resolve() == ROOT


def test_a_wheel_alone_finds_its_experiments_by_name(built: Built, tmp_path: Path) -> None:
    """In a folder with other files of these names, which a bare name does not mean."""
    with zipfile.ZipFile(built.wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "quickstart.py").write_text("raise SystemExit('another file was read')")
    code = (
        "import sys; from jaxmlp.source.file import load_experiment; from jaxmlp.source.shipped import shipped\n"
        "for path in shipped().values(): print(path, load_experiment(path).config.name)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    folder = (tmp_path / "site" / "jaxmlp" / "experiments").resolve()
    assert done.stdout.splitlines() == [f"{folder / name}.py {name}" for name in NAMES]


def test_the_readme_installs_the_wheel_by_its_name(built: Built) -> None:
    assert f"pip install '{built.wheel.name}[report]'" in (ROOT / "README.md").read_text()


def test_every_experiment_is_type_checked_as_strictly_as_the_package() -> None:
    overrides = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    (strict,) = (each["module"] for each in overrides if "jaxmlp.*" in each["module"])
    assert set(strict) == {"jaxmlp.*", *NAMES}


def test_a_checkout_finds_its_experiments_by_name() -> None:
    assert shipped() == {name: ROOT / "experiments" / f"{name}.py" for name in NAMES}
    assert {load_experiment(experiment_path(name)).config.name for name in NAMES} == set(NAMES)


@pytest.mark.parametrize("word", ["./quickstart", "quickstart.py", "experiments/quickstart.py", "/quickstart"])
def test_a_word_with_a_slash_or_that_ends_in_py_is_a_path(word: str) -> None:
    assert experiment_path(word) == Path(word)
