"""What object stores and web servers do wrong, on the wire: right bytes or a clear error, in bounded time.

The S3 faults happen in a proxy before a real store, the web faults in a real server. Each test proves
that its fault fired.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckptfs.errors import (
    CkptfsError,
    Interrupted,
    SourceChanged,
    SourceCorrupt,
    SourceDenied,
    SourceError,
    SourceNotFound,
    SourceUnavailable,
    StoreFull,
)
from ckptfs.source import tries
from ckptfs.source.base import Source, SourceFile
from ckptfs.source.open import Limits, open_source
from ckptfs.testing import faults, maker
from ckptfs.testing.faults import Fault, is_get, is_ranged
from ckptfs.testing.httpserver import HttpServer, Reply, Request, Upstream
from ckptfs.testing.radosgw import SECRET_KEY, Bucket, Radosgw

BODY = maker.noise("faults", 3_000_000)
#: Quick to give up, so that the tests are quick.
LIMITS = Limits(
    connect_timeout_seconds=2.0, read_timeout_seconds=0.4, min_throughput_bytes_per_second=50_000, retries=2
)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.02)


@dataclass
class Remote:
    """One object behind a server that can misbehave, and how to open it."""

    server: HttpServer
    uri: str
    arguments: dict[str, Any]
    replace: Callable[[bytes], object]
    remove: Callable[[], object]

    def open(self, **more: Any) -> Source:
        return open_source(self.uri, **{"limits": LIMITS, **self.arguments, **more})

    def fault(self, change: Callable[[Request, Reply], None], **how: Any) -> Fault:
        fault = Fault(change, **how)
        self.server.faults.append(fault)
        return fault


@pytest.fixture(params=["s3", "web"])
def remote(request: pytest.FixtureRequest) -> Iterator[Remote]:
    if request.param == "web":
        server: HttpServer = request.getfixturevalue("http_server")
        url = server.put("/model.bin", BODY)
        resources = server.files.resources
        yield Remote(
            server,
            url,
            {},
            lambda body: server.put("/model.bin", body),
            lambda: resources.pop("/model.bin"),
        )
        return
    bucket: Bucket = request.getfixturevalue("bucket")
    with s3_proxy(bucket) as (server, arguments):
        uri = bucket.put("dir/model.bin", BODY)
        yield Remote(
            server,
            uri,
            arguments,
            lambda body: bucket.put("dir/model.bin", body),
            lambda: bucket.client.delete_object(Bucket=bucket.name, Key="dir/model.bin"),
        )


@contextmanager
def s3_proxy(bucket: Bucket) -> Iterator[tuple[HttpServer, dict[str, Any]]]:
    with HttpServer(Upstream(bucket.options["endpoint_url"])) as server:
        yield server, {"options": {"endpoint_url": server.url}, "credentials": bucket.credentials}


def only_file(source: Source) -> SourceFile:
    (file,) = source.entries()
    assert isinstance(file, SourceFile)
    return file


def read(file: SourceFile, offset: int = 0, length: int = len(BODY)) -> bytes:
    assert file.ranged is not None
    data = bytearray(length)
    file.ranged.read_at(offset, memoryview(data))
    return bytes(data)


# --- Faults that pass -------------------------------------------------------------------------------

PASSING = {
    "503": faults.status(503),
    "500": faults.s3_error(500, "InternalError"),
    "429": faults.status(429, Retry_After="0"),
    "400 RequestTimeout": faults.s3_error(400, "RequestTimeout"),
    "closed": faults.truncated(0),
    "reset": faults.truncated(0, reset=True),
    "truncated": faults.truncated(100_000),
    "truncated by a reset": faults.truncated(100_001, reset=True),
    "hang before headers": faults.hang_before_headers,
    "hang after headers": faults.hang(),
    "hang in mid-way": faults.hang(after_bytes=200_000),
    "drip": faults.drip(10_000),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_tried_again(remote: Remote, name: str) -> None:
    with closing(remote.open()) as source:
        file = only_file(source)
        fault = remote.fault(PASSING[name], when=is_ranged, times=2)
        assert read(file) == BODY
        assert fault.fired == 2


@pytest.mark.parametrize("name", PASSING)
def test_what_does_not_pass_ends_as_unavailable_and_names_the_object(remote: Remote, name: str) -> None:
    with closing(remote.open()) as source:
        file = only_file(source)
        fault = remote.fault(PASSING[name], when=is_ranged)
        began = time.monotonic()
        with pytest.raises(SourceUnavailable, match=r"model\.bin.*\(after 3 tries\).*create") as caught:
            read(file)
        assert caught.value.retryable
        assert fault.fired == 3
        assert time.monotonic() - began < 20


def test_what_arrived_of_a_range_is_not_asked_for_again(remote: Remote) -> None:
    with closing(remote.open()) as source:
        file = only_file(source)
        fault = remote.fault(faults.truncated(1_000_000), when=is_ranged, times=1)
        assert read(file) == BODY
        assert fault.fired == 1
    ranges = [r.headers["range"] for r in remote.server.requests if is_ranged(r)][-2:]
    assert ranges[0] == f"bytes=0-{len(BODY) - 1}"
    start = int(ranges[1].removeprefix("bytes=").split("-")[0])
    assert 0 < start <= 1_000_000


def test_a_burst_at_the_opening_passes(remote: Remote) -> None:
    fault = remote.fault(faults.status(503), times=2, when=lambda request: True)
    with closing(remote.open()) as source:
        assert read(only_file(source), 5, 100) == BODY[5:105]
    assert fault.fired == 2


def test_a_server_that_asks_for_a_pause_gets_it(remote: Remote) -> None:
    with closing(remote.open()) as source:
        file = only_file(source)
        fault = remote.fault(faults.status(503, Retry_After="1"), when=is_ranged, times=1)
        began = time.monotonic()
        assert read(file, 0, 100) == BODY[:100]
        assert time.monotonic() - began >= 1.0 and fault.fired == 1


# --- Answers that contradict what was asked ---------------------------------------------------------


def whole_body(request: Request, reply: Reply) -> None:
    version = {
        name: value for name, value in reply.headers.items() if name.lower() in ("etag", "last-modified")
    }
    reply.status, reply.headers, reply.body = 200, version, BODY


WRONG: dict[str, tuple[Callable[[Request, Reply], None], type[SourceError], str]] = {
    "another range": (faults.shifted_range, SourceCorrupt, "were asked for and the server answered"),
    "no Content-Range": (faults.without("content-range"), SourceCorrupt, "were asked for"),
    "the whole body": (whole_body, SourceCorrupt, "ignored the range"),
    "longer": (faults.longer, SourceCorrupt, "were asked for"),
    "no ETag": (faults.without("etag"), SourceCorrupt, "without the ETag"),
    "another ETag": (faults.with_headers(ETag='"other"'), SourceChanged, "its ETag is another one now"),
    "a web page": (faults.html_page, SourceCorrupt, "without the ETag"),
    "another size": (
        lambda request, reply: reply.headers.update({"Content-Range": "bytes 1000-1099/99"}),
        SourceChanged,
        "99",
    ),
    "404": (faults.status(404), SourceChanged, "it is gone"),
    "412": (faults.status(412), SourceChanged, "another version"),
    "416": (faults.status(416), SourceChanged, "shorter"),
    "418": (faults.status(418), SourceError, "418"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_an_error_at_once(remote: Remote, name: str) -> None:
    change, error, words = WRONG[name]
    with closing(remote.open()) as source:
        file = only_file(source)
        fault = remote.fault(change, when=is_ranged)
        with pytest.raises(error, match=words) as caught:
            read(file, 1000, 100)
        assert fault.fired == 1 and "model.bin" in str(caught.value)


def test_an_object_that_is_overwritten_in_mid_download_fails(remote: Remote) -> None:
    with closing(remote.open()) as source:
        file = only_file(source)
        assert read(file, 0, 1000) == BODY[:1000]
        remote.replace(maker.noise("other", len(BODY)))
        with pytest.raises(SourceChanged, match=r"model\.bin.* changed while the checkpoint"):
            read(file, 1000, 1000)


def test_an_object_that_is_removed_in_mid_download_fails(remote: Remote) -> None:
    with closing(remote.open()) as source:
        file = only_file(source)
        assert read(file, 0, 1000) == BODY[:1000]
        remote.remove()
        with pytest.raises(SourceChanged, match="it is gone"):
            read(file, 1000, 1000)


# --- Access -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["403 AccessDenied", "400 ExpiredToken", "401 Unauthorized"])
def test_expired_access_is_renewed_once_in_mid_way(remote: Remote, code: str) -> None:
    change = faults.s3_error(int(code[:3]), code[4:])
    with closing(remote.open()) as source:
        file = only_file(source)
        fault = remote.fault(change, when=is_ranged, times=1)
        assert read(file) == BODY
        assert fault.fired == 1
        remote.fault(change, when=is_ranged)
        with pytest.raises(SourceUnavailable, match=r"access ended in mid-way.*what arrived is kept.*fresh"):
            read(file)


# --- Waiting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [faults.hang_before_headers, faults.hang(100), faults.drip(2000)])
def test_a_cancelled_creation_does_not_wait_for_a_server_that_hangs(
    remote: Remote, change: Callable[[Request, Reply], None]
) -> None:
    cancelled = threading.Event()
    slow = Limits(read_timeout_seconds=60)
    with closing(remote.open(cancelled=cancelled.is_set, limits=slow)) as source:
        file = only_file(source)
        fault = remote.fault(change, when=is_ranged)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read, file)
            while not fault.fired:
                time.sleep(0.01)
            time.sleep(0.1)
            began = time.monotonic()
            cancelled.set()
            with pytest.raises(Interrupted):
                reading.result()
            assert time.monotonic() - began < 3


def test_stalled_readers_do_not_hold_up_others(remote: Remote) -> None:
    with closing(remote.open(limits=Limits(read_timeout_seconds=5, retries=0))) as source:
        file = only_file(source)
        stalled = remote.fault(
            faults.hang(), when=lambda r: is_ranged(r) and r.headers["range"].startswith("bytes=7-")
        )
        with ThreadPoolExecutor(32) as pool:
            hanging = [pool.submit(read, file, 7, 100) for _ in range(24)]
            while stalled.fired < 24:
                time.sleep(0.01)
            began = time.monotonic()
            for start in range(100, 1100, 100):
                assert read(file, start, 100) == BODY[start : start + 100]
            assert time.monotonic() - began < 2
            remote.server.released.set()
            for each in hanging:
                with pytest.raises(SourceUnavailable):
                    each.result()


def test_sixteen_readers_share_a_pool(remote: Remote) -> None:
    with closing(remote.open()) as source:
        file = only_file(source)
        steps = range(0, len(BODY), 50_000)
        with ThreadPoolExecutor(16) as pool:
            parts = list(pool.map(lambda at: read(file, at, 50_000), steps))
        assert b"".join(parts) == BODY


# --- Secrets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        faults.status(403),
        faults.status(500),
        faults.truncated(0),
        faults.hang_before_headers,
        faults.html_page,
    ],
)
def test_no_secret_is_said_or_logged(
    remote: Remote, change: Callable[[Request, Reply], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    uri = remote.uri.replace("http://", "http://user:hunter2@")
    if uri != remote.uri:
        uri += "?X-Amz-Signature=deadbeef&sig=deadbeef"
    said = []
    with closing(remote.open()) as source:
        file = only_file(source)
        said += [source.key, repr(source), repr(file)]
    remote.fault(change, when=is_get)
    with pytest.raises(CkptfsError) as at_opening:
        open_source(uri, limits=LIMITS, **remote.arguments)
    with pytest.raises(CkptfsError) as in_midway:
        read(file)
    for caught in (at_opening, in_midway):
        error: BaseException | None = caught.value
        while error is not None:
            said += [str(error), repr(error)]
            error = error.__cause__
    text = "\n".join(said) + caplog.text
    for secret in (SECRET_KEY, "hunter2", "deadbeef", "X-Amz-Signature", "Signature="):
        assert secret not in text


# --- S3 only ----------------------------------------------------------------------------------------


def test_a_listing_survives_a_burst_between_its_pages(bucket: Bucket) -> None:
    for number in range(30):
        bucket.put(f"many/f{number:02}", b"%d" % number)
    with s3_proxy(bucket) as (server, arguments):
        burst = Fault(faults.s3_error(503, "SlowDown"), spare=1, times=2)
        server.faults.append(burst)
        # Small pages: the server is asked for them through the proxy.
        small = Fault(lambda request, reply: None)
        server.faults.append(small)
        with closing(open_source(bucket.uri("many/"), limits=LIMITS, **arguments)) as source:
            assert sum(1 for _ in source.entries()) == 30


def test_an_object_of_a_listing_that_is_overwritten_fails(bucket: Bucket) -> None:
    bucket.put("dir/a", b"first")
    bucket.put("dir/b", b"second")
    arguments: dict[str, Any] = {"options": bucket.options, "credentials": bucket.credentials}
    with closing(open_source(bucket.uri("dir/"), limits=LIMITS, **arguments)) as source:
        a, b = source.entries()
        bucket.put("dir/b", b"SECOND")
        assert isinstance(a, SourceFile) and isinstance(b, SourceFile)
        assert read(a, 0, 5) == b"first"
        with pytest.raises(SourceChanged, match="dir/b"):
            read(b, 0, 6)


def test_a_version_that_is_pinned_stays_readable_when_overwritten(radosgw: Radosgw) -> None:
    bucket = radosgw.bucket(versioned=True)
    uri = bucket.put("model.bin", b"the first version")
    arguments: dict[str, Any] = {"options": bucket.options, "credentials": bucket.credentials}
    with closing(open_source(uri, limits=LIMITS, **arguments)) as source:
        file = only_file(source)
        bucket.put("model.bin", b"the other version")
        assert read(file, 0, 17) == b"the first version"


def test_credentials_that_end_in_mid_download_can_be_fresh_for_the_resume(radosgw: Radosgw) -> None:
    """The key is really revoked: what was read stays pinned, and a new key reads on."""
    bucket = radosgw.bucket()
    uri = bucket.put("model.bin", BODY)
    access, secret = radosgw.user("guest")
    policy = (
        '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":["arn:aws:iam:::user/guest"]},'
        f'"Action":["s3:GetObject","s3:ListBucket"],"Resource":["arn:aws:s3:::{bucket.name}","arn:aws:s3:::{bucket.name}/*"]}}]}}'
    )
    bucket.client.put_bucket_policy(Bucket=bucket.name, Policy=policy)
    guest = {"access_key_id": access, "secret_access_key": secret}
    with closing(open_source(uri, options=bucket.options, credentials=guest, limits=LIMITS)) as source:
        file = only_file(source)
        assert read(file, 0, 1000) == BODY[:1000]
        bucket.client.delete_bucket_policy(Bucket=bucket.name)
        with pytest.raises(SourceUnavailable, match="access ended in mid-way"):
            read(file, 1000, 1000)
    with closing(open_source(uri, options=bucket.options, credentials=bucket.credentials)) as source:
        again = only_file(source)
        assert again.pin == file.pin
        assert read(again, 1000, 1000) == BODY[1000:2000]


@pytest.mark.parametrize("code", [301, 307])
def test_a_store_that_redirects_in_circles_is_an_error(bucket: Bucket, code: int) -> None:
    with s3_proxy(bucket) as (server, arguments):
        bucket.put("x", b"x")
        loop = Fault(
            lambda request, reply: faults.redirect(server.url + request.target, code)(request, reply),
            when=lambda request: True,
        )
        server.faults.append(loop)
        with pytest.raises(SourceError, match=r"s3://.*(region|endpoint)"):
            open_source(bucket.uri("x"), limits=LIMITS, **arguments)
        assert loop.fired


def test_an_endpoint_that_answers_with_a_page_is_an_error(bucket: Bucket) -> None:
    with s3_proxy(bucket) as (server, arguments):
        page = Fault(faults.html_page, when=lambda request: True)
        server.faults.append(page)
        with pytest.raises(SourceError, match="s3://"):
            open_source(bucket.uri("dir/"), limits=LIMITS, **arguments)
        assert page.fired


def test_a_store_that_is_down_is_unavailable(bucket: Bucket) -> None:
    with s3_proxy(bucket) as (_, arguments):
        pass  # nobody listens there any more
    with pytest.raises(SourceUnavailable, match="the endpoint does not answer; check endpoint_url"):
        open_source(bucket.uri("x"), limits=LIMITS, **arguments)


# --- The spool --------------------------------------------------------------------------------------


PARTS = {f"part-{number}.bin": maker.noise(f"spool {number}", 9_000_000) for number in range(4)}
ARCHIVE = maker.gzipped(maker.tarred(PARTS))


def test_a_broken_fetch_of_an_archive_goes_on_where_it_was(http_server: HttpServer, tmp_path: Path) -> None:
    url = http_server.put("/model.tar.gz", ARCHIVE)
    arguments: dict[str, Any] = {"spool": str(tmp_path / "spool"), "limits": LIMITS}
    # The first two parts arrive, then the server is out of order.
    down = Fault(faults.status(503), when=is_ranged, spare=3)
    http_server.faults.append(down)
    with (
        pytest.raises(SourceUnavailable, match="what arrived is kept"),
        closing(open_source(url, **arguments)) as source,
    ):
        for entry in source.entries():
            drain(entry)
    assert down.fired
    http_server.faults.clear()
    http_server.requests.clear()
    with closing(open_source(url, **arguments)) as source:
        sizes = [drain(entry) for entry in source.entries()]
    assert sizes == [9_000_000] * 4
    fetched = sum(_range_bytes(request) for request in http_server.requests)
    assert fetched < len(ARCHIVE) - 8_000_000


def test_a_damaged_part_of_the_spool_is_fetched_again(http_server: HttpServer, tmp_path: Path) -> None:
    url = http_server.put("/model.tar.gz", ARCHIVE)
    spool = tmp_path / "spool"
    for _ in range(2):
        with closing(open_source(url, spool=str(spool))) as source:
            assert sum(drain(entry) for entry in source.entries()) == 36_000_000
        (data,) = spool.glob("archive-????????????????")
        with open(data, "r+b") as file:
            file.seek(9 << 20)
            file.write(b"a power cut left this")
        http_server.requests.clear()
    with closing(open_source(url, spool=str(spool))) as source:
        assert sum(drain(entry) for entry in source.entries()) == 36_000_000
    assert sum(_range_bytes(request) for request in http_server.requests) == (8 << 20) + 1024


def test_the_spool_of_another_version_is_dropped(http_server: HttpServer, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    small = maker.gzipped(maker.tarred({"a": b"1"}))
    for body in (ARCHIVE, small):
        url = http_server.put("/model.tar.gz", body)
        with closing(open_source(url, spool=str(spool))) as source:
            for entry in source.entries():
                drain(entry)
    assert sum(each.stat().st_size for each in spool.iterdir()) < 10_000


def test_a_spool_reports_its_progress(http_server: HttpServer, tmp_path: Path) -> None:
    url = http_server.put("/model.tar.gz", ARCHIVE)
    seen: list[tuple[int, int]] = []
    with closing(
        open_source(url, spool=str(tmp_path), report=lambda done, total: seen.append((done, total)))
    ) as source:
        for entry in source.entries():
            drain(entry)
    assert seen[0] == (0, len(ARCHIVE)) and max(seen) == (len(ARCHIVE), len(ARCHIVE))


def test_a_source_that_is_closed_early_stops_fetching(http_server: HttpServer, tmp_path: Path) -> None:
    url = http_server.put("/model.tar.gz", ARCHIVE)
    hang = Fault(
        faults.hang(100), when=lambda r: is_ranged(r) and not r.headers["range"].startswith("bytes=0-")
    )
    http_server.faults.append(hang)
    source = open_source(url, spool=str(tmp_path), limits=Limits(read_timeout_seconds=60))
    while not hang.fired:
        time.sleep(0.01)
    began = time.monotonic()
    source.close()
    assert time.monotonic() - began < 3


_FETCHES_UNTIL_KILLED = """
import sys
from ckptfs.source.open import open_source
source = open_source(sys.argv[1], spool=sys.argv[2], report=lambda done, total: print(done, flush=True))
for entry in source.entries():
    stream, buffer = entry.stream(), memoryview(bytearray(1 << 20))
    while stream.readinto(buffer):
        pass
"""


def test_what_a_killed_fetch_had_is_not_fetched_again(http_server: HttpServer, tmp_path: Path) -> None:
    url = http_server.put("/model.tar.gz", ARCHIVE)
    # Slow from the third part on, so that the kill comes in mid-way.
    slow = Fault(faults.drip(500_000), when=is_ranged, spare=3)
    http_server.faults.append(slow)
    command = [sys.executable, "-c", _FETCHES_UNTIL_KILLED, url, str(tmp_path / "spool")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= 16_000_000:
                break
        child.kill()
    assert slow.fired
    with open(next((tmp_path / "spool").glob("*.parts")), "ab") as journal:
        journal.write(b"torn")  # as a record that the kill, or a power cut, left half written
    while http_server.open_connections:  # of the child, which the kernel has closed
        time.sleep(0.01)
    http_server.faults.clear()
    http_server.requests.clear()
    for fetched_at_most in (len(ARCHIVE) - 16_000_000 + 1024, 1024):
        with closing(open_source(url, spool=str(tmp_path / "spool"))) as source:
            assert sum(drain(entry) for entry in source.entries()) == 36_000_000
        assert sum(_range_bytes(request) for request in http_server.requests) <= fetched_at_most
        http_server.requests.clear()


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[str]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", path], check=True)
    try:
        yield str(path)
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_disk_that_cannot_hold_the_spool_is_said_before_the_fetch(
    http_server: HttpServer, tmp_path: Path
) -> None:
    url = http_server.put("/model.tar.gz", ARCHIVE)
    with small_disk(tmp_path / "disk", 4 << 20) as spool:
        with pytest.raises(StoreFull, match=r"must be fetched before.*[\d,]{10} bytes.*make room"):
            open_source(url, spool=spool)
        assert len(http_server.requests) == 1  # the probe


def test_a_disk_that_fills_in_mid_fetch_is_said(http_server: HttpServer, tmp_path: Path) -> None:
    url = http_server.put("/model.tar.gz", ARCHIVE, ranges=False, chunked=True)  # of unknown length
    with small_disk(tmp_path / "disk", 4 << 20) as spool, pytest.raises(StoreFull, match="disk is full"):
        open_source(url, spool=spool)


def drain(entry: object) -> int:
    assert isinstance(entry, SourceFile) and entry.stream is not None
    stream, buffer, size = entry.stream(), memoryview(bytearray(1 << 20)), 0
    while got := stream.readinto(buffer):
        size += got
    return size


def _range_bytes(request: Request) -> int:
    first, last = request.headers["range"].removeprefix("bytes=").split("-")
    return int(last) - int(first) + 1


def test_access_denied_and_not_found_are_told_apart(bucket: Bucket) -> None:
    bucket.put("x", b"x")
    wrong = {**bucket.credentials, "secret_access_key": "wrong"}
    with pytest.raises(SourceDenied, match=r"SignatureDoesNotMatch.*check the credentials"):
        open_source(bucket.uri("x"), options=bucket.options, credentials=wrong, limits=LIMITS)
    with pytest.raises(SourceNotFound):
        open_source(bucket.uri("y"), options=bucket.options, credentials=bucket.credentials, limits=LIMITS)
