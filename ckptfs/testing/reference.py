"""What a store should hold, in the simplest words: sets of chunk bytes, no disk, no index.

The stateful test (tests/model) does the same things to this and to a real store and compares. A chunk is
its bytes; who uses it is found by looking, not by counting.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Contents = dict[bytes, bytes]


def chunks_of(contents: Contents, chunk_bytes: int) -> set[bytes]:
    """The distinct chunks of a tree, all cut on a grid."""
    return {
        content[at : at + chunk_bytes]
        for content in contents.values()
        for at in range(0, len(content), chunk_bytes)
    }


@dataclass
class ReferenceDraft:
    name: str
    contents: Contents
    #: (path, chunk index) recorded and put since.
    committed: set[tuple[bytes, int]] = field(default_factory=set)
    put: set[tuple[bytes, int]] = field(default_factory=set)
    active: bool = True


class ReferenceStore:
    def __init__(self, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self.checkpoints: dict[str, Contents] = {}
        self.drafts: dict[str, ReferenceDraft] = {}

    # --- What is done -----------------------------------------------------------------------------

    def begin(self, key: str, name: str, contents: Contents) -> ReferenceDraft:
        draft = self.drafts.get(key)
        if draft is None:
            draft = self.drafts[key] = ReferenceDraft(name, contents)
        draft.name, draft.active = name, True
        return draft

    def put_some(self, key: str, limit: int) -> None:
        draft = self.drafts[key]
        for path, content in draft.contents.items():
            for index in range(-(-len(content) // self.chunk_bytes)):
                if limit and (path, index) not in draft.committed | draft.put:
                    draft.put.add((path, index))
                    limit -= 1

    def commit(self) -> None:
        """A commit of any draft records what all of them have put."""
        for draft in self.drafts.values():
            draft.committed |= draft.put
            draft.put = set()

    def publish(self, key: str) -> None:
        self.commit()
        draft = self.drafts.pop(key)
        self.checkpoints[draft.name] = draft.contents

    def fail(self, key: str, *, keep: bool) -> None:
        draft = self.drafts[key]
        if not keep:
            draft.put = set()
            draft.committed = set()
        self.commit()
        draft.active = False

    def drop(self, key: str) -> None:
        del self.drafts[key]

    def remove(self, name: str) -> int:
        """Remove a checkpoint; the bytes that nothing else uses."""
        before = self.stored_bytes()
        del self.checkpoints[name]
        return before - self.stored_bytes()

    def rename(self, old: str, new: str) -> None:
        self.checkpoints[new] = self.checkpoints.pop(old)

    def kill(self) -> None:
        for draft in self.drafts.values():
            draft.put = set()
            draft.active = False

    def close(self) -> None:
        self.commit()
        for draft in self.drafts.values():
            draft.active = False

    def rebuild(self) -> None:
        """Creations are known to the index only."""
        self.close()
        self.drafts = {}

    # --- What is then so --------------------------------------------------------------------------

    def _held(self, draft: ReferenceDraft) -> set[bytes]:
        size = self.chunk_bytes
        return {draft.contents[path][index * size : (index + 1) * size] for path, index in draft.committed}

    def chunks(self) -> set[bytes]:
        """Every chunk that is recorded, zeros too."""
        held = [chunks_of(contents, self.chunk_bytes) for contents in self.checkpoints.values()]
        held += [self._held(draft) for draft in self.drafts.values()]
        return set().union(*held)

    def stored_bytes(self) -> int:
        return _bytes(self.chunks())

    def usage(self, name: str) -> tuple[int, int]:
        """``(stored, unique)`` bytes of a checkpoint."""
        mine = chunks_of(self.checkpoints[name], self.chunk_bytes)
        others: set[bytes] = set()
        for other, contents in self.checkpoints.items():
            if other != name:
                others |= chunks_of(contents, self.chunk_bytes)
        for draft in self.drafts.values():
            others |= self._held(draft)
        return _bytes(mine), _bytes(mine - others)

    def bytes_kept(self, key: str) -> int:
        return _bytes(self._held(self.drafts[key]))


def _bytes(chunks: set[bytes]) -> int:
    return sum(len(chunk) for chunk in chunks if any(chunk))
