"""`create` while it goes on: a bar on a terminal, plain lines elsewhere, Ctrl-C and going on again."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from daemon_process import CKPTFS, Daemon, until

CONTENT = os.urandom(24_000_000)
FREE_BYTES = 12_000_000  # of it that come at once; the rest comes slowly until the server shall hurry


class SlowServer(ThreadingHTTPServer):
    """Serves one file in ranges; what lies behind FREE_BYTES drips until ``hurry`` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hurry = threading.Event()
        self.sent_bytes = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/model.bin"


class _Handler(BaseHTTPRequestHandler):
    server: SlowServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        first, last, status = 0, len(CONTENT) - 1, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last, status = int(asked[1]), min(last, int(asked[2] or last)), 206
        self.send_response(status)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"v1"')
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(CONTENT)}")
        self.end_headers()
        step = 16 * 1024
        try:
            for offset in range(first, last + 1, step) if body else ():
                piece = CONTENT[offset : min(offset + step, last + 1)]
                self.wfile.write(piece)
                self.server.sent_bytes += len(piece)
                if offset >= FREE_BYTES:
                    self.server.hurry.wait(0.05)
        except OSError:
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def slow() -> Iterator[SlowServer]:
    with SlowServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.hurry.set()
        server.shutdown()
        thread.join()


@contextmanager
def on_a_terminal(
    command: list[str], environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    leader, follower = pty.openpty()

    def settle_in() -> None:
        os.login_tty(follower)  # a session of its own, whose terminal this is
        # Who runs the tests in the background may have had it ignored, and that is inherited.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command,
        env={**environment, "TERM": "xterm", "COLUMNS": "120"},
        preexec_fn=settle_in,
        close_fds=False,
    )
    os.close(follower)
    try:
        yield process, leader
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def read_until(leader: int, wanted: str, seconds: float = 30) -> str:
    said, deadline = b"", time.monotonic() + seconds
    while wanted.encode() not in said:
        assert time.monotonic() < deadline, said
        if select.select([leader], [], [], 0.1)[0]:
            try:
                said += os.read(leader, 65536)
            except OSError:  # the other side has closed
                break
    return said.decode(errors="replace")


def test_a_terminal_shows_a_bar_with_bytes_rate_and_time_left(daemon: Daemon, slow: SlowServer) -> None:
    command = [*CKPTFS, "create", "model", slow.url]
    with on_a_terminal(command, daemon.environment()) as (process, leader):
        drawn = read_until(leader, " left")
        assert "reading" in drawn
        assert "of 24.0 MB" in drawn
        assert "B/s" in drawn
        slow.hurry.set()
        assert "ready, 24.0 MB in 1 file" in read_until(leader, "ready, 24.0 MB in 1 file")
        assert process.wait(30) == 0


def test_elsewhere_it_says_plain_lines(daemon: Daemon, slow: SlowServer) -> None:
    slow.hurry.set()
    made = daemon.run("create", "model", slow.url)
    assert "\x1b" not in made.stderr
    assert "\r" not in made.stderr
    assert all(line.startswith("model: ") for line in made.stderr.splitlines())
    assert len(made.stdout.splitlines()) == 1


def test_ctrl_c_cancels_and_the_next_try_goes_on(daemon: Daemon, slow: SlowServer) -> None:
    command = [*CKPTFS, "create", "model", slow.url]
    with on_a_terminal(command, daemon.environment()) as (process, leader):
        read_until(leader, " left")
        until(lambda: daemon.json("show", "model")["progress"]["bytes_done"] > 8_000_000, "8 MB arrived")
        os.write(leader, b"\x03")
        said = read_until(leader, "ckptfs: error: interrupted")
        assert process.wait(30) == 128 + signal.SIGINT
    assert "ckptfs: cancelled; " in said and "had arrived" in said
    assert "run the same command again" in said
    (listed,) = daemon.json("list")["checkpoints"]
    assert (listed["status"], listed["reason_code"]) == ("failed", "cancelled")
    assert listed["stored_bytes"] > 4_000_000

    slow.hurry.set()
    slow.sent_bytes = 0
    made = daemon.json("create", "model", slow.url)
    assert made["status"] == "ready"
    assert slow.sent_bytes < len(CONTENT) - 4_000_000, "what had arrived was fetched again"
    content = subprocess.run(
        [*CKPTFS, "cat", "model", "model.bin"], env=daemon.environment(), capture_output=True, check=True
    ).stdout
    assert content == CONTENT


def test_cancel_from_elsewhere_ends_the_one_who_follows(daemon: Daemon, slow: SlowServer) -> None:
    follower = subprocess.Popen(
        [*CKPTFS, "create", "model", slow.url, "--json"],
        env=daemon.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: slow.sent_bytes > 100_000, "it has begun")
    assert daemon.run("remove", "model", code=4).stderr.startswith("ckptfs: error: ")
    assert daemon.json("cancel", "model")["status"] == "failed"
    out, err = follower.communicate(timeout=30)
    assert follower.returncode == 6
    assert json.loads(out)["error"]["code"] == "cancelled"
    assert "ckptfs: error: " in err
    daemon.run("remove", "model")


@pytest.mark.parametrize("how", ["reload", "kill"])
def test_another_worker_goes_on_with_what_one_follows(daemon: Daemon, slow: SlowServer, how: str) -> None:
    follower = subprocess.Popen(
        [*CKPTFS, "create", "model", slow.url, "--json"],
        env=daemon.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: slow.sent_bytes > 9_000_000, "it has begun")
    worker = daemon.json("status")["worker_pid"]
    if how == "reload":
        daemon.run("daemon", "reload")
    else:
        os.kill(worker, signal.SIGKILL)
    until(lambda: daemon.json("status")["worker_pid"] != worker, "another worker")
    slow.hurry.set()
    out, err = follower.communicate(timeout=60)
    assert follower.returncode == 0, err
    assert json.loads(out)["status"] == "ready"
    assert [c["name"] for c in daemon.json("list")["checkpoints"]] == ["model"]


def test_the_daemon_stops_while_one_follows(daemon: Daemon, slow: SlowServer) -> None:
    follower = subprocess.Popen(
        [*CKPTFS, "create", "model", slow.url],
        env=daemon.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: slow.sent_bytes > 100_000, "it has begun")
    daemon.stop()
    _, err = follower.communicate(timeout=30)
    assert follower.returncode in (6, 8)
    assert err.splitlines()[-1].startswith("ckptfs: error: ")
    daemon.start()
    assert daemon.json("show", "model")["status"] == "failed"
    slow.hurry.set()
    assert daemon.json("create", "model", slow.url)["status"] == "ready"
