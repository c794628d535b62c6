"""When to try again: errors that may pass, how long to wait, how slow is too slow."""

from __future__ import annotations

import http.client
import random
import re
import socket
import ssl

import urllib3.exceptions

from ckptfs.errors import CkptfsError, SourceDenied, SourceNotFound, SourceUnavailable
from ckptfs.source.limits import Limits, Opening

#: The first pause; each next one is twice as long, up to the largest. A random half of it keeps many
#: readers from coming back at the same instant.
FIRST_PAUSE_SECONDS = 0.2
LARGEST_PAUSE_SECONDS = 20.0
#: What a broken try must have brought not to count.
PROGRESS_BYTES = 1 << 20
#: A server may ask for a longer pause (Retry-After), up to this.
LARGEST_ASKED_PAUSE_SECONDS = 60.0


class Passing(Exception):
    """A failure that may pass. ``reason`` is fit to be shown: it holds no URL and no header."""

    def __init__(self, reason: str, asked_pause_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.asked_pause_seconds = asked_pause_seconds


class Tries:
    """Counts the tries of one operation."""

    def __init__(self, opening: Opening, label: str) -> None:
        self._opening = opening
        self._label = label
        self._failed = 0

    def arrived(self, count_bytes: int) -> None:
        """A try that brought much is no failure of the other side: the count begins anew. Each time
        costs bytes, of which there is an end."""
        if count_bytes >= PROGRESS_BYTES:
            self._failed = 0

    def again(self, failure: Passing) -> None:
        """Wait before the next try; raise when there is none left or the creation was cancelled."""
        self._opening.check_cancelled()
        if self._failed >= self._opening.limits.retries:
            raise SourceUnavailable(
                f"{self._label}: {failure.reason} (after {self._failed + 1} tries); what arrived is kept: "
                "create the checkpoint again when the other side answers"
            )
        pause = min(FIRST_PAUSE_SECONDS * 2**self._failed, LARGEST_PAUSE_SECONDS)
        pause *= 0.5 + random.random() / 2
        self._failed += 1
        self._opening.sleep(max(pause, min(failure.asked_pause_seconds, LARGEST_ASKED_PAUSE_SECONDS)))


class Pace:
    """Finds an answer that drips. Only time spent waiting for bytes counts, not the reader's own."""

    def __init__(self, limits: Limits) -> None:
        self._window_seconds = limits.read_timeout_seconds
        self._least = limits.min_throughput_bytes_per_second
        self._bytes = 0
        self._waited = 0.0

    def add(self, count_bytes: int, waited_seconds: float) -> None:
        self._bytes += count_bytes
        self._waited += waited_seconds
        if self._waited < self._window_seconds:
            return
        if self._bytes < self._least * self._waited:
            rate = self._bytes / self._waited
            raise Passing(f"too slow: {rate:,.0f} bytes per second over {self._waited:.0f} s")
        self._bytes, self._waited = 0, 0.0


def passing(error: Exception, host: str) -> Passing | CkptfsError:
    """Say a foreign network error in our words: one that may pass, or one that will not.

    The foreign text is not used: it may hold the URL with its signature.
    """
    causes = _chain(error)
    for cause in causes:
        if isinstance(cause, CkptfsError):
            return cause
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return SourceDenied(
                f"the certificate of {host} is not trusted: {cause.verify_message}; "
                "install its authority on this node, or set AWS_CA_BUNDLE (S3) or SSL_CERT_FILE"
            )
        if isinstance(cause, socket.gaierror):
            if cause.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
                return SourceNotFound(f"there is no host {host}; check the address")
            return Passing(f"the name {host} cannot be resolved now")
    kinds: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
        # urllib3 has NewConnectionError for a kind of ConnectTimeoutError, though nothing timed out.
        ((ConnectionRefusedError,), f"{host} refuses connections"),
        ((urllib3.exceptions.NewConnectionError,), f"{host} cannot be reached"),
        ((urllib3.exceptions.ConnectTimeoutError,), f"{host} does not answer (connection timed out)"),
        ((urllib3.exceptions.ReadTimeoutError, TimeoutError), f"{host} went silent in mid-way"),
        ((ConnectionError, urllib3.exceptions.ProtocolError), f"{host} broke the connection"),
        ((ssl.SSLError,), f"the TLS connection to {host} failed"),
        ((urllib3.exceptions.ProxyError,), f"the proxy to {host} failed"),
        ((http.client.HTTPException,), f"{host} answered with something that is not HTTP"),
    )
    for kind, reason in kinds:
        if any(isinstance(cause, kind) for cause in causes):
            return Passing(reason)
    return Passing(f"talking to {host} failed ({type(error).__name__})")


#: What a network operation may raise; anything else is a defect of ours and is not retried.
NETWORK_ERRORS = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is None or each in found:
            continue
        found.append(each)
        pending += [each.__cause__, each.__context__]
        pending += [arg for arg in each.args if isinstance(arg, BaseException)]
        reason = getattr(each, "reason", None)
        if isinstance(reason, BaseException):
            pending.append(reason)
    return found


def retry_after_seconds(value: str | None) -> float:
    """The pause that a Retry-After header asks for; 0 when it does not say (or says a date)."""
    return float(value) if value and re.fullmatch(r"\d{1,6}", value.strip()) else 0.0
