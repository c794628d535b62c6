"""The worker's side of the holder, with the other end of a real socket pair in the test's hands."""

from __future__ import annotations

import base64
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from ckptfs.fuse import init_reply
from ckptfsd.holder import wire
from ckptfsd.worker_link import HolderLink


def init_request() -> bytes:
    body = struct.pack("=IIII", 7, 45, 1 << 20, 0)
    size = init_reply.REQUEST_HEADER.size
    fields = len(init_reply.REQUEST_HEADER.unpack(bytes(size)))
    head = init_reply.REQUEST_HEADER.pack(size + len(body), init_reply.OPCODE_INIT, 2, *[0] * (fields - 3))
    return head + body


INIT = init_request()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, HolderLink]]:
    holder, worker = wire.pair()
    os.set_inheritable(worker.fileno(), True)
    environment = {wire.ENVIRONMENT: str(worker.detach())}
    link = HolderLink.from_environment(environment)
    assert link is not None
    assert environment == {}, "not for children"
    assert not os.get_inheritable(link._peer.fileno())
    with holder, link._peer:
        yield holder, link


async def receive(holder: socket.socket) -> dict[str, Any]:
    """The next message that is not a heartbeat."""
    while True:
        await trio.lowlevel.wait_readable(holder)
        received = wire.receive(holder)
        assert received is not None
        wire.close_all(received[1])
        if received[0]["do"] != "alive":
            return received[0]


def test_without_a_holder_there_is_no_link() -> None:
    assert HolderLink.from_environment({}) is None


async def test_a_file_is_registered_and_freed(
    ends: tuple[socket.socket, HolderLink], nursery: trio.Nursery
) -> None:
    holder, link = ends
    await nursery.start(link.run)

    async def answer() -> None:
        request = await receive(holder)
        assert request["do"] == "open"
        wire.send(holder, {"do": "opened", "id": request["id"], "backing": 41})
        request = await receive(holder)
        wire.send(holder, {"do": "opened", "id": request["id"], "error": errno.ELOOP})

    nursery.start_soon(answer)
    with open("/dev/null") as file:
        assert await link.open(file.fileno()) == 41
        with pytest.raises(OSError) as refused:
            await link.open(file.fileno())
    assert refused.value.errno == errno.ELOOP
    link.close(41)
    assert await receive(holder) == {"do": "close", "backing": 41}
    nursery.cancel_scope.cancel()


async def test_an_id_that_nobody_waits_for_any_more_is_freed(
    ends: tuple[socket.socket, HolderLink], nursery: trio.Nursery
) -> None:
    holder, link = ends
    await nursery.start(link.run)
    with open("/dev/null") as file, trio.CancelScope() as scope:
        async with trio.open_nursery() as inner:
            inner.start_soon(link.open, file.fileno())
            request = await receive(holder)
            scope.cancel()
    wire.send(holder, {"do": "opened", "id": request["id"], "backing": 7})
    assert await receive(holder) == {"do": "close", "backing": 7}
    nursery.cancel_scope.cancel()


async def test_when_the_holder_dies_nobody_waits(
    ends: tuple[socket.socket, HolderLink], nursery: trio.Nursery
) -> None:
    holder, link = ends
    await nursery.start(link.run)

    async def opened() -> None:
        with open("/dev/null") as file, pytest.raises(OSError) as refused:
            await link.open(file.fileno())
        assert refused.value.errno == errno.ENOTCONN

    async with trio.open_nursery() as inner:
        inner.start_soon(opened)
        await receive(holder)
        holder.close()
    assert (await link.orders.receive()).verb == "gone"
    await opened()
    link.ready()  # says it to nobody


@pytest.mark.parametrize("count", [0, 1, 1999, 2000, 2001, 16_384])
async def test_all_ids_in_use_are_told_and_the_last_part_says_so(
    ends: tuple[socket.socket, HolderLink], count: int
) -> None:
    holder, link = ends
    told: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.keep, list(range(1, count + 1)))
        while True:
            message = await receive(holder)
            told += message["backings"]
            if not message["more"]:
                break
    assert told == list(range(1, count + 1))


def test_before_and_between_event_loops_orders_are_waited_for(
    ends: tuple[socket.socket, HolderLink],
) -> None:
    holder, link = ends

    async def inside() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run)
            wire.send(holder, {"do": "pause"})
            assert (await link.orders.receive()).verb == "pause"
            wire.send(holder, {"do": "upgrade_failed", "error": "it died"})
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    link.hello("1")
    wire.send(holder, {"do": "standby"})
    assert link.wait().verb == "standby"
    trio.run(inside)
    assert link.wait().reason == "it died", "taken inside, and not lost"
    wire.send(holder, {"do": "exit"})
    assert link.wait().verb == "exit"
    holder.close()
    assert link.wait().verb == "gone"


async def test_orders_come_in_order_with_their_descriptors(
    ends: tuple[socket.socket, HolderLink], nursery: trio.Nursery
) -> None:
    holder, link = ends
    await nursery.start(link.run)
    facts = {"mount": "/m", "device": "0:7", "init": base64.b64encode(INIT).decode(), "notes": ""}
    serve = {"do": "serve", "protocol": wire.PROTOCOL, "starts": 3, "upgrades": 2}
    serve["connection"] = {**facts, "resend": True, "passthrough": True}
    serve["listener"] = {"path": "/s", "inode": [1, 2]}
    wire.send(holder, {"do": "standby"})
    with open("/dev/null") as one, open("/dev/zero") as two, open("/dev/full") as three:
        wire.send(holder, serve, (one.fileno(), two.fileno(), three.fileno()))
    wire.send(holder, {"do": "upgrade_failed", "error": "why"})
    orders = [await link.orders.receive() for _ in range(3)]
    assert [order.verb for order in orders] == ["standby", "serve", "upgrade_failed"]
    assert orders[2].reason == "why"
    introduction = orders[1].introduction
    assert introduction is not None
    assert (introduction.starts, introduction.upgrades) == (3, 2)
    connection, listener = introduction.connection, introduction.listener
    assert connection.offered.raw == INIT
    assert os.readlink(f"/proc/self/fd/{connection.fuse_fd}") == "/dev/null"
    assert os.readlink(f"/proc/self/fd/{connection.modes_fd}") == "/dev/zero"
    assert listener is not None
    assert (listener.path, listener.inode) == ("/s", (1, 2))
    assert os.readlink(f"/proc/self/fd/{listener.fd}") == "/dev/full"
    introduction.close()
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "told", [{"protocol": 99}, {"connection": {}}, {"starts": "x"}, {"connection": None}]
)
async def test_a_holder_of_another_version_is_not_misunderstood(
    ends: tuple[socket.socket, HolderLink], nursery: trio.Nursery, told: dict[str, Any]
) -> None:
    """The worker ends with a reason, and the holder goes on with the one before it."""
    holder, link = ends
    await nursery.start(link.run)
    facts = {"mount": "/m", "device": "0:7", "init": base64.b64encode(INIT).decode(), "notes": ""}
    good = {"protocol": wire.PROTOCOL, "starts": 0, "upgrades": 0}
    good["connection"] = {**facts, "resend": 1, "passthrough": 1}
    before = set(os.listdir("/proc/self/fd"))
    with open("/dev/null") as one, open("/dev/zero") as two:
        wire.send(holder, {"do": "serve", **good, **told}, (one.fileno(), two.fileno()))
    order = await link.orders.receive()
    assert (order.verb, order.introduction) == ("misunderstood", None)
    assert "restart ckptfsd" in order.reason
    assert set(os.listdir("/proc/self/fd")) == before
    nursery.cancel_scope.cancel()


async def test_nothing_is_lost_while_the_holder_is_busy(
    ends: tuple[socket.socket, HolderLink], nursery: trio.Nursery
) -> None:
    """Thousands of registrations end at once: each that was not told would keep a deleted file's space."""
    holder, link = ends
    await nursery.start(link.run)
    count = 5000
    with open("/dev/full") as file:
        for number in range(1, count):
            link.close(number)
        link.leave_listener(file.fileno(), "/s", (1, 2))
    assert link._unsent, "its mailbox is full"
    told = []
    while len(told) < count:
        await trio.lowlevel.wait_readable(holder)
        received = wire.receive(holder)
        assert received is not None
        message, descriptors = received
        if message["do"] == "listener":
            assert os.readlink(f"/proc/self/fd/{descriptors[0]}") == "/dev/full"
        wire.close_all(descriptors)
        if message["do"] != "alive":
            told.append(message)
    assert [message.get("backing") for message in told] == [*range(1, count), None]
    nursery.cancel_scope.cancel()


def test_the_last_word_is_said_to_a_busy_holder_too(ends: tuple[socket.socket, HolderLink]) -> None:
    holder, link = ends
    for number in range(1, 3000):
        link.close(number)
    heard: list[str] = []

    def listen() -> None:
        while not heard or heard[-1] != "failing":
            received = wire.receive(holder)
            assert received is not None
            heard.append(received[0]["do"])

    listener = threading.Thread(target=listen)
    listener.start()
    link.failing("why")
    listener.join(10)
    assert heard[-1] == "failing"
    assert len(heard) == 3000
