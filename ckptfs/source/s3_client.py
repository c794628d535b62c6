"""boto3, for everything but bytes: listing, looking at one object, signing URLs. Its errors become ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import botocore.exceptions

from ckptfs.errors import (
    CkptfsError,
    SourceDenied,
    SourceError,
    SourceNotFound,
    SourceUnavailable,
    SpecificationError,
)
from ckptfs.model.names import show_path
from ckptfs.source.limits import Opening

#: How long a signature holds. Reads use one for at most half of it, then sign anew.
SIGNATURE_SECONDS = 3600

T = TypeVar("T")


class S3Client:
    """One bucket of one endpoint. Safe to use from many threads, as boto3's clients are."""

    def __init__(self, opening: Opening, boto: Any, bucket: str, endpoint_url: str) -> None:
        self._opening = opening
        self._boto = boto
        self.bucket = bucket
        self._endpoint_url = endpoint_url

    def label(self, key: str) -> str:
        """How messages name an object; the endpoint too when it is not Amazon's."""
        text = f"s3://{show_path(f'{self.bucket}/{key}'.encode('utf-8', 'surrogateescape'))}"
        return f"{text} at {self._endpoint_url}" if self._endpoint_url else text

    def head(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self._call(key, lambda: self._boto.head_object(Bucket=self.bucket, Key=key))
        return found

    def pages(self, prefix: str, most: int = 0) -> Iterator[list[dict[str, Any]]]:
        """Pages of the listing below a prefix that hold anything; ``most`` bounds the page's size."""
        arguments: dict[str, Any] = {"Bucket": self.bucket, "Prefix": prefix}
        if most:
            arguments["MaxKeys"] = most
        while True:
            self._opening.check_cancelled()
            page: dict[str, Any] = self._call(prefix, lambda: self._boto.list_objects_v2(**arguments))
            if page.get("Contents"):
                yield page["Contents"]
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or most:
                return
            if not token or token == arguments.get("ContinuationToken"):
                raise SourceError(f"{self.label(prefix)}: the listing goes round in circles")
            arguments["ContinuationToken"] = token

    def sign(self, key: str, version: str) -> tuple[str, float]:
        """A URL that reads one object, and the monotonic time until which to use it."""
        parameters = {"Bucket": self.bucket, "Key": key}
        if version:
            parameters["VersionId"] = version
        url: str = self._call(
            key,
            lambda: self._boto.generate_presigned_url(
                "get_object", Params=parameters, ExpiresIn=SIGNATURE_SECONDS, HttpMethod="GET"
            ),
        )
        return url, time.monotonic() + SIGNATURE_SECONDS / 2

    def close(self) -> None:
        self._boto.close()

    def _call(self, key: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except botocore.exceptions.ClientError as error:
            raise self._refused(error, key) from None
        except (botocore.exceptions.BotoCoreError, RecursionError, ValueError) as error:
            raise self._foreign(error, key) from None

    def _refused(self, error: botocore.exceptions.ClientError, key: str) -> CkptfsError:
        code = str(error.response.get("Error", {}).get("Code", ""))[:64]
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        label = self.label(key)
        said = f"the store answered {status} {code}".strip()
        if code == "NoSuchBucket":
            return SourceNotFound(
                f"there is no bucket {self.bucket!r} ({label}); check the name and the endpoint"
            )
        if status == 404:
            return SourceNotFound(f"{label} does not exist")
        if status in (401, 403) or code in _DENIED:
            return SourceDenied(
                f"{label}: access denied ({said}); check the credentials and that they may list and read"
            )
        if status in (301, 307, 400):
            return SourceError(
                f"{label}: {said}; the bucket is likely in another region or at another endpoint: "
                "set the source options region or endpoint_url"
            )
        if status >= 500 or status == 429:
            return SourceUnavailable(f"{label}: {said}; try again later")
        return SourceError(f"{label}: {said}, which ckptfs cannot use")

    def _foreign(self, error: Exception, key: str) -> CkptfsError:
        label = self.label(key)
        if isinstance(error, _NO_CREDENTIALS):
            return SourceDenied(
                f"{label}: no usable credentials; give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the "
                "environment, a profile, or the source option anonymous=true for a public bucket"
            )
        if isinstance(error, botocore.exceptions.SSLError):
            return SourceDenied(f"{label}: the endpoint's certificate is not trusted; set AWS_CA_BUNDLE")
        if isinstance(error, botocore.exceptions.HTTPClientError | botocore.exceptions.ConnectionError):
            return SourceUnavailable(
                f"{label}: the endpoint does not answer; check endpoint_url and the network"
            )
        if isinstance(error, botocore.exceptions.ParamValidationError | ValueError):
            return SpecificationError("source_uri", f"{label}: not a valid bucket, key or endpoint")
        return SourceError(
            f"{label}: the endpoint's answer makes no sense ({type(error).__name__}); "
            "is it an S3-compatible store?"
        )


_DENIED = frozenset(
    {
        "AccessDenied",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    }
)
_NO_CREDENTIALS = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.TokenRetrievalError,
)
