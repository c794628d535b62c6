"""Checkpoints brought into a store step by step, with cuts of the test's own choosing.

(:mod:`ckptfs.testing.checkpoints` makes one in a single call, cut as a real one is.)
"""

from __future__ import annotations

from ckptfs.model import manifest as model
from ckptfs.model.digest import digest, fingerprint
from ckptfs.store import Checkpoint, Draft, DraftFile, Store


def cut(content: bytes, chunk_bytes: int) -> list[int]:
    """A grid of chunk lengths."""
    return [min(chunk_bytes, len(content) - at) for at in range(0, len(content), chunk_bytes)]


class Writing:
    """One creation. ``contents`` is the whole tree: path -> bytes (no directories: names without "/")."""

    def __init__(
        self,
        store: Store,
        name: str,
        contents: dict[bytes, bytes],
        *,
        chunk_bytes: int = 1 << 20,
        source_key: str = "",
    ) -> None:
        self.store = store
        self.contents = contents
        self.chunk_bytes = chunk_bytes
        self.draft: Draft = store.begin(
            name=name,
            creation=f"c-{name}",
            source_key=source_key or f"key of {name}",
            source_type="local",
            source_uri=f"/made/{name}",
        )
        self.files: dict[bytes, DraftFile] = {}
        #: Chunks that :meth:`put_some` found recorded by an earlier attempt.
        self.reused = 0
        self.written = 0

    def file(self, path: bytes) -> DraftFile:
        if path not in self.files:
            content = self.contents[path]
            file = self.draft.file(digest(path + len(content).to_bytes(8, "big"))[:16], len(content))
            if file.lengths is None:
                file.set_lengths(cut(content, self.chunk_bytes), len(content))
            self.files[path] = file
        return self.files[path]

    def put_some(self, limit: int = 1 << 60) -> bool:
        """Put up to ``limit`` chunks that are still missing; False when nothing is."""
        for path, content in self.contents.items():
            file = self.file(path)
            offset = 0
            for index, length in enumerate(file.lengths or ()):
                if index not in file.known:
                    if limit == 0:
                        return True
                    part = memoryview(content)[offset : offset + length]
                    self.written += file.put(index, offset, part, digest(part), fingerprint(part))
                    limit -= 1
                offset += length
        return False

    def manifest(self) -> model.Manifest:
        return model.of(
            [
                model.File(
                    path, False, len(content), list(self.file(path).lengths or ()), self.file(path).digests()
                )
                for path, content in self.contents.items()
            ]
        )

    def publish(self) -> Checkpoint:
        manifest = self.manifest()
        return self.draft.publish(
            model.encode(manifest),
            {index: self.files[file.path] for index, file in manifest.files()},
            files=len(self.contents),
            directories=0,
            size_bytes=manifest.size_bytes,
        )

    def finish(self) -> Checkpoint:
        self.put_some()
        return self.publish()


def write(store: Store, name: str, contents: dict[bytes, bytes], *, chunk_bytes: int = 1 << 20) -> Checkpoint:
    return Writing(store, name, contents, chunk_bytes=chunk_bytes).finish()


def read_back(store: Store, checkpoint: Checkpoint) -> dict[bytes, bytes]:
    """The whole tree, through the manifest and the chunks."""
    manifest = model.decode(store.manifest(checkpoint.digest))
    found: dict[bytes, bytes] = {}
    for _, file in manifest.files():
        content = bytearray()
        digests = [digest for _, _, digest in file.recipe()]
        for chunk in store.chunks(digests):
            assert chunk is not None, "a chunk of a checkpoint is not in the store"
            part = bytearray(chunk.length)
            store.read_chunk(chunk, memoryview(part))
            content += part
        found[file.path] = bytes(content)
    return found
