"""What the caller's process adds to a request: absolute paths, S3 credentials, region, endpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptfs.client import origin
from ckptfs.errors import SpecificationError
from ckptfs.model.records import CreateRequest

KEYS = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK"}


def request(
    uri: str = "s3://bucket/x/", environment: dict[str, str] | None = None, **more: object
) -> CreateRequest:
    return origin.create_request(name="x", source_uri=uri, environment=environment or {}, **more)  # type: ignore[arg-type]


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert request("model").source_uri == f"{tmp_path}/model"
    assert request("./model/").source_uri == f"{tmp_path}/model"
    assert request("/data//model").source_uri == "/data/model"
    assert request("model", source_type="local").source_uri == f"{tmp_path}/model"
    assert request("file:///data/a%20b").source_uri == "/data/a b"


def test_a_path_through_a_link_is_followed_before_going_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/deep")
    monkeypatch.chdir(tmp_path)
    assert request("link/../model").source_uri == os.path.realpath(tmp_path / "far" / "model")


@pytest.mark.parametrize("uri", ["s3://bucket/x/", "https://host/x.tar", "http://host/a/../b"])
def test_other_sources_stay_as_they_are(uri: str) -> None:
    assert request(uri).source_uri == uri


def test_an_empty_source_and_a_bad_name_are_refused_before_anything_is_asked() -> None:
    with pytest.raises(SpecificationError) as caught:
        request("")
    assert caught.value.attribute == "source_uri"
    with pytest.raises(SpecificationError):
        origin.create_request(name="a/b", source_uri="/x")


def test_the_environment_gives_credentials() -> None:
    environment = {**KEYS, "AWS_SESSION_TOKEN": "T", "AWS_REGION": "eu-1", "AWS_ENDPOINT_URL": "http://s3:1"}
    made = request(environment=environment)
    assert made.credentials == {"access_key_id": "AK", "secret_access_key": "SK", "session_token": "T"}
    assert made.source_options == {"region": "eu-1", "endpoint_url": "http://s3:1"}


def test_what_is_asked_for_wins_over_the_environment() -> None:
    environment = {**KEYS, "AWS_REGION": "eu-1", "AWS_ENDPOINT_URL": "http://s3:1"}
    made = request(environment=environment, source_options={"endpoint_url": "http://mine", "region": "us-2"})
    assert made.source_options == {"endpoint_url": "http://mine", "region": "us-2"}
    assert request(environment=environment, credentials={}).credentials == {}
    given = {"access_key_id": "other", "secret_access_key": "one"}
    assert request(environment=environment, credentials=given).credentials == given
    assert request(environment=environment, source_options={"anonymous": "true"}).credentials == {}


@pytest.mark.parametrize("uri", ["/data/model", "https://host/model.zip"])
def test_credentials_go_to_s3_only(uri: str) -> None:
    made = request(uri, environment={**KEYS, "AWS_REGION": "eu-1"})
    assert (made.credentials, made.source_options) == ({}, {})


def test_the_endpoint_of_the_environment_is_not_that_of_wasabi() -> None:
    made = request(environment={**KEYS, "AWS_ENDPOINT_URL": "http://s3:1"}, source_type="wasabi")
    assert made.credentials["access_key_id"] == "AK"
    assert "endpoint_url" not in made.source_options


@pytest.fixture
def aws_home(tmp_path: Path) -> dict[str, str]:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = D\naws_secret_access_key = DS\n"
        "[team]\naws_access_key_id = TK\naws_secret_access_key = T%S\naws_session_token = TT\n"
        "[half]\naws_access_key_id = H\n"
    )
    (tmp_path / ".aws" / "config").write_text(
        "[default]\nregion = eu-9\n[profile team]\nregion = us-9\nendpoint_url = http://team:9\n"
    )
    return {"HOME": str(tmp_path)}


def test_the_shared_files_give_credentials(aws_home: dict[str, str]) -> None:
    made = request(environment=aws_home)
    assert made.credentials == {"access_key_id": "D", "secret_access_key": "DS"}
    assert made.source_options == {"region": "eu-9"}
    team = request(environment={**aws_home, "AWS_PROFILE": "team"})
    assert team.credentials == {"access_key_id": "TK", "secret_access_key": "T%S", "session_token": "TT"}
    assert team.source_options == {"region": "us-9", "endpoint_url": "http://team:9"}


def test_a_profile_that_is_asked_for_wins_over_the_environment(aws_home: dict[str, str]) -> None:
    made = request(environment={**aws_home, **KEYS}, source_options={"profile": "team"})
    assert made.credentials["access_key_id"] == "TK"
    assert "profile" not in made.source_options


def test_a_profile_that_only_the_daemon_knows_is_left_to_it(aws_home: dict[str, str]) -> None:
    for profile in ("nobody", "half"):
        made = request(environment=aws_home, source_options={"profile": profile})
        assert (made.credentials, made.source_options["profile"]) == ({}, profile)


def test_a_broken_file_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_bytes(b"\xff[[[nothing")
    environment = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")}
    assert request(environment=environment).credentials == {}
