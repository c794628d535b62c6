"""S3 prefixes and objects as sources, against a real store."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest

from ckptfs.errors import (
    SourceCorrupt,
    SourceDenied,
    SourceError,
    SourceNotFound,
    SourceRefused,
    SourceTooLarge,
    SpecificationError,
)
from ckptfs.source.base import Source, SourceDirectory, SourceEntry, SourceFile
from ckptfs.source.open import Limits, open_source
from ckptfs.testing import faults
from ckptfs.testing.faults import Fault
from ckptfs.testing.httpserver import HttpServer, Upstream
from ckptfs.testing.radosgw import Bucket, Radosgw

LIMITS = Limits(connect_timeout_seconds=2, read_timeout_seconds=5, retries=1)


def opened(bucket: Bucket, uri: str, **more: Any) -> Source:
    arguments = {"options": bucket.options, "credentials": bucket.credentials, "limits": LIMITS, **more}
    return open_source(uri, **arguments)


def listed(bucket: Bucket, uri: str, **more: Any) -> dict[bytes, SourceEntry]:
    with closing(opened(bucket, uri, **more)) as source:
        return {entry.path: entry for entry in source.entries()}


def contents(bucket: Bucket, uri: str, **more: Any) -> dict[bytes, bytes]:
    with closing(opened(bucket, uri, **more)) as source:
        return {e.path: read(e) for e in source.entries() if isinstance(e, SourceFile)}


def read(file: SourceFile) -> bytes:
    assert file.ranged is not None
    data = bytearray(file.ranged.size_bytes)
    file.ranged.read_at(0, memoryview(data))
    return bytes(data)


# --- Prefixes and objects ---------------------------------------------------------------------------


def test_a_prefix_an_object_and_a_bucket(bucket: Bucket) -> None:
    for key in ("models/a/1", "models/a/deep/2", "models/ab/3", "models/a.txt", "top"):
        bucket.put(key, key.encode())
    below = {b"1": b"models/a/1", b"deep/2": b"models/a/deep/2"}
    assert contents(bucket, bucket.uri("models/a/")) == below
    assert contents(bucket, bucket.uri("models/a")) == below  # without a slash too
    assert contents(bucket, bucket.uri("models/a.txt")) == {b"a.txt": b"models/a.txt"}
    assert contents(bucket, bucket.uri("top")) == {b"top": b"top"}
    everything = {b"models/a/1", b"models/a/deep/2", b"models/ab/3", b"models/a.txt", b"top"}
    assert set(contents(bucket, bucket.uri())) == everything
    assert set(contents(bucket, f"s3://{bucket.name}")) == everything


def test_an_object_goes_before_a_prefix_of_the_same_name(bucket: Bucket) -> None:
    bucket.put("model", b"object")
    bucket.put("model/part", b"part")
    assert contents(bucket, bucket.uri("model")) == {b"model": b"object"}
    assert contents(bucket, bucket.uri("model/")) == {b"part": b"part"}


ODD_KEYS = (
    "with space",
    "plus+plus",
    "percent%20percent",
    "question?mark#hash",
    "ünïcode ☃ 模型",
    "quote'\"<>&;=",
    "new\nline",
    "esc\x1b[31m",
    "tilde~!*()",
    "back\\slash",
    "a//double",
    "./dot",
    "a/../dots",
)


def test_odd_keys_are_found_and_read(bucket: Bucket) -> None:
    stored = []
    for key in ODD_KEYS:
        try:
            bucket.put("odd/" + key, key.encode())
            stored.append(key)
        except Exception:  # the store itself may not take a control character
            assert not key.isprintable()
    assert contents(bucket, bucket.uri("odd/")) == {key.encode(): key.encode() for key in stored}
    for key in stored:
        if not key.startswith((".", "a/")):
            assert contents(bucket, bucket.uri("odd/" + key)) == {key.encode(): key.encode()}


def test_marker_objects_are_directories(bucket: Bucket) -> None:
    for key in ("m/", "m/empty/", "m/full/", "m/full/file"):
        bucket.put(key, b"x" if key.endswith("file") else b"")
    entries = listed(bucket, bucket.uri("m/"))
    assert entries[b"empty/"] == SourceDirectory(b"empty/")
    assert set(entries) == {b"empty/", b"full/", b"full/file"}


def test_a_marker_that_holds_bytes_is_refused(bucket: Bucket) -> None:
    bucket.put("m/odd/", b"bytes")
    with pytest.raises(SourceRefused, match=r"m/odd/.* holds 5 bytes and its key ends in '/'"):
        opened(bucket, bucket.uri("m/"))


def test_a_listing_of_several_pages_is_complete(bucket: Bucket) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: bucket.put(f"many/{number:04}", b""), range(1030)))
    entries = listed(bucket, bucket.uri("many/"))
    assert sorted(entries) == [b"%04d" % number for number in range(1030)]


def test_limits_hold_while_listing(bucket: Bucket) -> None:
    for number in range(5):
        bucket.put(f"p/{number}", b"1234567890")
    with pytest.raises(SourceTooLarge, match="more than the 45"):
        opened(bucket, bucket.uri("p/"), limits=Limits(max_bytes=45))
    with pytest.raises(SourceTooLarge, match="more than 4 files"):
        opened(bucket, bucket.uri("p/"), limits=Limits(max_entries=4))


def test_an_empty_object_among_others_is_an_empty_file(bucket: Bucket) -> None:
    bucket.put("p/empty", b"")
    bucket.put("p/full", b"x")
    assert contents(bucket, bucket.uri("p/")) == {b"empty": b"", b"full": b"x"}


# --- What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("nothing/here/", "nothing/here/.*holds nothing"),
        ("nothing", "nothing/.*holds nothing.*upper and lower case"),
        ("empty.bin", "empty.bin.* is empty"),
    ],
)
def test_what_is_not_there_is_explained(bucket: Bucket, key: str, words: str) -> None:
    bucket.put("empty.bin", b"")
    with pytest.raises(SourceNotFound, match=words):
        opened(bucket, bucket.uri(key))


def test_a_bucket_that_does_not_exist(bucket: Bucket) -> None:
    for uri in ("s3://no-such-bucket-here/x/", "s3://no-such-bucket-here/x"):
        with pytest.raises(SourceNotFound, match="there is no bucket 'no-such-bucket-here'"):
            opened(bucket, uri)
    with pytest.raises((SpecificationError, SourceError), match="s3://"):
        opened(bucket, "s3://NOT_A_Bucket..Name/x")


def test_access_that_is_denied_is_explained(bucket: Bucket, radosgw: Radosgw) -> None:
    bucket.put("x", b"x")
    stranger = dict(zip(("access_key_id", "secret_access_key"), radosgw.user("stranger"), strict=True))
    wrong = {**bucket.credentials, "secret_access_key": "wrong-secret"}
    unknown = {"access_key_id": "nobody", "secret_access_key": "wrong-secret"}
    for credentials in (stranger, wrong, unknown):
        for key in ("x", "prefix/"):
            with pytest.raises(SourceDenied, match=r"access denied.*credentials") as caught:
                opened(bucket, bucket.uri(key), credentials=credentials)
            assert "wrong-secret" not in str(caught.value)


def test_no_credentials_at_all(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SourceDenied, match=r"no usable credentials; give AWS_ACCESS_KEY_ID.*anonymous=true"):
        opened(bucket, bucket.uri("x"), credentials={})


def test_credentials_of_the_environment_and_a_profile_are_found(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    bucket.put("x", b"x")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with monkeypatch.context() as inside:
        inside.setenv("AWS_ACCESS_KEY_ID", bucket.credentials["access_key_id"])
        inside.setenv("AWS_SECRET_ACCESS_KEY", bucket.credentials["secret_access_key"])
        inside.setenv("AWS_ENDPOINT_URL_S3", bucket.options["endpoint_url"])
        assert contents(bucket, bucket.uri("x"), credentials={}, options={}) == {b"x": b"x"}
    config = tmp_path / "credentials"
    config.write_text(
        f"[mine]\naws_access_key_id={bucket.credentials['access_key_id']}\n"
        f"aws_secret_access_key={bucket.credentials['secret_access_key']}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(config))
    options = {**bucket.options, "profile": "mine"}
    assert contents(bucket, bucket.uri("x"), credentials={}, options=options) == {b"x": b"x"}
    with pytest.raises(SpecificationError, match="no profile 'other'"):
        opened(bucket, bucket.uri("x"), credentials={}, options={**options, "profile": "other"})


def test_a_public_object_is_read_anonymously(bucket: Bucket) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key="public", Body=b"open", ACL="public-read")
    bucket.client.put_bucket_acl(Bucket=bucket.name, ACL="public-read")
    options = {**bucket.options, "anonymous": "true"}
    assert contents(bucket, bucket.uri("public"), credentials={}, options=options) == {b"public": b"open"}
    bucket.client.put_object(Bucket=bucket.name, Key="private", Body=b"closed", ACL="private")
    with pytest.raises(SourceDenied):
        opened(bucket, bucket.uri("private"), credentials={}, options=options)


def test_an_archived_object_is_refused_before_anything_is_fetched(bucket: Bucket) -> None:
    bucket.put("p/cold", b"x")
    with proxied(bucket) as (server, options):

        def freeze(request: Any, reply: Any) -> None:
            reply.body = reply.body.replace(b">STANDARD<", b">DEEP_ARCHIVE<")
            faults.without("content-length")(request, reply)

        frozen = Fault(freeze, when=lambda request: "list-type" in request.target)
        server.faults.append(frozen)
        with pytest.raises(SourceDenied, match=r"p/cold.* is archived \(DEEP_ARCHIVE\).*restore it first"):
            opened(bucket, bucket.uri("p/"), options=options)
        assert frozen.fired


# --- How it is asked --------------------------------------------------------------------------------


@contextmanager
def proxied(bucket: Bucket) -> Iterator[tuple[HttpServer, dict[str, str]]]:
    with HttpServer(Upstream(bucket.options["endpoint_url"])) as server:
        yield server, {"endpoint_url": server.url}


def test_urls_are_signed_for_the_region_where_the_bucket_is(bucket: Bucket) -> None:
    bucket.put("x", b"x")
    with proxied(bucket) as (server, options):
        far = Fault(
            faults.with_headers(x_amz_bucket_region="eu-north-1"),
            when=lambda request: request.method == "HEAD" and request.path == f"/{bucket.name}",
        )
        server.faults.append(far)
        assert contents(bucket, bucket.uri("x"), options=options) == {b"x": b"x"}
        assert far.fired == 1
        gets = [r.target for r in server.requests if "range" in r.headers]
        assert gets and all("eu-north-1" in target for target in gets)
        server.requests.clear()
        options["region"] = "us-east-1"
        assert contents(bucket, bucket.uri("x"), options=options) == {b"x": b"x"}
        assert far.fired == 1  # not asked when it was said


def test_one_signature_serves_many_ranges(bucket: Bucket) -> None:
    bucket.put("x", bytes(1000))
    with (
        proxied(bucket) as (server, options),
        closing(opened(bucket, bucket.uri("x"), options=options)) as source,
    ):
        (file,) = source.entries()
        assert isinstance(file, SourceFile) and file.ranged is not None
        for start in range(0, 1000, 100):
            file.ranged.read_at(start, memoryview(bytearray(100)))
        gets = [r for r in server.requests if "range" in r.headers]
        assert len(gets) >= 10 and len({r.target for r in gets}) == 1
        assert {r.headers["if-match"] for r in gets} == {file.pin.split(":")[1]}


def test_a_server_that_ignores_ranges_gives_an_error_and_no_wrong_bytes(bucket: Bucket) -> None:
    body = bytes(range(250)) * 40
    bucket.put("x.bin", body)
    with proxied(bucket) as (server, options):

        def ignore(request: Any, reply: Any) -> None:
            if reply.status == 206:
                reply.status, reply.body = 200, body
                faults.without("content-range", "content-length")(request, reply)

        with closing(opened(bucket, bucket.uri("x.bin"), options=options)) as source:
            (file,) = source.entries()
            assert isinstance(file, SourceFile) and file.ranged is not None
            server.faults.append(Fault(ignore))
            with pytest.raises(SourceCorrupt, match="ignored the range"):
                file.ranged.read_at(100, memoryview(bytearray(10)))
            assert read(file) == body  # the whole object is what a 200 means


def test_pins_follow_the_content(bucket: Bucket) -> None:
    pins = []
    for body in (b"one", b"one", b"two"):
        bucket.put("p/x", body)
        (entry,) = listed(bucket, bucket.uri("p/")).values()
        assert isinstance(entry, SourceFile)
        pins.append(entry.pin)
        (single,) = listed(bucket, bucket.uri("p/x")).values()
        assert isinstance(single, SourceFile) and single.pin == entry.pin
    assert pins[0] == pins[1] != pins[2]
