"""A real S3-compatible store for tests: Ceph's radosgw on loopback.

One monitor, one memory-backed OSD and one gateway, each a process of this object's own, in a directory
and on ports of their own, so that several clusters run beside each other. It takes one or two seconds
to start. It holds everything in memory and is stopped with SIGKILL: there is nothing to keep.

Debian packages: radosgw ceph-mon ceph-osd ceph-common (without recommends).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Any

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph")
ACCESS_KEY = "CKPTFSTESTACCESSKEY"
SECRET_KEY = "ckptfs-test-secret-key-0123456789"

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port}]
auth cluster required = none
auth service required = none
auth client required = none
# Without authentication the secure mode of the messenger would wait for keys for ever.
ms mon client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
ms cluster mode = crc
ms service mode = crc
ms client mode = crc
ms bind ipv6 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
paxos propose interval = 0.05
mon allow pool size one = true
mon warn on pool no redundancy = false
mon osd down out interval = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = {memory_bytes}
osd max object name len = 4096
osd max object namespace len = 256
mon data = {directory}/mon
osd data = {directory}/osd
run dir = {directory}
admin socket = {directory}/$name.asok
log file = {directory}/$name.log
mon cluster log file = {directory}/cluster.log
debug default = 0
pid file = {directory}/$name.pid
[client.rgw]
# Without tcp_nodelay every GET on a kept connection takes 41 ms more.
rgw frontends = beast endpoint=127.0.0.1:{s3_port} tcp_nodelay=1
rgw dns name = localhost
rgw thread pool size = 64
rgw gc obj min wait = 0
rgw enable usage log = false
"""


class RadosgwError(RuntimeError):
    pass


class Radosgw:
    """A running cluster; use it as a context manager.

    ``endpoint_url``, ``access_key`` and ``secret_key`` are what a client needs.
    """

    def __init__(self, *, memory_bytes: int = 6 << 30, timeout_seconds: float = 60.0) -> None:
        self.access_key = ACCESS_KEY
        self.secret_key = SECRET_KEY
        self._memory_bytes = memory_bytes
        self._deadline_seconds = timeout_seconds
        self._processes: list[subprocess.Popen[bytes]] = []
        self._directory: Path | None = None
        self.endpoint_url = ""
        self.pids: list[int] = []

    def __enter__(self) -> Radosgw:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def client(self) -> Any:
        """A boto3 client of the cluster's user, for filling buckets."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def bucket(self, *, versioned: bool = False) -> Bucket:
        """A new, empty bucket."""
        return Bucket(self, f"test-{secrets.token_hex(6)}", versioned)

    # --- Life ------------------------------------------------------------------------------------

    def start(self) -> None:
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        if missing:
            raise RadosgwError(
                f"the tests' object store needs {', '.join(missing)}: "
                "run scripts/install test (packages radosgw ceph-mon ceph-osd ceph-common)"
            )
        self._directory = Path(tempfile.mkdtemp(prefix="ckptfs-radosgw-"))
        try:
            self._start_in(self._directory)
        except BaseException:
            self.stop()
            raise

    def _start_in(self, directory: Path) -> None:
        until = time.monotonic() + self._deadline_seconds
        fsid = "6f3c0a52-8f0e-4b5e-9a53-2b0c6ac0ffee"
        with _free_port() as mon, _free_port() as s3:
            mon_port, s3_port = _port(mon), _port(s3)
        (directory / "ceph.conf").write_text(
            _CONFIGURATION.format(
                fsid=fsid,
                directory=directory,
                mon_port=mon_port,
                s3_port=s3_port,
                memory_bytes=self._memory_bytes,
            )
        )
        monmap = str(directory / "monmap")
        address = f"[v2:127.0.0.1:{mon_port}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap, until=until)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, until=until)
        self._spawn("ceph-mon", "-i", "a", "-f")
        self._run("ceph", "osd", "new", _OSD, until=until)
        (directory / "osd").mkdir()
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", _OSD, until=until)
        self._spawn("ceph-osd", "-i", "0", "-f")
        self._spawn("radosgw", "-n", "client.rgw", "-f")
        self._run(
            "radosgw-admin",
            "user",
            "create",
            "--uid=test",
            "--display-name=test",
            f"--access-key={self.access_key}",
            f"--secret-key={self.secret_key}",
            until=until,
        )
        self.endpoint_url = f"http://127.0.0.1:{s3_port}"
        self._wait_until_serving(until)

    def _wait_until_serving(self, until: float) -> None:
        while True:
            self._check_alive()
            try:
                with urllib.request.urlopen(self.endpoint_url, timeout=5):
                    return
            except urllib.error.HTTPError:
                return
            except OSError as error:
                if time.monotonic() > until:
                    raise RadosgwError(
                        f"the gateway did not begin to serve: {error}\n{self.logs()}"
                    ) from error
            time.sleep(0.02)

    def user(self, uid: str) -> tuple[str, str]:
        """Make another user, who owns nothing. Returns its access key and secret key."""
        out = self._run(
            "radosgw-admin",
            "user",
            "create",
            f"--uid={uid}",
            f"--display-name={uid}",
            until=time.monotonic() + self._deadline_seconds,
        )
        keys = json.loads(out)["keys"][0]
        return keys["access_key"], keys["secret_key"]

    def stop(self) -> None:
        """Kill the processes that this object started, and remove its directory."""
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
        self._processes.clear()
        self.pids.clear()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def logs(self) -> str:
        """The ends of the processes' outputs."""
        if self._directory is None:
            return ""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in sorted(self._directory.glob("*.out"))
        )

    # --- Processes -------------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        assert self._directory is not None
        return {**os.environ, "CEPH_CONF": str(self._directory / "ceph.conf"), "CEPH_ARGS": ""}

    def _spawn(self, *command: str) -> None:
        assert self._directory is not None
        # Should the test run itself be killed, the kernel ends its servers too.
        tied = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
        with self._output(f"{command[0]}.out") as out:
            process = subprocess.Popen(
                [*tied, *command], env=self._environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        self._processes.append(process)
        self.pids.append(process.pid)

    def _run(self, *command: str, until: float) -> bytes:
        """Run a command to its end; it waits for the monitor by itself."""
        self._check_alive()
        with self._output("commands.out") as errors:
            try:
                done = subprocess.run(
                    command,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    timeout=max(1.0, until - time.monotonic()),
                    check=True,
                )
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                raise RadosgwError(f"{' '.join(command[:3])}: {error}\n{self.logs()}") from error
        return done.stdout

    def _output(self, name: str) -> IO[bytes]:
        assert self._directory is not None
        return open(self._directory / name, "ab")

    def _check_alive(self) -> None:
        for process in self._processes:
            if process.poll() is not None:
                raise RadosgwError(f"{process.args!r} ended with {process.returncode}\n{self.logs()}")


class Bucket:
    """A bucket of a cluster, and what a source needs to read it."""

    def __init__(self, cluster: Radosgw, name: str, versioned: bool) -> None:
        self.name = name
        self.client = cluster.client()
        self.options = {"endpoint_url": cluster.endpoint_url}
        self.credentials = {
            "access_key_id": cluster.access_key,
            "secret_access_key": cluster.secret_key,
        }
        self.client.create_bucket(Bucket=name)
        if versioned:
            self.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})

    def put(self, key: str, body: bytes) -> str:
        """Store an object; returns its URI."""
        self.client.put_object(Bucket=self.name, Key=key, Body=body)
        return self.uri(key)

    def uri(self, key: str = "") -> str:
        return f"s3://{self.name}/{key}"


_OSD = "0a1b2c3d-0000-4000-8000-0123456789ab"


def _free_port() -> socket.socket:
    """A bound loopback socket; the port is free again (to us first) when it is closed."""
    return socket.create_server(("127.0.0.1", 0))


def _port(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port
