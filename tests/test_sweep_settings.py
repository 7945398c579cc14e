"""The lanes of a sweep are what its seeds and settings say; those that cannot be are refused in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import small_sweep
from small_sweep import CONFIG

from jaxmlp.cli import main
from jaxmlp.cli.sweep import parse_seeds, parse_vary
from jaxmlp.errors import ConfigError
from jaxmlp.sweep import Range
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
    with pytest.raises(ConfigError, match="batch_size has no integer"):
        make_settings(CONFIG, {"batch_size": Range(low=1.2, high=1.8)}, draws=1)


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ({"optimizer.momentun": [1]}, r"optimizer.momentun is not a field.* Did you mean optimizer.momentum"),
        ({"optimizer.learning_rate": [0.1, -1]}, r"optimizer.learning_rate must be in \[0, inf\), got -1"),
        ({"optimizer.learning_rate": []}, "optimizer.learning_rate needs a list of at least one value"),
        ({"optimizer.learning_rate": "0.1"}, "optimizer.learning_rate needs a list of at least one value"),
        ({"optimizer.learning_rate": [1, 1.0]}, r"must make settings that all differ, got .*=1.0 2 times"),
        ({"batch_size": [16, 3], "grad_shards": [2]}, "grad_shards must divide batch_size 3"),
        ({"seed": [1]}, "seed is set by --seeds"),
        ({"data.name": ["mnist"]}, "data.name cannot vary: the lanes of a sweep share one data set"),
        ({"data.validation": [0.1, 0.2]}, "data.validation cannot vary"),
        ({"name": ["a", "b"]}, "name names the sweep"),
        ({"batch_size": Range(low=1, high=2)}, r"batch_size is drawn from uniform\(1,2\): .* --random N"),
        ({"batch_size": list(range(1, MAX_LANES + 2))}, "sweep must have 1 to 65,536 settings, got 65,537"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(vary: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_settings(CONFIG, vary)


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ({"batch_size": [16]}, "random needs a field with a range"),
        ({"optimizer.learning_rate": Range(low=0, high=1, log=True)}, "needs a range above 0"),
        ({"optimizer.learning_rate": Range(low=1, high=1)}, "needs a range that rises"),
        ({"optimizer.momentum": Range(low=0, high=2)}, r"optimizer.momentum must be in \[0, 1\)"),
        ({"batch_size": Range(low=1, high=4)}, "random must be at most the 4 different settings"),
    ],
)
def test_draws_that_cannot_be_are_refused(vary: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_settings(CONFIG, vary, draws=20)


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([], "seeds must make 1 to"),
        ([1, 2, 1], "seeds must all differ, got 1 2 times"),
        ([-1], "seed must be in"),
        (range(MAX_LANES + 1), "seeds must make 1 to"),
    ],
)
def test_seeds_that_cannot_be_are_refused(seeds: Sequence[int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_plan(CONFIG, seeds, [{}])


def test_seeds_are_a_range_a_number_or_a_list() -> None:
    assert parse_seeds("0:16") == list(range(16))
    assert parse_seeds("3") == [3]
    assert parse_seeds("1,5,7") == [1, 5, 7]
    assert parse_seeds("0:2,9") == [0, 1, 9]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "sweep needs --seeds or --set"),
        (("--seeds", "4:4"), "--seeds must not be empty, got 4:4"),
        (("--seeds", "a"), "--seeds must look like 0:16, 3 or 1,5,7, got 'a'"),
        (("--seeds", "1,1"), "--seeds must all differ, got 1 2 times"),
        (("--seeds", "0:99999999999"), "--seeds must be at most 65,536"),
        (("--set", "optimizer.learning-rate"), "--set must be FIELD=a,b,..."),
        (("--set", "optimizer.learning-rat=1"), "--optimizer.learning-rat is not a field of this experiment. Did you"),
        (("--set", "optimizer.learning-rate=0.1,fast"), "--optimizer.learning-rate must be a number, got 'fast'"),
        (("--set", "optimizer.learning-rate="), "--optimizer.learning-rate needs a list of at least one value"),
        (("--set", "epochs=1", "--set", "epochs=2"), "--epochs is set twice"),
        (("--set", "data=mnist_5k"), "--data is a part of the experiment, not a value: set its fields"),
        (("--set", "optimizer=adma"), "--optimizer must be one of sgd, rmsprop, adam, adamw"),
        (("--set", "optimizer.learning-rate=log(1,x)"), "--optimizer.learning-rate must have two numbers"),
        (("--set", "optimizer.learning-rate=log(1e-4,1)"), "--optimizer.learning-rate is drawn from log(0.0001,1)"),
        (("--set", "shuffle=maybe"), "--shuffle must be true or false, got 'maybe'"),
        (("--seeds", "0", "--keep"), "--keep is not a flag of sweep. Did you mean --keep-runs?"),
        (("--seeds", "0:2", "--batch-size", "100000"), "--batch-size must be at most the"),
        (("--resume", "x", "--seeds", "0:2"), "--seeds is not a flag of sweep --resume DIR."),
    ],
)
def test_a_command_line_that_cannot_be_is_refused_in_one_line(
    words: tuple[str, ...], said: str, experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = () if "--resume" in words else (str(experiment),)
    assert main(["sweep", *file, *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(said), err
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
    with pytest.raises(ConfigError, match=f"devices must be 1 or more, got {devices}"):
        pick_devices(8, devices)
