"""The project's own promises: a light import, arrows that go one way, a lock for every machine, no machine's paths."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import jaxmlp

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxmlp"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

VALUES = ("errors", "folders", "experiment")
"""What every room below them may import."""
ARROWS = {
    "errors": "",
    "folders": "",
    "portable": "",
    "prng": "",
    "shards": "",
    "layers": "prng",
    "modules": "prng",
    "experiment": "layers modules",
    "batches": "prng shards",
    "train": "batches modules portable prng shards",
    "data": "",
    "source": "data",
    "run": "data portable prng source train",
    "system": "run",
    "engine": "data modules prng run shards source system train",
    "trained": "data engine modules portable run shards source system train",
    "sweep": "data engine run shards source system train",
    "proof": "data engine portable prng run shards source system train",
    "golden": "proof run",
    "compile": "data engine shards sweep train",
    "bench": "compile data engine run shards sweep train",
    "export": "data modules run trained",
    "keras": "data engine run train trained",
    "report": "bench data engine jaxmlp prng proof run source sweep train trained",
    "cli": "*",
    "__main__": "cli",
}
"""What else a room may import, all of it further up; `*` is all that is, and the public names of jaxmlp."""

INDEX = re.compile(r"--(?:extra-)?index-url\b|--find-link[s]\b|://[^/\s]*pypi|://files[.]pythonhosted")
MACHINE_PATH = re.compile(r"(?<![\w.:])/(?:home/(?!ann\b)|Users/|root/|opt/|work/|workspace/|builds/)")  # ann: no one
NOT_OURS = re.compile(r"\.git|\.venv|\.targets|\.site|\..*_cache|\.hypothesis|__pycache__|runs|build|dist|.*\.egg-info")


def rooms() -> set[str]:
    return {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/*.py")}


def sources(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]


def imported_rooms(path: Path) -> Iterator[str]:
    """The room of every import in the file, under a condition or not; `jaxmlp` for a public name."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for package, *below in (name.split(".") for name in names):
            if package == "jaxmlp":
                yield below[0] if below and below[0] in rooms() else "jaxmlp"


def project_files(folder: Path = ROOT) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if NOT_OURS.fullmatch(path.name):
            continue
        if path.is_dir():
            yield from project_files(path)
        else:
            yield path


def run_python(code: str, fakes: Path) -> str:
    """What a fresh interpreter prints, in which importing TensorFlow ends the process."""
    (fakes / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(fakes), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_starts_no_heavy_library(tmp_path: Path) -> None:
    loaded = run_python("import jaxmlp.errors, sys; print(*sys.modules)", tmp_path).split()
    heavy = {"jax", "jaxlib", "flax", "numpy", "optax", "tensorflow_datasets", "matplotlib", "tyro", "rich", "PIL"}
    assert not heavy & set(loaded)


def test_no_room_loads_tensorflow_when_imported(tmp_path: Path) -> None:
    modules = [f"jaxmlp.{room}" for room in sorted(rooms() - {"__init__", "__main__"})]
    loaded = run_python(f"import {', '.join(modules)}, sys; print(*sys.modules)", tmp_path).split()
    assert set(modules) <= set(loaded)
    assert not {"tensorflow", "sklearn", "pandas"} & set(loaded)


def test_private_parts_of_jax_are_imported_in_one_file() -> None:
    imports = re.compile(r"(from|import) jax(lib)?(\.\w+)*\._")
    assert [path.name for path in PACKAGE.rglob("*.py") if imports.search(path.read_text())] == ["private.py"]


def test_every_public_name_is_there_and_known_to_type_checkers() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    lazy = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert lazy == jaxmlp._HOMES
    for name in jaxmlp.__all__:
        assert hasattr(jaxmlp, name) and name in dir(jaxmlp), name


def test_no_public_name_is_a_module_s_too() -> None:
    """Importing the module would put it in the name's place."""
    assert set(jaxmlp.__all__) & rooms() == set()


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="train_stop"):
        _ = importlib.import_module("jaxmlp").train_stop


def test_every_room_has_its_arrows() -> None:
    assert rooms() - {"__init__"} == {*ARROWS}


@pytest.mark.parametrize("room", ARROWS)
def test_arrows_between_rooms_go_one_way(room: str) -> None:
    order = ["jaxmlp", *ARROWS]
    above = order[: order.index(room)]
    arrows = above if ARROWS.get(room) == "*" else ARROWS.get(room, "").split()
    assert set(arrows) <= set(above), "the table points down"
    allowed = {room, *arrows, *VALUES} & {room, *above}
    found = {(path.name, name) for path in sources(room) for name in imported_rooms(path)}
    assert {(file, name) for file, name in found if name not in allowed} == set()


def test_only_prng_makes_or_splits_keys() -> None:
    makers = {"key", "PRNGKey", "split", "clone", "wrap_key_data"}
    for room in rooms() - {"prng"}:
        for path in sources(room):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
                    assert node.value.attr != "random" or node.attr not in makers, f"{path.name}:{node.lineno}"
                if isinstance(node, ast.ImportFrom | ast.Import):
                    assert "jax.random" not in {getattr(node, "module", None), *(alias.name for alias in node.names)}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-tpu.lock", "requirements-gpu.lock"])
def test_a_lock_pins_everything_with_hashes_and_names_no_source(lock: str) -> None:
    text = (ROOT / lock).read_text()
    code = re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE)
    entry = r"[a-z0-9-]+==[\w.]+(?: ; [^\\\n]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"(?:{entry})+", code)


def test_the_lock_holds_what_the_project_asks_for() -> None:
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    extras = PROJECT["optional-dependencies"]
    locked = ("certificates", "report", "tensorboard", "keras", "onnx", "orbax", "dev")
    asked = [
        Requirement(line) for line in [*PROJECT["dependencies"], *(one for name in locked for one in extras[name])]
    ]
    unmet = [str(one) for one in asked if not one.specifier.contains(pins.get(canonicalize_name(one.name), "0"))]
    assert unmet == []
    assert pins["jax"] == pins["jaxlib"]


def test_no_file_names_a_package_index_or_a_folder_of_one_machine() -> None:
    files = list(project_files())
    assert {ROOT / "Makefile", ROOT / ".ci" / "run", ROOT / "requirements.lock", Path(__file__)} <= set(files)
    named = [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for path in files
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if (INDEX.search(line) or MACHINE_PATH.search(line)) and "--no-emit-index-url" not in line
    ]
    assert named == []


def test_without_an_accelerator_its_tests_say_so_and_end_well() -> None:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(ROOT / "tests" / "on_accelerator.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("No GPU or TPU here that JAX can use: nothing was tested.")


def test_the_version_is_written_in_the_package_alone() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert re.findall(r'^__version__ = "(.+)"$', (PACKAGE / "__init__.py").read_text(), re.MULTILINE) == [
        jaxmlp.__version__
    ]
