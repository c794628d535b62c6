"""A file behind http(s) as a source: names, redirects, pins, streams, certificates, pages."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from ckptfs.errors import (
    Interrupted,
    SourceChanged,
    SourceCorrupt,
    SourceDenied,
    SourceError,
    SourceNotFound,
    SourceRefused,
    SourceTooLarge,
    SourceUnavailable,
)
from ckptfs.source import tries
from ckptfs.source.base import SourceFile
from ckptfs.source.open import Limits, open_source
from ckptfs.testing import faults, maker
from ckptfs.testing.faults import Fault
from ckptfs.testing.httpserver import HttpServer

BODY = maker.noise("web", 400_000)
LIMITS = Limits(read_timeout_seconds=0.5, retries=2)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.01)


def only_file(url: str, **more: Any) -> tuple[SourceFile, bytes]:
    with closing(open_source(url, **{"limits": LIMITS, **more})) as source:
        (file,) = source.entries()
        assert isinstance(file, SourceFile)
        return file, read(file)


def read(file: SourceFile) -> bytes:
    if file.ranged is not None:
        data = bytearray(file.ranged.size_bytes)
        file.ranged.read_at(0, memoryview(data))
        return bytes(data)
    assert file.stream is not None
    stream, out, buffer = file.stream(), bytearray(), memoryview(bytearray(70_000))
    with closing(stream):
        while got := stream.readinto(buffer):
            out += buffer[:got]
    return bytes(out)


# --- Names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "disposition", "name"),
    [
        ("/models/model.bin", None, b"model.bin"),
        ("/m%C3%BC%20x.bin", None, "mü x.bin".encode()),
        ("/bad%FF.bin", None, b"bad\xff.bin"),
        ("/x/", None, b"download"),
        ("/a%2Fb", None, b"download"),
        ("/content", 'attachment; filename="model v2.bin"', b"model v2.bin"),
        ("/content", "inline; filename*=UTF-8''m%C3%BC.bin; filename=m.bin", "mü.bin".encode()),
        ("/content", 'attachment; filename="../../etc/passwd"', b"passwd"),
        ("/content", 'attachment; filename="C:\\\\models\\\\m.bin"', b"m.bin"),
        ("/content", 'attachment; filename=".."', b"content"),
        ("/content", "attachment", b"content"),
    ],
)
def test_the_name_is_the_servers_or_the_addresss(
    http_server: HttpServer, path: str, disposition: str | None, name: bytes
) -> None:
    headers = {"Content-Disposition": disposition} if disposition else {}
    url = http_server.put(path, BODY, headers=headers)
    file, body = only_file(url)
    assert (file.path, body) == (name, BODY)


# --- Redirects --------------------------------------------------------------------------------------


def redirect(server: HttpServer, path: str, to: str, code: int = 302) -> str:
    server.faults.append(Fault(faults.redirect(to, code), when=lambda request: request.path == path))
    return server.url + path


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed_and_the_address_is_remembered(http_server: HttpServer, code: int) -> None:
    http_server.put("/far/model.bin", BODY)
    redirect(http_server, "/b", "/far/model.bin", code)
    url = redirect(http_server, "/a/given.bin", "../b", code)
    with closing(open_source(url, limits=LIMITS)) as source:
        (file,) = source.entries()
        assert isinstance(file, SourceFile) and file.path == b"given.bin"
        http_server.requests.clear()
        assert read(file) == BODY
        assert [request.path for request in http_server.requests] == ["/far/model.bin"]


def test_a_redirect_that_expires_is_walked_again(http_server: HttpServer) -> None:
    """As hubs do: the stable address leads to a signed one that holds for a while."""
    http_server.put("/signed/1", BODY)
    url = redirect(http_server, "/model.bin", "/signed/1")
    with closing(open_source(url, limits=LIMITS)) as source:
        (file,) = source.entries()
        assert isinstance(file, SourceFile)
        http_server.put("/signed/2", BODY)
        http_server.faults.clear()
        redirect(http_server, "/model.bin", "/signed/2")
        expired = Fault(faults.status(403), when=lambda request: request.path == "/signed/1")
        http_server.faults.append(expired)
        assert read(file) == BODY
        assert expired.fired == 1


def test_redirects_in_circles_end(http_server: HttpServer) -> None:
    url = redirect(http_server, "/a", "/b")
    redirect(http_server, "/b", "/a")
    with pytest.raises(SourceError, match="redirects more than 8 times"):
        open_source(url, limits=LIMITS)


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("http://169.254.169.254/latest/meta-data/", "169.254.169.254.*link-local|unreachable|reached"),
        ("file:///etc/passwd", "redirects to file://"),
        ("ftp://host/x", "redirects to ftp://"),
        ("http://[bad/", "not a URL"),
    ],
)
def test_redirects_to_where_no_source_may_be_are_refused(
    http_server: HttpServer, to: str, words: str
) -> None:
    url = redirect(http_server, "/a", to)
    with pytest.raises(SourceError, match=words):
        open_source(url, limits=Limits(connect_timeout_seconds=0.5, retries=0))


def test_credentials_go_only_to_the_host_that_they_are_for(http_server: HttpServer) -> None:
    with HttpServer() as other:
        other.put("/model.bin", BODY)
        redirect(http_server, "/model.bin", other.url + "/model.bin")
        url = http_server.url.replace("http://", "http://user:hun%40ter2@") + "/model.bin"
        assert only_file(url)[1] == BODY
        sent = [request.headers.get("authorization") for request in http_server.requests]
        assert set(sent) == {"Basic dXNlcjpodW5AdGVyMg=="}
        assert not any("authorization" in request.headers for request in other.requests)


def test_a_token_is_sent_as_a_bearer(http_server: HttpServer) -> None:
    url = http_server.put("/model.bin", BODY)
    assert only_file(url, credentials={"token": "hf_secret"})[1] == BODY
    assert {r.headers["authorization"] for r in http_server.requests} == {"Bearer hf_secret"}


# --- Pins and streams -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "ranged", "pinned"),
    [
        ({}, True, True),
        ({"etag": ""}, True, True),  # by time and length
        ({"etag": 'W/"weak"'}, True, True),  # a weak ETag promises nothing; the time does
        ({"etag": 'W/"weak"', "last_modified": ""}, False, False),
        ({"etag": "", "last_modified": ""}, False, False),
        ({"ranges": False}, False, True),
        ({"ranges": False, "etag": "", "last_modified": ""}, False, False),
        ({"ranges": False, "chunked": True}, False, False),
    ],
)
def test_what_can_be_pinned_is_read_in_ranges_and_the_rest_as_one_stream(
    http_server: HttpServer, how: dict[str, Any], ranged: bool, pinned: bool
) -> None:
    url = http_server.put("/model.bin", BODY, **how)
    first, body = only_file(url)
    again, _ = only_file(url)
    assert body == BODY
    assert (first.ranged is not None, first.pin == again.pin) == (ranged, pinned)
    assert first.size_bytes == (None if how.get("chunked") else len(BODY))


def test_a_time_that_is_only_seconds_old_pins_nothing(http_server: HttpServer) -> None:
    url = http_server.put("/model.bin", BODY, etag="", last_modified=formatdate(usegmt=True))
    file, body = only_file(url)
    assert file.ranged is None and body == BODY


def test_a_change_is_noticed_by_the_time_alone(http_server: HttpServer) -> None:
    url = http_server.put("/model.bin", BODY, etag="")
    with closing(open_source(url, limits=LIMITS)) as source:
        (file,) = source.entries()
        assert isinstance(file, SourceFile)
        http_server.put("/model.bin", BODY, etag="", made=1_700_000_001.0)
        with pytest.raises(SourceChanged, match="Last-Modified"):
            read(file)


def test_a_broken_stream_goes_on_where_it_was_if_the_version_can_be_told(http_server: HttpServer) -> None:
    url = http_server.put("/model.bin", BODY, ranges=False)
    broken = Fault(faults.truncated(150_000), spare=1, times=2)
    http_server.faults.append(broken)
    assert only_file(url)[1] == BODY
    assert broken.fired == 2


def test_a_broken_stream_of_another_version_fails(http_server: HttpServer) -> None:
    url = http_server.put("/model.bin", BODY, ranges=False)
    with closing(open_source(url, limits=LIMITS)) as source:
        (file,) = source.entries()
        assert isinstance(file, SourceFile)
        http_server.faults.append(Fault(faults.truncated(150_000), times=1))
        http_server.faults.append(
            Fault(
                lambda request, reply: http_server.put("/model.bin", BODY[::-1], ranges=False) and None,
                times=1,
            )
        )
        with pytest.raises(SourceChanged, match="its ETag is another one"):
            read(file)


@pytest.mark.parametrize("how", [{"etag": "", "last_modified": ""}, {"chunked": True}])
def test_a_broken_stream_that_cannot_be_resumed_fails(http_server: HttpServer, how: dict[str, Any]) -> None:
    url = http_server.put("/model.bin", BODY, ranges=False, **how)
    broken = Fault(faults.truncated(150_000), spare=1)
    http_server.faults.append(broken)
    with pytest.raises(SourceUnavailable, match="no means to go on"):
        only_file(url)
    assert broken.fired == 1


def test_a_stream_of_unknown_length_is_bounded_by_its_reader_and_its_archive(
    http_server: HttpServer, tmp_path: Path
) -> None:
    body = maker.tarred({"a": BODY})
    url = http_server.put("/model.tar", body, ranges=False, chunked=True)
    assert only_file(url, spool=str(tmp_path))[1] == BODY
    with pytest.raises(SourceTooLarge, match="more than the 100,000"):
        open_source(url, spool=str(tmp_path), limits=Limits(max_bytes=100_000))


def test_a_zip_without_ranges_is_fetched_first(http_server: HttpServer, tmp_path: Path) -> None:
    url = http_server.put("/model.zip", maker.zipped({"a": BODY}), ranges=False)
    assert only_file(url, spool=str(tmp_path))[1] == BODY
    assert only_file(url)[1] == BODY  # without a spool directory: in a temporary one


def test_a_remote_zip_is_read_without_fetching_what_is_not_wanted(http_server: HttpServer) -> None:
    tree = {"big.bin": maker.noise("big", 9_000_000), "small.txt": b"small"}
    url = http_server.put("/model.zip", maker.zipped(tree))
    with closing(open_source(url)) as source:
        files = {entry.path: entry for entry in source.entries()}
        small = files[b"small.txt"]
        assert isinstance(small, SourceFile) and read(small) == b"small"
    ranges = [request.headers["range"].removeprefix("bytes=").split("-") for request in http_server.requests]
    assert sum(int(last) - int(first) + 1 for first, last in ranges) < 4_000_000


# --- What is refused --------------------------------------------------------------------------------


def test_a_web_page_is_not_a_model(http_server: HttpServer) -> None:
    page = b"\n <!DOCTYPE HTML><html>log in</html>" + b" " * 2000
    for path, kind in (
        ("/model.bin", "text/html; charset=utf-8"),
        ("/x.safetensors", "application/octet-stream"),
    ):
        url = http_server.put(path, page, content_type=kind)
        with pytest.raises(SourceCorrupt, match="answers with a web page, not a file"):
            open_source(url, limits=LIMITS)
    url = http_server.put("/card.html", page, content_type="text/html")
    assert only_file(url)[1] == page


def test_an_empty_file_is_an_empty_source(http_server: HttpServer) -> None:
    for ranges in (True, False):
        url = http_server.put("/model.bin", b"", ranges=ranges)
        with pytest.raises(SourceNotFound, match="is empty"):
            open_source(url, limits=LIMITS)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, SourceNotFound),
        (410, SourceNotFound),
        (401, SourceDenied),
        (403, SourceDenied),
        (418, SourceError),
    ],
)
def test_the_usual_refusals(http_server: HttpServer, status: int, error: type[SourceError]) -> None:
    http_server.faults.append(Fault(faults.status(status)))
    with pytest.raises(error, match=str(status)):
        open_source(http_server.url + "/model.bin", limits=LIMITS)


def test_an_answer_that_is_compressed_on_the_way_is_refused(http_server: HttpServer) -> None:
    url = http_server.put("/model.bin", maker.gzipped(BODY), headers={"Content-Encoding": "gzip"})
    with pytest.raises(SourceCorrupt, match="compresses its answer"):
        open_source(url, limits=LIMITS)
    # Servers also say so of .gz files, and then the bytes are the file.
    url = http_server.put("/model.bin.gz", maker.gzipped(BODY), headers={"Content-Encoding": "gzip"})
    assert only_file(url)[1] == BODY


def test_an_answer_without_an_end_is_refused(http_server: HttpServer) -> None:
    url = http_server.put("/model.bin", BODY, ranges=False, headers={"Connection": "close"})
    unended = Fault(lambda request, reply: setattr(reply, "endless", True))
    http_server.faults.append(unended)
    with pytest.raises(SourceRefused, match="cut off could not be noticed"):
        open_source(url, limits=LIMITS)
    assert unended.fired


# --- TLS --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    key = path.with_name("key.pem")
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1"
    subprocess.run(
        ["openssl", *options.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", path],
        check=True,
        capture_output=True,
    )
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[HttpServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with HttpServer(tls=context) as server:
        yield server


def test_a_trusted_certificate_is_accepted_and_another_is_not(
    tls_server: HttpServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tls_server.put("/model.bin", BODY)
    with pytest.raises(SourceDenied, match=r"certificate of 127\.0\.0\.1 is not trusted.*SSL_CERT_FILE"):
        open_source(url, limits=LIMITS)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert only_file(url)[1] == BODY


def test_a_cancelled_creation_hangs_up_on_tls_too(
    tls_server: HttpServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    url = tls_server.put("/model.bin", BODY)
    cancelled = threading.Event()
    slow = Limits(read_timeout_seconds=60)
    with closing(open_source(url, cancelled=cancelled.is_set, limits=slow)) as source:
        (file,) = source.entries()
        assert isinstance(file, SourceFile)
        hang = Fault(faults.hang(100_000))
        tls_server.faults.append(hang)
        timer = threading.Timer(0.3, cancelled.set)
        timer.start()
        with pytest.raises(Interrupted):
            read(file)
        timer.join()
        assert hang.fired == 1


def test_an_address_that_no_source_may_be_at_is_refused_behind_a_proxy_too(
    http_server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", http_server.url)
    with pytest.raises(SourceRefused, match="link-local"):
        open_source("http://169.254.169.254/latest/meta-data/", limits=LIMITS)
    assert not http_server.requests


def test_a_redirect_from_https_to_http_is_refused(
    tls_server: HttpServer, http_server: HttpServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    http_server.put("/model.bin", BODY)
    url = redirect(tls_server, "/model.bin", http_server.url + "/model.bin")
    with pytest.raises(SourceRefused, match="from https to http"):
        open_source(url, limits=LIMITS)
    other = redirect(http_server, "/up.bin", tls_server.put("/there.bin", BODY))
    assert only_file(other)[1] == BODY


def test_a_proxy_of_the_environment_is_used(http_server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a plain http address a proxy gets the whole URL as its request's target."""
    http_server.put("/model.bin", BODY)
    monkeypatch.setenv("http_proxy", http_server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    assert only_file("http://models.example/model.bin")[1] == BODY
    assert {request.target for request in http_server.requests} == {"http://models.example/model.bin"}
