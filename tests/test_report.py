"""A report is one file that needs nothing else, says what the commands say, and lets no name become markup."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from command_line import sweep_quickstart
from refusals import assert_names
from run_stand_in import READ_ONLY, refuse

import jaxmlp
from jaxmlp import MLP, Cosine, DataConfig, ExperimentConfig
from jaxmlp.cli import main
from jaxmlp.report import RunFacts, expand, groups, pictures, plots, scores
from jaxmlp.report import page as page_of
from jaxmlp.report.page import experiment_file
from jaxmlp.run.directory import RunDirectory
from jaxmlp.sweep.lanes import make_plan
from jaxmlp.sweep.result import SeedSpread

HOSTILE = "<script>alert('&')<"


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def reports(two_runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Reports of one run and of two runs; the second run has a hostile name."""
    folder = tmp_path_factory.mktemp("reports")
    shutil.copytree(two_runs[1], folder / HOSTILE)
    assert main(["report", str(two_runs[0]), "--out", str(folder / "one" / "report.html")]) == 0
    assert main(["report", str(two_runs[0]), str(folder / HOSTILE), "--out", str(folder / "two.html")]) == 0
    return folder / "one" / "report.html", folder / "two.html"


@pytest.fixture(scope="module", params=["one", "two"])
def page(request: pytest.FixtureRequest, reports: tuple[Path, Path]) -> Page:
    return Page(reports[request.param == "two"].read_text())


def test_a_report_is_small_and_leads_nowhere_else(page: Page, reports: tuple[Path, Path]) -> None:
    assert all(report.stat().st_size < 3_000_000 for report in reports)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "base", "form"}
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    (style,) = re.findall(r"<style>(.*?)</style>", reports[0].read_text(), re.DOTALL)
    assert "url(" not in style and "@import" not in style


def test_every_picture_says_what_it_shows(page: Page) -> None:
    drawn = [svg.get("aria-label") for svg in page.all("svg")]
    shown = [image.get("alt") for image in page.all("img")]
    assert len(drawn) >= 5 and len(shown) >= 26
    assert all(text and len(text) > 20 for text in [*drawn, *shown])


def test_every_id_is_there_once_and_every_link_leads_to_one(page: Page) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.tags if attributes.get("id"))
    assert set(ids.values()) == {1}
    links = [a.get(name) or "" for _, a in page.tags for name in ("href", "xlink:href", "aria-labelledby")]
    assert {link.lstrip("#") for link in links if link and not link.startswith("data:")} <= set(ids)


@pytest.mark.parametrize("title", ["Result", "Curves", "Timings", "Exactness", "Run it again", "First-layer weights"])
def test_a_report_has_its_sections(title: str, page: Page) -> None:
    assert title in page.text


def test_a_report_says_what_evaluate_says(
    two_runs: tuple[Path, Path], page: Page, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(two_runs[0]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    low, high = found["ci95"]
    words = " ".join(page.text.split())
    assert f"{found['accuracy']:.4f}" in words
    assert f"{low:.4f} to {high:.4f}" in words
    digests = json.loads((two_runs[0] / "digests.jsonl").read_text().splitlines()[-1])
    assert digests["params_sha256"] in words


def test_a_name_never_becomes_markup(reports: tuple[Path, Path]) -> None:
    assert "<script" not in reports[1].read_text()
    assert HOSTILE in Page(reports[1].read_text()).text


def test_a_report_and_its_plots_have_the_same_bytes_every_time(
    two_runs: tuple[Path, Path], reports: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    # Beside the first, because a page names the runs' folders from its own.
    again = reports[0].parent.with_name("again") / "report.html"
    capsys.readouterr()
    assert main(["report", str(two_runs[0]), "--out", str(again), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert again.read_bytes() == reports[0].read_bytes()
    plots = [Path(plot) for plot in document["plots"]]
    assert {plot.name for plot in plots} == {
        f"{name}.{kind}"
        for name in ("loss", "accuracy", "learning_rate", "confusion", "calibration")
        for kind in ("png", "svg")
    }
    for plot in plots:
        assert plot.read_bytes() == (reports[0].parent / "plots" / plot.name).read_bytes()
        assert plot.read_bytes().startswith(b"\x89PNG" if plot.suffix == ".png" else b"<?xml")


def test_two_runs_are_compared_on_the_same_images(
    two_runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["report", *map(str, two_runs), "--out", str(tmp_path / "both.html"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    first, second = document["runs"]
    (versus,) = document["mcnemar"]
    gained = versus["only_second"] - versus["only_first"]
    assert gained == round(1000 * (second["accuracy"] - first["accuracy"]))


def test_a_folder_stands_for_the_runs_in_it(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "sweep" / "runs").mkdir(parents=True)
    for number, run in enumerate(two_runs):
        shutil.copytree(run, tmp_path / "sweep" / "runs" / f"000{number}-s{number}")
    found = [tmp_path / "sweep" / "runs" / name for name in ("0000-s0", "0001-s1")]
    assert expand([tmp_path / "sweep"]) == expand([tmp_path / "sweep" / "runs", found[0]]) == found


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ("{here}/no", 5, "{here}/no"),
        ("{here}", 5, "{here}"),
        ("'{here}/a sweep'", 5, "jaxmlp sweep --resume '{here}/a sweep'"),
        ("{run} --out {here}/file/report.html", 8, "{here}/file/plots: Not a directory"),
        ("{other}", 5, "{other}"),
        ("", 2, "jaxmlp report RUN..."),
    ],
)
def test_a_report_that_cannot_be_is_said_first_on_stderr(
    words: str, code: int, named: str, two_runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "a sweep").mkdir()
    plan = make_plan(ExperimentConfig(), [0], [{}])
    (tmp_path / "a sweep" / "sweep.json").write_text(plan.to_json())
    (tmp_path / "a sweep" / "lanes.jsonl").touch()
    shutil.copy(two_runs[0] / "manifest.json", tmp_path / "a sweep")
    other = tmp_path / "elsewhere" / "other"
    shutil.copytree(two_runs[0], other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["binding"]["data_sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    facts = {"here": str(tmp_path), "run": str(two_runs[0]), "other": str(other)}
    if words == "{here}":
        shutil.rmtree(tmp_path / "elsewhere")
        facts["here"] = str(tmp_path / "empty")
        (tmp_path / "empty").mkdir()
    capsys.readouterr()
    assert main(["report", *shlex.split(words.format(**facts))]) == code
    assert_names(capsys.readouterr().err.splitlines()[0], named.format(**facts))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of six settings, two of which diverge; no runs are kept."""
    return sweep_quickstart(tmp_path_factory.mktemp("sweep") / "sweep", "1e35")


def test_a_sweep_that_kept_no_runs_shows_what_its_lanes_left_and_says_what_is_missing(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["report", str(sweep), "--json"]) == 0
    out, told = capsys.readouterr()
    document = json.loads(out)
    lanes = [json.loads(line) for line in (sweep / "lanes.jsonl").read_text().splitlines()]
    lanes.sort(key=lambda lane: lane["lane"])
    assert [run["accuracy"] for run in document["runs"]] == [lane.get("test_accuracy") for lane in lanes]
    assert {run["status"] for run in document["runs"]} == {"finished", "diverged"}
    assert document["mcnemar"] == []
    assert_names(told, sweep, "--keep-runs")
    text = (sweep / "report.html").read_text()
    page = Page(text)
    words = " ".join(page.text.split())
    result = json.loads((sweep / "result.json").read_text())
    for setting in result["summary"]:
        if setting["mean"]:
            assert f"{setting['mean']:.4f} ± {setting['std']:.4f}" in words
            assert "{:.4f} to {:.4f}".format(*setting["ci95"]) in words
    assert 'id="missing"' in text and "jaxmlp sweep again.py --seeds 0,1 --keep-runs" in words
    assert lanes[0]["params_sha256"] in words
    assert {Path(plot).stem for plot in document["plots"]} == {
        "loss", "accuracy", "learning_rate", "heat_map", "seeds_accuracy", "seeds_loss",
    }  # fmt: skip
    assert not page.all("img") and len(page.all("svg")) == 6


@pytest.mark.parametrize("late", [False, True], ids=["in the first epoch", "later"])
def test_a_run_that_diverged_is_told_of_without_a_result(
    late: bool, two_runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = two_runs[0], tmp_path / "bad"
    shutil.copytree(two_runs[1], bad)
    with RunDirectory.open(bad, write=True) as run:
        run.cut_back(2 if late else 1)
        run.finish("diverged", None)
    if not late:
        shutil.rmtree(bad / "checkpoints")
    capsys.readouterr()
    assert main(["report", str(good), str(bad), "--out", str(tmp_path / "report.html"), "--json"]) == 0
    out, told = capsys.readouterr()
    document = json.loads(out)
    known, unknown = document["runs"]
    assert known["accuracy"] is not None and (unknown["status"], unknown["accuracy"]) == ("diverged", None)
    assert document["mcnemar"] == []
    assert_names(told, "bad", "diverged")
    text = (tmp_path / "report.html").read_text()
    assert f"bad1diverged after {int(late)} of 2 epochs" in " ".join(Page(text).text.split())
    assert "--keep-runs" not in told and 'id="missing"' not in text
    assert main(["report", str(bad), "--out", str(tmp_path / "alone" / "report.html")]) == 0
    assert "jaxmlp train again.py" in Page((tmp_path / "alone" / "report.html").read_text()).text


def test_seeds_of_one_experiment_are_one_group_and_of_many_groups_the_best_are_drawn() -> None:
    config = ExperimentConfig(name="relu")
    seeds = [facts(dataclasses.replace(config, seed=seed), 0.9 + seed / 100) for seed in range(3)]
    (alone,) = groups.group(seeds)
    assert (alone.name, alone.values) == ("relu, 3 seeds", {})
    assert alone.spread("test_accuracy") == SeedSpread.of([0.9, 0.91, 0.92])
    many = [facts(dataclasses.replace(config, batch_size=size), 0.5 + size / 1000) for size in range(100, 110)]
    assert [each.values for each in page_of.drawn(groups.group(many))] == [{"batch_size": n} for n in range(104, 110)]


def test_a_row_of_the_seeds_plot_is_labelled_by_all_values_of_its_setting() -> None:
    configs = [ExperimentConfig(model=MLP(hidden_sizes=sizes)) for sizes in ((4, 5), (4, 6))]
    runs = [facts(dataclasses.replace(config, seed=seed), 0.9) for config in configs for seed in range(2)]
    (axes,) = plots.seeds(groups.group(runs), "test_accuracy").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["hidden_sizes=[4, 5]", "hidden_sizes=[4, 6]"]


def test_a_rerun_of_a_seed_is_no_other_seed() -> None:
    runs = [facts(ExperimentConfig(seed=seed), accuracy) for seed, accuracy in ((0, 0.9), (0, 0.9), (1, 0.8))]
    (two,) = groups.group(runs)
    assert two.name == "experiment, 2 seeds"
    assert two.spread("test_accuracy") == SeedSpread.of([0.9, 0.8])
    assert page_of.command_of(two) == "jaxmlp sweep again.py --seeds 0,1 --keep-runs"
    (one,) = groups.group(runs[:2])
    assert one.name == "experiment, 2 runs of seed 0"
    assert one.spread("test_accuracy") == SeedSpread.of([0.9])


def test_the_first_run_with_a_model_is_the_one_that_others_are_compared_with() -> None:
    def run(seed: int, data_sha256: str, correct: list[bool] | None) -> RunFacts:
        answers = correct and SimpleNamespace(correct=np.array(correct))
        manifest = {"binding": {"data_sha256": data_sha256}}
        return dataclasses.replace(facts(ExperimentConfig(seed=seed), 0.5), manifest=manifest, answers=answers)  # type: ignore[arg-type]

    # A lane on other data; then the first model; then one on the lane's data, and one to compare with the first.
    runs = [run(0, "a", None), run(1, "b", [True, False]), run(2, "a", [True, True]), run(3, "b", [False, False])]
    (versus,) = page_of.compare_with_first(runs)
    assert (versus.run, versus.comparison.only_first, versus.comparison.only_second) == (runs[3], 1, 0)


def facts(config: ExperimentConfig, accuracy: float) -> RunFacts:
    return RunFacts(
        path=Path("sweep"), lane=True, name=f"seed {config.seed}", config=config, status="finished",
        manifest={"binding": {"data_sha256": "0"}}, epochs=[], digests=[], step=0, train_s=1.0, compile_s=None,
        train_examples=100, test_examples=100, test_loss=0.1, test_accuracy=accuracy, answers=None,
    )  # fmt: skip


def test_a_page_leads_to_its_runs_from_its_own_folder(
    two_runs: tuple[Path, Path], reports: tuple[Path, Path], tmp_path: Path
) -> None:
    one, two = (" ".join(Page(report.read_text()).text.split()) for report in reports)
    folder = reports[0].parent
    assert f"jaxmlp reproduce {os.path.relpath(two_runs[0], folder)}" in one
    assert "jaxmlp reproduce '<script>alert('" in two
    assert not any(str(tmp_path.parent) in text for text in (one, two))


@pytest.mark.parametrize(
    "config",
    [
        ExperimentConfig(),
        ExperimentConfig(
            name="a-b",
            model=MLP(hidden_sizes=()),
            optimizer=jaxmlp.AdamW(learning_rate=0.1 + 0.2, schedule=Cosine()),
            loss=jaxmlp.CrossEntropy(),
            data=DataConfig(validation=0.3),
            seed=7,
        ),
    ],
)
def test_the_experiment_file_of_a_report_is_the_experiment(config: ExperimentConfig) -> None:
    names: dict[str, Any] = {}
    exec(experiment_file(config), names)
    assert names["CONFIG"] == config


@pytest.mark.parametrize(
    ("epochs", "ticks"),
    [
        (0, []),
        (1, [1]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (15, [1, 5, 10, 15]),
        (18, [1, 5, 10, 15, 18]),
        (20, [1, 5, 10, 15, 20]),
        (21, [1, 5, 10, 15, 21]),
        (100, [1, 20, 40, 60, 80, 100]),
        (1001, [1, 200, 400, 600, 800, 1001]),
    ],
)
def test_the_first_and_the_last_epoch_are_labelled(epochs: int, ticks: list[int]) -> None:
    assert plots.epoch_ticks(epochs) == ticks


def test_a_legend_stands_below_its_axes_where_no_line_crosses_it() -> None:
    bins = tuple(scores.Bin(low / 15, (low + 1) / 15, 1, (low + 0.5) / 15, 1 - low / 15) for low in range(15))
    figure = plots.calibration(scores.Calibration(bins, 0.1))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert figure.axes[0].get_legend() is None
    assert legend.get_window_extent().y1 <= figure.axes[0].get_window_extent().y0


def test_a_users_matplotlibrc_changes_no_plot() -> None:
    bins = (scores.Bin(0.5, 1.0, 3, 0.8, 0.6),)
    expected = plots.as_file(plots.calibration(scores.Calibration(bins, 0.1)), "svg")
    users = {"text.usetex": True, "font.family": "serif", "savefig.pad_inches": 1, "lines.markersize": 20}
    with mpl.rc_context(users):
        assert plots.as_file(plots.calibration(scores.Calibration(bins, 0.1)), "svg") == expected
        assert mpl.rcParams["text.usetex"] is True


def test_no_heading_is_said_again_right_below_it(reports: tuple[Path, Path]) -> None:
    text = reports[0].read_text()
    shown = re.findall(r"<caption>(.*?)</caption>", text)
    headings = re.findall(r"<(?:h2|h3)[^>]*>(.*?)</(?:h2|h3)>", text)
    assert headings and not {each.lower() for each in shown} & {each.lower() for each in headings}
    assert text.count('<caption class="heard">') >= 3


@pytest.mark.parametrize(("command", "call", "name"), [("report", "mkdir", "plots"), ("export", "open", ".jaxmlp-")])
def test_where_a_run_cannot_be_written_another_place_can_be_named(
    command: str,
    call: str,
    name: str,
    two_runs: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refuse(monkeypatch, call, name)
    assert main([command, str(two_runs[0])]) == 8
    assert_names(capsys.readouterr().err, READ_ONLY, "--out")
    assert main([command, str(two_runs[0]), "--out", str(two_runs[0] / "file")]) == 8
    assert "--out" not in capsys.readouterr().err


def test_calibration_counts_answers_by_their_probability() -> None:
    probabilities = np.float32([[0.95, 0.05], [0.95, 0.05], [0.35, 0.65], [0.0, 1.0]])
    found = scores.calibration(probabilities, np.array([0, 1, 1, 1]), bins=10)
    assert [each.examples for each in found.bins] == [0, 0, 0, 0, 0, 0, 1, 0, 0, 3]
    assert found.bins[6].accuracy == 1
    assert found.bins[9].accuracy == pytest.approx(2 / 3)
    # One answer of 0.65, right; three of 0.9667 on average, two of them right.
    assert found.error == pytest.approx((1 * 0.35 + 3 * (2.9 / 3 - 2 / 3)) / 4, abs=1e-6)


def test_the_worst_mistake_is_the_one_whose_truth_was_least_likely() -> None:
    probabilities = np.float32([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.9, 0.1], [0.99, 0.01]])
    assert scores.worst_mistakes(probabilities, np.array([1, 1, 1, 1, 1]), 3) == [4, 0, 3]
    assert scores.worst_mistakes(probabilities, np.array([0, 0, 1, 0, 0]), 3) == []


@pytest.mark.parametrize(("only_first", "only_second", "p"), [(3, 9, 0.14599609375), (1, 9, 0.021484375), (0, 0, 1)])
def test_mcnemar_is_the_exact_binomial_test_of_the_images_one_alone_has_right(
    only_first: int, only_second: int, p: float
) -> None:
    first = np.array([True] * only_first + [False] * only_second + [True] * 5)
    second = np.array([False] * only_first + [True] * only_second + [True] * 5)
    assert tuple(scores.mcnemar(first, second)) == pytest.approx((only_first, only_second, p))


def test_tiles_of_weights_have_grey_for_zero_and_a_line_between() -> None:
    tiles = np.zeros((3, 2, 2, 1), np.float32)
    tiles[1, 0, 0, 0], tiles[1, 1, 1, 0] = -2, 1
    sheet = pictures.weights_sheet(tiles)[..., 0]
    assert sheet.shape == (5, 5)
    assert sheet[:2, 3:].tolist() == [[0, 128], [128, 191]]
    assert (sheet[2] == 255).all() and (sheet[:, 2] == 255).all()


def test_images_of_floats_and_colours_become_pictures() -> None:
    image = np.float32(np.arange(12).reshape(2, 2, 3)) / 11
    assert pictures.as_pixels(image).ravel().tolist() == np.round(image * 255).ravel().tolist()
    assert pictures.as_png(pictures.as_pixels(image)).startswith(b"\x89PNG")


def luminance(color: str) -> float:
    """WCAG 2.2, relative luminance of `#rrggbb`."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_ink_stands_out_from_the_paper_as_wcag_aa_asks(theme: int) -> None:
    """4.5 to 1, which AA asks of text; of lines it asks 3."""
    css = (Path(jaxmlp.__file__).parent / "report" / "page" / "style.css").read_text()
    inks = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css.split("prefers-color-scheme: dark")[theme]))
    assert set(plots.INKS) <= set(inks)
    for paper in ("paper", "card"):
        for ink in (set(plots.INKS) | {"link"}) - {"line"}:
            light, dark = sorted([luminance(inks[ink]), luminance(inks[paper])], reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{ink} on {paper}"
    if theme == 0:
        assert {ink: inks[ink] for ink in plots.INKS} == plots.INKS
