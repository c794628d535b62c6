"""What can be said about an S3 source (``--source-option``): ``endpoint_url``, ``region``, ``profile``,
``addressing_style`` (``path``, ``virtual``, ``auto``), ``anonymous=true``. Secrets are not options.

A module of its own so that a request can be checked without boto3.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from ckptfs.errors import SpecificationError

OPTIONS = ("endpoint_url", "region", "profile", "addressing_style", "anonymous")
SECRETS = ("access_key_id", "secret_access_key", "session_token")


def check_options(options: Mapping[str, str]) -> None:
    """Raise :class:`~ckptfs.errors.SpecificationError` for an option that S3 does not take."""
    for name, value in options.items():
        if name in SECRETS:
            raise SpecificationError(
                "source_options",
                f"{name} is a secret and not an option: arguments are seen by everybody on the machine; "
                f"set AWS_{name.upper()} in the environment",
            )
        if name not in OPTIONS:
            raise SpecificationError(
                "source_options", f"an S3 source has no option {name!r}; it has {', '.join(OPTIONS)}"
            )
        if name == "addressing_style" and value not in ("path", "virtual", "auto"):
            raise SpecificationError(
                "source_options", f"addressing_style is path, virtual or auto, not {value!r}"
            )
        if name == "anonymous" and value.lower() not in ("true", "false"):
            raise SpecificationError("source_options", f"anonymous is true or false, not {value!r}")
        if name == "endpoint_url":
            _check_endpoint(value)


def _check_endpoint(value: str) -> None:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise SpecificationError(
            "source_options", "endpoint_url is http(s)://host or http(s)://host:port, without credentials"
        )
