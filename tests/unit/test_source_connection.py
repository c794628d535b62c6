"""Where a source may connect to, and how often it tries."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import urllib3

from ckptfs.errors import Interrupted, SourceNotFound, SourceRefused, SourceUnavailable
from ckptfs.source import tries
from ckptfs.source.connection import Guard
from ckptfs.source.limits import Limits, Opening
from ckptfs.source.open import open_source
from ckptfs.source.tries import Pace, Passing, Tries, passing, retry_after_seconds

PUBLIC = ("8.8.8.8", "2001:4860:4860::8888")
PRIVATE = ("127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.5.5", "::1", "fd12::1", "100.64.0.1")
NEVER = (
    "169.254.169.254",
    "169.254.1.1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "100.100.100.200",
    "168.63.129.16",
    "224.0.0.1",
    "::ffff:169.254.169.254",
)


@pytest.mark.parametrize("address", NEVER)
def test_metadata_and_link_local_addresses_are_never_allowed(address: str) -> None:
    with pytest.raises(SourceRefused, match=r"http://x leads to .*link-local"):
        Guard("http://x").check(address)


@pytest.mark.parametrize("private", [*PRIVATE, "::ffff:10.0.0.1"])
def test_a_public_source_cannot_lead_to_a_private_address(private: str) -> None:
    for public in PUBLIC:
        guard = Guard("https://x")
        guard.check(public)
        guard.check(public)
        with pytest.raises(SourceRefused, match="from a public address"):
            guard.check(private)


def test_a_private_source_may_be_named_and_lead_anywhere_but_back() -> None:
    guard = Guard("http://x")
    for address in (*PRIVATE, *PUBLIC):
        guard.check(address)
    with pytest.raises(SourceRefused):
        guard.check("127.0.0.1")


@pytest.mark.parametrize(
    ("uri", "options"),
    [
        ("http://169.254.169.254/latest/meta-data/iam/", {}),
        ("s3://bucket/key", {"endpoint_url": "http://169.254.169.254"}),
    ],
)
def test_the_metadata_address_is_refused_as_a_source_too(uri: str, options: dict[str, str]) -> None:
    with pytest.raises(SourceRefused, match=r"link-local"):
        open_source(uri, options=options, limits=Limits(connect_timeout_seconds=0.5, retries=0))


def test_a_host_that_does_not_exist_is_not_found_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(SourceNotFound, match=r"no host no-such-host\.invalid|cannot be resolved"):
        open_source("http://no-such-host.invalid/x", limits=Limits(retries=0))
    assert time.monotonic() - began < 10


# --- Trying again -----------------------------------------------------------------------------------


def test_pauses_grow_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(Opening, "sleep", lambda self, seconds: pauses.append(seconds))
    again = Tries(Opening("/x", limits=Limits(retries=9)), "s3://b/k")
    for _ in range(9):
        again.again(Passing("the server answered 503"))
    with pytest.raises(SourceUnavailable, match=r"s3://b/k: the server answered 503 \(after 10 tries\)"):
        again.again(Passing("the server answered 503"))
    for number, pause in enumerate(pauses):
        most = min(tries.FIRST_PAUSE_SECONDS * 2**number, tries.LARGEST_PAUSE_SECONDS)
        assert most / 2 <= pause <= most
    assert len(set(pauses)) == 9  # each its own: readers do not come back together


def test_the_count_begins_anew_after_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Opening, "sleep", lambda self, seconds: None)
    again = Tries(Opening("/x", limits=Limits(retries=1)), "x")
    for _ in range(50):
        again.arrived(tries.PROGRESS_BYTES)
        again.again(Passing("reset"))
    again.arrived(tries.PROGRESS_BYTES - 1)
    with pytest.raises(SourceUnavailable):
        again.again(Passing("reset"))


def test_a_server_may_ask_for_a_pause_within_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(Opening, "sleep", lambda self, seconds: pauses.append(seconds))
    again = Tries(Opening("/x"), "x")
    for header in ("7", "100000", "Wed, 21 Oct 2015 07:28:00 GMT", "-5", "", None):
        again.again(Passing("503", retry_after_seconds(header)))
    assert pauses[0] == 7 and pauses[1] == tries.LARGEST_ASKED_PAUSE_SECONDS
    assert max(pauses[2:]) <= tries.LARGEST_PAUSE_SECONDS


def test_a_pause_ends_when_the_creation_is_cancelled() -> None:
    cancelled = threading.Event()
    timer = threading.Timer(0.1, cancelled.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        Opening("/x", cancelled=cancelled.is_set).sleep(30)
    assert time.monotonic() - began < 1
    timer.join()


def test_a_pace_is_judged_over_whole_windows_of_waiting() -> None:
    limits = Limits(read_timeout_seconds=10, min_throughput_bytes_per_second=1000)
    pace = Pace(limits)
    for _ in range(9):
        pace.add(0, 1.0)  # not yet a window
    pace.add(20_000, 1.0)
    for _ in range(100):
        pace.add(1, 0.0)  # the reader's own time does not count
    with pytest.raises(Passing, match="too slow: 990 bytes per second"):
        for _ in range(10):
            pace.add(990 - 10, 1.0)


def test_the_words_of_foreign_errors_are_not_repeated() -> None:
    failure = passing(RuntimeError("GET https://user:hunter2@host/?X-Amz-Signature=abc failed"), "host")
    assert isinstance(failure, Passing)
    assert failure.reason == "talking to host failed (RuntimeError)"


def test_a_closed_port_is_not_called_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    pool = urllib3.HTTPConnectionPool("127.0.0.1", port, timeout=5)
    with pytest.raises(urllib3.exceptions.HTTPError) as caught:
        pool.urlopen("GET", "/", retries=False)
    assert str(passing(caught.value, "the host")) == "the host refuses connections"
