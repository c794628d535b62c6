"""What checkpoints there are, under which names, and what each holds.

A checkpoint is *ready* (in the store), *under way* (a :class:`Creation`) or *failed* (a draft with a
reason). One reference finds any of the three.
"""

from __future__ import annotations

import builtins
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ckptfs.engine.creation import Creation
from ckptfs.engine.creations import Creations
from ckptfs.engine.forms import Form, forms_of
from ckptfs.errors import CheckpointError, NotFound
from ckptfs.model import manifest as manifests
from ckptfs.model.digest import text_id
from ckptfs.model.names import decode_path, show_path
from ckptfs.model.records import CheckpointInfo, TreeEntry
from ckptfs.model.reference import match
from ckptfs.model.resolve import resolve
from ckptfs.model.tree import Tree
from ckptfs.store import Checkpoint, DraftRecord, Store


@dataclass(frozen=True, slots=True)
class Found:
    """What a reference names: exactly one of the three is set."""

    ready: Checkpoint | None = None
    under_way: Creation | None = None
    failed: DraftRecord | None = None

    @property
    def name(self) -> str:
        if self.ready:
            return self.ready.name
        if self.under_way:
            return self.under_way.request.name
        assert self.failed
        return self.failed.name


class Catalog:
    """Reads of the store block for as long as an LMDB lookup takes, unless said otherwise."""

    def __init__(
        self, store: Store, creations: Creations, jobs_of: Callable[[int], builtins.list[str]]
    ) -> None:
        self._store = store
        self._creations = creations
        self._jobs_of = jobs_of

    def _all(self) -> builtins.list[Found]:
        found = [Found(ready=c) for c in self._store.checkpoints()]
        # A creation is under way for a moment after it has published: it counts as what it made.
        published = {f.ready.creation for f in found if f.ready}
        found += [Found(under_way=c) for c in self._creations.active() if c.id not in published]
        taken = {f.name for f in found}
        # A failed creation is history as soon as its name is in use again.
        found += [Found(failed=d) for d in self._store.drafts() if d.name not in taken]
        return found

    def find(self, ref: str) -> Found:
        """Raises :class:`NotFound` and :class:`~ckptfs.errors.Ambiguous`."""
        everything = self._all()
        keys = []
        for found in everything:
            if found.ready:
                keys.append((found.ready.name, text_id(found.ready.digest), found.ready.creation))
            elif found.under_way:
                keys.append((found.under_way.request.name, "", found.under_way.id))
            elif found.failed:
                keys.append((found.failed.name, "", found.failed.creation))
        return everything[match(ref, keys)]

    def ready(self, ref: str) -> Checkpoint:
        """The checkpoint that a reference names, which must be ready."""
        found = self.find(ref)
        if found.ready:
            return found.ready
        if found.under_way:
            raise CheckpointError(
                f"checkpoint {found.name!r} is still being created; `ckptfs wait {found.name}` waits for it",
                status=found.under_way.status,
            )
        assert found.failed
        raise CheckpointError(
            f"checkpoint {found.name!r} was not created: {found.failed.reason or 'interrupted'}",
            status="failed",
        )

    def list(self) -> builtins.list[CheckpointInfo]:
        return sorted((self.info(f) for f in self._all()), key=lambda i: (i.name, i.created))

    def info(self, found: Found) -> CheckpointInfo:
        if found.under_way:
            return found.under_way.info()
        if found.failed:
            draft = found.failed
            return CheckpointInfo(
                id=draft.creation,
                name=draft.name,
                status="failed",
                created=draft.created,
                creation=draft.creation,
                source_type=draft.source_type,
                source_uri=draft.source_uri,
                reason=draft.reason
                or "the daemon stopped while it was created; create it again to go on from there",
                reason_code=draft.reason_code or "interrupted",
                stored_bytes=draft.bytes_kept,
            )
        assert found.ready
        return self.ready_info(found.ready)

    def ready_info(self, checkpoint: Checkpoint) -> CheckpointInfo:
        return CheckpointInfo(
            id=text_id(checkpoint.digest),
            name=checkpoint.name,
            status="ready",
            size=checkpoint.size_bytes,
            billed_size=checkpoint.size_bytes,
            files=checkpoint.files,
            directories=checkpoint.directories,
            created=checkpoint.created,
            creation=checkpoint.creation,
            source_type=checkpoint.source_type,
            source_uri=checkpoint.source_uri,
            jobs=self._jobs_of(checkpoint.ordinal),
        )

    def add_usage(self, checkpoint: Checkpoint, info: CheckpointInfo) -> None:
        """Say what a checkpoint takes in the store. Reads every chunk's row: call in a thread."""
        usage = self._store.usage(checkpoint.ordinal)
        info.stored_bytes = usage.stored_bytes
        info.unique_bytes = usage.unique_bytes
        info.shared_bytes = usage.shared_bytes
        forms = Counter(form for _, _, form in self._forms(checkpoint, self.manifest(checkpoint)))
        info.whole_files = forms[Form.WHOLE]
        info.native_files = sum(count for form, count in forms.items() if form.native)
        info.served_files = {str(form): count for form, count in forms.items() if not form.native}
        copies = self._store.copy_totals(checkpoint.ordinal)
        info.derived_files = copies.copies
        info.derived_bytes = copies.physical_bytes

    def _forms(
        self, checkpoint: Checkpoint, manifest: manifests.Manifest, wanted: set[int] | None = None
    ) -> Iterator[tuple[int, manifests.File, Form]]:
        return forms_of(self._store, checkpoint.ordinal, manifest, wanted=wanted)

    def manifest(self, checkpoint: Checkpoint) -> manifests.Manifest:
        """Decoding takes a while for many files: call in a thread."""
        return manifests.decode(self._store.manifest(checkpoint.digest))

    def tree(self, checkpoint: Checkpoint, path: bytes) -> builtins.list[TreeEntry]:
        """Everything below ``path`` (empty: the root), in path order. Call in a thread."""
        manifest = self.manifest(checkpoint)
        if path:
            node = Tree(manifest).find(path)
            if node is None:
                raise NotFound(f"checkpoint {checkpoint.name!r} has no {show_path(path)}")
        below = [
            (index, entry)
            for index, entry in enumerate(manifest.entries)
            if not path or entry.path == path or entry.path.startswith(path + b"/")
        ]
        wanted = {index for index, entry in below if isinstance(entry, manifests.File)}
        forms = {index: form for index, _, form in self._forms(checkpoint, manifest, wanted)}
        return [_tree_entry(entry, forms.get(index)) for index, entry in below]

    def file(self, checkpoint: Checkpoint, path: bytes) -> tuple[int, manifests.File]:
        """The regular file at ``path``, through symbolic links. Call in a thread.

        Raises :class:`NotFound` where there is no such file.
        """
        tree = Tree(self.manifest(checkpoint))
        node = resolve(tree, path)
        entry = tree.entry(node) if node is not None else None
        if node is None or not isinstance(entry, manifests.File):
            what = "no file" if node is None else "a directory, not a file, at"
            raise NotFound(
                f"checkpoint {checkpoint.name!r} has {what} {show_path(path)}; `ckptfs tree` lists its files"
            )
        return node - 1, entry


def _tree_entry(entry: manifests.Entry, form: Form | None) -> TreeEntry:
    path = decode_path(entry.path)
    if isinstance(entry, manifests.Directory):
        return TreeEntry(path=path, type="d")
    if isinstance(entry, manifests.Link):
        return TreeEntry(path=path, type="l", target=decode_path(entry.target))
    assert form is not None
    return TreeEntry(
        path=path,
        type="f",
        size=entry.size_bytes,
        executable=entry.executable,
        form=form.value,
        native=form.native,
    )
