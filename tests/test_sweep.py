"""A sweep's promises: each lane is its solo run, however lanes are spread, grouped, stopped and resumed."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
import small_sweep
from command_line import QUICKSTART
from refusals import assert_names, refused
from small_sweep import CONFIG, VARY, Interrupt, assert_kept_runs, without_times

from jaxmlp import MLP, Cosine, DataConfig, ExperimentConfig, Piecewise, data
from jaxmlp.cli import main
from jaxmlp.engine.fitting import fit
from jaxmlp.errors import ConfigError, RunError
from jaxmlp.run.directory import RunDirectory
from jaxmlp.sweep import LaneResult, SweepResult, group, load, memory, resume, sweep
from jaxmlp.sweep.job import Job
from jaxmlp.sweep.lanes import Plan, make_plan, make_settings
from jaxmlp.sweep.over_lanes import make_mesh
from jaxmlp.sweep.program import side_by_side
from jaxmlp.sweep.progress import SweepLines
from jaxmlp.sweep.result import SeedSpread
from jaxmlp.system.signals import Stop

pytestmark = pytest.mark.optimized

dataset = small_sweep.dataset


def figures(lane: LaneResult) -> Any:
    """All of a lane but its times, as JSON has it."""
    return without_times(lane.to_line())


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def assert_solo(lane: LaneResult, config: ExperimentConfig, dataset: data.Dataset) -> None:
    solo = fit(config, dataset, devices=1)
    assert lane.params_sha256 == solo.params_sha256
    assert lane.state_sha256 == solo.state_sha256
    assert (lane.test_loss, lane.test_accuracy) == (solo.test_loss, solo.test_accuracy)
    assert without_times([r.line() for r in lane.metrics]) == without_times([r.line() for r in solo.records])


@pytest.fixture(scope="module")
def swept(dataset: data.Dataset) -> SweepResult:
    """Eight lanes on one device."""
    return sweep(CONFIG, dataset, seeds=range(2), vary=VARY, devices=1)


def test_each_lane_is_its_solo_run(dataset: data.Dataset, swept: SweepResult) -> None:
    plan = make_plan(CONFIG, range(2), make_settings(CONFIG, VARY))
    for lane, result in zip(plan.lanes(), swept.lanes, strict=True):
        assert (result.lane, result.seed, result.settings) == (lane.index, lane.seed, lane.settings)
        assert_solo(result, lane.config, dataset)


@pytest.mark.parametrize(
    ("config", "seeds", "vary"),
    [
        (
            ExperimentConfig(model=MLP(hidden_sizes=(16,)), batch_size=32, epochs=1, grad_shards=4),
            [3],
            {"precision": ["bfloat16"], "epochs": [1, 2]},
        ),
        (CONFIG, range(8), {"model.hidden_sizes": [(12,), (6, 5)]}),
    ],
    ids=["gradient shards and lengths", "shapes"],
)
def test_lanes_of_several_programs_are_their_solo_runs(
    config: ExperimentConfig, seeds: Sequence[int], vary: dict[str, Any], dataset: data.Dataset
) -> None:
    result = sweep(config, dataset, seeds=seeds, vary=vary, devices=1)
    for lane, ended in zip(make_plan(config, seeds, make_settings(config, vary)).lanes(), result.lanes, strict=True):
        if lane.seed in seeds[:2]:
            assert_solo(ended, lane.config, dataset)


def test_lanes_train_side_by_side_where_their_traced_values_have_equal_shapes(dataset: data.Dataset) -> None:
    schedules = [
        Piecewise(boundaries=(10,)), Piecewise(boundaries=(20,)),
        Piecewise(boundaries=(10, 20), factors=(1.0, 0.5, 0.1)), Cosine(),
    ]  # fmt: skip
    settings = make_settings(CONFIG, {"optimizer.schedule": schedules})
    lanes = make_plan(CONFIG, [0], settings).lanes()
    told, devices = Interrupt(), jax.devices()[:1]
    job = Job(dataset, make_mesh(devices), "map", False, None, told, told.stop, checkpoint_s=60.0, total=len(lanes))
    first, alike, longer, other = (side_by_side(job, lane) for lane in lanes)
    assert first == alike
    assert len({first, longer, other}) == 3


def test_lanes_spread_over_devices_keep_their_bits(dataset: data.Dataset, swept: SweepResult) -> None:
    spread = sweep(CONFIG, dataset, seeds=range(2), vary=VARY, devices=4)
    assert spread.devices == 4
    assert [figures(lane) for lane in spread.lanes] == [figures(lane) for lane in swept.lanes]


def test_lanes_train_in_groups_that_fit_the_memory(
    dataset: data.Dataset, swept: SweepResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One lane on each of three devices. The last group lacks a lane, so another lane fills its place."""
    monkeypatch.setattr(memory, "free_bytes", lambda mesh: (1 << 20) / memory.SHARE + 1)
    monkeypatch.setattr(memory, "lane_bytes", lambda states, orders: 1 << 20)
    progress = Interrupt()
    grouped = sweep(CONFIG, dataset, seeds=range(2), vary=VARY, devices=3, progress=progress)
    assert numbers(progress.notes[0])[:4] == [8, 3, 3, 3]  # Lanes, groups, lanes at a time, devices.
    assert [figures(lane) for lane in grouped.lanes] == [figures(lane) for lane in swept.lanes]


def test_a_group_that_took_more_than_was_thought_is_made_smaller(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = iter([8 << 20, 4 << 20])
    monkeypatch.setattr(memory, "free_bytes", lambda mesh: (4 << 20) / memory.SHARE + 1)
    monkeypatch.setattr(memory, "program_bytes", lambda compiled: next(taken))
    progress = Interrupt()
    progress.stop.signal = signal.SIGTERM
    sweep(CONFIG, dataset, seeds=range(2), vary=VARY, devices=1, progress=progress, stop=progress.stop)
    assert numbers(progress.notes[0])[:4] == [8, 2, 4, 1]


@pytest.mark.parametrize("keep_runs", [False, True])
def test_interrupted_at_any_chunk_a_sweep_goes_on_to_the_same_bits(
    keep_runs: bool, dataset: data.Dataset, swept: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In groups of four lanes, so that signals come in the first group, between the groups, and in the second."""
    monkeypatch.setattr(group.LaneGroup, "chunk_s", 0.0)
    monkeypatch.setattr(memory, "free_bytes", lambda mesh: (4 << 20) / memory.SHARE + 1)
    monkeypatch.setattr(memory, "lane_bytes", lambda states, orders: 1 << 20)
    path, progress = tmp_path / "sweep", Interrupt(3)
    result = sweep(
        CONFIG, dataset, seeds=range(2), vary=VARY, devices=1, out=path, keep_runs=keep_runs, progress=progress,
        stop=progress.stop,
    )  # fmt: skip
    stops = 1
    while result.status == "interrupted":
        progress = Interrupt((6, 1, 5, 2)[stops % 4])
        # Another number of devices each time.
        result = resume(path, dataset, progress=progress, stop=progress.stop, devices=1 + stops % 2, checkpoint_s=0)
        stops += 1
    assert stops > 4
    assert [figures(lane) for lane in result.lanes] == [figures(lane) for lane in swept.lanes]
    assert without_times(result.summary()) == without_times(swept.summary())
    stored = json.loads((path / "result.json").read_text())
    assert without_times(stored) == json.loads(json.dumps(without_times(result.result())))
    assert [figures(lane) for lane in load(path)[1]] == [figures(lane) for lane in swept.lanes]
    assert [lane.name for lane in (path / "runs").glob("*")] == [] or keep_runs
    if keep_runs:
        assert_kept_runs(path, dataset, tmp_path)


def test_a_lane_that_diverges_stops_no_other(dataset: data.Dataset, swept: SweepResult, tmp_path: Path) -> None:
    rates = {"optimizer.learning_rate": [1e30, 0.1]}
    result = sweep(CONFIG, dataset, seeds=range(4), vary=rates, devices=1, out=tmp_path / "sweep", keep_runs=True)
    assert [lane.status for lane in result.lanes] == ["diverged"] * 4 + ["finished"] * 4
    assert figures(result.lanes[0])["params_sha256"] is None
    same = [lane.state_sha256 for lane in swept.lanes if tuple(lane.settings.values()) == (0.1, 0.9)]
    assert [lane.state_sha256 for lane in result.lanes[4:6]] == same
    assert [(each["n"], each["diverged"]) for each in result.summary()] == [(0, 4), (4, 0)]
    best = result.best()
    assert best and best["settings"] == {"optimizer.learning_rate": 0.1}
    assert_names(result.table(), "0 (4")
    with RunDirectory.open(tmp_path / "sweep" / "runs" / "0000-s0", write=False) as kept:
        assert kept.status == "diverged"


def test_lanes_of_vmap_are_solo_runs_but_for_rounding(dataset: data.Dataset, tmp_path: Path) -> None:
    """Products of 784 terms added in another order differ by about 784 ** 0.5 * 2 ** -24 = 2e-6 of their size.

    Ten updates of SGD at a rate of 0.1 let a hundredfold of it show in no parameter; another mask or batch would
    show a thousandfold. RMSprop would not do: where gradients are all but zero, their rounding decides a whole step.
    """
    vary = {"optimizer.learning_rate": [0.05, 0.1]}
    sweep(
        CONFIG, dataset, seeds=np.arange(3), vary=vary, devices=2, batching="vmap", out=tmp_path / "v", keep_runs=True
    )
    for lane in load(tmp_path / "v")[0].lanes():
        solo = fit(lane.config, dataset, devices=1)
        with RunDirectory.open(tmp_path / "v" / "runs" / f"{lane.index:04d}-s{lane.seed}", write=False) as kept:
            newest = kept.newest_checkpoint(pytest.fail)
        assert newest
        for name in ("Dense_0", "Dense_1"):
            found, wanted = newest.arrays[f"state/params/{name}/kernel"], solo.state.params[name]["kernel"]
            np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4 * np.abs(wanted).max())


def test_64_lanes_of_learning_rates_on_mnist_5k_are_one_compilation(compiled: Callable[[str], int]) -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=(16,)), data=DataConfig(name="mnist_5k"), epochs=1, batch_size=500)
    rates = [10 ** (-4 + 3 * number / 63) for number in range(64)]
    result = sweep(config, seeds=[0], vary={"optimizer.learning_rate": rates})
    assert compiled("train_lanes") == 1
    assert compiled("evaluate_lanes") == 2  # On validation and test examples, of other shapes or not.
    assert len({lane.state_sha256 for lane in result.lanes}) == 64


def test_a_setting_s_spread_is_over_its_seeds(swept: SweepResult) -> None:
    summary = swept.summary()
    assert [each["n"] for each in summary] == [2] * 4
    assert [each["settings"]["optimizer.momentum"] for each in summary] == [0.0, 0.9, 0.0, 0.9]
    values = [lane.test_accuracy for lane in swept.lanes[:2]]
    assert summary[0]["mean"] == pytest.approx(sum(value or 0 for value in values) / 2)
    document = json.loads(json.dumps(swept.result()))
    assert document["runs"][0]["optimizer.learning_rate"] == 0.05
    assert {"seed", "test_loss", "test_accuracy", "params_sha256"} <= document["runs"][0].keys()
    assert document["best"]["by"] == "val_accuracy"
    assert document["train_s"] == sum(lane.train_s for lane in swept.lanes)


def test_the_interval_is_student_s() -> None:
    """Student's table: t of 9 degrees of freedom at 97.5 % is 2.262."""
    spread = SeedSpread.of([float(value) for value in range(10)])
    assert spread and spread.mean == 4.5 and spread.ci95
    assert spread.std == pytest.approx(3.0277, abs=1e-4)
    assert spread.ci95[1] - 4.5 == pytest.approx(2.262 * 3.0277 / 10**0.5, abs=1e-3)
    one = SeedSpread.of([1.0])
    assert one and one.std is None and one.ci95 is None
    assert SeedSpread.of([]) is None


def test_the_time_left_is_told_from_the_updates_made(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 20.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    lines = SweepLines()
    lines.begin(1000)
    lines.updates_done("", 100)
    lines.updates_done("", 100)
    assert_names(lines.left(), "80 s")


def test_a_folder_with_a_sweep_or_run_is_not_taken_and_one_without_is_not_resumed(
    dataset: data.Dataset, tmp_path: Path
) -> None:
    config, path = CONFIG, tmp_path / "sweep"
    finished = sweep(config, dataset, seeds=range(8), out=path, devices=1)
    with refused(RunError, f"jaxmlp sweep --resume {path}"):
        sweep(config, dataset, seeds=[0], out=path, devices=1)
    assert [figures(lane) for lane in resume(path, dataset).lanes] == [figures(lane) for lane in finished.lanes]
    RunDirectory.create(tmp_path / "run", config, {}).close()
    with refused(RunError, tmp_path / "run"):
        sweep(config, dataset, seeds=[0], out=tmp_path / "run", devices=1)
    with refused(RunError, tmp_path / "run", "sweep.json"):
        resume(tmp_path / "run", dataset)
    with refused(ConfigError, "keep_runs"):
        sweep(config, dataset, seeds=[0], keep_runs=True)
    (path / "lanes.jsonl").write_text('{"epoch": 1, "lane": 0}\n')
    with refused(RunError, path / "lanes.jsonl"):
        load(path)


def test_a_call_makes_its_lanes_once(dataset: data.Dataset, tmp_path: Path) -> None:
    """Making a lane takes about half a millisecond: 65,536 lanes take half a minute."""
    path, stop = tmp_path / "sweep", Stop()
    stop.signal = signal.SIGTERM
    with mock.patch.object(Plan, "lanes", autospec=True, side_effect=Plan.lanes) as lanes:
        sweep(CONFIG, dataset, seeds=[0], devices=1, out=path, stop=stop)
        assert lanes.call_count == 1
        resume(path, dataset, devices=1, stop=stop)
        assert lanes.call_count == 2
        assert main(["sweep", QUICKSTART, "--seeds", "0:3", "--batch-size", "100000"]) == 2
        assert lanes.call_count == 3


def test_a_sweep_s_folder_may_be_named_by_a_string(dataset: data.Dataset, tmp_path: Path) -> None:
    path = str(tmp_path / "sweep")
    lanes = sweep(CONFIG, dataset, seeds=[0], out=path, devices=1).lanes
    assert resume(path, dataset).lanes == lanes
    assert tuple(load(path)[1]) == lanes
