"""The lanes of a sweep are what its seeds and settings say; those that cannot be are refused in one line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import small_sweep
from refusals import assert_names, refused
from small_sweep import CONFIG

from jaxmlp.cli import main
from jaxmlp.cli.sweep import parse_seeds, parse_vary
from jaxmlp.errors import ConfigError
from jaxmlp.sweep import LaneResult, Range, SweepResult
from jaxmlp.sweep.lanes import make_plan, make_settings
from jaxmlp.sweep.start import pick_devices
from jaxmlp.sweep.values import MAX_LANES

experiment = small_sweep.experiment


def test_draws_are_of_the_seed_and_more_of_them_only_add() -> None:
    vary = {"optimizer.learning_rate": Range(low=1e-4, high=1e-1, log=True), "batch_size": Range(low=16, high=64)}
    drawn = make_settings(CONFIG, vary, draws=20)
    assert make_settings(CONFIG, vary, draws=50)[:20] == drawn
    assert make_settings(CONFIG, vary, draws=20, random_seed=1) != drawn
    assert all(1e-4 <= each["optimizer.learning_rate"] <= 1e-1 for each in drawn)
    # Half of them below the middle of the logarithms: 20 draws have fewer than 4 with a chance of 0.1 %.
    assert 4 <= sum(each["optimizer.learning_rate"] < 10**-2.5 for each in drawn) <= 16
    assert {type(each["batch_size"]) for each in drawn} == {int}
    alone = make_settings(CONFIG, {"optimizer.learning_rate": vary["optimizer.learning_rate"]}, draws=20)
    assert [each["optimizer.learning_rate"] for each in drawn] == [each["optimizer.learning_rate"] for each in alone]


def test_the_ends_of_a_range_of_whole_numbers_are_drawn_as_often_as_the_others() -> None:
    parts = [(number + 0.5) / 999 for number in range(999)]
    assert Counter(Range(low=1, high=3).draw_whole(part) for part in parts) == {1: 333, 2: 333, 3: 333}
    assert Counter(Range(low=0.5, high=3.5).draw_whole(part) for part in parts) == {1: 333, 2: 333, 3: 333}
    drawn = Counter(Range(low=1, high=3, log=True).draw_whole(part) for part in parts)
    assert drawn == {1: 499, 2: 293, 3: 207}  # Half of the way from 1 to 4 is 2, where logarithms are even.
    with refused(ConfigError, "batch_size"):
        make_settings(CONFIG, {"batch_size": Range(low=1.2, high=1.8)}, draws=1)


@pytest.mark.parametrize(
    ("vary", "named"),
    [
        ({"optimizer.momentun": [1]}, ["optimizer.momentun", "optimizer.momentum"]),
        ({"optimizer.learning_rate": [0.1, -1]}, ["optimizer.learning_rate", "[0, inf)", -1]),
        ({"optimizer.learning_rate": []}, ["optimizer.learning_rate", []]),
        ({"optimizer.learning_rate": "0.1"}, ["optimizer.learning_rate", "0.1"]),
        ({"optimizer.learning_rate": [1, 1.0]}, ["set", "optimizer.learning_rate=1.0", 2]),
        ({"batch_size": [16, 3], "grad_shards": [2]}, ["grad_shards", 3, 2]),
        ({"seed": [1]}, ["seed", "--seeds"]),
        ({"data.name": ["mnist"]}, ["data.name"]),
        ({"data.validation": [0.1, 0.2]}, ["data.validation"]),
        ({"name": ["a", "b"]}, ["name"]),
        ({"batch_size": Range(low=1, high=2)}, ["batch_size", "uniform(1,2)", "--random N"]),
        ({"batch_size": list(range(1, MAX_LANES + 2))}, ["sweep", f"{MAX_LANES:,}", f"{MAX_LANES + 1:,}"]),
    ],
)
def test_settings_that_cannot_be_are_refused(vary: dict[str, Any], named: list[Any]) -> None:
    with refused(ConfigError, *named):
        make_settings(CONFIG, vary)


@pytest.mark.parametrize(
    ("vary", "named"),
    [
        ({"batch_size": [16]}, ["random"]),
        ({"optimizer.learning_rate": Range(low=0, high=1, log=True)}, ["optimizer.learning_rate", "log(0,1)"]),
        ({"optimizer.learning_rate": Range(low=1, high=1)}, ["optimizer.learning_rate", "uniform(1,1)"]),
        ({"optimizer.momentum": Range(low=0, high=2)}, ["optimizer.momentum", "[0, 1)"]),
        ({"batch_size": Range(low=1, high=4)}, ["random", 4, 20]),
    ],
)
def test_draws_that_cannot_be_are_refused(vary: dict[str, Any], named: list[Any]) -> None:
    with refused(ConfigError, *named):
        make_settings(CONFIG, vary, draws=20)


@pytest.mark.parametrize(
    ("seeds", "named"),
    [
        ([], ["seeds", 0]),
        ([1, 2, 1], ["seeds", 1, 2]),
        ([-1], ["seed", -1]),
        (range(MAX_LANES + 1), ["seeds", f"{MAX_LANES:,}", f"{MAX_LANES + 1:,}"]),
    ],
)
def test_seeds_that_cannot_be_are_refused(seeds: Sequence[int], named: list[Any]) -> None:
    with refused(ConfigError, *named):
        make_plan(CONFIG, seeds, [{}])


def test_seeds_are_a_range_a_number_or_a_list() -> None:
    assert parse_seeds("0:16") == list(range(16))
    assert parse_seeds("3") == [3]
    assert parse_seeds("1,5,7") == [1, 5, 7]
    assert parse_seeds("0:2,9") == [0, 1, 9]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("", "--seeds --set"),
        ("--seeds 4:4", "--seeds 4:4"),
        ("--seeds a", "--seeds 'a' 0:16 1,5,7"),
        ("--seeds 1,1", "--seeds 1 2"),
        ("--seeds 0:99999999999", "--seeds 65,536"),
        ("--set optimizer.learning-rate", "--set FIELD=a,b"),
        ("--set optimizer.learning-rat=1", "--optimizer.learning-rat optimizer.learning_rate?"),
        ("--set optimizer.learning-rate=0.1,fast", "--optimizer.learning-rate 'fast'"),
        ("--set optimizer.learning-rate=", "--optimizer.learning-rate"),
        ("--set epochs=1 --set epochs=2", "--epochs"),
        ("--set data=mnist_5k", "--data"),
        ("--set optimizer=adma", "--optimizer sgd rmsprop adam adamw 'adma'"),
        ("--set optimizer.learning-rate=log(1,x)", "--optimizer.learning-rate log(1,x)"),
        ("--set optimizer.learning-rate=log(1e-4,1)", "--optimizer.learning-rate log(0.0001,1) --random"),
        ("--set shuffle=maybe", "--shuffle true false 'maybe'"),
        ("--seeds 0 --keep", "--keep --keep-runs"),
        ("--seeds 0:2 --batch-size 100000", "--batch-size 100000"),
        ("--resume x --seeds 0:2", "--seeds --resume"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused_in_one_line(
    words: str, named: str, experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = () if "--resume" in words else (str(experiment),)
    assert main(["sweep", *file, *words.split()]) == 2
    err = capsys.readouterr().err
    assert_names(err.splitlines()[0], *named.split())
    assert "Traceback" not in err


def test_values_are_read_as_their_fields_types() -> None:
    words = [
        "model.hidden-sizes=8 4,8",
        "optimizer=sgd,adam",
        "shuffle=true,false",
        "optimizer.learning-rate=log(1e-4, 0.1)",
        "precision=bfloat16",
    ]
    assert parse_vary(words, CONFIG) == {
        "model.hidden_sizes": [(8, 4), (8,)],
        "optimizer": ["sgd", "adam"],
        "shuffle": [True, False],
        "optimizer.learning_rate": Range(low=1e-4, high=0.1, log=True),
        "precision": ["bfloat16"],
    }


@pytest.mark.parametrize("devices", [0, -1])
def test_lanes_need_a_device(devices: int) -> None:
    with refused(ConfigError, "devices", devices):
        pick_devices(8, devices)


def test_a_figure_that_is_no_number_neither_wins_nor_ends_a_summary() -> None:
    """A metric of the user's own may be NaN in memory, and is null in `lanes.jsonl`."""
    figures = [
        {"loss": 1.0, "accuracy": math.nan},
        {"loss": 2.0},
        {"loss": 3.0, "accuracy": 0.5},
    ]
    lanes = [
        LaneResult(
            lane=lane, seed=lane, settings={}, status="finished", epoch=1, test=test, params_sha256="", state_sha256="",
            train_s=1.0, metrics=(),
        )
        for lane, test in enumerate(figures)
    ]  # fmt: skip
    whole = {"config": CONFIG, "total": 3, "status": "finished", "batching": "map"}
    result = SweepResult(lanes=tuple(lanes), compile_s=0.0, devices=1, processes=1, **whole)  # type: ignore[arg-type]
    (summary,) = result.summary()
    assert (summary["mean"], summary["best"]["lane"], summary["figures"]["test_loss"]["mean"]) == (0.5, 2, 2.0)
    assert result.best() == {"settings": {}, "by": "test_accuracy", "mean": 0.5}


def test_a_damaged_sweep_in_the_folder_is_left_alone_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.json").write_bytes(b"")
    assert main(["sweep", "quickstart", "--seeds", "0:2", "--out", str(tmp_path)]) == 5
    assert_names(capsys.readouterr().err.splitlines()[0], tmp_path)
    assert (tmp_path / "sweep.json").read_bytes() == b""
