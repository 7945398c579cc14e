"""The instrument: known answers, what is compared with what, and what people see of `jaxmlp bench`."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxmlp import MLP, AdamW, DataConfig, ExperimentConfig, data
from jaxmlp.bench import device, race, speedrun, suite
from jaxmlp.bench.compare import compare, compare_times
from jaxmlp.bench.mllog import mllog_lines
from jaxmlp.bench.noise import noise
from jaxmlp.bench.scaling import fit_power, fits
from jaxmlp.bench.timing import Program, measure
from jaxmlp.bench.work import eval_work, step_work
from jaxmlp.cli import main
from jaxmlp.errors import ConfigError, UsageError
from jaxmlp.experiment import load_experiment
from jaxmlp.network import MNIST

ROOT = Path(__file__).parent.parent
TRIES = 20


class Clock:
    """Stands still but for what programs take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def __call__(self) -> float:
        return self.now

    def program(self, what: str, seconds: float, **sizes: Any) -> Program:
        def run(count: int) -> None:
            self.ran.append(what)
            self.now += seconds * count

        return Program(what=what, run=run, **sizes)


def test_a_sleep_of_known_length_takes_that_length() -> None:
    clock = Clock()
    rows = measure([clock.program("long", 0.5), clock.program("short", 1e-4)], repeats=3, clock=clock)
    assert [row.seconds for row in rows] == [pytest.approx([0.5] * 3), pytest.approx([1e-4] * 3)]


def test_a_short_program_is_repeated_until_a_sample_is_long_against_the_clock() -> None:
    clock = Clock()
    ends: list[float] = []

    def run(count: int) -> None:
        clock.now += 1e-4 * count
        ends.append(clock.now)

    measure([Program(what="short", run=run)], repeats=1, sample_s=0.02, clock=clock)
    assert 0.01 <= ends[-1] - ends[-2] <= 0.04


def test_a_program_that_says_its_seconds_is_believed() -> None:
    (row,) = measure([Program(what="said", run=lambda _: 3.0, once=True)], repeats=2)
    assert row.seconds == [3.0, 3.0]


def test_every_round_runs_every_program_in_an_order_of_its_own() -> None:
    clock = Clock()
    measure([clock.program(name, 1.0, once=True) for name in "abcdef"], repeats=3, clock=clock)
    rounds = ["".join(clock.ran[first : first + 6]) for first in (0, 6, 12)]
    assert [sorted(order) for order in rounds] == [list("abcdef")] * 3
    assert len(set(rounds)) == 3


def test_a_product_of_known_flops_has_its_rate() -> None:
    compiled = jax.jit(jax.numpy.matmul).lower(*[np.ones((64, 64), np.float32)] * 2).compile()
    program = device.product(64, "float32")
    program.run(2)
    assert program.flops == 2 * 64**3 == compiled.cost_analysis()["flops"]  # type: ignore[index]
    clock = Clock()
    timed = clock.program("product", 0.5, flops=program.flops)
    assert measure([timed], repeats=3, clock=clock)[0].document()["flops_per_s"] == pytest.approx(2**20)


def test_a_copy_of_known_bytes_has_its_rate() -> None:
    program = device.copy(1 << 20)
    program.run(2)
    assert program.bytes == 2 << 20
    clock = Clock()
    timed = clock.program("copy", 0.5, bytes=program.bytes)
    assert measure([timed], repeats=3, clock=clock)[0].document()["bytes_per_s"] == pytest.approx(4 << 20)


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


def times(rng: np.random.Generator, factor: float = 1.0) -> list[float]:
    """Of a quiet machine, supposed: 1.5 % of spread to the right, a stray in 50. With one in 20 some are missed."""
    strays = np.where(rng.random(20) < 0.02, 1.5, 1.0)
    return list(factor * 4e-3 * np.exp(np.abs(rng.normal(0, 0.015, 20))) * strays)


def test_an_injected_slow_down_of_a_tenth_is_found_every_time() -> None:
    rng = np.random.default_rng(0)
    found = [compare_times("step", times(rng), times(rng, 1.1), limit=0.05, rows=20) for _ in range(TRIES)]
    assert [one.verdict for one in found] == ["slower"] * TRIES
    assert all(one.effect > 0.7 and one.ratio > 1.05 for one in found)


def test_no_change_is_never_called_one() -> None:
    rng = np.random.default_rng(1)
    found = [compare_times("step", times(rng), times(rng), limit=0.05, rows=20) for _ in range(TRIES)]
    assert [one.verdict for one in found] == ["same"] * TRIES


def test_a_slow_down_below_the_limit_is_allowed_and_a_speed_up_is_told() -> None:
    rng = np.random.default_rng(2)
    assert compare_times("step", times(rng), times(rng, 1.1), limit=0.2, rows=1).verdict == "same"
    faster = compare_times("step", times(rng), times(rng, 0.8), limit=0.05, rows=20)
    assert (faster.verdict, faster.effect < -0.8) == ("faster", True)


def test_many_rows_make_each_harder_to_call_different() -> None:
    base, here = [1.0 + n / 1000 for n in range(6)], [1.2 + n / 1000 for n in range(6)]
    one = compare_times("step", base, here, limit=0.05, rows=1)
    many = compare_times("step", base, here, limit=0.05, rows=1000)
    assert (one.verdict, many.verdict, many.p) == ("slower", "same", 1.0)


def document(seconds: list[float], **binding: str) -> dict[str, Any]:
    facts = {"binding": {"device_kind": "cpu", "isa": "avx2", **binding}, "not_binding": {"devices": 1, "threads": 2}}
    return {"suite": "quick", "manifest": facts, "rows": [{"key": "step", "seconds": seconds}]}


def test_benchmarks_of_other_devices_are_compared_only_when_asked_to() -> None:
    base, here = document([1.0] * 12), document([1.0] * 12, device_kind="NVIDIA H100")
    with pytest.raises(UsageError, match=r"device_kind: cpu there, NVIDIA H100 here\. Add --across-devices"):
        compare(base, here, limit=0.05)
    assert compare(base, here, limit=0.05, across_devices=True)[0].verdict == "same"


def test_benchmarks_without_a_row_in_common_are_refused() -> None:
    other = document([1.0])
    other["rows"][0]["key"] = "epoch"
    with pytest.raises(UsageError, match="no row of suite quick is in the base"):
        compare(document([1.0]), other, limit=0.05)


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
    found = list(suite._combinations(chosen))
    assert len(found) == len(set(found))
    assert {(1, 1, "float32", 128, 512), (1, 2, "float32", 128, 512)} < set(found)
    assert (1, 2, "float32", 32, 512) not in found
    assert ((1, 1, "bfloat16", 32, 128) in found) == cross


TINY = suite.Suite(
    batch_sizes=(16, 32), widths=(8,), precisions=("float32",), grad_shards=(1, 4), examples=(64,), eval_examples=64,
    cross=False, repeats=2, lanes=(2,), few=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    """A tiny suite's document."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(suite.SUITES, "quick", TINY)
        patch.setitem(device.PRODUCT_SIZES, "cpu", (32,))
        patch.setattr(device, "COPY_BYTES", 1 << 16)
        return suite.run_suite("quick", lambda _: None)


@pytest.mark.slow
def test_a_benchmark_times_every_stage_of_a_training(benchmark: dict[str, Any]) -> None:
    stages = {row["what"] for row in benchmark["rows"]}
    assert stages == {"compile", "first step", "step", "evaluation", "epoch", "run", "sweep", "product", "copy"}
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
    here = copy.deepcopy(benchmark)
    power = {"exponent": 1.0, "factor": 1e-3}
    here["scaling"] = [{"what": "step", "size": "batch_size", "sizes": [1, 2, 4], "median_s": [1e-3] * 3, **power}]
    for row in here["rows"]:
        row["seconds"] *= 10  # As many as a test needs.
    base = copy.deepcopy(here)
    for row in base["rows"]:
        row["seconds"] = [second * times_of_base for second in row["seconds"]]
    (tmp_path / "base.json").write_text(json.dumps(base))
    monkeypatch.setattr(suite, "run_suite", lambda name: here)
    flags = ["--compare", str(tmp_path / "base.json"), "--out", str(tmp_path / "out"), "--mllog", "--json"]
    assert main(["bench", *flags]) == code
    ended = capsys.readouterr()
    verdicts = {row["verdict"] for row in json.loads(ended.out)["comparison"]}
    assert ("slower" in verdicts, "faster" in verdicts) == (code == 3, code == 0)
    assert ("rows are slower by more than 0.05" in ended.err) == (code == 3)
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
    ],
)
def test_a_wrong_flag_of_bench_is_told_before_anything_is_timed(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["bench", *words.split()]) == 2
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    ("changes", "names", "said"),
    [
        ({}, ["jaxmpl"], "jaxmpl is not a peer. Did you mean jaxmlp?"),
        ({"epochs": 1}, ["jaxmlp"], "must be at least 2, got 1: the first warms up"),
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
    monkeypatch.setattr(race, "_is_installed", lambda *_: False)
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


def test_a_mean_at_the_target_by_chance_has_a_large_p(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.979, 0.981, 0.983, 0.980])

    class Ran:
        train_s = compile_s = 1.0
        test_accuracy: float

        def __getitem__(self, name: str) -> list[float]:
            return [1.0]

    def fit(*_: Any) -> Ran:
        ran = Ran()
        ran.test_accuracy = next(accuracies)
        return ran

    monkeypatch.setattr(speedrun, "fit", fit)
    config = ExperimentConfig(data=DataConfig(validation=None))
    found = speedrun.speedrun(config, None, range(4), target=0.9805, tell=lambda _: None)
    # Student's t for mean 0.98075, standard deviation 0.00171, n = 4: t = 0.293, 3 degrees of freedom.
    assert found["p"] == pytest.approx(0.394, abs=0.002)
    assert "epoch_reached" not in found


def test_the_speedruns_recipe_trains_on_the_training_images_alone_and_the_peers_run_the_tutorials() -> None:
    names = ("speedrun", "benchmark_peers", "relu_rmsprop")
    recipe, peers, tutorial = (load_experiment(ROOT / "experiments" / f"{name}.py").config for name in names)
    assert recipe.data == DataConfig(name="mnist", validation=None)
    assert dataclasses.replace(peers, name=tutorial.name) == tutorial
