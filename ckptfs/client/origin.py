"""What only the caller knows of a source: its working directory and its AWS environment.

The daemon runs elsewhere, as somebody else. So a relative path is made absolute here, and the
caller's S3 credentials travel in the body of the request: never in an argument list, never shown.
They come from where the AWS tools look first: the environment, then the shared credentials file
(https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html). Where the caller has none, the
daemon's own (its environment, files, instance role) count.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal
from urllib.parse import unquote, urlsplit

from ckptfs.errors import SpecificationError
from ckptfs.model.names import check_checkpoint_name
from ckptfs.model.records import CreateRequest

_S3_TYPES = {"s3", "aws", "wasabi"}

_KEYS = {
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
}


def create_request(
    *,
    name: str,
    source_uri: str,
    source_type: str = "",
    source_options: Mapping[str, str] | None = None,
    extract: Literal["auto", "yes", "no"] = "auto",
    credentials: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> CreateRequest:
    """Complete a request with what the caller's process knows.

    ``credentials`` None: those of the environment, for a source in S3; empty: none at all.
    """
    environment = os.environ if environment is None else environment
    if not source_uri:
        raise SpecificationError("source_uri", "the source is empty")
    options = {str(k): str(v) for k, v in (source_options or {}).items()}
    given = dict(credentials or {})
    if is_s3(source_uri, source_type):
        profile = options.get("profile") or environment.get("AWS_PROFILE") or "default"
        if credentials is None and options.get("anonymous", "").lower() not in ("true", "yes", "1"):
            given = _credentials(environment, options, profile)
        _fill_options(environment, options, profile, own_endpoint=source_type != "wasabi")
    return CreateRequest(
        name=check_checkpoint_name(name),
        source_uri=absolute(source_uri, source_type),
        source_type=source_type,
        source_options=options,
        extract=extract,
        credentials=given,
    )


def is_s3(source_uri: str, source_type: str) -> bool:
    return source_type in _S3_TYPES or (not source_type and source_uri.startswith("s3://"))


def absolute(source_uri: str, source_type: str) -> str:
    """The source as the daemon can find it: a local path is made absolute."""
    if source_type not in ("", "local"):
        return source_uri
    if source_uri.startswith("file://"):
        return unquote(urlsplit(source_uri).path, errors="surrogateescape")
    if "://" in source_uri and not source_type:
        return source_uri
    if ".." in source_uri.split("/"):
        return os.path.realpath(source_uri)  # a/../b is not b where a is a symbolic link
    return os.path.abspath(source_uri)


def _credentials(environment: Mapping[str, str], options: dict[str, str], profile: str) -> dict[str, str]:
    if not options.get("profile"):
        found = {key: environment[name] for key, name in _KEYS.items() if environment.get(name)}
        if "access_key_id" in found and "secret_access_key" in found:
            return found
    path = environment.get("AWS_SHARED_CREDENTIALS_FILE") or _home(environment, "credentials")
    section = _section(path, profile)
    found = {key: section[name.lower()] for key, name in _KEYS.items() if section.get(name.lower())}
    if "access_key_id" not in found or "secret_access_key" not in found:
        return {}
    options.pop("profile", None)  # resolved: it is the caller's, not one that the daemon knows
    return found


def _fill_options(
    environment: Mapping[str, str], options: dict[str, str], profile: str, *, own_endpoint: bool
) -> None:
    """Endpoint and region, where the caller's environment or configuration file has them."""
    path = environment.get("AWS_CONFIG_FILE") or _home(environment, "config")
    section = _section(path, profile if profile == "default" else f"profile {profile}")
    endpoint = (
        environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
        or section.get("endpoint_url")
    )
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or section.get("region")
    if endpoint and own_endpoint:  # wasabi has its own
        options.setdefault("endpoint_url", endpoint)
    if region:
        options.setdefault("region", region)


def _home(environment: Mapping[str, str], name: str) -> str:
    home = environment.get("HOME")
    return os.path.join(home, ".aws", name) if home else ""


def _section(path: str, name: str) -> dict[str, str]:
    """One section of an AWS file; empty when there is no such file or section."""
    if not path:
        return {}
    import configparser  # only for S3

    parser = configparser.RawConfigParser(strict=False)
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            parser.read_file(file)
        return dict(parser.items(name))
    except (OSError, UnicodeDecodeError, configparser.Error):
        return {}
