"""Connections of one source: pooled, guarded, and torn down when the creation is cancelled.

Every connection looks at the address that it reached before it says a word. So a name that resolves
differently the second time (DNS rebinding) cannot lead a source to a place that it may not read:

- link-local addresses are never allowed: 169.254.169.254 hands out the node's cloud credentials;
- once a source has been at a public address, private and loopback ones are not allowed any more: a
  redirect must not turn a public URL into a probe of the node's own network.

Answers are read with :meth:`Answer.take`: each call puts what one system call brought straight into the
caller's buffer, so no byte is copied and every byte is seen by the pace check.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import logging
import os
import socket
import ssl
import threading
import urllib.request
import weakref
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from ckptfs.errors import ConfigurationError, SourceRefused
from ckptfs.source.limits import Opening

# These libraries log whole URLs and headers, signatures included.
for _name in ("urllib3", "botocore", "boto3"):
    logging.getLogger(_name).setLevel(logging.ERROR)

#: Connections kept open per host: as many as the engine has readers, and some for retries.
POOL_CONNECTIONS = 24
_WATCH_SECONDS = 0.25


class Guard:
    """Which addresses a source may talk to; remembers what it has seen."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._been_public = False

    def check(self, peer: str) -> None:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(peer.split("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if address.is_link_local or address.is_multicast or address in _METADATA:
            raise SourceRefused(
                f"{self._label} leads to {address}, a link-local address where clouds keep their metadata "
                "and credentials; a source may not be there"
            )
        if address.is_global:
            self._been_public = True
        elif self._been_public:
            raise SourceRefused(
                f"{self._label} leads from a public address to {address}, which is private to this node's "
                "network; name that place itself if it is what you want"
            )

    def check_literal(self, host: str) -> None:
        """Behind a proxy only an address that is written as one can be judged."""
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host)
            self.check(host)


_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")))


class Answer(http.client.HTTPResponse):
    """An answer whose body can be read straight into a buffer, one system call at a time."""

    def take(self, buffer: memoryview) -> int:
        """Like ``readinto1``, without the copy that the standard library makes.

        0 at the end of the body, or of a body that was cut short.
        """
        if self.fp is None:
            return 0
        if self.chunked:
            data = self.read1(len(buffer))
            buffer[: len(data)] = data
            return len(data)
        if self.length is not None and len(buffer) > self.length:
            buffer = buffer[: self.length]
        got = self.fp.readinto1(buffer)
        if self.length is not None:
            self.length -= got
        if (not got and len(buffer)) or self.length == 0:
            self._close_conn()  # type: ignore[attr-defined]
        return got


class _Guarded(HTTPConnection):
    response_class = Answer
    guard: Guard | None = None
    through_proxy = False
    remember: Callable[[Any], None] | None = None

    def connect(self) -> None:
        super().connect()
        # An answer with "Connection: close" outlives its connection's hold on the socket.
        if self.remember is not None and self.sock is not None:
            self.remember(self.sock)

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        if self.guard is not None and not self.through_proxy:
            try:
                self.guard.check(sock.getpeername()[0])
            except BaseException:
                sock.close()
                raise
        return sock


class _GuardedTls(_Guarded, HTTPSConnection):
    pass


class Connections:
    """The pooled connections of one source. Closing it ends what is in flight, at once."""

    def __init__(self, opening: Opening, label: str, ca_bundle: str | None = None) -> None:
        self._guard = Guard(label)
        # Connections (one may still be connecting) and sockets (one may be all that is left of it).
        self._live: weakref.WeakSet[HTTPConnection | socket.socket] = weakref.WeakSet()
        self._closed = threading.Event()
        self._watching: threading.Thread | None = None
        self._lock = threading.Lock()
        self._opening = opening
        self._managers: dict[tuple[str, bool], urllib3.PoolManager] = {}
        self._ca_bundle = ca_bundle
        self._timeout = urllib3.Timeout(
            connect=opening.limits.connect_timeout_seconds, read=opening.limits.read_timeout_seconds
        )

    def request(self, method: str, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """One exchange up to the answer's headers. Redirects and retries are the caller's."""
        self._opening.check_cancelled()
        self._watch()
        proxy = _proxy_for(url)
        if proxy:
            self._guard.check_literal(urlsplit(url).hostname or "")
        manager = self._manager(url, proxy)
        how: dict[str, Any] = {
            "headers": headers,
            "preload_content": False,
            "decode_content": False,
            "redirect": False,
            "retries": False,
            "timeout": self._timeout,
        }
        if proxy and url.startswith("http:"):
            return manager.request(method, url, **how)
        # Not manager.request: it would remove "./" and "../" from the path, which an S3 key may hold
        # and which its signature covers.
        pool = manager.connection_from_url(url)
        parts = urlsplit(url)
        return pool.urlopen(method, urlunsplit(("", "", parts.path or "/", parts.query, "")), **how)

    def _manager(self, url: str, proxy: str) -> urllib3.PoolManager:
        plain = url.startswith("http:") and not proxy
        with self._lock:
            manager = self._managers.get((proxy, plain))
            if manager is None:
                # Reading the authorities takes 30 ms: only where TLS is spoken.
                tls = None if plain else _tls_context(self._ca_bundle)
                options: dict[str, Any] = {"maxsize": POOL_CONNECTIONS, "ssl_context": tls}
                manager = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
                manager.pool_classes_by_scheme = {
                    "http": self._pool_class(HTTPConnectionPool, _Guarded, bool(proxy)),
                    "https": self._pool_class(HTTPSConnectionPool, _GuardedTls, bool(proxy)),
                }
                self._managers[proxy, plain] = manager
            return manager

    def _pool_class(self, pool: type[Any], connection: type[_Guarded], through_proxy: bool) -> type[Any]:
        remember = self._remember

        def __init__(this: Any, *args: Any, **kwargs: Any) -> None:
            connection.__init__(this, *args, **kwargs)
            remember(this)

        bound = type(
            connection.__name__,
            (connection,),
            {
                "__init__": __init__,
                "guard": self._guard,
                "through_proxy": through_proxy,
                "remember": staticmethod(remember),
            },
        )
        return type(pool.__name__, (pool,), {"ConnectionCls": bound})

    # --- Ending what is in flight ----------------------------------------------------------------

    def _watch(self) -> None:
        """One thread per source notices a cancellation while readers are blocked in the kernel."""
        with self._lock:
            if self._watching is None and not self._closed.is_set():
                self._watching = threading.Thread(
                    target=_watch_until_closed,
                    args=(self._closed, self._opening.is_over, self._hang_up),
                    name="source-watch",
                    daemon=True,
                )
                self._watching.start()

    def _remember(self, what: HTTPConnection | socket.socket) -> None:
        with self._lock:
            self._live.add(what)

    def _hang_up(self) -> None:
        with self._lock:
            live = list(self._live)
        for what in live:
            sock = what if isinstance(what, socket.socket) else what.sock
            if sock is not None:
                with contextlib.suppress(OSError):  # it was not connected any more
                    # Not SSLSocket.shutdown: it would forget the session, and a read that comes after
                    # it would take ciphertext for content.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        self._opening.ended.set()
        self._closed.set()
        self._hang_up()
        with self._lock:
            for manager in self._managers.values():
                manager.clear()
            watching = self._watching
        if watching is not None and watching is not threading.current_thread():
            watching.join()


def _watch_until_closed(
    closed: threading.Event, is_over: Callable[[], bool], hang_up: Callable[[], None]
) -> None:
    while not closed.wait(_WATCH_SECONDS):
        if is_over():
            hang_up()


def _tls_context(ca_bundle: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except OSError as error:
        raise ConfigurationError(f"the certificates in {ca_bundle!r} cannot be read: {error}") from error


def _proxy_for(url: str) -> str:
    """The proxy that the daemon's environment names for a URL (HTTP_PROXY, HTTPS_PROXY, NO_PROXY)."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if urllib.request.proxy_bypass(host) or _is_loopback(host):
        return ""
    return urllib.request.getproxies().get(parts.scheme, "")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def environment_ca_bundle() -> str | None:
    """The certificate bundle that the S3 tools of the world read from the environment."""
    return os.environ.get("AWS_CA_BUNDLE") or None
