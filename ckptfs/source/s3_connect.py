"""From options and credentials to a client of one bucket.

The options are those of s3_options. Secrets come as credentials of the request, or from where boto3 finds
them (environment, profile, instance role).
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.exceptions
import botocore.loaders
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config

from ckptfs.errors import SpecificationError
from ckptfs.source.connection import POOL_CONNECTIONS, Guard, environment_ca_bundle
from ckptfs.source.limits import Opening
from ckptfs.source.s3_client import S3Client
from ckptfs.source.s3_options import check_options

WASABI_ENDPOINT = "https://s3.wasabisys.com"
DEFAULT_REGION = "us-east-1"


def connect(opening: Opening, bucket: str, *, wasabi: bool = False) -> S3Client:
    """A client for one bucket, in the region where the bucket is."""
    options = opening.options
    check_options(options)
    endpoint = _endpoint(options, wasabi)
    try:
        session = _session(opening)
        region = options.get("region") or session.region_name or DEFAULT_REGION
        boto = _boto(opening, session, endpoint, region)
        _guard_addresses(boto, f"s3://{bucket} at {boto.meta.endpoint_url}")
        # A caller's environment names a region for all buckets; Amazon knows where this one is.
        if not endpoint or not options.get("region"):
            found = _region_of(boto, bucket)
            if found and found != region:
                boto.close()
                boto = _boto(opening, session, endpoint, found)
    except botocore.exceptions.ProfileNotFound:
        raise SpecificationError(
            "source_options", f"the daemon's user has no profile {options.get('profile')!r}"
        ) from None
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise SpecificationError(
            "source_options", f"these S3 options do not make a client ({type(error).__name__})"
        ) from None
    return S3Client(opening, boto, bucket, endpoint)


def _endpoint(options: Mapping[str, str], wasabi: bool) -> str:
    """The endpoint if it is not Amazon's own; boto3's variables count as they do everywhere."""
    given = options.get("endpoint_url")
    if given or wasabi:
        return given or WASABI_ENDPOINT
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


# What boto3 knows of S3 is the same for all: 0.1 s of JSON that holds the interpreter, and megabytes. (It
# holds no credentials.) Of each path where a profile says that more of it lies there is one.
_models = functools.lru_cache(4)(botocore.loaders.create_loader)


def _session(opening: Opening) -> boto3.Session:
    """One of its own for each source: nothing of one's credentials is another's."""
    credentials = opening.credentials
    core = botocore.session.get_session()
    session = boto3.Session(
        botocore_session=core,
        aws_access_key_id=credentials.get("access_key_id") or None,
        aws_secret_access_key=credentials.get("secret_access_key") or None,
        aws_session_token=credentials.get("session_token") or None,
        profile_name=opening.options.get("profile") or None,
    )
    core.register_component("data_loader", _models(core.get_config_variable("data_path")))
    return session


def _boto(opening: Opening, session: boto3.Session, endpoint: str, region: str) -> Any:
    options, limits = opening.options, opening.limits
    anonymous = options.get("anonymous", "").lower() == "true"
    config = Config(
        signature_version=UNSIGNED if anonymous else "s3v4",
        connect_timeout=limits.connect_timeout_seconds,
        read_timeout=limits.read_timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": limits.retries + 1},
        # Not every store behind an endpoint has a name for each bucket; all take paths.
        s3={"addressing_style": options.get("addressing_style", "path" if endpoint else "auto")},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=POOL_CONNECTIONS,
    )
    return session.client(
        "s3",
        endpoint_url=endpoint or None,
        region_name=region,
        verify=environment_ca_bundle(),
        config=config,
    )


def _region_of(boto: Any, bucket: str) -> str:
    """Where a bucket says that it is, allowed in or not. URLs signed for another region are refused."""
    try:
        answer = boto.head_bucket(Bucket=bucket)
    except botocore.exceptions.ClientError as error:
        answer = error.response
    except (botocore.exceptions.BotoCoreError, RecursionError, ValueError):
        return ""  # the request that follows will say what is wrong
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(headers.get("x-amz-bucket-region", ""))


def _guard_addresses(boto: Any, label: str) -> None:
    """The control requests go through boto3's own connections: check where they lead beforehand."""
    guard = Guard(label)
    parts = urlsplit(boto.meta.endpoint_url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except OSError:
        return  # boto3 will say it
    for address in found:
        guard.check(str(address[4][0]))
