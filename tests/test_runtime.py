"""What `configure` sets before JAX starts, and what it refuses; each in a process of its own, as it works once."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import assert_names

from jaxmlp.cli import experiment, main
from jaxmlp.run.manifest import instruction_set
from jaxmlp.system import compiled


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints; a mistake is its class and text."""
    wrapped = f"""
from jaxmlp.errors import JaxmlpError
try:
    {code.strip().replace(chr(10), chr(10) + "    ")}
except JaxmlpError as error:
    print(type(error).__name__, error.exit_code, error)
"""
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        [sys.executable, "-c", wrapped], env=kept | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_flags_are_added_to_the_users_and_the_users_value_stays() -> None:
    code = "import os\nfrom jaxmlp import configure\nconfigure()\nprint(os.environ['XLA_FLAGS'])"
    users = "--xla_cpu_enable_fast_math=false"
    assert python(code, XLA_FLAGS=users).split() == [users, "--xla_gpu_deterministic_ops=true"]
    chosen = "--xla_gpu_deterministic_ops=false"
    assert python(code, XLA_FLAGS=chosen).split() == [chosen]


def test_what_need_not_be_exact_has_the_users_flags_alone() -> None:
    code = (
        "import os\nfrom jaxmlp import configure\nfrom jaxmlp.system import runtime\n"
        "runtime.prepare()\nconfigure(exact=False)\n"
    )
    users = "--xla_cpu_enable_fast_math=false"
    assert python(f"{code}print(os.environ['XLA_FLAGS'])", XLA_FLAGS=users).split() == [users]


def test_products_keep_every_bit_of_float32() -> None:
    code = """
from jaxmlp import configure
configure()
configure()
import jax
print(jax.config.jax_default_matmul_precision, jax.config.jax_threefry_partitionable)"""
    assert python(code) == "highest True\n"


@pytest.mark.parametrize(("device", "extra"), [("gpu", "cuda13 (or cuda12)"), ("tpu", "tpu")])
def test_a_device_that_is_not_there_is_named_with_those_that_are_and_the_extra(device: str, extra: str) -> None:
    said = python(f"from jaxmlp import configure\nconfigure('{device}')", JAX_PLATFORMS="cpu")
    assert said == (
        f"DeviceError 6 device: {device} was requested, but JAX finds cpu (cpu). "
        f"Install jaxmlp's extra {extra}, or leave --device at auto\n"
    )


ON_A_MACHINE_WITH = """
from jax._src import hardware_utils  # Stands in for what this machine may not have.
hardware_utils.has_visible_nvidia_gpu = lambda: {gpu}
hardware_utils.num_available_tpu_chips_and_device_id = lambda: ({tpus}, None)
import logging, sys
logging.getLogger("jax").addHandler(logging.StreamHandler(sys.stdout))
from jaxmlp import configure
configure({device!r})
configure({device!r})
print("up")"""


@pytest.mark.parametrize(
    ("gpu", "tpus", "device", "extra"),
    [
        (True, 0, "auto", "cuda13"),
        (False, 4, "auto", "tpu"),
        (True, 4, "cpu", None),  # as asked for
        (False, 0, "auto", None),
    ],
)
def test_an_accelerator_that_this_jax_cannot_use_is_told_once_with_the_extra(
    gpu: bool, tpus: int, device: str, extra: str | None
) -> None:
    *told, last = python(ON_A_MACHINE_WITH.format(gpu=gpu, tpus=tpus, device=device)).splitlines()
    assert last == "up" and len(told) == bool(extra)
    if extra:
        assert_names(told[0], extra)


def test_a_platform_that_jax_cannot_start_is_named() -> None:
    said = python("from jaxmlp import configure\nconfigure()", JAX_PLATFORMS="cuda")
    assert said.startswith("DeviceError 6 ")
    assert_names(said, "cuda")


ALREADY_UP = """
import jax, warnings
from pathlib import Path
jax.devices()
jax.default_backend = lambda: "gpu"  # Stands in for a GPU, which this machine may not have.
from jaxmlp import DataConfig, ExperimentConfig, MLP, fit
from jaxmlp.run.directory import read_manifest
config = ExperimentConfig(model=MLP(hidden_sizes=(4,)), data=DataConfig(name="mnist_5k"), epochs=1)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("default")
    for number in range(2):
        fit(config, out={folder!r} + f"/{{number}}")
print(*[{flag!r} in str(each.message) for each in told])
print(read_manifest(Path({folder!r}) / "1")["binding"]["xla_flags"])"""


def test_a_jax_that_is_up_on_a_gpu_without_the_flags_trains_and_tells_once_and_in_the_manifest(tmp_path: Path) -> None:
    flag = "--xla_gpu_deterministic_ops=true"
    assert python(ALREADY_UP.format(folder=str(tmp_path / "a"), flag=flag)) == "True\n\n"
    assert python(ALREADY_UP.format(folder=str(tmp_path / "b"), flag=flag), XLA_FLAGS=flag) == f"\n{flag}\n"


X64 = """
from jaxmlp import DataConfig, ExperimentConfig, MLP, evaluate, fit
import jax
if {up}:
    jax.devices()
jax.config.update("jax_default_matmul_precision", "bfloat16")
names = [name for name in jax.config.values if hasattr(jax.config, name) and "cache" not in name]
before = {{name: getattr(jax.config, name) for name in names}}
config = ExperimentConfig(model=MLP(hidden_sizes=(4,)), data=DataConfig(name="mnist_5k"), epochs=1)
history = fit(config)
print(history.state_sha256, evaluate(history).loss == history.test_loss)
print([name for name in names if getattr(jax.config, name) != before[name]])"""


def test_the_bits_of_64_bit_jax_are_those_of_32_and_the_users_settings_stay() -> None:
    wanted = python(X64.format(up=False))
    assert wanted.endswith("True\n[]\n")
    for up in (False, True):
        assert python(X64.format(up=up), JAX_ENABLE_X64="1") == wanted


def test_a_jax_that_is_up_on_a_cpu_is_taken_as_it_is() -> None:
    assert python("import jax\njax.devices()\nfrom jaxmlp import configure\nconfigure('cpu')\nprint('ok')") == "ok\n"


def flipped(kept: bytes) -> bytes:
    return kept[:-9] + bytes([kept[-9] ^ 1]) + kept[-8:]


COMPILED = """
import warnings
warnings.simplefilter("error")
from jaxmlp import configure
configure()
import jax
jax.jit(lambda x: x + 1)(1.0)
print(jax.config.jax_compilation_cache_dir)"""


def test_compiled_programs_are_kept_privately_for_this_kind_of_processor(tmp_path: Path) -> None:
    folder = Path(python(COMPILED, XDG_CACHE_HOME=str(tmp_path)).strip())
    assert folder == tmp_path / "jaxmlp" / "compiled" / instruction_set()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    first = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert first
    python(COMPILED, XDG_CACHE_HOME=str(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == first


def test_a_process_that_is_not_the_first_of_a_cluster_keeps_its_programs_too(tmp_path: Path) -> None:
    second = "from jax._src import distributed\ndistributed.global_state.process_id = 1"
    folder = Path(python(second + COMPILED, XDG_CACHE_HOME=str(tmp_path)).strip())
    assert list(folder.glob("*.program"))


def test_what_a_killed_process_was_writing_into_the_compile_cache_goes_after_a_day(tmp_path: Path) -> None:
    old, new = tmp_path / ".jaxmlp-old.tmp", tmp_path / ".jaxmlp-new.tmp"
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 2 * compiled.DAY_S,) * 2)
    python(f"from pathlib import Path;from jaxmlp.system import compiled; compiled.keep_in(Path({str(tmp_path)!r}))")
    assert list(tmp_path.iterdir()) == [new]


def test_the_programs_used_last_are_kept_within_the_limit(tmp_path: Path) -> None:
    kept = compiled.CompiledPrograms(tmp_path, max_bytes=3 * 132)
    for number, key in enumerate("abc"):
        kept.put(key, key.encode() * 100)
        os.utime(tmp_path / f"{key}.program", ns=(number, number))
    assert kept.get("a") == b"a" * 100
    kept.put("d", b"d" * 100)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c", "d"]
    kept.put("e", b"e" * 400)
    assert kept.get("e") is None, "it is larger than all may be together"
    os.utime(tmp_path / "a.program", ns=(4, 4))
    # Another process, which has not looked yet.
    compiled.CompiledPrograms(tmp_path, max_bytes=2 * 132).put("f", b"f" * 100)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["d", "f"]


def test_an_entry_that_cannot_be_removed_keeps_no_other_from_it(tmp_path: Path) -> None:
    (tmp_path / "odd.program").mkdir()
    (tmp_path / "lost.program").symlink_to("nowhere")
    for path in tmp_path.iterdir():
        os.utime(path, ns=(0, 0), follow_symlinks=False)
    kept = compiled.CompiledPrograms(tmp_path, max_bytes=(tmp_path / "odd.program").stat().st_size + 2 * 132)
    for number, key in enumerate("abcd", start=1):
        kept.put(key, key.encode() * 100)
        os.utime(tmp_path / f"{key}.program", ns=(number, number))
    assert kept.get("d") == b"d" * 100
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["c", "d", "odd"]


SETTINGS = """
from jaxmlp import configure
configure("cpu", cpu_devices=2)
import jax
jax.jit(lambda x: x + 1)(1.0)
print(jax.device_count(), jax.config.jax_persistent_cache_min_compile_time_secs)"""


def test_the_users_own_settings_of_jax_hold(tmp_path: Path) -> None:
    users = {
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_COMPILATION_CACHE_MAX_SIZE": "100",
    }
    assert python(SETTINGS, XDG_CACHE_HOME=str(tmp_path), **users).split() == ["1", "0.0"]
    assert not list(tmp_path.glob("jaxmlp/compiled/*/*")), "no program is as small as the limit"


@pytest.mark.parametrize("damage", [lambda kept: kept[:-1], lambda kept: kept[:40], lambda kept: b"", flipped])
def test_a_damaged_compiled_program_is_compiled_again_in_silence(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    folder = Path(python(COMPILED, XDG_CACHE_HOME=str(tmp_path)).strip())
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    for path, program in kept.items():
        path.write_bytes(damage(program))
    assert python(COMPILED, XDG_CACHE_HOME=str(tmp_path)).strip() == str(folder)
    assert {path: path.stat().st_size for path in folder.iterdir()} == {path: len(kept[path]) for path in kept}
    damaged = {path: damage(program) for path, program in kept.items()}
    assert not any(path.read_bytes() == damaged[path] for path in damaged)


def test_the_users_own_compile_cache_is_used(tmp_path: Path) -> None:
    said = python(COMPILED, XDG_CACHE_HOME=str(tmp_path / "ours"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "users"))
    assert said.strip() == str(tmp_path / "users")
    assert list((tmp_path / "users").iterdir())
    assert not (tmp_path / "ours").exists()


STRANGER = """
import os, pwd
os.environ.pop("HOME", None)
pwd.getpwuid = lambda uid: {}[uid]  # As for a user id that the system does not know.
"""


def test_a_user_without_a_home_folder_keeps_no_programs_and_computes() -> None:
    assert python(STRANGER + COMPILED, XDG_CACHE_HOME="").strip() == "None"


def test_a_cache_folder_that_cannot_be_made_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert python(COMPILED, XDG_CACHE_HOME=str(tmp_path / "file")).strip() == "None"


def test_an_experiment_that_starts_jax_is_told_of_and_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quickstart = str(Path(__file__).parents[1] / "experiments" / "quickstart.py")
    for before, after in ((False, False), (False, True), (True, True)):
        up = iter([before, after])
        monkeypatch.setattr(experiment, "is_up", up.__next__)
        assert main(["summary", quickstart, "--json"]) == 0
        assert (quickstart in capsys.readouterr().err) == (after and not before)
