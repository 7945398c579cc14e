"""Every parser of files from strangers, fuzzed: a short run here, a long one with `JAXMLP_FUZZ_SECONDS=600`."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import select
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from mnist_stand_in import idx_bytes
from PIL import Image

from faults.fuzz import altered, answer, as_json, as_lines, damaged, fuzz
from jaxmlp import SGD, Cosine, ExperimentConfig, Piecewise, RMSprop
from jaxmlp.data import cache, idx, official
from jaxmlp.errors import ConfigError, DataError, JaxmlpError, RunError, UsageError
from jaxmlp.keras import apart
from jaxmlp.proof import evidence, references
from jaxmlp.run import checkpoint
from jaxmlp.run.directory import RunDirectory
from jaxmlp.sweep import directory as sweep_directory
from jaxmlp.trained.images import read_images

SHAPE = (28, 28, 1)
KERAS = Path(__file__).parents[1] / "keras_files"
RNG = np.random.default_rng(0)
DIGITS = RNG.integers(0, 256, (3, 28, 28), np.uint8)


def outcome(parse: Callable[[], object], *errors: type[JaxmlpError]) -> str:
    """What came of a parser that may raise these errors alone."""
    try:
        parse()
    except errors:
        return "refused"
    return "accepted"


def test_idx(tmp_path: Path) -> None:
    wholes = [idx_bytes(DIGITS), idx_bytes(np.arange(10, dtype=np.uint8)), idx_bytes(np.ones((2, 28, 28), np.float64))]
    dims = st.lists(st.sampled_from((0, 1, 2, 28, 1 << 16, (1 << 32) - 1)), max_size=255)
    made = st.builds(
        lambda kind, lengths, rest: bytes((0, 0, kind, len(lengths))) + np.array(lengths, ">u4").tobytes() + rest,
        st.sampled_from((8, 9, 11, 12, 13, 14)), dims, st.binary(max_size=64),
    )  # fmt: skip
    plain = st.one_of(damaged(wholes), made)
    given = st.one_of(
        plain, plain.map(lambda one: gzip.compress(one, 1)), damaged([gzip.compress(one, 1) for one in wholes])
    )
    path = tmp_path / "digits-ubyte"

    def feed(hostile: bytes) -> str:
        path.write_bytes(hostile)
        outcome(lambda: idx.read_idx(path), DataError)
        return outcome(lambda: read_images(path, SHAPE), DataError)

    fuzz("IDX and gzip", given, feed, 200)


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npy_with(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(128)


def test_npy(tmp_path: Path) -> None:
    archive = io.BytesIO()
    np.savez(archive, DIGITS)
    arrays = [DIGITS, DIGITS.astype("f8"), np.array([None]), np.zeros(3, "i4,f4")]
    numbers = st.sampled_from(("0", "1", "-1", "28", str(1 << 31), str(1 << 62), "9" * 30, "1L", "'x'", "None", "()"))
    kinds = ("'|u1'", "'<f8'", "'|O'", "'<U9'", "'|V0'", "'<M8[s]'", "[('a', '<f4')]", "'x'", "None", "1" * 400)

    def header(kind: str, order: str, shape: str, end: str) -> bytes:
        return f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}{end}\n".encode()

    shapes = st.lists(numbers, max_size=40).map(lambda some: f"({', '.join(some)},)")
    ends = st.sampled_from(("", "  ", "\0", "(", "'", "\n\n", "#"))
    made = st.builds(header, st.sampled_from(kinds), st.sampled_from(("False", "True", "2")), shapes, ends)
    whole = damaged([*map(saved, arrays), archive.getvalue()])
    given = st.one_of(whole, made.map(npy_with), st.binary(max_size=60).map(npy_with))
    path = tmp_path / "x.npy"

    def feed(hostile: bytes) -> str:
        path.write_bytes(hostile)
        return outcome(lambda: read_images(path, SHAPE), DataError)

    fuzz("npy", given, feed, 300)


def picture(kind: str, mode: str, side: int = 28, **how: Any) -> bytes:
    file = io.BytesIO()
    noise = RNG.integers(0, 256, (side, side, 4), np.uint8)
    noise[:, :4] = noise[:, -4:] = noise[:4] = noise[-4:] = 250
    Image.fromarray(noise, "RGBA").convert(mode).save(file, kind, **how)
    return file.getvalue()


def exif(tags: dict[int, Any]) -> bytes:
    found = Image.Exif()
    for tag, value in tags.items():
        found[tag] = value
    return found.tobytes()


def resealed(png: bytes) -> bytes:
    """The PNG with the sums of its chunks made right, as far as its lengths lead."""
    import zlib

    found, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        body = png[at + 4 : at + 8 + length]
        found += png[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return bytes(found)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_pictures(kind: str, tmp_path: Path) -> None:
    turned = {"exif": exif({274: 6, 315: "x" * 40})}
    if kind == "png":
        wholes = [
            picture("PNG", mode, **how) for mode in ("L", "RGB", "RGBA", "LA", "P", "1", "I;16") for how in ({}, turned)
        ]
        wholes += [picture("PNG", "P", transparency=3), picture("PNG", "L", 80, dpi=(9, 9))]
        given = st.one_of(damaged(wholes).map(resealed), damaged(wholes).map(resealed), damaged(wholes))
    else:
        wholes = [picture("JPEG", mode, **how) for mode in ("L", "RGB", "CMYK") for how in ({}, turned)]
        wholes += [picture("JPEG", "RGB", 90, progressive=True)]
        given = damaged(wholes)
    path = tmp_path / f"x.{kind}"

    def feed(hostile: bytes) -> str:
        path.write_bytes(hostile)
        outcome(lambda: read_images(path, SHAPE), DataError)
        return outcome(lambda: read_images(path, SHAPE, digits=True), DataError)

    fuzz(kind.upper(), given, feed, 200)


READER = """
import io, json, sys
from pathlib import Path
from jaxmlp.keras import apart
apart.limit_memory(0)
print("ready", flush=True)
for line in sys.stdin:
    out = io.BytesIO()
    apart.answer(Path(line.rstrip()), "x", out)
    print("refused" if b"refused" in out.getvalue().partition(b"\\n")[0] else "accepted", flush=True)
"""
PATIENCE_S = 4.0
"""That reading one file may take in the process apart; the slowest whole file takes a hundredth."""


class Reader:
    """The process that reads Keras files apart, kept for many of them; a new one where it hangs or crashes."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def outcome(self, path: Path) -> str:
        if not self._process or self._process.poll() is not None:
            self.close()
            command = [sys.executable, "-c", READER]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert self._process.stdout and self._process.stdout.readline() == b"ready\n"
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{path}\n".encode())
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
        told = self._process.stdout.readline().decode().strip() if ready else ""
        if not told:
            self._process.kill()
        code = self._process.wait() if not told else 0
        assert told or code < 0, "the reader has a bug: its traceback stands above"
        return told or ("hung" if not ready else f"crashed by {signal.Signals(-code).name}")

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


@pytest.mark.parametrize("name", ["keras2.h5", "keras2_weights.h5", "keras3.h5", "functional.h5", "keras3.weights.h5"])
def test_keras_hdf5(name: str, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.h5"
    monkeypatch.setattr(apart, "SECONDS", PATIENCE_S)
    checked: set[str] = set()

    def feed(hostile: bytes) -> str:
        path.write_bytes(hostile)
        found = reader.outcome(path)
        if found not in ("refused", "accepted", *checked):
            checked.add(found)
            assert outcome(lambda: apart.read_keras(path), RunError) == "refused"
        return found

    fuzz(f"Keras {name}", damaged([(KERAS / name).read_bytes()]), feed, 60)


@pytest.mark.parametrize("name", ["keras3.keras", "functional.keras"])
def test_keras_archive(name: str, reader: Reader, tmp_path: Path) -> None:
    with zipfile.ZipFile(KERAS / name) as whole:
        parts = {each: whole.read(each) for each in whole.namelist()}

    def archive(config: bytes, weights: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as new:
            new.writestr("config.json", config)
            new.writestr("model.weights.h5", weights)
        return file.getvalue()

    weights = parts["model.weights.h5"]
    given = st.one_of(
        as_json([json.loads(parts["config.json"])]).map(lambda config: archive(config, weights)),
        damaged([weights]).map(lambda altered_weights: archive(parts["config.json"], altered_weights)),
        damaged([(KERAS / name).read_bytes()]),
    )
    path = tmp_path / "x.keras"

    def feed(hostile: bytes) -> str:
        path.write_bytes(hostile)
        return reader.outcome(path)

    fuzz(f"Keras {name}", given, feed, 100)


ARRAYS = {
    "state/params/Dense_0/kernel": np.ones((3, 2), "f4"),
    "state/step": np.int32(4).reshape(()),
    "b": np.zeros(5, "u1"),
}


def sealed(header: bytes, rest: bytes) -> bytes:
    """A checkpoint with this header, whose sum is made right where the header has a place for it."""
    told = checkpoint._HEADER_SHA256.search(header)
    if told:
        empty = header[: told.start()] + b"0" * 64 + header[told.end() :]
        header = empty[: told.start()] + hashlib.sha256(empty).hexdigest().encode() + empty[told.end() :]
    return len(header).to_bytes(8, "little") + header + rest


def test_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "step-00000004.safetensors"
    checkpoint.save(path, ARRAYS, {"step": 4, "best": True})
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, rest = whole[8 : 8 + length], whole[8 + length :]
    by_hand = st.one_of(as_json([json.loads(header)]), damaged([header]))
    given = st.one_of(damaged([whole]), by_hand.map(lambda one: sealed(one.replace(b'": "', b'":"'), rest)))

    def feed(hostile: bytes) -> str:
        path.write_bytes(hostile)
        outcome(lambda: checkpoint.load_meta(path), RunError)
        found = outcome(lambda: checkpoint.load(path), RunError)
        # Whoever makes the sums anew may say what they like; who does not is found out.
        assert found == "refused" or hostile == whole or hostile[8:] != whole[8:]
        return found

    fuzz("checkpoint", given, feed, 200)


def test_config() -> None:
    schedules = [RMSprop(), SGD(schedule=Piecewise()), SGD(schedule=Cosine())]
    documents = [ExperimentConfig(optimizer=optimizer).to_dict() for optimizer in schedules]

    def feed(hostile: bytes) -> str:
        def parse() -> None:
            config = ExperimentConfig.from_json(hostile.decode(errors="replace"))
            assert ExperimentConfig.from_json(config.to_json()) == config
            assert hash(config) == hash(config)

        return outcome(parse, ConfigError)

    fuzz("config", as_json(documents), feed, 300)


@pytest.fixture(scope="module")
def traced_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every file that a run may have."""
    path = tmp_path_factory.mktemp("traced") / "run"
    quickstart = str(Path(__file__).parents[2] / "experiments" / "quickstart.py")
    small = (
        "--model.hidden-sizes",
        "4",
        "--epochs",
        "2",
        "--verbose",
        "0",
        "--checkpoint-s",
        "0",
        "--batch-size",
        "1000",
    )
    assert answer("train", quickstart, *small, "--digest-every", "2", "--out", str(path))[0] == 0
    return path


JSON_FILES, LOGS = ("config.json", "manifest.json"), ("metrics.jsonl", "digests.jsonl", "trace.jsonl")


def hostile_files(run: Path, **others: st.SearchStrategy[bytes]) -> st.SearchStrategy[tuple[str, bytes]]:
    """The name of a run's file, and hostile content of it."""
    known: dict[str, st.SearchStrategy[bytes]] = {
        **{name: as_json([json.loads((run / name).read_text())]) for name in JSON_FILES},
        **{name: as_lines([json.loads(line) for line in (run / name).read_text().splitlines()]) for name in LOGS},
        "SHA256SUMS": damaged([(run / "SHA256SUMS").read_bytes()]),
        "lock": as_json([{"pid": 1, "since": "2026-01-01T00:00:00Z"}]),
        **others,
    }
    return st.one_of(*(st.tuples(st.just(name), each) for name, each in known.items()))


def test_run_directory(traced_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(traced_run, run)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    arrays, meta = checkpoint.load(newest)
    checkpoint.save(tmp_path / "c", arrays, meta)
    whole = (tmp_path / "c").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    metas = altered([meta]).map(
        lambda one: sealed(
            json.dumps(
                header | {"__metadata__": header["__metadata__"] | {"meta": json.dumps(one)}}, separators=(",", ":")
            ).encode(),
            whole[8 + length :],
        )
    )
    given = hostile_files(run, **{f"checkpoints/{newest.name}": metas})

    def feed(hostile: tuple[str, bytes]) -> str:
        name, content = hostile
        former = (run / name).read_bytes()
        (run / name).write_bytes(content)
        try:
            codes = {answer("runs", str(run))[0], answer("runs", "--json", str(run))[0], answer("verify", str(run))[0]}
            outcome(lambda: evidence.of_run(RunDirectory.open(run, write=False)), RunError)
            with_status = (run / "manifest.json").read_bytes()
            if b'"finished"' in with_status:
                codes.add(answer("train", "--resume", str(run))[0])
        finally:
            (run / name).write_bytes(former)
        return "refused" if 5 in codes else "accepted"

    fuzz("run directory", given, feed, 60)


def test_sweep(tmp_path: Path) -> None:
    path = tmp_path / "sweep"
    quickstart = str(Path(__file__).parents[2] / "experiments" / "quickstart.py")
    small = ("--model.hidden-sizes", "4", "--epochs", "1", "--verbose", "0", "--batch-size", "1000")
    vary = ("--seeds", "0:2", "--set", "optimizer.learning-rate=0.1,0.2")
    assert answer("sweep", quickstart, *small, *vary, "--out", str(path))[0] == 0
    plan = json.loads((path / "sweep.json").read_text())
    lanes = [json.loads(line) for line in (path / "lanes.jsonl").read_text().splitlines()]
    given = st.one_of(
        as_json([plan]).map(lambda content: ("sweep.json", content)),
        as_lines(lanes).map(lambda content: ("lanes.jsonl", content)),
        as_json([json.loads((path / "manifest.json").read_text())]).map(lambda content: ("manifest.json", content)),
    )

    def feed(hostile: tuple[str, bytes]) -> str:
        name, content = hostile
        former = (path / name).read_bytes()
        (path / name).write_bytes(content)

        def parse() -> None:
            plan, results = sweep_directory.load(path)
            plan.lanes()
            for each in results:
                json.dumps(each.figures(("accuracy", "loss")))
            with sweep_directory.SweepDirectory.open(path):
                pass

        try:
            return outcome(parse, RunError)
        finally:
            (path / name).write_bytes(former)

    fuzz("sweep", given, feed, 100)


def test_benchmark(tmp_path: Path) -> None:
    from jaxmlp.bench.compare import PLAIN, compare_benchmarks
    from jaxmlp.cli import bench

    binding = {"device_kind": "cpu", "isa": "x86_64", "platform_version": "1"}
    here = {
        "suite": "quick",
        "rows": [
            {"key": what, "what": what, "units": 1, "process_s": [1.0, 2.0] * 4} for what in ("step", PLAIN, "copy")
        ],
        "manifest": {"binding": binding, "not_binding": {"devices": 1, "threads": 2}},
        "noise": {"noisy": False, "message": None, "load_factor": 1.0},
    }
    path = tmp_path / "bench.json"

    def feed(hostile: bytes) -> str:
        path.write_bytes(hostile)
        return outcome(
            lambda: compare_benchmarks(bench.read_benchmark(path), here, limit=0.05, across_devices=True), UsageError
        )

    assert feed(json.dumps(here).encode()) == "accepted"
    fuzz("benchmark", as_json([here]), feed, 100)


def test_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.loads(next(references.FOLDER.glob("*.json")).read_text())
    monkeypatch.setattr(references, "FOLDER", tmp_path)

    def feed(hostile: bytes) -> str:
        (tmp_path / "x.json").write_bytes(hostile)

        def parse() -> None:
            for each in references.references():
                for told in each.experiments.values():
                    for line in told["points"]:
                        evidence.Evidence.from_line(line)

        return outcome(parse, RunError)

    fuzz("reference", as_json([whole]), feed, 200)


def test_decoded_copy(tmp_path: Path) -> None:
    from mnist_stand_in import read_stand_in, stand_in_source, write_stand_in

    files = write_stand_in(tmp_path / "files")
    source, path = stand_in_source(files), tmp_path / "mnist.idx"
    train, test = read_stand_in(files)
    cache.write_copy(path, train, test)
    whole = path.read_bytes()

    def feed(hostile: bytes) -> str:
        path.write_bytes(hostile)
        found = outcome(lambda: cache.read_copy(path, source), DataError)
        if found == "accepted":
            loaded = cache.read_copy(path, source)
            assert loaded
            assert loaded[2] == source.sha256
            assert np.array_equal(loaded[0].inputs, train.inputs)
        return found

    fuzz("decoded copy", damaged([whole]), feed, 200)


def test_named_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnist_stand_in import NAMES, stand_in_source, write_stand_in

    files = write_stand_in(tmp_path / "files")
    monkeypatch.setitem(official.SOURCES, "mnist", stand_in_source(files))
    paths = tuple(files / f"{name}.gz" for name in NAMES)
    wholes = [path.read_bytes() for path in paths]
    contents = [gzip.decompress(whole) for whole in wholes]
    given = st.one_of(
        st.tuples(st.integers(0, 3), damaged(wholes)),
        st.tuples(st.integers(0, 3), damaged(contents).map(lambda one: gzip.compress(one, 1))),
    )

    def feed(hostile: tuple[int, bytes]) -> str:
        at, content = hostile
        paths[at].write_bytes(content)
        found = outcome(lambda: official.verify("mnist", paths), DataError)
        if found == "accepted":
            assert idx_bytes(idx.read_idx(paths[at])) == contents[at]
        paths[at].write_bytes(wholes[at])
        return found

    fuzz("named files", given, feed, 200)
