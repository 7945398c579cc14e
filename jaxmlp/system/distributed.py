"""How do many processes form one run? They join, agree before the first step and at every chunk, and end together.

JAX's own runtime does the work. When a peer is lost, it ends the survivors from C++, without a Python handler. So each
process that people start is a small parent (`supervise`) that turns its child's end into a message and an exit code.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxmlp.errors import ConfigError, DeviceError, PeerLostError, RunError
from jaxmlp.experiment.fields import dotted
from jaxmlp.system.signals import STOP_SIGNALS

if TYPE_CHECKING:
    import numpy as np

HEARTBEAT_S = 30
"""Seconds of silence after which a process counts as lost."""
JOIN_S = 300
"""Seconds that the processes of a run may take to start."""
SHUTDOWN_S = 10
"""Seconds that a process that ends waits for the others."""
CHILD = "JAXMLP_SUPERVISED"
"""Set in a supervised process: the descriptors for messages to the parent, and for the answer."""

_BROKEN = re.compile(
    r"Connection (closed|reset) by peer|Connection refused|Broken pipe|Timed out waiting \d+ ?ms"
    r"|remote process exited|ncclRemoteError|stopped sending heartbeats|heartbeat timeout|Barrier timed out"
    r"|another task died|tasks have crashed|UNAVAILABLE.*coordination service|coordination service.*UNAVAILABLE",
    re.DOTALL,
)
"""What Gloo, NCCL and JAX's coordination service report about a broken connection."""
_TRANSPORT = re.compile(r"\b(Gloo|NCCL|nccl[A-Z]\w+|coordination service)\b", re.IGNORECASE)
_LOST = re.compile(r"stopped sending heartbeats\):\s*([\d,\s]+)")
_CPP_LOG = re.compile(
    r"([IWEF]\d{4} |\s*@\s+0x|\*\*\* |\[Gloo\]|=== Source|external/|RPC: /|The tasks have crashed|[\d,\s]+$)"
)


class Cluster(NamedTuple):
    """Where the processes of a run meet. All None if JAX detects it (Slurm, Open MPI, Kubernetes, TPU pods)."""

    address: str | None = None
    processes: int | None = None
    process: int | None = None

    @classmethod
    def parse(cls, text: str) -> Cluster:
        """Parse `auto` or `HOST:PORT,PROCESSES,INDEX`.

        Raises:
            ConfigError: The text has neither form.
        """
        if text == "auto":
            return cls()
        match = re.fullmatch(r"(\S+:\d+),(\d+),(\d+)", text)
        if not match or not 0 <= int(match[3]) < int(match[2]):
            wanted = "must be auto or HOST:PORT,PROCESSES,INDEX with INDEX from 0 to PROCESSES - 1"
            raise ConfigError("distributed", f"{wanted}, got {text!r}")
        return cls(match[1], int(match[2]), int(match[3]))


def join(cluster: Cluster) -> None:
    """Connect to the other processes, before JAX's first use.

    Raises:
        DeviceError: They cannot be reached, or no cluster is detected.
    """
    import jax

    if "JAX_CPU_COLLECTIVES_IMPLEMENTATION" not in os.environ:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            *cluster,
            initialization_timeout=JOIN_S,
            # By default JAX listens on every address of the machine, open to anyone.
            coordinator_bind_address=os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or cluster.address,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=SHUTDOWN_S,
        )
    except (RuntimeError, TypeError, ValueError) as error:
        where = cluster.address or "the detected cluster"
        first = str(error).partition("\n")[0]
        raise DeviceError(
            f"distributed: this process cannot join {where}: {first}\n"
            "Check that HOST:PORT belongs to process 0, is reachable and free, and that every INDEX is used once."
        ) from None


def is_first() -> bool:
    """Whether this process writes the files."""
    import jax

    return jax.process_index() == 0


def gather(values: Sequence[int]) -> np.ndarray[Any, Any]:
    """The values of every process, [processes, values]. Each process must pass equally many.

    Raises:
        PeerLostError: Another process is gone.
    """
    import numpy as np
    from jax.experimental import multihost_utils

    with peers():
        return np.asarray(multihost_utils.process_allgather(np.asarray(values, np.int32))).reshape(-1, len(values))


def share(data: bytes) -> bytes:
    """The first process's bytes, on all processes.

    It sends bytes rather than arrays, because JAX broadcasts by adding zeros, which turns a negative zero positive.

    Raises:
        PeerLostError: Another process is gone.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return data
    # As two numbers, because the length of a state of 2 GiB does not fit an int32.
    high, low = gather(divmod(len(data), 1 << 30))[0]
    size = (int(high) << 30) + int(low)
    with peers():
        padded = np.frombuffer(data[:size].ljust(size, b"\0"), np.uint8)
        return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()


def share_json[T](value: T) -> T:
    """The first process's value, of JSON types, on all processes.

    Raises:
        PeerLostError: Another process is gone.
    """
    shared: T = json.loads(share(json.dumps(value).encode()))
    return shared


def agree(facts: Mapping[str, Any]) -> None:
    """Check that all processes have the same facts.

    Raises:
        RunError: They differ. The message names each fact that differs, its values, and their processes.
        PeerLostError: Another process is gone.
    """
    mine = json.dumps(dotted(facts)).encode()
    size = int(gather([len(mine)]).max())
    everyone = [json.loads(bytes(row.tolist())) for row in gather(list(mine.ljust(size)))]
    different = []
    for name in sorted(set().union(*everyone)):
        values = collections.defaultdict(list)
        for index, theirs in enumerate(everyone):
            values[str(theirs.get(name))].append(index)
        if len(values) > 1:
            each = "; ".join(f"{value} on process {', '.join(map(str, who))}" for value, who in values.items())
            different.append(f"{name}: {each}")
    if different:
        raise RunError("the processes of this run differ, and so would their bits:\n" + "\n".join(different))


@contextlib.contextmanager
def peers(what: str = "run") -> Iterator[None]:
    """Turn JAX's errors about other processes in the block into ours. `what` the processes share: a run or a sweep.

    Raises:
        DeviceError: The processes cannot exchange arrays.
        PeerLostError: Another process is gone.
    """
    import jax

    try:
        yield
    except Exception as error:
        if jax.process_count() > 1 and (ours := explained(error, what)):
            raise ours from error
        raise


def is_lost_peer(error: BaseException) -> bool:
    """Whether a JAX error says that a connection to another process broke."""
    return bool(_TRANSPORT.search(str(error)) and _BROKEN.search(str(error)))


def explained(error: BaseException, what: str = "run") -> PeerLostError | DeviceError | None:
    """Our error for a JAX error about other processes, including JAX's message. None for other errors.

    Args:
        error: What JAX raised when processes exchanged arrays.
        what: What the processes share: a run or a sweep.
    """
    cause = str(error).strip().partition("\n")[0]
    if is_lost_peer(error):
        return PeerLostError(f"distributed: another process of this {what} is gone: {cause}")
    if _TRANSPORT.search(str(error)):
        return DeviceError(f"distributed: the processes of this {what} cannot exchange arrays: {cause}")
    return None


def supervise(argv: Sequence[str]) -> int:
    """Run this process's part of a distributed run in a child, and report what the child cannot report itself.

    Args:
        argv: The command and its flags.

    Returns:
        The child's exit code, or `PeerLostError.exit_code` if JAX aborted it because a peer was lost.
    """
    reading, telling = os.pipe()
    # The answer bypasses the pipe, into which Gloo prints from C++ and would corrupt it.
    answering = os.dup(1)
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "jaxmlp.cli.supervised", *argv],
        env=os.environ
        | {CHILD: f"{telling},{answering}", "PYTHONIOENCODING": "utf-8"}
        # The child finds the same modules as this process, whatever its current folder holds.
        | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(telling, answering),
        start_new_session=True,
        encoding="utf-8",
        errors="replace",
    )
    os.close(telling)
    os.close(answering)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: child.send_signal(number))
    withheld: collections.deque[str] = collections.deque(maxlen=200)
    assert child.stdout
    with child.stdout:
        for line in child.stdout:
            if _CPP_LOG.match(line):
                withheld.append(line)
            else:
                print(line, end="", file=sys.stderr, flush=True)
    code = child.wait()
    with open(reading, encoding="utf-8", errors="surrogateescape") as lines:
        facts = dict(line.rstrip("\n").split("=", 1) for line in lines)
    if "code" in facts:
        # JAX aborts a process that ends alone, because the others do not join its shutdown.
        return int(facts["code"])
    run_dir = facts.get("run_dir")
    said = "".join(withheld)
    # JAX aborts a process for a lost peer, but C++ also aborts for many other reasons.
    is_lost = code == PeerLostError.exit_code or (code == -signal.SIGABRT and _BROKEN.search(said))
    if not is_lost:
        if code < 0:
            print(said, end="", file=sys.stderr)
        return code if code >= 0 else 128 - code
    lost = _LOST.search(said)
    who = f"process {lost[1].split()[0].strip(',')}" if lost else "another process of this run"
    resume = f"jaxmlp {argv[0]} --resume {shlex.quote(run_dir or '')}{facts.get('flags', '')}"
    resume = f" Continue from the last checkpoint: {resume}" if run_dir else ""
    print(f"distributed: {who} is gone, so this process ended too.{resume}", file=sys.stderr)
    return PeerLostError.exit_code


def is_supervised() -> bool:
    """Whether this process is the child of `supervise`."""
    return CHILD in os.environ


def become_supervised() -> None:
    """In the child, before anything else: end with the parent, and write the answer to the parent's stdout."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    sys.stdout = os.fdopen(int(os.environ[CHILD].split(",")[1]), "w", encoding="utf-8")


def tell(name: str, value: object) -> None:
    """Send a value to the parent, if there is one.

    Args:
        name: `run_dir`, `flags` or `code`.
        value: Folder of the run, the flags to continue with, or the child's exit code.
    """
    if is_supervised():
        os.write(int(os.environ[CHILD].split(",")[0]), f"{name}={value}\n".encode(errors="surrogateescape"))
