"""The instrument: known answers, what is compared with what, and what people see of `jaxmlp bench`."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from command_line import QUICKSTART
from refusals import refused

from jaxmlp import MLP, AdamW, DataConfig, ExperimentConfig, data, train
from jaxmlp.bench import device, exactness, machine, plain, processes, race, roof, speedrun, suite, timing
from jaxmlp.bench.compare import DEVICE_ROWS, PLAIN
from jaxmlp.bench.mllog import mllog_lines
from jaxmlp.bench.noise import load_factor, noise
from jaxmlp.bench.profile import profile
from jaxmlp.bench.scaling import fit_power, fits
from jaxmlp.bench.timing import TimedProgram, calibrate, measure
from jaxmlp.bench.work import eval_work, step_work
from jaxmlp.cli import main
from jaxmlp.engine.network import MNIST
from jaxmlp.errors import ConfigError, UsageError
from jaxmlp.prng import root_key
from jaxmlp.run.directory import RunDirectory
from jaxmlp.source.file import load_experiment

ROOT = Path(__file__).parent.parent


class Clock:
    """Stands still but for what programs take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def __call__(self) -> float:
        return self.now

    def program(self, what: str, seconds: float, **sizes: Any) -> TimedProgram:
        def run(count: int) -> None:
            self.ran.append(what)
            self.now += seconds * count

        return TimedProgram(what=what, run=run, **sizes)


def test_a_sleep_of_known_length_takes_that_length() -> None:
    clock = Clock()
    programs = [clock.program("long", 0.5), clock.program("short", 1e-4)]
    seconds = measure(programs, calibrate(programs, clock=clock), repeats=3, clock=clock)
    assert list(seconds.values()) == [pytest.approx([0.5] * 3), pytest.approx([1e-4] * 3)]


def test_a_short_program_is_repeated_until_a_sample_is_long_against_the_clock() -> None:
    clock = Clock()
    (units,) = calibrate([clock.program("short", 1e-4)], sample_s=0.02, clock=clock).values()
    assert 100 <= units <= 400


def test_a_program_that_says_its_seconds_is_believed() -> None:
    program = TimedProgram(what="said", run=lambda _: 3.0, once=True)
    assert measure([program], calibrate([program]), repeats=2) == {program.key: [3.0, 3.0]}


def test_every_round_runs_every_program_in_an_order_of_its_own() -> None:
    clock = Clock()
    programs = [clock.program(name, 1.0, once=True) for name in "abcdef"]
    measure(programs, calibrate(programs), repeats=3, clock=clock)
    rounds = ["".join(clock.ran[first : first + 6]) for first in (0, 6, 12)]
    assert [sorted(order) for order in rounds] == [list("abcdef")] * 3
    assert len(set(rounds)) == 3


def test_a_product_of_known_flops_has_its_rate() -> None:
    compiled = jax.jit(jax.numpy.matmul).lower(*[np.ones((64, 64), np.float32)] * 2).compile()
    program = device.product(64, "float32")
    program.run(2)
    assert program.flops == 2 * 64**3 == compiled.cost_analysis()["flops"]  # type: ignore[index]
    assert timing.document(program.facts(), [[0.5] * 3] * 2)["flops_per_s"] == pytest.approx(2**20)


def test_a_copy_of_known_bytes_has_its_rate() -> None:
    program = device.copy(1)
    program.run(2)
    assert program.bytes == 2 << 20
    assert timing.document(program.facts(), [[0.5]])["bytes_per_s"] == pytest.approx(4 << 20)


def test_the_products_of_an_update_have_the_flops_of_the_update() -> None:
    program = device.own_products(8, (784, 32, 16, 10), "bfloat16")
    program.run(1)
    assert program.flops == step_work(ExperimentConfig(model=MLP(hidden_sizes=(32, 16)), batch_size=8), MNIST).flops


def test_devices_exchange_what_their_names_say(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = list(device.collectives(1))
    assert {program.what for program in programs} == {"psum", "all gather", "reduce scatter", "all to all"}
    for program in [*programs, *device.transfers(1), device.dispatch()]:
        program.run(1)
        assert program.what in DEVICE_ROWS


def test_a_plain_step_trains_and_runs_no_code_of_jaxmlp() -> None:
    program = plain.plain_step(8, (784, 16, 10), 32)
    program.run(2)
    assert program.what == PLAIN
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (32, 784), np.uint8), rng.integers(0, 10, 32, np.int32)
    kernels = [rng.normal(0, 0.03, shape).astype(np.float32) for shape in ((784, 64), (64, 10))]
    params = [(kernel, np.zeros(kernel.shape[1], np.float32)) for kernel in kernels]
    trained = plain.train(32, (params, plain.OPTIMIZER.init(params)), (images, labels), 500)
    (first, first_bias), (last, last_bias) = jax.device_get(trained[0])
    hits = (np.maximum(images / 255 @ first + first_bias, 0) @ last + last_bias).argmax(1) == labels
    assert hits.sum() > 30
    imports = [line for line in Path(plain.__file__).read_text().splitlines() if "jaxmlp" in line and "import" in line]
    assert imports == ["from jaxmlp.bench.timing import TimedProgram"]


def test_a_steps_flops_and_bytes_are_those_counted_by_hand() -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=(32, 16)), batch_size=8)
    kernels = [784 * 32, 32 * 16, 16 * 10]
    found = step_work(config, MNIST)
    # Forward, a gradient for each kernel, and one for each input but the images.
    assert found.flops == 2 * 8 * (3 * sum(kernels) - kernels[0])
    parameters = 4 * (sum(kernels) + 32 + 16 + 10)
    # Parameters, their gradients and RMSprop's squares, each read and written once.
    assert found.bytes > 6 * parameters + 8 * 788
    assert found.bytes - 6 * parameters - 8 * 788 < 8 * 8 * 4 * (784 + 3 * 32 + 3 * 16 + 10)


def test_an_evaluations_flops_are_the_forward_products() -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=(32,)), batch_size=8)
    assert eval_work(config, MNIST, 3000).flops == 2 * 3000 * (784 * 32 + 32 * 10)


def test_an_evaluation_reads_the_parameters_for_each_batch_and_for_what_is_left_over() -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=(32,)), batch_size=8)
    one, two, more = (eval_work(config, MNIST, 1024 * 2 + extra).bytes for extra in (-1024, 0, 1))
    params = 4 * (784 * 32 + 32 + 32 * 10 + 10)
    an_example = (two - one - params) // 1024
    assert more - two == params + an_example


@pytest.mark.parametrize(
    ("others_cores", "spread", "said"),
    [
        (0.0, 0.01, None),
        (None, 0.01, None),
        (1.0, 0.01, "other processes kept 1.0 cores busy"),
        (0.0, 0.5, "times spread"),
    ],
)
def test_a_busy_machine_is_called_noisy_and_a_quiet_one_is_not(
    others_cores: float | None, spread: float, said: str | None
) -> None:
    found = noise(others_cores, [[1.0, 1.0 + spread, 1.0 + 2 * spread]] * 3)
    assert found["noisy"] == bool(said)
    assert (said or "") in (found["message"] or "")


def test_neighbours_lengthen_work_by_the_cores_that_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert [load_factor(cores) for cores in (None, 0.0, 1.0, 2.0)] == pytest.approx([1, 1, 4 / 3, 2])


def test_a_process_beside_which_others_worked_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([0.0, 0.9, 0.0, None, 0.0, 0.9])  # The first is not counted.
    times = iter(range(9))

    def process(*_: Any, **__: Any) -> dict[str, Any]:
        seconds = {program.key: [float(next(times))]}
        return {
            "programs": [program.facts()],
            "units": {program.key: 1},
            "seconds": seconds,
            "others_cores": next(busy),
        }

    program = TimedProgram(what="step", run=lambda _: None)
    monkeypatch.setattr(processes, "measure_in_a_process", process)
    first, counted = processes.timed_processes("quick", device="cpu", wanted=3, tell=lambda _: None)
    (row,) = processes.rows_of(first, counted)
    assert row["process_s"] == [2.0, 3.0, 4.0]
    busy = iter([0.0, 0.9, 0.9])  # Where all are busy, none is.
    assert len(processes.timed_processes("quick", device="cpu", wanted=2, tell=lambda _: None)[1]) == 2


def test_a_process_that_fails_ends_the_benchmark_with_its_message_and_code(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "tpu"]) == 6
    assert "device: tpu was requested" in capfd.readouterr().err


def test_a_rate_is_held_against_the_copy_of_its_size_and_the_makers_peak() -> None:
    def row(what: str, seconds: float, **facts: Any) -> dict[str, Any]:
        return timing.document(TimedProgram(what=what, run=lambda _: None, **facts).facts(), [[seconds]])

    sizes: Any = {"batch_size": 128, "width": 512, "precision": "bfloat16"}
    rows = [
        row("product", 1.0, precision="bfloat16", width=4096, flops=10**14),
        row("products", 0.5, flops=10**13, **sizes),
        row("copy", 1.0, mib=1, bytes=4 * 10**9),
        row("copy", 1.0, mib=256, bytes=10**9),
        *(row("step", 1.0, flops=10**13, bytes=2 * 10**9, resident=held, **sizes) for held in (10**6, 10**8)),
    ]
    found = roof.peaks(rows)
    roof.add_utilisation(rows, found, "NVIDIA H100 80GB HBM3")
    small, large = rows[-2:]
    assert (found["flops_per_s"]["bfloat16"], found["bytes_per_s"]) == (1e14, 1e9)
    assert [small["of_roof"], large["of_roof"]] == pytest.approx([0.5, 2.0])
    assert (small["of_products"], small["mfu"]) == pytest.approx((0.5, 1e13 / 989.5e12))


def test_a_gpus_energy_is_what_its_counter_moved_by_and_not_known_without_its_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refused(Exception):
        pass

    def refuse(*_: Any) -> None:
        raise Refused

    counter = iter([1_000, 4_500])
    names = ["nvmlInit", "nvmlShutdown", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetName", "nvmlDeviceGetMaxClockInfo"]
    library: Any = types.SimpleNamespace(**{name: lambda *_: "X" for name in names}, NVML_CLOCK_SM=0, NVMLError=Refused)
    library.nvmlSystemGetDriverVersion = library.nvmlDeviceGetEnforcedPowerLimit = refuse
    library.nvmlDeviceGetClockInfo = lambda *_: 1980
    library.nvmlDeviceGetTotalEnergyConsumption = lambda _: next(counter)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(platform="gpu")])
    assert machine.joules(lambda: None) == 3.5
    counter = iter([1])
    found = machine.gpu()
    assert found and (found["clock_mhz"], found["driver"], found["power_limit_w"]) == (1980, None, None)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine.gpu() is None
    assert machine.joules(lambda: None) is None


def test_the_processors_energy_is_what_all_packages_counted_and_not_known_without_permission(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def count(**microjoules: int) -> None:
        for name, value in microjoules.items():
            (tmp_path / name.replace("_", ":").replace("rapl", "intel-rapl")).mkdir(exist_ok=True)
            (tmp_path / name.replace("_", ":").replace("rapl", "intel-rapl") / "energy_uj").write_text(f"{value}\n")

    monkeypatch.setattr(machine, "POWERCAP", tmp_path)
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(platform="cpu")])
    assert machine.joules(pytest.fail) is None
    count(rapl_0=1_000_000, rapl_1=5, rapl_0_0=7)  # A part of package 0 is in its package's count.
    assert machine.joules(lambda: count(rapl_0=3_500_000, rapl_1=500_005, rapl_0_0=9_000_000)) == pytest.approx(3.0)
    assert machine.joules(lambda: count(rapl_1=0)) is None
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert machine.joules(pytest.fail) is None


def test_a_profile_names_the_dearest_operations(tmp_path: Path) -> None:
    factor = jax.numpy.ones((256, 256))
    multiply = jax.jit(lambda x: x @ x)
    multiply(factor).block_until_ready()
    found = profile(lambda: jax.block_until_ready([multiply(factor) for _ in range(3)]), tmp_path)
    assert 0 < len(found) <= 10
    assert {"op", "module", "seconds", "count"} == found[0].keys()
    assert found[0]["seconds"] > 0


def test_the_price_of_exactness_is_the_ratio_of_each_turn_to_the_fastest_of_the_same_precision() -> None:
    ways: Any = {"fastest": 1.0, "deterministic": 2.0, "shards": 3.0}
    cases = [(f"relu {way}", one, times) for one in exactness.PRECISIONS for way, times in ways.items()]
    cases.append(("relu portable", "portable", 4.0))
    clock = np.array([1e-3, 2e-3, 1e-3])  # In the second turn the machine is half as fast.
    rows = [
        {"what": what, "precision": precision, "median_s": times * 1e-3, "process_s": list(times * clock)}
        for what, precision, times in cases
    ]
    lines = list(exactness.table({"rows": rows}))
    assert lines[1].split()[-4:] == ["3", "ms,", "3.00", "(0.00)"]
    assert lines[4].split() == ["relu,", "portable", "4", "ms,", "4.00", "(0.00)"]


def test_the_levels_of_exactness_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []

    def measure(name: str, *_: Any, **__: Any) -> dict[str, Any]:
        timed.append(name)
        return {"programs": [], "units": {}, "seconds": {}, "others_cores": 0.25, "manifest": {}, "machine": {}}

    monkeypatch.setattr(processes, "measure_in_a_process", measure)
    found = exactness.run_exactness(processes=3, tell=lambda _: None)
    assert timed == ["fastest", "exact"] * 4  # The first two compile.
    assert (found["processes"], found["others_cores"]) == (3, 0.25)


def test_a_power_is_fitted_exactly() -> None:
    found = fit_power([32, 128, 512], [3e-3 * size**0.8 for size in (32, 128, 512)])
    assert [found["exponent"], found["factor"]] == pytest.approx([0.8, 3e-3])
    assert found["largest_miss"] == pytest.approx(0, abs=1e-9)


def test_cost_is_fitted_where_three_sizes_or_more_of_the_base_were_timed() -> None:
    base: dict[str, Any] = {
        "what": "step",
        "batch_size": 128,
        "width": 512,
        "precision": "float32",
        "devices": 1,
        "grad_shards": 1,
        "examples": 128,
    }
    others: list[dict[str, Any]] = [
        {"batch_size": 64},
        {"batch_size": 32},
        {"width": 256},
        {"grad_shards": 8},
        {"width": 128, "precision": "bfloat16"},
    ]
    rows = [base | other | {"median_s": 1e-3} for other in ({}, *others)]
    (found,) = fits(rows, 128, 512)
    assert (found["what"], found["sizes"]) == ("step", [32, 64, 128])


@pytest.mark.parametrize("cross", [False, True])
def test_a_suite_varies_one_size_or_all(cross: bool) -> None:
    sizes: Any = {"batch_sizes": (128, 32, 512), "widths": (512, 128), "precisions": ("float32", "bfloat16")}
    chosen = dataclasses.replace(TINY, cross=cross, grad_shards=(1, 2), **sizes)
    found = list(suite.combinations(chosen))
    assert len(found) == len(set(found))
    assert {(1, 1, "float32", 128, 512), (1, 2, "float32", 128, 512)} < set(found)
    assert (1, 2, "float32", 32, 512) not in found
    assert ((1, 1, "bfloat16", 32, 128) in found) == cross


TINY = suite.Suite(
    batch_sizes=(16, 32), widths=(8,), precisions=("float32",), grad_shards=(1, 4), examples=(64,), eval_examples=64,
    cross=False, rounds=2, lanes=(2,), sweep_examples=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    """A tiny suite's document, of one process, which is this one."""
    found: list[dict[str, Any]] = []

    def here(name: str, device: str, units: dict[str, int], plants: Any, **first: Any) -> dict[str, Any]:
        if not found:
            found.append(suite.measure_once(name, units, plants=plants, started=0.0, **first))
        return found[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(suite.SUITES, "quick", TINY)
        patch.setitem(device.PRODUCT_SIZES, "cpu", (32,))
        patch.setattr(device, "COPY_MIB", (1,))
        patch.setattr(device, "COLLECTIVE_MIB", ())
        patch.setattr(processes, "measure_in_a_process", here)
        return processes.run_suite("quick", processes=2, plants=("step",), tell=lambda _: None)


@pytest.mark.slow
def test_a_benchmark_times_every_stage_of_a_training(benchmark: dict[str, Any]) -> None:
    stages = {row["what"] for row in benchmark["rows"]}
    assert stages - set(DEVICE_ROWS) == {*processes.ORDER, "planted step"}
    assert {PLAIN, "product", "products", "copy", "dispatch"} < stages
    sizes = ("batch_size", "width", "precision", "devices", "grad_shards")
    steps = {tuple(row[size] for size in sizes) for row in benchmark["rows"] if row["what"] == "step"}
    base = (16, 8, "float32")
    assert steps == {(*base, 1, 1), (*base, 1, 4), (*base, 8, 8), (32, 8, "float32", 1, 1)}
    assert len({row["key"] for row in benchmark["rows"]}) == len(benchmark["rows"])
    assert all(row["of_roof"] > 0 for row in benchmark["rows"] if row["what"] in ("step", "epoch", "evaluation"))


@pytest.mark.slow
def test_mlperfs_lines_have_the_rows_between_start_and_stop(benchmark: dict[str, Any]) -> None:
    lines = list(mllog_lines(benchmark))
    assert all(line.startswith(":::MLLOG {") for line in lines)
    events = [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]
    assert all(event.keys() == {"namespace", "time_ms", "event_type", "key", "value", "metadata"} for event in events)
    keys = [event["key"] for event in events]
    assert keys[2:3] + keys[-1:] == ["run_start", "run_stop"]
    assert keys.count("tracked_stats") == len(benchmark["rows"])


@pytest.mark.slow
@pytest.mark.parametrize(("times_of_base", "code"), [(100.0, 0), (0.01, 3)])
def test_bench_compares_draws_and_ends_in_3_where_it_is_slower(
    times_of_base: float,
    code: int,
    benchmark: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = copy.deepcopy(benchmark) | {"processes": 10}
    power = {"exponent": 1.0, "factor": 1e-3}
    here["scaling"] = [{"what": "step", "size": "batch_size", "sizes": [1, 2, 4], "median_s": [1e-3] * 3, **power}]
    for row in here["rows"]:
        row["process_s"] *= 5  # As many as a test needs.
    base = copy.deepcopy(here)
    for row in base["rows"]:
        factor = 1.0 if row["what"] in DEVICE_ROWS else times_of_base
        row["process_s"] = [second * factor for second in row["process_s"]]
    (tmp_path / "base.json").write_text(json.dumps(base))
    monkeypatch.setattr(processes, "run_suite", lambda *_, **__: here)
    flags = ["--compare", str(tmp_path / "base.json"), "--out", str(tmp_path / "out"), "--mllog", "--json"]
    assert main(["bench", *flags]) == code
    ended = capsys.readouterr()
    verdicts = {row["verdict"] for row in json.loads(ended.out)["comparison"]}
    assert ("slower" in verdicts, "faster" in verdicts) == (code == 3, code == 0)
    assert ("rows are slower by more than 5%" in ended.err) == (code == 3)
    slow = [row["key"] for row in here["rows"] if row["what"] not in DEVICE_ROWS]
    assert all(f"{key} (100.00)" in ended.err for key in slow) == (code == 3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "bench.json", "roofline.svg", "scaling.svg", "throughput.svg"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--fail-slower 5", "--fail-slower must be a percentage such as 5%, got '5'"),
        ("--compare nowhere.json", "nowhere.json cannot be read: No such file or directory"),
        ("--compare README.md", "README.md is not JSON"),
        ("--suite medium", "--suite must be one of quick, full, got 'medium'"),
        ("--exactness --compare base.json --out there", "--exactness measures no suite. Leave out --compare and --out"),
        ("--exactness --self-check", "--exactness measures no suite. Leave out --self-check"),
        ("--self-check --mllog", "--self-check measures no suite. Leave out --mllog"),
    ],
)
def test_a_wrong_flag_of_bench_is_told_before_anything_is_timed(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["bench", *words.split()]) == 2
    assert capsys.readouterr().err.startswith(said)


def test_a_base_of_another_device_is_refused_after_the_first_process(
    benchmark: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = copy.deepcopy(benchmark)
    for row in base["rows"]:
        row["process_s"] *= 5
    (tmp_path / "base.json").write_text(json.dumps(base))
    measured: list[str] = []

    def first(name: str, *_: Any, **__: Any) -> dict[str, Any]:
        measured.append(name)
        elsewhere = {**base["manifest"], "binding": base["manifest"]["binding"] | {"device_kind": "another"}}
        return {"manifest": elsewhere, "programs": base["rows"]}

    monkeypatch.setattr(processes, "measure_in_a_process", first)
    assert main(["bench", "--compare", str(tmp_path / "base.json")]) == 2
    assert "device_kind" in capsys.readouterr().err
    assert measured == ["quick"]


def test_a_processs_modules_are_the_programs_whatever_the_current_folder_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty word in PYTHONPATH would stand for the current folder, before Python's own modules."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    folders: list[str] = []

    def start(command: Any, *, env: dict[str, str], **_: Any) -> None:
        folders.extend(env["PYTHONPATH"].split(os.pathsep))
        raise KeyboardInterrupt

    monkeypatch.setattr("subprocess.Popen", start)
    with pytest.raises(KeyboardInterrupt):
        processes.measure_in_a_process("quick", "cpu", {}, ())
    assert folders == [str(ROOT)]


def test_an_interpreter_of_a_peer_that_does_not_start_is_named(tmp_path: Path) -> None:
    with refused(UsageError, "--python-torch", tmp_path / "python"):
        race.is_installed("torch", tmp_path / "python", tmp_path)


@pytest.mark.parametrize("flag", ["--out", "--profile"])
def test_a_folder_that_cannot_be_made_is_told_before_anything_is_timed(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["bench", flag, str(tmp_path / "file" / "folder")]) == 8
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'file' / 'folder'} cannot be written: Not a directory")


@pytest.mark.parametrize(
    ("changes", "names", "said"),
    [
        ({}, ["jaxmpl"], "jaxmpl is not a peer. Did you mean jaxmlp?"),
        ({"epochs": 1}, ["jaxmlp"], "must be at least 2, got 1: the first epoch warms up"),
        ({"optimizer": AdamW()}, ["jaxmlp"], "optimizer must be RMSprop at a constant rate, with relu"),
    ],
)
def test_peers_are_raced_only_in_what_all_of_them_run_alike(
    changes: dict[str, Any], names: list[str], said: str, small_dataset: data.Dataset
) -> None:
    with pytest.raises((ConfigError, UsageError), match=said):
        race.race(ExperimentConfig(**changes), small_dataset, names, pythons={})


@pytest.mark.slow
def test_a_peer_trains_its_epochs_in_turns_and_alone(small_dataset: data.Dataset) -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=(64,)), batch_size=32, epochs=4)
    (peer,) = race.race(config, small_dataset, ["jaxmlp"], pythons={}, whole_runs=1, tell=lambda _: None)
    assert (len(peer.epoch_s), len(peer.whole_s)) == (3, 1)
    assert peer.test_accuracy > 0.5
    assert peer.peak_bytes > 1 << 24
    assert "1.00" in race.table([peer])


def test_a_peer_that_is_not_installed_is_left_out_with_a_word(
    small_dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "is_installed", lambda *_: False)
    said: list[str] = []
    with pytest.raises(UsageError, match="no peer is installed"):
        race.race(ExperimentConfig(), small_dataset, ["torch"], pythons={}, tell=said.append)
    assert "torch: not installed" in said[0]


def test_a_speedrun_times_every_seed_and_says_when_the_mean_reached_the_target(small_dataset: data.Dataset) -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=(32,)), data=DataConfig(validation="test"), epochs=6)
    found = speedrun.speedrun(config, small_dataset, range(3), target=0.3, tell=lambda _: None)
    assert len(found["train_s"]) == len(found["test_accuracy"]) == 3
    assert found["mean_test_accuracy"] == pytest.approx(np.mean(found["test_accuracy"]))
    assert found["mean_test_accuracy"] > 0.3
    assert 1 <= found["epoch_reached"] <= 6
    assert 0 < found["reached_s"] <= max(found["train_s"])
    assert "n = 3" in speedrun.line("tiny", found)


def test_a_verified_speedrun_draws_seeds_that_nobody_chose_a_recipe_by_and_its_runs_are_reproduced(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # After eight epochs the accuracies of two seeds are alike, so that the test is significant whatever the seeds.
    small = ("--model.hidden-sizes", "16", "--epochs", "8", "--data.validation", "none")
    words = ("--seeds", "2", "--target", "0.1", "--verify", "--json")
    assert main(["speedrun", QUICKSTART, *small, *words, "--out", str(tmp_path / "runs")]) == 0
    found = json.loads(capsys.readouterr().out)["quickstart"]
    assert len(found["test_accuracy"]) == 2
    assert len(set(found["seeds"])) == 2 and min(found["seeds"]) >= 2  # By default they are 0 and 1.
    for seed, state_sha256 in zip(found["seeds"], found["state_sha256"], strict=True):
        path = tmp_path / "runs" / f"seed-{seed}"
        assert RunDirectory.open(path, write=False).manifest["result"]["state_sha256"] == state_sha256
        assert main(["reproduce", str(path)]) == 0


def test_a_mean_at_the_target_by_chance_has_a_large_p(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = (0.979, 0.981, 0.983, 0.980)
    alike = {"train_s": 1.0, "compile_s": 1.0, "state_sha256": ""}
    ran = iter([SimpleNamespace(test={"accuracy": accuracy}, **alike) for accuracy in accuracies])
    monkeypatch.setattr(speedrun, "fit", lambda *_, **__: next(ran))
    config = ExperimentConfig(data=DataConfig(validation=None))
    found = speedrun.speedrun(config, None, range(4), target=0.9805, tell=lambda _: None)
    # Student's t for mean 0.98075, standard deviation 0.00171, n = 4: t = 0.293, 3 degrees of freedom.
    assert found["p"] == pytest.approx(0.394, abs=0.002)
    assert "epoch_reached" not in found


def test_the_speedruns_train_on_the_training_images_alone_and_the_peers_run_the_tutorials_recipe() -> None:
    names = ("benchmark_peers", "relu_rmsprop", "speedrun", "speedrun_985", "speedrun_990")
    peers, tutorial, *recipes = (load_experiment(ROOT / "experiments" / f"{name}.py").config for name in names)
    assert all(recipe.data == DataConfig(name="mnist", validation=None) for recipe in recipes)
    assert dataclasses.replace(peers, name=tutorial.name) == tutorial


def test_a_warp_moves_each_group_of_images_by_a_map_of_its_own() -> None:
    warp: Any = load_experiment(ROOT / "experiments" / "speedrun_990.py").config.augmentation[0]
    at = np.indices((28, 28)) - 13.5
    spot = np.exp(-((at[0] + 3) ** 2 + (at[1] - 4) ** 2) / 8)  # Its centre is at row -3 and column 4 from the middle.
    images = np.tile(spot[..., None], (8, 1, 1, 1)).astype(np.float32)
    batch, key = train.Batch(images, np.zeros(8, np.int32), np.ones(8, np.float32)), root_key(0)
    still = dataclasses.replace(warp, degrees=0.0, part=0.0, shift=0.0, pixels=0.0)
    np.testing.assert_allclose(still(key, batch).inputs, images, atol=2**-8)  # Factors are bfloat16.
    for change in ({"degrees": 180.0}, {"part": 0.1}, {"shift": 2.0}, {"pixels": 1.0}):
        moved = np.asarray(dataclasses.replace(still, **change)(key, batch).inputs)[..., 0]
        assert all((moved[first] == moved[first + 1]).all() for first in (0, 2, 4, 6))
        centres = np.einsum("bij,dij->bd", moved, at)[::2] / moved.sum(axis=(1, 2))[::2, None]
        assert len({*centres.ravel(), -3.0, 4.0}) == 10 and np.abs(centres - (-3, 4)).min() > 1e-3
        assert "degrees" not in change or np.linalg.norm(centres, axis=1) == pytest.approx([5] * 4, abs=0.05)
    for other, inputs in ((dataclasses.replace(warp, groups=3), images), (warp, images[:, :14])):
        with pytest.raises(ConfigError):
            other(key, batch._replace(inputs=inputs))


def test_several_sweeps_take_the_sum_of_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 2.0, 4.0])
    monkeypatch.setattr(suite, "sweep", lambda *_, **__: SimpleNamespace(train_s=next(times)))
    assert suite.sweeps_s(ExperimentConfig(), None, 2, 3) == 7.0
