"""The extension's table, and what is said where it is missing."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from ckptfs.fuse import channel

pytestmark = pytest.mark.skipif(bool(channel.missing()), reason=channel.missing() or "-")


def test_the_table_holds_what_was_granted_and_frees_what_was_revoked() -> None:
    """Against a dict, with handles like ours (ordinal << 32 | node), which collide."""
    channel.clear()
    random_ = random.Random(1)
    granted: dict[int, int] = {}
    for _ in range(100_000):
        handle = random_.randrange(1, 40) << 32 | random_.randrange(1, 40)
        if random_.random() < 0.5:
            granted[handle] = random_.randrange(1, 1 << 31)
            assert channel.grant(handle, granted[handle])
        else:
            channel.revoke(handle)
            granted.pop(handle, None)
        assert channel.statistics()["table_used"] == len(granted)
    for handle in list(granted):
        channel.revoke(handle)
    assert channel.statistics()["table_used"] == 0


def test_the_table_is_bounded_and_can_be_emptied_and_filled_again() -> None:
    limit = channel.statistics()["table_limit"]
    for _ in range(2):
        channel.clear()
        for handle in range(limit):
            assert channel.grant(handle, 1)
        assert not channel.grant(limit, 1)
        assert channel.grant(5, 2), "one that is there can be changed"
    for handle in range(limit):
        channel.revoke(handle)
    assert channel.statistics()["table_used"] == 0
    assert channel.grant(limit, 1)
    channel.clear()


def test_a_backing_id_is_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        channel.grant(1, 0)
    with pytest.raises(OverflowError):
        channel.grant(1, 1 << 31)


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("ckptfs.fuse", "works"),
        ("ckptfs.fuse.operations", "works"),
        ("pyfuse3", "the extension ckptfs.fuse._channel is not here (pyfuse3 was imported before it)"),
    ],
)
def test_the_extension_is_there_before_pyfuse3_or_says_that_it_is_not(first: str, said: str) -> None:
    script = f"import {first}, pyfuse3; from ckptfs.fuse import channel; print(channel.missing() or 'works')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said
