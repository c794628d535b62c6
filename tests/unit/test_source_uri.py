"""What the user may write as a source, and that secrets in it are never shown."""

from __future__ import annotations

import pytest

from ckptfs.errors import SpecificationError
from ckptfs.source.open import check_request, public_uri, source_type_of
from ckptfs.source.uri import key_of, parse


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("/models/a", "local"),
        ("file:///models/a", "local"),
        ("/odd/s3:/x", "local"),
        ("s3://bucket", "s3"),
        ("S3://bucket/key", "s3"),
        ("s3://bucket/odd key/ü?#%20//x", "s3"),
        ("http://host/x", "web"),
        ("HTTPS://host:8443/x?y=z", "web"),
    ],
)
def test_the_kind_follows_from_the_uri(uri: str, kind: str) -> None:
    assert parse(uri).kind == kind == source_type_of(uri)


def test_the_words_of_the_service_are_kinds_of_ours() -> None:
    assert parse("s3://b/k", "aws").kind == parse("s3://b/k", "wasabi").kind == "s3"
    assert source_type_of("s3://b/k", "wasabi") == "wasabi"


def test_a_key_is_taken_as_it_is_written() -> None:
    where = parse("s3://bucket/a b/ü?x=1#frag%20//end")
    assert (where.bucket, where.key) == ("bucket", "a b/ü?x=1#frag%20//end")
    assert parse("s3://bucket").key == parse("s3://bucket/").key == ""


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("", "missing"),
        ("a\0b", "missing"),
        ("s3:///key", "s3://bucket/prefix/"),
        ("s3://key:secret@bucket/x", "credentials go elsewhere"),
        ("gs://bucket/x", "gs:// is not a kind of source"),
        ("ftp://host/x", "ftp:// is not a kind of source"),
        ("http://", "names no host"),
        ("http://host:port/x", "not a valid URL"),
        ("http://[::1/x", "not a valid URL"),
    ],
)
def test_what_is_not_understood_is_explained(uri: str, words: str) -> None:
    with pytest.raises(SpecificationError, match=words) as caught:
        parse(uri)
    assert caught.value.attribute == "source_uri"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://user:hunter2@host:1/x?X-Amz-Signature=abc#frag", "https://host:1/x"),
        ("https://user:hun@ter2@host/x", "https://host/x"),
        ("HTTP://u:p@host/%0ax\n", "http://host/%0ax"),
        ("/a/path?with=odd#things", "/a/path?with=odd#things"),
        ("/new\nline\x1b[31m", "/new\\x0aline\\x1b[31m"),
        ("s3://bucket/key?x", "s3://bucket/key?x"),
        ("weird://user:hunter2@host/x", "weird://host/x"),
    ],
)
def test_a_uri_is_shown_without_secrets_and_control_characters(uri: str, shown: str) -> None:
    assert public_uri(uri) == shown


def test_the_key_of_an_address_ignores_signatures_and_nothing_else() -> None:
    base = "https://u:p@host/x?file=1"
    assert key_of(base) == key_of(base + "&X-Amz-Signature=1&X-Amz-Date=2") == key_of(base + "&sig=3&se=4")
    assert key_of(base) != key_of("https://host/x?file=2") != key_of("https://host/x")
    assert key_of("https://host/x?file=1&v=2") == key_of("https://host/x?v=2&file=1")
    assert "file" not in key_of(base)


def test_a_request_is_checked_before_anything_is_opened() -> None:
    check_request("s3://bucket/key", "s3", {"endpoint_url": "https://host:9000", "region": "eu"})
    check_request(
        "s3://bucket/key", "s3", {"anonymous": "true", "addressing_style": "virtual", "profile": "p"}
    )
    for options, words in (
        ({"secret_access_key": "hunter2"}, "set AWS_SECRET_ACCESS_KEY in the environment"),
        ({"endpoint": "x"}, "no option 'endpoint'; it has endpoint_url"),
        ({"endpoint_url": "host:9000"}, "endpoint_url is http"),
        ({"endpoint_url": "https://user:hunter2@host"}, "without credentials"),
        ({"anonymous": "maybe"}, "true or false"),
        ({"addressing_style": "odd"}, "path, virtual or auto"),
    ):
        with pytest.raises(SpecificationError, match=words) as caught:
            check_request("s3://bucket/key", "", options)
        assert caught.value.attribute == "source_options" and "hunter2" not in str(caught.value)
    with pytest.raises(SpecificationError, match="source type 'aws' does not fit"):
        check_request("/path", "aws")
