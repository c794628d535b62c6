"""The store against its reference model: create, share, resume, remove, rename, rebuild, reopen, and
SIGKILL between any two steps. After every step all of it must agree, byte for byte and count for count."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

sys.path.insert(0, str(Path(__file__).parent))

from store_process import CHUNK_BYTES, StoreProcess

from ckptfs.testing.reference import Contents, ReferenceStore

#: Blocks that files are made of; 0 is zeros, so files have holes. Four blocks and more are above the
#: size of small files.
BLOCKS = [bytes(CHUNK_BYTES)] + [random.Random(n).randbytes(CHUNK_BYTES) for n in range(1, 6)]
TAILS = [b"", b"tail", bytes(77)]

NAMES = ["a", "b", "c", "ä\u0301"]
KEYS = ["s3://one", "s3://two", "/three"]

contents = st.dictionaries(
    st.sampled_from([b"model", b"\xff odd", b"tokens"]),
    st.tuples(st.lists(st.integers(0, 5), max_size=7), st.integers(0, 2)),
    max_size=3,
).map(lambda tree: {path: b"".join(BLOCKS[n] for n in ns) + TAILS[t] for path, (ns, t) in tree.items()})


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        # memory-backed where there is: fsync costs nothing, and a kill is a kill all the same
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = tempfile.mkdtemp(prefix="ckptfs-model-", dir=base)
        self.model = ReferenceStore(CHUNK_BYTES)
        self.trees: dict[str, Contents] = {}
        self.real = StoreProcess(f"{self.folder}/store")
        self.real.call("open")

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.real.kill()
            shutil.rmtree(self.folder)

    # --- Creations --------------------------------------------------------------------------------

    def active(self) -> list[str]:
        return [key for key, draft in self.model.drafts.items() if draft.active]

    @precondition(lambda self: self.free_keys() and self.free_names())
    @rule(data=st.data(), tree=contents)
    def begin(self, data: st.DataObject, tree: Contents) -> None:
        key = data.draw(st.sampled_from(self.free_keys()))
        name = data.draw(st.sampled_from(self.free_names()))
        if key not in self.model.drafts:
            self.trees[key] = tree
        draft = self.model.begin(key, name, self.trees[key])
        size = CHUNK_BYTES
        known = sum(len(draft.contents[p][i * size : (i + 1) * size]) for p, i in draft.committed)
        assert self.real.call("begin", key, name, self.trees[key]) == known

    def free_keys(self) -> list[str]:
        return [key for key in KEYS if key not in self.active()]

    def free_names(self) -> list[str]:
        taken = {self.model.drafts[key].name for key in self.active()} | set(self.model.checkpoints)
        return [name for name in NAMES if name not in taken]

    @precondition(lambda self: self.active())
    @rule(data=st.data(), limit=st.integers(1, 12))
    def put_some(self, data: st.DataObject, limit: int) -> None:
        key = data.draw(st.sampled_from(self.active()))
        self.model.put_some(key, limit)
        self.real.call("put_some", key, limit)

    @precondition(lambda self: self.active())
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self.model.commit()
        self.real.call("commit", data.draw(st.sampled_from(self.active())))

    @precondition(lambda self: self.active())
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.active()))
        self.model.publish(key)
        self.real.call("publish", key)

    @precondition(lambda self: self.active())
    @rule(data=st.data(), keep=st.booleans())
    def fail(self, data: st.DataObject, keep: bool) -> None:
        key = data.draw(st.sampled_from(self.active()))
        self.model.fail(key, keep=keep)
        self.real.call("fail", key, keep)

    @precondition(lambda self: set(self.model.drafts) - set(self.active()))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(set(self.model.drafts) - set(self.active()))))
        self.model.drop(key)
        self.real.call("drop", key)

    # --- Checkpoints ------------------------------------------------------------------------------

    @precondition(lambda self: self.model.checkpoints)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.checkpoints)))
        freed = self.real.call("remove", name)
        # a chunk that an uncommitted put is about to use stays, and is not counted as freed
        expected = self.model.remove(name)
        assert freed == expected or (freed < expected and any(d.put for d in self.model.drafts.values()))

    @precondition(lambda self: self.model.checkpoints and self.free_names())
    @rule(data=st.data())
    def rename(self, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(sorted(self.model.checkpoints)))
        new = data.draw(st.sampled_from(self.free_names()))
        self.model.rename(old, new)
        self.real.call("rename", old, new)

    # --- The process ------------------------------------------------------------------------------

    @rule()
    def kill(self) -> None:
        self.model.kill()
        self.real.kill()
        self.real.restart()
        self.real.call("open")

    @rule()
    def reopen(self) -> None:
        self.model.close()
        self.real.call("close")
        self.real.call("open")

    @precondition(lambda self: self.model.checkpoints)
    @rule()
    def rebuild(self) -> None:
        self.model.rebuild()
        self.real.call("close")
        restored, damaged = self.real.call("rebuild")
        assert damaged == [] and sorted(restored) == sorted(self.model.checkpoints)
        self.real.call("open")

    # --- What must hold ---------------------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "real"):
            return
        state = self.real.call("state")
        assert state["audit"] == []
        assert state["checkpoints"] == self.model.checkpoints
        uncommitted = any(draft.put for draft in self.model.drafts.values())
        assert state["drafts"].keys() == self.model.drafts.keys()
        for key, draft in self.model.drafts.items():
            status, kept = state["drafts"][key]
            if draft.active:
                assert status == "downloading"
            else:
                assert (status, kept) == ("failed", self.model.bytes_kept(key))
        if not uncommitted:
            assert state["chunks"] == len(self.model.chunks())
            assert state["stored"] == self.model.stored_bytes()
            assert state["usage"] == {name: self.model.usage(name) for name in self.model.checkpoints}


_SETTINGS = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
}

TestStoreModel = StoreMachine.TestCase
TestStoreModel.settings = settings(max_examples=10, stateful_step_count=25, **_SETTINGS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
class TestStoreModelLong(StoreMachine.TestCase):
    settings = settings(max_examples=1000, stateful_step_count=50, **_SETTINGS)
