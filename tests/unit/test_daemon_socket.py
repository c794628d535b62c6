"""The control socket: mode, group, what may be in its place; and what the kernel says of a peer."""

from __future__ import annotations

import grp
import multiprocessing
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ckptfs.errors import ConfigurationError, Conflict
from ckptfsd.control.peer import Peer, Permissions, peer_of
from ckptfsd.listener import ControlSocket

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))
    return connection


def test_it_has_the_mode_and_is_gone_when_closed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "control.sock"
    with ControlSocket(str(path), mode=0o620):
        assert stat.S_IMODE(path.stat().st_mode) == 0o620
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
        connect(path).close()  # answers from the first moment, if late
    assert list(path.parent.iterdir()) == []


@as_root
def test_it_has_the_group(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with ControlSocket(str(path), group="nogroup"):
        assert path.stat().st_gid == grp.getgrnam("nogroup").gr_gid
    with ControlSocket(str(path), group="12345"):
        assert path.stat().st_gid == 12345


def test_an_unknown_group_is_told_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\[control\] socket_group: there is no group 'nosuch'"):
        ControlSocket(str(tmp_path / "s"), group="nosuch")
    assert list(tmp_path.iterdir()) == []


def test_one_that_answers_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with ControlSocket(str(path)):
        with pytest.raises(Conflict, match=r"another process answers there; stop it"):
            ControlSocket(str(path))
        connect(path).close()
    assert not path.exists()


def test_one_that_is_too_busy_to_answer_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(str(path))
        busy.listen(0)
        waiting = []
        while True:  # fill its backlog
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.setblocking(False)
            waiting.append(connection)
            try:
                connection.connect(str(path))
            except BlockingIOError:
                break
        with pytest.raises(Conflict):
            ControlSocket(str(path))
        assert path.exists()
        for connection in waiting:
            connection.close()


def test_one_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    program = f"import socket; s = socket.socket(socket.AF_UNIX); s.bind({str(path)!r}); s.listen()"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert path.is_socket()
    with ControlSocket(str(path)):
        connect(path).close()


@pytest.mark.parametrize("what", ["file", "directory", "link", "datagram"])
def test_what_is_not_a_socket_of_ours_is_never_removed(tmp_path: Path, what: str) -> None:
    path = tmp_path / "s"
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    elif what == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        holder.bind(str(path))
    before = path.lstat()
    with pytest.raises(Conflict):
        ControlSocket(str(path))
    assert path.lstat().st_ino == before.st_ino
    holder.close()


def test_only_its_own_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = ControlSocket(str(path))
    path.unlink()
    with ControlSocket(str(path)):
        first.close()
        first.close()
        connect(path).close()


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"control socket .*/file/s: Not a directory|File exists"):
        ControlSocket(str(tmp_path / "file" / "s"))


def _race(path: str, start: object, results: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    try:
        held = ControlSocket(path)
    except Conflict:
        results.put("refused")  # type: ignore[attr-defined]
    else:
        results.put("bound")  # type: ignore[attr-defined]
        start.wait()  # type: ignore[attr-defined]
        held.close()


def test_of_many_at_once_exactly_one_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(path))  # left over: nobody listens
    racers = 6
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(racers), context.Queue()
    processes = [context.Process(target=_race, args=(str(path), start, results)) for _ in range(racers)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=20) for _ in range(racers)]
    assert sorted(outcomes) == ["bound"] + ["refused"] * (racers - 1)
    start.abort()
    for process in processes:
        process.join()


# --- Peers ----------------------------------------------------------------------------------------


def test_the_kernel_says_who_it_is(tmp_path: Path) -> None:
    with ControlSocket(str(tmp_path / "s")) as listening, connect(tmp_path / "s"):
        accepted, _ = listening.socket.accept()
        peer = peer_of(accepted)
        accepted.close()
    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.geteuid(), os.getegid())
    assert peer.groups == {os.getegid(), *os.getgroups()}


@as_root
@pytest.mark.parametrize("groups", [[], [7], list(range(5000, 5256)), list(range(5000, 5257))])
def test_supplementary_groups_are_the_kernels_not_the_databases(groups: list[int]) -> None:
    # In the abstract namespace: an ordinary user may not enter the test's directory.
    name = f"\0ckptfsd-peer-{os.getpid()}-{len(groups)}"
    program = (
        "import os, socket, sys\n"
        f"os.setgroups({groups!r}); os.setgid(4321); os.setuid(1234)\n"
        f"s = socket.socket(socket.AF_UNIX); s.connect({name!r}); s.recv(1)\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(name)
        listening.listen()
        child = subprocess.Popen([sys.executable, "-c", program])
        accepted, _ = listening.accept()
        peer = peer_of(accepted)
        accepted.close()
        assert child.wait(10) == 0
    assert (peer.pid, peer.uid, peer.gid) == (child.pid, 1234, 4321)
    # More groups than can be asked for give no right, rather than a guess.
    assert peer.groups == ({4321, *groups} if len(groups) <= 256 else {4321})


def test_a_socket_without_a_peer_is_refused() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lonely, pytest.raises(OSError, match="peer"):
        peer_of(lonely)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp, pytest.raises(OSError):
        peer_of(tcp)


@pytest.mark.parametrize(
    ("peer", "admin"),
    [
        (Peer(1, 0, 0, frozenset({0})), True),
        (Peer(1, 990, 990, frozenset({990})), True),
        (Peer(1, 1000, 50, frozenset({50})), True),
        (Peer(1, 1000, 1000, frozenset({1000, 50})), True),
        (Peer(1, 1000, 1000, frozenset({1000})), False),
        (Peer(1, 50, 1000, frozenset({1000})), False),  # a user's number is not a group's
        (Peer(1, 1000, 0, frozenset({0})), False),  # root's group is not root
    ],
)
def test_administrators_are_root_the_daemons_user_and_one_group(peer: Peer, admin: bool) -> None:
    assert Permissions(admin_gid=50, daemon_uid=990).is_admin(peer) is admin


def test_without_an_admin_group_groups_give_no_right() -> None:
    permissions = Permissions(admin_gid=None, daemon_uid=990)
    assert not permissions.is_admin(Peer(1, 1000, 0, frozenset(range(1000))))
    assert not Permissions().is_admin(Peer(1, 1000, 0, frozenset({0})))


@as_root
def test_a_directory_that_may_not_be_written_is_a_matter_of_permission() -> None:
    """In a child that is not root: root may write everywhere."""
    program = (
        "import os\n"
        "from ckptfs.errors import PermissionDenied\nfrom ckptfsd.listener import ControlSocket\n"
        "os.setgid(4321); os.setuid(1234)\n"  # modules first: not every user may read them
        "try:\n    ControlSocket('/usr/ckptfsd-test/s')\nexcept PermissionDenied as e:\n    print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert done.stdout == "control socket /usr/ckptfsd-test/s: Permission denied\n", done.stderr
