"""A run knows the code that it was made with: it keeps a copy, never runs it, and says where a file is another now."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import signal
import sys
import types
from pathlib import Path
from typing import Any

import command_line
import flax.linen as nn
import numpy as np
import optax
import pytest
from command_line import Ended, Program
from refusals import assert_names, refused

import jaxmlp
from jaxmlp import MLP, ConfigError, DataConfig, ExperimentConfig, RunError, UsageError, data, fit
from jaxmlp.engine.progress import EpochLines
from jaxmlp.errors import CodeError
from jaxmlp.experiment.plain import to_plain
from jaxmlp.proof.verify import verify
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.manifest import manifest
from jaxmlp.run.opening import open_data, open_run
from jaxmlp.source.code import code_of
from jaxmlp.source.file import Code, load_experiment, placed
from jaxmlp.source.shipped import shipped
from jaxmlp.sweep import load
from jaxmlp.sweep.directory import SweepDirectory
from jaxmlp.sweep.lanes import make_plan
from jaxmlp.system.signals import Stop

program = command_line.program

HELPER = '''
import optax

import jaxmlp

class Lion(jaxmlp.Optimizer):
    """Sign of an interpolated momentum."""

    learning_rate: float = jaxmlp.ranged(0.01, "[0, inf)", traced=True)
    b1: float = jaxmlp.ranged(0.9, "[0, 1)", traced=True)

    def transformation(self, total_steps):
        return optax.lion(self.rate(total_steps), b1=self.b1)
'''
EXPERIMENT = """
import jax
import numpy as np
from lion_rule import Lion

from jaxmlp import MLP, CrossEntropy, DataConfig, ExperimentConfig, data

class Focal(CrossEntropy):
    def __call__(self, logits, targets):
        return 1.5 * super().__call__(logits, targets)

def noise():
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 256, (n, 4, 4, 1), np.uint8), rng.integers(0, 3, n, np.int32)) for n in (48, 12)]
    return pairs[0], pairs[1]

data.register("noise", noise)
CONFIG = ExperimentConfig(
    model=MLP(hidden_sizes=(4,), kernel_init=jax.nn.initializers.he_normal()),
    data=DataConfig(name="noise"),
    optimizer=Lion(),
    loss=Focal(),
    batch_size=16,
    epochs=2,
)
"""
EXPORT = ["export", "RUN", "--format", "stablehlo"]
RUN_COMMANDS = [
    ["evaluate", "RUN"],
    ["predict", "RUN", "IMAGES"],
    EXPORT,
    ["report", "RUN"],
    ["reproduce", "RUN"],
    ["summary", "RUN"],
]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The experiment's file, beside a module that it imports."""
    return write(tmp_path / "mine")


def write(folder: Path, **changes: str) -> Path:
    folder.mkdir()
    (folder / "lion_rule.py").write_text(HELPER)
    text = EXPERIMENT
    for old, new in changes.items():
        text = text.replace(old, new)
    (folder / "exp.py").write_text(text)
    return folder / "exp.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and beside it one that a signal stopped after an epoch, of the same file."""
    folder = tmp_path_factory.mktemp("code")
    config = load_experiment(write(folder / "mine")).config
    fit(config, out=folder / "run")
    stop = Stop()

    def after_an_epoch(record: Any, state: Any) -> None:
        stop.signal = signal.SIGTERM

    fit(config, out=folder / "stopped", stop=stop, hooks=[after_an_epoch])
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


@pytest.fixture
def stopped(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "stopped", tmp_path / "stopped"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    np.save(tmp_path / "images.npy", np.zeros((2, 4, 4, 1), np.uint8))
    return tmp_path / "images.npy"


def changed(files: Path) -> Path:
    """A copy of the file with one line changed, in another folder."""
    other = write(files.parent.parent / "other", **{"1.5 *": "-1.5 *"})
    assert sha256(other) != sha256(files)
    return other


def both(file: Path, other: Path) -> tuple[str, str, str]:
    """What a message names of a file that has changed: its name, its sum there and its sum here."""
    return file.name, sha256(file), sha256(other)


def test_a_run_keeps_its_files_and_their_sums_and_verify_covers_them(run: Path, files: Path) -> None:
    there = json.loads((run / "manifest.json").read_text())
    wanted = {path.name: sha256(path) for path in sorted(files.parent.glob("*.py"))}
    assert there["binding"]["code"] == wanted and there["not_binding"]["data_code"] == wanted
    assert {path.name: sha256(path) for path in (run / "code").iterdir()} == wanted
    kept = json.loads((run / "config.json").read_text())
    assert (kept["loss"]["kind"], kept["optimizer"]["kind"]) == ("exp.py:Focal", "lion_rule.py:Lion")
    assert verify(run).damaged == () and verify(run).not_covered == ()
    (run / "code" / "lion_rule.py").write_text(HELPER + "\n")
    (run / "code" / "exp.py").unlink()
    assert [damage.file for damage in verify(run).damaged] == ["code/exp.py", "code/lion_rule.py"]


def test_a_run_of_shipped_parts_keeps_no_code(small_dataset: data.Dataset, tmp_path: Path) -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=(4,), activation=nn.tanh))
    facts = manifest(config, small_dataset)
    assert "code" not in facts["binding"] and "data_code" not in facts["not_binding"]
    RunDirectory.create(tmp_path / "run", config, facts).close()
    assert not (tmp_path / "run" / "code").exists()
    assert RunDirectory.open(tmp_path / "run", write=False).config.model == MLP(hidden_sizes=(4,), activation="tanh")


@pytest.mark.parametrize("words", RUN_COMMANDS, ids=lambda words: words[0])
def test_without_its_code_a_run_is_refused_with_the_command_to_type(
    words: list[str], run: Path, images: Path, program: Program
) -> None:
    argv = [{"RUN": str(run), "IMAGES": str(images)}.get(word, word) for word in words]
    ended = program(*argv)
    assert ended.code == 5
    assert ended.stderr.rstrip().endswith(f"jaxmlp {' '.join(argv)} --experiment exp.py --experiment lion_rule.py")


def test_a_shipped_experiment_with_a_part_of_its_own_is_found_unless_it_has_changed(
    small_dataset: data.Dataset, tmp_path: Path
) -> None:
    file, path = shipped()["speedrun_990"], tmp_path / "run"
    config = load_experiment(file).config
    RunDirectory.create(path, config, manifest(config, small_dataset)).close()
    assert open_run(path).config.to_dict() == config.to_dict()
    kept = path / "manifest.json"
    kept.write_text(kept.read_text().replace(sha256(file), "0" * 64))
    with refused(CodeError, "speedrun_990.py:Warp"):
        _ = open_run(path).config


def test_runs_and_verify_need_no_code(run: Path, program: Program) -> None:
    assert program("verify", str(run)).code == 0
    ended = program("runs", str(run), str(run), "--json")
    assert ended.document["runs"][0]["config"]["loss"]["kind"] == "exp.py:Focal"
    assert program("train", "--resume", str(run)).code == 0  # Finished: it shows its result.


def test_a_file_in_the_run_directory_is_never_run(
    run: Path, stopped: Path, images: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = f"import pathlib; pathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n"
    for folder in (run, run / "code", stopped, stopped / "code"):
        for name in ("exp.py", "lion_rule.py"):
            (folder / name).write_text(trap)
    monkeypatch.chdir(run / "code")
    for words in (*RUN_COMMANDS, ["verify", "RUN"], ["runs", "RUN"], ["train", "--resume", "STOPPED"]):
        names = {"RUN": str(run), "IMAGES": str(images), "STOPPED": str(stopped)}
        program(*[names.get(word, word) for word in words])
    assert not (tmp_path / "sprung").exists()
    program("evaluate", str(run), "--experiment", "exp.py")
    assert (tmp_path / "sprung").exists(), "the trap works where it is asked for"


def test_with_the_file_each_command_answers(run: Path, files: Path, images: Path, program: Program) -> None:
    code = ("--experiment", str(files), "--json")
    scored = program("evaluate", str(run), *code)
    told = json.loads((run / "manifest.json").read_text())["result"]
    assert scored.code == 0 and scored.document["loss"] == told["test_loss"] and scored.document["code_changed"] == []
    assert len(program("predict", str(run), str(images), *code).document["predictions"]) == 2
    assert program("export", str(run), "--format", "stablehlo", *code).code == 0
    shown = program("summary", str(run), *code).document
    assert [layer["params"] for layer in shown["layers"] if layer["params"]] == [68, 15]
    again = program("reproduce", str(run), *code)
    assert (again.code, again.document["level"], again.document["same"]) == (0, "L1", True)


def test_another_line_is_named_with_both_sums(run: Path, files: Path, images: Path, program: Program) -> None:
    other = changed(files)
    code = ("--experiment", str(other), "--json")
    for words in (["evaluate", "RUN"], ["predict", "RUN", "IMAGES"], EXPORT):
        argv = [{"RUN": str(run), "IMAGES": str(images)}.get(word, word) for word in words]
        ended = program(*argv, *code)
        assert ended.code == 0
        assert_names(ended.stderr, *both(files, other))
        assert ended.document["code_changed"] == [{"file": "exp.py", "there": sha256(files), "here": sha256(other)}]
    assert_names(program("summary", str(run), *code).stderr, *both(files, other))
    assert_names(program("train", "--resume", str(run), *code).stderr, *both(files, other))
    again = program("reproduce", str(run), *code)
    assert (again.code, again.document["level"], again.document["same"]) == (3, "L4", None)
    assert_names(again.stderr, *both(files, other))


def test_another_local_module_is_named_too_though_it_was_imported_before(
    run: Path, files: Path, program: Program
) -> None:
    assert program("evaluate", str(run), "--experiment", str(files), "--json").document["code_changed"] == []
    (files.parent / "lion_rule.py").write_text(HELPER.replace("0.9", "0.85"))
    ended = program("evaluate", str(run), "--experiment", str(files), "--json")
    assert [each["file"] for each in ended.document["code_changed"]] == ["lion_rule.py"]


def test_a_resume_refuses_other_code_unless_that_is_accepted_and_then_records_it(
    stopped: Path, files: Path, program: Program
) -> None:
    other = changed(files)
    before = (stopped / "manifest.json").read_bytes()
    argv = ("train", "--resume", str(stopped), "--experiment", str(other))
    ended = program(*argv)
    assert ended.code == 5 and ended.stderr.rstrip().endswith(f"jaxmlp {' '.join(argv)} {ACCEPT}")
    assert_names(ended.stderr, *both(files, other))
    assert (stopped / "manifest.json").read_bytes() == before
    assert program(*argv, ACCEPT).code == 0
    (accepted,) = json.loads((stopped / "manifest.json").read_text())["accepted_code"]
    assert accepted == {"epochs": 1, "code": {"exp.py": sha256(other), "lion_rule.py": sha256(files.parent / HELPED)}}
    assert sha256(stopped / "code" / "accepted-1" / "exp.py") == sha256(other)
    assert verify(stopped).damaged == () and verify(stopped).not_covered == ()
    # The run ended with the changed code, so this code is no change any more.
    scored = program("evaluate", str(stopped), "--experiment", str(other), "--json")
    assert scored.document["code_changed"] == []
    again = program("reproduce", str(stopped), "--experiment", str(other), "--json")
    assert again.document["level"] == "L4"
    assert_names(again.stderr, "exp.py", sha256(other))


ACCEPT, HELPED = "--accept-changed-code", "lion_rule.py"


def test_a_run_stopped_by_a_signal_tells_how_it_goes_on_to_the_same_bits(
    run: Path, files: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_once(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(EpochLines, "epoch_ended", stop_once)
        ended = program("train", str(files), "--out", str(tmp_path / "killed"))
    assert ended.code == 128 + signal.SIGTERM
    go_on = f"jaxmlp train --resume {tmp_path / 'killed'} --experiment {files} --experiment {files.parent / HELPED}"
    assert ended.stderr.rstrip().endswith(go_on)
    missing = program("train", "--resume", str(tmp_path / "killed"))
    assert missing.code == 5 and f"--resume {tmp_path / 'killed'} --experiment exp.py" in missing.stderr
    taken = program("train", str(files), "--out", str(tmp_path / "killed"))
    assert taken.code == 5 and "--experiment exp.py" in taken.stderr
    assert program(*go_on.split()[1:]).code == 0
    assert (tmp_path / "killed" / "digests.jsonl").read_bytes() == (run / "digests.jsonl").read_bytes()


def test_from_python_the_same_by_argument(
    run: Path, stopped: Path, trained: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with refused(CodeError, run, "exp.py", "lion_rule.py", "--experiment"):
        jaxmlp.load_model(run)
    pixels = np.zeros((1, 4, 4, 1), np.uint8)
    model = jaxmlp.load_model(run, experiment=files)
    assert jaxmlp.predict(run, pixels, experiment=[files]) == jaxmlp.predict(model, pixels)
    config = load_experiment(files).config
    assert jaxmlp.evaluate(run, experiment=config).loss == jaxmlp.evaluate(model).loss
    assert jaxmlp.reproduce(run, experiment=config).level == "L1"
    history = fit(run=stopped, experiment=files)
    assert history.params_sha256 == json.loads((run / "manifest.json").read_text())["result"]["params_sha256"]
    again = Path(shutil.copytree(trained / "stopped", stopped.parent / "again"))
    with refused(CodeError, again, "exp.py"):
        fit(load_experiment(changed(files)).config, run=again)


def test_of_several_files_of_one_name_the_one_with_the_sum_counts(run: Path, files: Path) -> None:
    other = changed(files)
    for both in ([other, files], [files, other]):
        opened = open_run(run, both)
        assert opened.code_changed == ()
        assert sys.modules[type(opened.config.loss).__module__].__file__ == str(files)


def test_a_sweep_over_a_field_of_ones_own_part_records_its_code_and_goes_on_with_it(
    files: Path, tmp_path: Path, program: Program
) -> None:
    path = tmp_path / "sweep"
    field, code = "optimizer.b1=0.8,0.9", ("--experiment", str(files))
    assert program("sweep", str(files), "--set", field, "--keep-runs", "--devices", "1", "--out", str(path)).code == 0
    assert sorted(each.name for each in (path / "code").iterdir()) == ["exp.py", "lion_rule.py"]
    there = json.loads((path / "manifest.json").read_text())
    assert there["binding"]["code"]["exp.py"] == sha256(files)
    kept = json.loads((path / "runs" / "0000-s0" / "manifest.json").read_text())
    assert kept["binding"]["code"] == there["binding"]["code"]
    with refused(CodeError, path, "exp.py", "--experiment"):
        load(path)
    assert [lane.settings for lane in load(path, files)[1]] == [{"optimizer.b1": 0.8}, {"optimizer.b1": 0.9}]
    (path / "manifest.json").write_text(json.dumps({**there, "status": "interrupted"}))
    (path / "lanes.jsonl").write_text("".join((path / "lanes.jsonl").read_text().splitlines(keepends=True)[:1]))
    ended = program("sweep", "--resume", str(path))
    assert ended.code == 5 and f"sweep --resume {path} --experiment exp.py" in ended.stderr
    assert ACCEPT in program("sweep", "--resume", str(path), "--experiment", str(changed(files))).stderr
    shutil.rmtree(path / "runs" / "0001-s0")
    went_on = program("sweep", "--resume", str(path), "--devices", "1", *code, "--json")
    assert went_on.code == 0 and went_on.document["status"] == "finished"


@pytest.mark.parametrize("whole", [False, True], ids=["by its kind", "as a part"])
def test_a_sweep_over_kinds_binds_the_code_of_all(
    whole: bool, files: Path, small_dataset: data.Dataset, tmp_path: Path
) -> None:
    lion = to_plain(load_experiment(files).config.optimizer)
    kinds = [{"optimizer": "sgd"}, {"optimizer": lion if whole else lion["kind"]}]
    plan = make_plan(ExperimentConfig(), [0], kinds)
    facts = manifest(plan.config, small_dataset, variants=plan.variants())
    assert facts["binding"]["code"] == {HELPED: sha256(files.parent / HELPED)}
    with SweepDirectory.create(tmp_path / "sweep", plan, facts):
        pass
    with refused(CodeError, "lion_rule.py:Lion"):
        load(tmp_path / "sweep")
    assert load(tmp_path / "sweep", files.parent / HELPED)[0] == plan


def notebook() -> Any:
    """A part whose class no file defines, as in a notebook."""
    module = types.ModuleType("a_notebook")
    sys.modules["a_notebook"] = module
    source = "import jaxmlp\nclass Focal(jaxmlp.CrossEntropy):\n    def __call__(self, x, y): return self is None"
    exec(source, vars(module))
    return module.Focal()


def test_a_run_of_a_notebook_says_so_and_needs_the_object(small_dataset: data.Dataset, tmp_path: Path) -> None:
    config = ExperimentConfig(model=nn.Dense(10), loss=notebook())
    facts = manifest(config, small_dataset)
    assert facts["binding"]["code"] == {"none": None}
    RunDirectory.create(tmp_path / "run", config, facts).close()
    assert not (tmp_path / "run" / "code").exists()
    with refused(CodeError, tmp_path / "run", "Dense", "experiment=ExperimentConfig(...)"):
        open_run(tmp_path / "run").config  # noqa: B018
    assert open_run(tmp_path / "run", config).config is config
    with refused(CodeError, tmp_path / "run", "Focal"):
        open_run(tmp_path / "run", ExperimentConfig(model=nn.Dense(10))).config  # noqa: B018


def test_a_plain_object_of_ones_own_class_binds_the_files_of_the_class(files: Path) -> None:
    focal = type(load_experiment(files).config.loss)
    assert list(code_of(ExperimentConfig(loss=focal()))) == ["exp.py", HELPED]
    assert {"none", Path(__file__).name} <= set(code_of(ExperimentConfig(loss=lambda x, y: x[..., 0])))
    assert list(code_of(ExperimentConfig(optimizer=optax.sgd(0.1)))) == ["none"]


PLAIN = """
import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxmlp import Accuracy, ExperimentConfig, TopK

class CNN(nn.Module):
    features: int = 3
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(10)(nn.Dense(self.features)(x.reshape(x.shape[0], -1)))

RULE = optax.sgd(0.1)

def hinge(logits, targets):
    return jnp.zeros(logits.shape[0]) + 1.0

CONFIG = ExperimentConfig(
    model=CNN(features=5), optimizer=RULE, loss=hinge, metrics=[Accuracy(), TopK(k=2), lambda x, y: x[..., 0] * 0.0],
)
"""


def test_plain_objects_of_a_file_are_found_by_their_names_or_their_places_in_config(
    small_dataset: data.Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "plain.py"
    path.write_text(PLAIN)
    config = load_experiment(path).config
    plain = config.to_dict()
    assert [plain[role]["kind"] for role in ("model", "optimizer", "loss")] == [
        "plain.py:CONFIG.model", "plain.py:RULE", "plain.py:hinge"
    ]  # fmt: skip
    assert plain["metrics"][2]["kind"] == "plain.py:CONFIG.metrics.2"
    RunDirectory.create(tmp_path / "run", config, manifest(config, small_dataset)).close()
    found = open_run(tmp_path / "run", path)
    assert found.config.to_dict() == plain and found.code_changed == ()
    assert [metric.name for metric in found.config.metrics] == [metric.name for metric in config.metrics]
    assert found.config.model.module(10, "float32").features == 5  # type: ignore[attr-defined]


def test_an_experiment_that_python_imported_is_known_by_its_file(
    small_dataset: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "imported_plain.py"
    path.write_text(PLAIN)
    config = load_experiment(path).config
    RunDirectory.create(tmp_path / "run", config, manifest(config, small_dataset)).close()
    monkeypatch.syspath_prepend(tmp_path)
    imported = importlib.import_module("imported_plain").CONFIG
    found = open_run(tmp_path / "run", imported)
    assert found.config.to_dict() == config.to_dict() and found.code_changed == ()
    assert found.config.optimizer == placed(imported).optimizer
    assert code_of(placed(imported)) == code_of(config)


def test_names_lead_to_what_the_file_defines_and_no_further(files: Path) -> None:
    code = Code(files)
    assert code.find("exp.py:Focal", {}).__name__ == "Focal"
    for place in ("exp.py:np.save", "exp.py:jax", "os.py:system", "exp.py:CONFIG.model.nothing", "exp.py:Nothing"):
        found = code.find(place, {})
        assert found is None or isinstance(found, types.ModuleType), place


def test_two_files_of_one_name_in_one_experiment_are_refused(files: Path) -> None:
    other = changed(files)
    one, two = (load_experiment(path).config for path in (files, other))
    config = ExperimentConfig(loss=one.loss, metrics=(), optimizer=two.optimizer)
    with refused(ConfigError, "experiment", other.parent / HELPED, files.parent / HELPED):
        code_of(config)
    assert set(code_of(one)) == set(code_of(two)) == {"exp.py", HELPED}


def test_packages_beside_the_file_are_its_code(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "__init__.py").write_text("from .deep import RATE")
    (tmp_path / "rules" / "deep.py").write_text("RATE = 0.5")
    (tmp_path / "unused.py").write_text("")
    path = tmp_path / "packed.py"
    path.write_text(EXPERIMENT.replace("from lion_rule import Lion", "from rules import deep\n" + HELPER))
    assert list(code_of(load_experiment(path).config)) == ["packed.py", "rules/__init__.py", "rules/deep.py"]


@pytest.mark.parametrize("name", ["../up.py", "/etc/passwd", ".ssh/id", "a/../../b", "a//b", ""])
def test_a_manifest_cannot_name_files_elsewhere(name: str, run: Path, program: Program) -> None:
    there = json.loads((run / "manifest.json").read_text())
    there["binding"]["code"][name] = "0" * 64
    (run / "manifest.json").write_text(json.dumps(there))
    ended = program("evaluate", str(run))
    assert ended.code == 5
    assert_names(ended.stderr, run / "manifest.json")


def test_data_given_in_python_is_never_mistaken_for_what_the_config_names(
    small_dataset: data.Dataset, tmp_path: Path, program: Program
) -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=(4,)), data=DataConfig(name="mnist_5k"), batch_size=64, epochs=1)
    stop = Stop()
    path = tmp_path / "run"
    history = fit(config, small_dataset, out=path)
    for words in (["evaluate"], ["report"], ["reproduce"]):
        ended: Ended = program(*words, str(path))
        assert ended.code == 5 and small_dataset.sha256 in ended.stderr, words
    assert jaxmlp.evaluate(jaxmlp.load_model(history)).loss == history.test_loss
    assert jaxmlp.evaluate(path, dataset=small_dataset).loss == history.test_loss
    assert jaxmlp.reproduce(path, small_dataset).same
    (path / "manifest.json").write_text((path / "manifest.json").read_text().replace('"finished"', '"interrupted"'))
    assert program("train", "--resume", str(path)).code == 5
    splits = (small_dataset.train, small_dataset.test)
    cropped = data.from_arrays(*((split.inputs[:, :14], split.targets) for split in splits))
    with refused(RunError, path, small_dataset.sha256, cropped.sha256):
        fit(config, cropped, run=path, stop=stop)


def test_a_data_set_that_a_file_registers_is_found_by_that_file_and_binds_no_bits(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "mine")
    before, _, _ = EXPERIMENT.partition("CONFIG =")
    config = 'ExperimentConfig(model=MLP(hidden_sizes=(4,)), data=DataConfig(name="noise"), batch_size=16)'
    file.write_text(f"{before}CONFIG = {config}")
    experiment = load_experiment(file).config
    facts = manifest(experiment, data.load(experiment.data))
    path = tmp_path / "run"
    RunDirectory.create(path, experiment, facts).close()
    assert "code" not in facts["binding"] and facts["not_binding"]["data_code"]["exp.py"] == sha256(file)
    monkeypatch.setattr(data.catalog, "user_data", {})
    ended = program("train", "--resume", str(path))
    assert ended.code == 5 and ended.stderr.rstrip().endswith(f"jaxmlp train --resume {path} --experiment exp.py")
    assert_names(ended.stderr, path, "noise", "exp.py")
    assert program("summary", str(path)).code == 0
    assert open_data(open_run(path, file)).sha256 == facts["binding"]["data_sha256"]


def test_experiment_without_a_run_is_refused(files: Path, program: Program) -> None:
    ended = program("train", str(files), "--experiment", str(files))
    assert ended.code == 2
    assert_names(ended.stderr, "--experiment", "--resume")
    with refused(UsageError, files.with_name("no.py")):
        jaxmlp.load_model("run", experiment=files.with_name("no.py"))
