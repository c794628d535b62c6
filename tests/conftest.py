"""What tests of every kind share: a real object store, and a real HTTP server that can misbehave."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ckptfs.testing.httpserver import HttpServer
from ckptfs.testing.radosgw import Bucket, Radosgw


@pytest.fixture(scope="session")
def radosgw() -> Iterator[Radosgw]:
    """One cluster for the whole run. Where its packages are missing this fails and says what to install."""
    with Radosgw() as cluster:
        yield cluster


@pytest.fixture
def bucket(radosgw: Radosgw) -> Bucket:
    """An empty bucket of this test's own."""
    return radosgw.bucket()


@pytest.fixture
def http_server() -> Iterator[HttpServer]:
    with HttpServer() as server:
        yield server
