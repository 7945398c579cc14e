"""How are the four files downloaded, with a time limit and a hash for every byte?

tfds's own downloader waits 204 s without a network, and forever on a server that stalls.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from jaxmlp.data.official import SOURCES, File
from jaxmlp.errors import DataError

CONNECT_LIMIT_S = 3.0
"""Limit, in seconds, on the first connection to the server."""
STALL_LIMIT_S = 10.0
"""Limit, in seconds, on the time without a byte once connected."""


def unavailable(name: str, reason: str) -> DataError:
    """The error for data that is neither here nor can be downloaded, with what to do."""
    files = ", ".join(f"{file.name}.gz" for file in SOURCES[name].files)
    return DataError(
        f"data: {name} is not on this machine and cannot be downloaded ({reason}).\n"
        f"Any of these will do:\n"
        f"  a folder with the four files, named by JAXMLP_MANUAL_DIR: {files}\n"
        f"  --data.name mnist_5k: 5,000 MNIST digits that need no download\n"
        f"  a folder prepared on another machine by `jaxmlp data prepare {name}`, named by JAXMLP_DATA_DIR"
    )


def download(name: str, into: Path, report: Callable[[str], None]) -> tuple[Path, ...]:
    """Download data set `name`'s four files.

    Returns:
        Their paths in `into`, verified, in the order of `official.Source.files`.

    Raises:
        DataError: There is no connection, the server returns an error or stalls, or the bytes are not the expected
            ones.
        OSError: A file cannot be written.
    """
    source = SOURCES[name]
    try:
        first_hop = _first_hop(source.url)
    except ValueError as error:
        raise unavailable(name, f"the proxy that the environment names has no valid address: {error}") from None
    if not _reachable(first_hop):
        raise unavailable(name, f"no route to its server; gave up after {CONNECT_LIMIT_S:g} s")
    megabytes = sum(file.gz_bytes for file in source.files) / 1e6
    report(f"data: downloading {name}, {megabytes:.0f} MB from {source.url}")
    return tuple(_fetch(name, source.url, file, into) for file in source.files)


def _fetch(name: str, url: str, file: File, into: Path) -> Path:
    try:
        with urllib.request.urlopen(f"{url}{file.name}.gz", timeout=STALL_LIMIT_S) as response:
            content = response.read(file.gz_bytes + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise unavailable(name, f"its server answers {error.code} {error.reason} for {file.name}.gz") from None
    except TimeoutError:
        raise unavailable(name, f"its server stopped sending; gave up after {STALL_LIMIT_S:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise unavailable(name, f"the download of {file.name}.gz broke off: {error}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != file.gz_sha256:
        sums = f"SHA-256 {found}, wanted {file.gz_sha256}"
        raise unavailable(name, f"its server sent another file as {file.name}.gz: {sums}")
    path = into / f"{file.name}.gz"
    path.write_bytes(content)
    return path


def _reachable(address: tuple[str, int]) -> bool:
    """Whether a connection opens in time."""
    opened = threading.Event()
    deadline = time.monotonic() + CONNECT_LIMIT_S

    def connect() -> None:
        while not opened.is_set() and (left := deadline - time.monotonic()) > 0:
            try:
                socket.create_connection(address, timeout=left).close()
                opened.set()
            except OSError:
                time.sleep(0.1)

    # A name lookup has no time limit, so it runs in a thread that may be left behind.
    threading.Thread(target=connect, daemon=True).start()
    return opened.wait(CONNECT_LIMIT_S)


def _first_hop(url: str) -> tuple[str, int]:
    """Host and port of the server, or of the proxy before it.

    Raises:
        ValueError: The proxy's host or port is not valid.
    """
    target = urlsplit(url)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.netloc):
        target = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    host, port = target.hostname, target.port
    if not host:
        raise ValueError("it has no host")
    host.encode("idna")  # As a connection does: it raises UnicodeError, a ValueError.
    return host, port or (443 if target.scheme == "https" else 80)
