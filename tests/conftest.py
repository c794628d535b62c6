"""What tests of every kind share: a real object store, a real HTTP server that can misbehave, small disks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptfs.testing.disks import MakeDisk, loop_disk
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


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[MakeDisk]:
    """Makes small file systems and answers where they are mounted (ext4, unless a kind is given). As root."""
    with contextlib.ExitStack() as disks:
        made = 0

        def make(size_bytes: int, kind: str = "ext4", *options: str) -> str:
            nonlocal made
            made += 1
            return disks.enter_context(loop_disk(str(tmp_path / f"disk{made}"), size_bytes, kind, *options))

        yield make
