"""The network brings the wanted bytes, or within seconds a message with its reason and the ways on."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mnist_stand_in
import pytest
from mnist_stand_in import (
    NAMES,
    load,
    read_stand_in,
    same,
    write_stock,
)
from refusals import assert_names

from jaxmlp import data
from jaxmlp.data import download, official
from jaxmlp.errors import DataError

nothing_named = mnist_stand_in.nothing_named
files = mnist_stand_in.files
lines = mnist_stand_in.lines


def test_without_a_network_the_answer_comes_within_the_limit_with_the_ways_on(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that never answers is the slowest case: without the limit, the call would not return."""
    given_up = threading.Event()

    def hang(*_: Any, **__: Any) -> None:
        given_up.wait()
        raise OSError

    monkeypatch.setattr("socket.create_connection", hang)
    with pytest.raises(DataError) as error:
        load()
    given_up.set()
    first, ways = str(error.value).split("\n", 1)
    assert_names(first, "mnist", f"{download.CONNECT_LIMIT_S} s")
    assert_names(ways, "JAXMLP_MANUAL_DIR", "--data.name mnist_5k", "JAXMLP_DATA_DIR", *NAMES)


@pytest.mark.parametrize("proxy", ["http://two..dots:80", "http://host:99999", "http://host:port", "http://:80"])
def test_a_proxy_without_a_valid_address_is_named_at_once(
    proxy: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": ""}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError) as error:
        load()
    assert_names(str(error.value).splitlines()[0], "mnist", "proxy")


@pytest.fixture
def serve(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[Any], None]], None]]:
    """A function that serves mnist's files by a handler of GET requests."""
    servers = []

    def start(respond: Callable[[Any], None]) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                respond(self)

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
                """Nothing on stderr."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_port}/mnist/"
        monkeypatch.setitem(official.SOURCES, "mnist", official.SOURCES["mnist"]._replace(url=url))

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def answer(content: bytes, *, length: int | None = None) -> Callable[[Any], None]:
    def respond(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content) if length is None else length))
        handler.end_headers()
        handler.wfile.write(content)

    return respond


def test_a_download_is_prepared_and_kept(
    serve: Callable[[Callable[[Any], None]], None], files: Path, tmp_path: Path, lines: list[str]
) -> None:
    serve(lambda handler: answer((files / Path(handler.path).name).read_bytes())(handler))
    dataset = load(report=lines.append)
    assert same(dataset.train, read_stand_in(files)[0])
    assert "downloading mnist" in lines[0]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".lock", "jaxmlp_mnist", "mnist.idx"]


def test_prepare_downloads_the_official_order_beside_a_stock_folder(
    serve: Callable[[Callable[[Any], None]], None], files: Path, tmp_path: Path
) -> None:
    write_stock(files, tmp_path / "data")
    serve(lambda handler: answer((files / Path(handler.path).name).read_bytes())(handler))
    assert load(report=lambda line: None).notes
    data.prepare("mnist", report=lambda line: None)
    assert not load().notes


@pytest.mark.parametrize(
    ("respond", "reason"),
    [
        (lambda handler: handler.send_error(404), "404 Not Found"),
        (answer(b"<html>Welcome to our hotel</html>"), f"{NAMES[0]}.gz"),
        (answer(b"half", length=8), f"{NAMES[0]}.gz"),
        (answer(bytes(200_000)), f"{NAMES[0]}.gz"),
        (lambda handler: time.sleep(3), "1 s"),
        (lambda handler: handler.wfile.write(b"no HTTP at all\n"), "mnist"),
    ],
)
def test_a_download_that_fails_is_a_data_error_with_its_reason_and_leaves_nothing(
    respond: Callable[[Any], None],
    reason: str,
    serve: Callable[[Callable[[Any], None]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(download, "STALL_LIMIT_S", 1)
    serve(respond)
    with pytest.raises(DataError) as error:
        load(report=lambda line: None)
    assert_names(str(error.value).splitlines()[0], "mnist", reason)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".lock"]
