"""Files from strangers run nothing, lead nowhere else, take no more than they are, and move no terminal."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import mnist_stand_in
import numpy as np
import pytest
from PIL import Image
from refusals import assert_names, refused

from faults.fuzz import altered, answer, bounded, fuzz
from jaxmlp.cli import main
from jaxmlp.data import builders, official
from jaxmlp.errors import ConfigError, DataError, RunError, printable
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.keras.apart import read_keras
from jaxmlp.keras.files import parse_keras
from jaxmlp.trained.images import MAX_BYTES, read_images

ROOT = Path(__file__).parents[2]
KERAS = ROOT / "tests" / "keras_files"
QUICKSTART = str(ROOT / "experiments" / "quickstart.py")
SHAPE = (28, 28, 1)
MOVING = "\x1b]0;owned\x07\x1b[2J\x1b[31m\u202e"
"""Sets a terminal's title, clears it, makes all red, and turns the direction of writing."""


@pytest.fixture
def run(two_runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(two_runs[0], tmp_path / "run"))


def test_no_code_of_the_package_unpickles_or_evaluates() -> None:
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for path in sorted((ROOT / "jaxmlp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
            assert not names & banned and getattr(node, "module", None) not in banned, f"{path}: {names}"
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            assert not (isinstance(node.func, ast.Name) and called in ("eval", "exec", "compile")), (
                f"{path}:{node.lineno}"
            )
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
            if ast.unparse(node.func) == "np.load":  # It has pickles off by default, and this says so.
                assert keywords.get("allow_pickle") == "False", f"{path}:{node.lineno}"


RUN_FILES = (
    "config.json", "manifest.json", "metrics.jsonl", "digests.jsonl", "history.csv", "SHA256SUMS", "lock", "newest",
)  # fmt: skip


COMMANDS = (["runs"], ["verify"], ["summary"], ["train", "--resume"])


def in_run(run: Path, name: str) -> Path:
    return max((run / "checkpoints").iterdir()) if name == "newest" else run / name


@pytest.mark.parametrize("name", RUN_FILES)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_folder_or_link_in_a_files_place_is_neither_waited_for_nor_read(
    name: str, make: Callable[[Path], None], run: Path
) -> None:
    path = in_run(run, name)
    path.unlink()
    make(path)
    with bounded():
        codes = [answer(*command, str(run))[0] for command in COMMANDS]
    assert codes[1] == 5
    # `train --resume` locks a finished run and shows its result.
    assert codes[3] == (5 if name in ("config.json", "manifest.json") else 8 if name == "lock" else 0)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.npy", "x-ubyte", "x.h5", "x.keras"])
def test_a_pipe_is_not_waited_for_where_an_image_or_network_is_wanted(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with bounded(), refused((DataError, RunError), name):
        parse_keras(tmp_path / name) if name in ("x.h5", "x.keras") else read_images(tmp_path / name, SHAPE)


def test_plots_are_not_written_through_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (run / "plots").symlink_to(tmp_path / "elsewhere")
    code, printed = answer("report", str(run))
    assert code == 8
    assert_names(printed, run / "plots")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_tensorboards_files_are_not_written_through_a_link(run: Path, tmp_path: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    (tmp_path / "elsewhere").mkdir()
    (run / "tensorboard").symlink_to(tmp_path / "elsewhere")
    assert answer("train", "--resume", str(run), "--tensorboard")[0] == 5
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.fixture(scope="module")
def unfinished_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two lanes with runs of their own, of which one has yet to train."""
    path = tmp_path_factory.mktemp("sweep") / "sweep"
    small = ("--model.hidden-sizes", "4", "--epochs", "1", "--verbose", "0", "--batch-size", "1000")
    assert answer("sweep", QUICKSTART, *small, "--seeds", "0:2", "--keep-runs", "--out", str(path))[0] == 0
    lanes = (path / "lanes.jsonl").read_text().splitlines()
    (path / "lanes.jsonl").write_text(lanes[0] + "\n")
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["group", "runs", "runs/0001-s1"])
def test_a_sweep_does_not_go_on_through_a_link(name: str, unfinished_sweep: Path, run: Path, tmp_path: Path) -> None:
    sweep = Path(shutil.copytree(unfinished_sweep, tmp_path / "sweep"))
    if (sweep / name).exists():
        shutil.rmtree(sweep / name)
    (sweep / name).symlink_to(run)
    before = tree(run)
    code, printed = answer("sweep", "--resume", str(sweep))
    assert code == 5
    assert_names(printed, sweep / name)
    assert tree(run) == before


def test_a_sweep_does_not_go_on_with_the_run_of_another(unfinished_sweep: Path, run: Path, tmp_path: Path) -> None:
    sweep = Path(shutil.copytree(unfinished_sweep, tmp_path / "sweep"))
    shutil.rmtree(sweep / "runs/0001-s1")
    run.rename(sweep / "runs/0001-s1")
    code, printed = answer("sweep", "--resume", str(sweep))
    assert code == 5
    assert_names(printed, sweep / "runs/0001-s1")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lanes.jsonl", lambda lane: lane | {"seed": 7}),
        ("lanes.jsonl", lambda lane: lane | {"lane": 9}),
        ("lanes.jsonl", lambda lane: lane | {"settings": {"optimizer.learning_rate": 1.0}}),
        ("sweep.json", lambda plan: plan | {"seeds": [0, "../../x"]}),
        ("sweep.json", lambda plan: plan | {"seeds": [0, 0]}),
        ("sweep.json", lambda plan: plan | {"settings": [{"data.name": "x"}]}),
        ("sweep.json", lambda plan: plan | {"settings": [{"optimizer.x": 1}]}),
        ("sweep.json", lambda plan: plan | {"settings": [{"optimizer": 1}]}),
        ("sweep.json", lambda plan: plan | {"seeds": list(range(1 << 17))}),
        ("sweep.json", lambda plan: plan | {"batching": "x"}),
    ],
)
def test_a_sweep_whose_files_contradict_each_other_does_not_go_on(
    name: str, change: Callable[[dict[str, Any]], Any], unfinished_sweep: Path, tmp_path: Path
) -> None:
    sweep = Path(shutil.copytree(unfinished_sweep, tmp_path / "sweep"))
    (sweep / name).write_text(json.dumps(change(json.loads((sweep / name).read_text()))) + "\n")
    code, printed = answer("sweep", "--resume", str(sweep))
    assert code == 5
    assert name in printed.splitlines()[0]


def test_sums_of_files_elsewhere_are_not_made(run: Path) -> None:
    outside = run.parent / "outside"
    outside.write_text("x")
    sums = "".join(f"{'0' * 64}  {name}\n" for name in ("../outside", "/etc/passwd", "checkpoints/../../outside"))
    last = f"# {hashlib.sha256(sums.encode()).hexdigest()}  the lines above\n"
    (run / "SHA256SUMS").write_text(sums + last)
    code, printed = answer("verify", str(run))
    assert code == 5
    assert_names(printed, "../outside")


def test_a_name_moves_no_terminal_and_needs_no_encoding(run: Path, tmp_path: Path) -> None:
    hostile = tmp_path / os.fsdecode(f"{MOVING}\n$\\frac{{<img src=x>".encode() + b"\xff\xfe")
    run.rename(hostile)
    drawn = Image.new("L", (28, 28))
    drawn.paste(255, (12, 6, 16, 22))
    drawn.save(hostile / "x.png")
    (hostile / "x.png").rename(hostile / os.fsdecode(b"\x1b[2J\xff.png"))
    picture = str(hostile / os.fsdecode(b"\x1b[2J\xff.png"))
    csv = str(tmp_path / "answers.csv")
    assert answer("runs", str(hostile), str(hostile))[0] == 0
    assert answer("verify", str(hostile))[0] == 0
    assert answer("train", "--resume", str(hostile))[0] == 0
    assert answer("predict", str(hostile), picture, "--csv", csv)[0] == 0
    assert answer("evaluate", str(hostile))[0] == 0
    assert answer("export", str(hostile), "--format", "web", "--out", str(tmp_path / "x.html"))[0] == 0
    assert answer("report", str(hostile), str(hostile), "--out", str(tmp_path / "report.html"))[0] == 0
    assert "<img src=x" not in (tmp_path / "report.html").read_text()


def test_what_a_runs_files_say_moves_no_terminal_and_becomes_no_markup(run: Path, tmp_path: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    for part in ("binding", "not_binding"):
        manifest[part] |= {MOVING: MOVING, "<script>": "</td><script>alert(1)</script>", "jax": MOVING}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert answer("runs", str(run))[0] == 0
    assert answer("report", str(run), "--out", str(tmp_path / "report.html"))[0] == 0
    assert "<script" not in (tmp_path / "report.html").read_text()
    (run / "manifest.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    assert answer("train", "--resume", str(run), "--verbose", "0")[0] == 0


def test_escapes_are_shown_and_plain_text_is_left_alone() -> None:
    assert printable("Zürich ☃ 9\nx") == "Zürich ☃ 9\nx"
    assert printable("a\x1b[2J\r\x07\x7f\u202e\udcff") == r"a\x1b[2J\r\x07\x7f\u202e\udcff"
    assert printable("a\nb", lines=False) == r"a\nb"


def test_a_prepared_folder_imports_no_class_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tfds imports the module of whatever class a folder's features.json names."""
    files = mnist_stand_in.write_stand_in(tmp_path / "files")
    monkeypatch.setitem(official.SOURCES, "mnist", mnist_stand_in.stand_in_source(files))
    folder = builders.write("mnist", [files / f"{name}.gz" for name in mnist_stand_in.NAMES], tmp_path / "data")
    assert len(builders.read(folder)[0].targets) == 60
    (tmp_path / "owned.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    features = json.loads((folder / "features.json").read_text())
    for change in (
        {"pythonClassName": "owned.Feature"},
        {"python_class_name": "owned.Feature"},
        {"type": "owned.Feature", "content": {}},
        {"pythonClassName": "tensorflow_datasets.core.features.feature.owned.Feature"},
    ):
        (folder / "features.json").write_text(json.dumps(features | change))
        with refused(DataError, folder):
            builders.read(folder)
    nested = re.sub(
        r"tensorflow_datasets\.core\.features\.tensor_feature\.Tensor", "owned.Feature", json.dumps(features)
    )
    assert "owned" in nested
    (folder / "features.json").write_text(nested)
    with refused(DataError, "owned.Feature"):
        builders.read(folder)
    assert "owned" not in sys.modules
    assert not (tmp_path / "ran").exists()


def png_of_nothing(width: int, height: int, colour: int = 0, depth: int = 8) -> bytes:
    """A picture of one colour, whose bytes are a thousandth of its pixels."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    row = bytes(1 + width * channels * depth // 8)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_a_picture_that_unpacks_into_too_much_is_refused_by_its_header(tmp_path: Path) -> None:
    for side in (8193, 1 << 16, (1 << 31) - 1):
        whole = png_of_nothing(1, 1)
        header = whole[12:16] + struct.pack(">II", side, side) + whole[24:29]
        (tmp_path / "x.png").write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])
        with bounded(), refused(DataError, tmp_path / "x.png"):
            read_images(tmp_path / "x.png", SHAPE, digits=True)


def test_a_sparse_array_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 26, 28, 28)})
        file.truncate((1 << 26) * 28 * 28 * 8 + 128)
    with bounded(), refused(DataError, tmp_path / "x.npy", f"{MAX_BYTES:,}"):
        read_images(tmp_path / "x.npy", SHAPE)


def test_a_list_of_texts_that_are_all_one_long_text_is_refused(tmp_path: Path) -> None:
    """4,000 names of a megabyte each, in a file of less than three megabytes."""
    path = tmp_path / "x.h5"
    path.write_bytes((KERAS / "keras2_weights.h5").read_bytes())
    with h5py.File(path, "a") as file:
        del file.attrs["layer_names"]
        file.attrs.create("layer_names", ["x" * (1 << 20), *("y" * 9 for _ in range(3999))], dtype=h5py.string_dtype())
    content = bytearray(path.read_bytes())
    first = struct.pack("<I", 1 << 20)
    at = next(i for i in occurrences(content, first) if content[i + 16 : i + 20] == struct.pack("<I", 9))
    content[at : at + 16 * 4000] = bytes(content[at : at + 16]) * 4000
    path.write_bytes(content)
    assert path.stat().st_size < 3 << 20
    with bounded(), refused(RunError, path):
        read_keras(path)


def occurrences(content: bytes, part: bytes) -> Iterator[int]:
    at = content.find(part)
    while at >= 0:
        yield at
        at = content.find(part, at + 1)


def test_a_batch_of_no_divisors_is_refused_at_once() -> None:
    with bounded(), refused(ConfigError, "grad_shards", (1 << 31) - 1, 2, 1):
        ExperimentConfig(batch_size=(1 << 31) - 1, grad_shards=2)


def test_an_archive_that_promises_more_than_it_is_takes_no_memory(tmp_path: Path) -> None:
    """Both records of the weights tell of 2 GB, stored."""
    content = bytearray((KERAS / "keras3.keras").read_bytes())
    for kind, at in ((b"PK\x03\x04", 18), (b"PK\x01\x02", 20)):
        for start in occurrences(content, kind):
            name = 30 if kind == b"PK\x03\x04" else 46
            if content[start + name : start + name + 16] == b"model.weights.h5":
                content[start + at : start + at + 8] = struct.pack("<II", (1 << 31) - 1, (1 << 31) - 1)
    (tmp_path / "x.keras").write_bytes(content)
    with bounded(), refused(RunError, "model.weights.h5", (1 << 31) - 1):
        parse_keras(tmp_path / "x.keras")


def test_help_and_docs_say_that_the_port_of_process_0_asks_for_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "sweep"):
        main([command, "--help"])
        assert "has no password" in " ".join(capsys.readouterr().out.split())
    assert "has no password" in (ROOT / "docs" / "distributed.md").read_text()


class Markup(HTMLParser):
    """The names of a page's tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)


def test_commands_that_load_a_model_take_any_record_or_refuse_it(run: Path, tmp_path: Path) -> None:
    names = ("config.json", "manifest.json", "metrics.jsonl", "digests.jsonl")
    documents = []
    for name in names:
        lines = (run / name).read_text().splitlines()
        documents.append({"name": name, "lines": [json.loads(line) for line in lines] if "jsonl" in name else None})
        if "jsonl" not in name:
            documents[-1]["lines"] = [json.loads((run / name).read_text())]
    page = tmp_path / "report.html"

    def feed(document: dict[str, Any]) -> str:
        name, lines = document.get("name"), document.get("lines")
        if name not in names or not isinstance(lines, list):
            return "none"
        former = (run / name).read_bytes()
        (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        page.unlink(missing_ok=True)
        try:
            codes = {answer("evaluate", str(run))[0], answer("report", str(run), "--out", str(page))[0]}
        finally:
            (run / name).write_bytes(former)
        assert not page.exists() or "script" not in Markup(page.read_text()).tags
        return "refused" if codes - {0} else "accepted"

    fuzz("evaluate, report", altered(documents), feed, 6)


LISTENING = """
import sys
from pathlib import Path
from jaxmlp.system.distributed import Cluster, join
join(Cluster.parse(sys.argv[1]))
for name in ("tcp", "tcp6"):
    for line in Path("/proc/self/net", name).read_text().splitlines()[1:]:
        address, state = line.split()[1], line.split()[3]
        if state == "0A" and address.endswith(f":{int(sys.argv[1].split(':')[1].split(',')[0]):04X}"):
            print(name, address.partition(":")[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel who listens")
def test_the_coordinator_listens_where_it_was_told_alone() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", LISTENING, f"127.0.0.1:{port},1,0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() in (["tcp", "0100007F"], ["tcp6", "0000000000000000FFFF00000100007F"]), done.stderr


def test_a_network_of_100_000_layers_is_refused_before_it_is_traced(run: Path) -> None:
    plain = json.loads((run / "config.json").read_text())
    plain["model"]["hidden_sizes"] = [1] * 100_000
    (run / "config.json").write_text(json.dumps(plain, separators=(",", ":")))
    with bounded():
        assert answer("summary", str(run))[0] == 5
