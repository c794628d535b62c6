"""Archives: which files are opened, what is found in them, and what is refused."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import stat
import struct
import subprocess
import tarfile
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ckptfs.errors import (
    SourceCorrupt,
    SourceNotFound,
    SourceRefused,
    SourceTooLarge,
    SpecificationError,
)
from ckptfs.source.archive.codec import ZIP_ZSTD
from ckptfs.source.base import (
    SourceDirectory,
    SourceEntry,
    SourceFile,
    SourceHardlink,
    SourceLink,
    SourceSpecial,
)
from ckptfs.source.open import Limits, open_source
from ckptfs.testing import maker


def read(file: SourceFile) -> bytes:
    if file.ranged is not None:
        data = bytearray(file.ranged.size_bytes)
        file.ranged.read_at(0, memoryview(data))
        return bytes(data)
    assert file.stream is not None
    stream, out, buffer = file.stream(), bytearray(), memoryview(bytearray(1 << 16))
    while got := stream.readinto(buffer):
        out += buffer[:got]
    return bytes(out)


def opened(path: Path, **more: Any) -> list[tuple[SourceEntry, bytes]]:
    """All entries with their contents, each read when it is listed."""
    with closing(open_source(str(path), **more)) as source:
        return [(entry, read(entry) if isinstance(entry, SourceFile) else b"") for entry in source.entries()]


def contents(path: Path, **more: Any) -> dict[bytes, bytes]:
    return {entry.path: data for entry, data in opened(path, **more) if isinstance(entry, SourceFile)}


def put(directory: Path, name: str, body: bytes) -> Path:
    path = directory / name
    path.write_bytes(body)
    return path


# --- Which files are opened -------------------------------------------------------------------------

ZIP = maker.zipped({"inside.txt": b"zip"})
TAR = maker.tarred({"inside.txt": b"tar"})
GZ = maker.gzipped(b"gz" * 100)


@pytest.mark.parametrize(
    ("name", "body", "names"),
    [
        ("model.zip", ZIP, [b"inside.txt"]),
        ("MODEL.ZIP", ZIP, [b"inside.txt"]),
        ("model", ZIP, [b"inside.txt"]),
        ("model-v1.2", ZIP, [b"inside.txt"]),
        ("model.tar", TAR, [b"inside.txt"]),
        ("model", TAR, [b"inside.txt"]),
        ("model.zip", TAR, [b"inside.txt"]),  # the content tells, not the name
        ("model.tar.gz", maker.bzipped(TAR), [b"inside.txt"]),
        ("model", maker.zstandard(TAR), [b"inside.txt"]),
        ("model.gz", maker.xzipped(TAR), [b"inside.txt"]),
        ("weights.bin.gz", GZ, [b"weights.bin"]),
        ("weights", GZ, [b"weights"]),
        (".gz", GZ, [b".gz"]),
        # files that are archives inside and are used as they are
        ("package-1.0-py3-none-any.whl", ZIP, [b"package-1.0-py3-none-any.whl"]),
        ("arrays.npz", ZIP, [b"arrays.npz"]),
        ("pytorch_model.bin", ZIP, [b"pytorch_model.bin"]),
        ("model.pt", ZIP, [b"model.pt"]),
        ("model.nemo", TAR, [b"model.nemo"]),
        ("model.ckpt", GZ, [b"model.ckpt"]),
        ("no-suffix", maker.zipped({"archive/data.pkl": b"torch.save"}), [b"no-suffix"]),
        ("no-suffix", maker.zipped({"a.npy": b"numpy.savez"}), [b"no-suffix"]),
        # ordinary files
        ("plain.txt", b"PK is not enough", [b"plain.txt"]),
        ("short", b"\x1f\x8b", [b"short"]),
        ("zeros", bytes(4096), [b"zeros"]),
        ("BZh9", b"BZh9 and then text, which is not a block", [b"BZh9"]),
    ],
)
def test_the_content_tells_and_model_files_stay_files(
    tmp_path: Path, name: str, body: bytes, names: list[bytes]
) -> None:
    assert list(contents(put(tmp_path, name, body))) == names


def test_no_extract_keeps_any_archive_as_it_is(tmp_path: Path) -> None:
    for name, body in (("a.zip", ZIP), ("a.tar.gz", maker.gzipped(TAR)), ("a.gz", GZ), ("a.tar", b"no tar")):
        assert contents(put(tmp_path, name, body), extract="no") == {name.encode(): body}


def test_extract_opens_what_would_stay_a_file(tmp_path: Path) -> None:
    assert contents(put(tmp_path, "a.whl", ZIP), extract="yes") == {b"inside.txt": b"zip"}
    assert contents(put(tmp_path, "model.bin", GZ), extract="yes") == {b"model.bin": b"gz" * 100}
    with pytest.raises(SpecificationError, match="not an archive that ckptfs knows"):
        open_source(str(put(tmp_path, "model.bin", b"weights")), extract="yes")


@pytest.mark.parametrize(
    "name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.gz", "a.bz2", "a.xz", "a.tar.zst"]
)
def test_a_name_that_promises_an_archive_over_something_else_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceCorrupt, match=r"not that of an archive.*--no-extract"):
        open_source(str(put(tmp_path, name, b"<html>not found</html>" * 100)))


def test_a_tar_name_over_a_single_compressed_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceCorrupt, match="promises a tar and there is none"):
        open_source(str(put(tmp_path, "a.tar.gz", maker.gzipped(b"no tar at all" * 1000))))


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a.zip", maker.zipped({})),
        ("a.tar", maker.tarred({})),
        ("a.tar", maker.tarred({}, top="./")),
        ("a.tar.gz", maker.gzipped(maker.tarred({}))),
        ("a.tgz", maker.gzipped(maker.tarred({}, top="./"))),
    ],
)
def test_an_archive_of_nothing_is_an_empty_source(tmp_path: Path, name: str, body: bytes) -> None:
    with pytest.raises(SourceNotFound, match="is empty"):
        opened(put(tmp_path, name, body))


# --- Truncated and damaged --------------------------------------------------------------------------

DAMAGE_TREE = {
    "a.bin": maker.noise(1, 50_000),
    "d/b.txt": b"words " * 20_000,
    "c.bin": maker.noise(2, 30_000),
}


@pytest.mark.parametrize("suffix", maker.ARCHIVES)
def test_a_truncated_archive_never_passes(tmp_path: Path, suffix: str) -> None:
    whole = maker.ARCHIVES[suffix](DAMAGE_TREE)
    end = len(whole)
    if suffix == ".tar":
        end = len(whole.rstrip(b"\0")) + 1  # what follows the end mark is padding
    cuts = {1, 10, 511, 512, 513, 1024, 1536, end // 7, end // 2, end - 9, end - 5, end - 1}
    cuts |= set(range(0, end, 512 * 37))
    for cut in sorted(cuts - {0}):
        if cut >= end:
            continue
        with pytest.raises((SourceCorrupt, SourceNotFound)) as caught:
            opened(put(tmp_path, "a" + suffix, whole[:cut]))
        assert "/a" + suffix in str(caught.value), cut


@pytest.mark.parametrize("suffix", maker.SINGLES)
def test_a_truncated_compressed_file_never_passes(tmp_path: Path, suffix: str) -> None:
    whole = maker.SINGLES[suffix](b"words " * 50_000)
    for cut in range(1, len(whole), max(1, len(whole) // 40)):
        with pytest.raises(SourceCorrupt):
            opened(put(tmp_path, "a" + suffix, whole[:cut]))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_a_flipped_bit_in_a_compressed_file_never_passes(tmp_path: Path, suffix: str) -> None:
    plain = b"words and more words " * 3_000
    whole = maker.SINGLES[suffix](plain)
    for at in range(0, len(whole), max(1, len(whole) // 30)):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        try:
            found = contents(put(tmp_path, "a" + suffix, bytes(damaged)))
        except SourceCorrupt:
            continue
        assert list(found.values()) == [plain], f"byte {at}"  # a time or a flag: not the content


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_flipped_bit_in_a_zip_never_passes(tmp_path: Path, compression: int) -> None:
    whole = maker.zipped(DAMAGE_TREE, compression)
    for at in range(0, len(whole), len(whole) // 40):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        try:
            found = contents(put(tmp_path, "a.zip", bytes(damaged)))
        except (SourceCorrupt, SourceRefused):
            continue
        assert sorted(found.values()) == sorted(DAMAGE_TREE.values()), f"byte {at}"


def test_the_crc_of_a_stored_member_is_checked_when_its_last_range_is_read(tmp_path: Path) -> None:
    body = maker.noise(3, 100_000)
    whole = bytearray(maker.zipped({"a.bin": body}))
    whole[whole.index(body) + 70_000] ^= 1
    with closing(open_source(str(put(tmp_path, "a.zip", bytes(whole))))) as source:
        (file,) = source.entries()
        assert isinstance(file, SourceFile) and file.ranged is not None
        file.ranged.read_at(0, memoryview(bytearray(1000)))  # a look at the front
        for start in (60_000, 0, 80_000, 20_000):
            file.ranged.read_at(start, memoryview(bytearray(20_000)))
        with pytest.raises(SourceCorrupt, match=r"a\.bin is damaged: its CRC"):
            file.ranged.read_at(40_000, memoryview(bytearray(20_000)))


def test_a_damaged_tar_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    whole = bytearray(maker.tarred({"a": b"1" * 512, "b": b"2", "c": b"3"}))
    whole[1024 + 10] ^= 1  # in the second member's name: its checksum is wrong now
    for name, body in (("a.tar", bytes(whole)), ("a.tar.gz", maker.gzipped(bytes(whole)))):
        with pytest.raises(SourceCorrupt, match="damaged header"):
            opened(put(tmp_path, name, body))


def test_garbage_after_a_compressed_file_is_damage_and_padding_is_not(tmp_path: Path) -> None:
    for suffix, compress in maker.SINGLES.items():
        whole = compress(b"content")
        assert contents(put(tmp_path, "a" + suffix, whole + bytes(700))) == {b"a": b"content"}
        with pytest.raises(SourceCorrupt, match="something else after"):
            opened(put(tmp_path, "a" + suffix, whole + b"garbage" * 10))


def test_compressed_members_may_follow_each_other(tmp_path: Path) -> None:
    for suffix, compress in maker.SINGLES.items():
        body = b"".join(compress(b"part %d " % i * 1000) for i in range(5))
        assert contents(put(tmp_path, "a" + suffix, body)) == {
            b"a": b"".join(b"part %d " % i * 1000 for i in range(5))
        }


def test_a_zstd_file_may_hold_skippable_frames(tmp_path: Path) -> None:
    skip = struct.pack("<II", 0x184D2A50, 4) + b"note"
    body = skip + maker.zstandard(b"one ") + skip + maker.zstandard(b"two") + skip
    assert contents(put(tmp_path, "a.zst", body)) == {b"a": b"one two"}


# --- Bombs ------------------------------------------------------------------------------------------

BOMB_LIMITS = Limits(expansion_floor_bytes=1_000_000, max_expansion=100)
ZEROS = bytes(50_000_000)


@pytest.mark.parametrize("suffix", maker.SINGLES)
def test_a_bomb_is_refused_while_it_unfolds(tmp_path: Path, suffix: str) -> None:
    path = put(tmp_path, "a" + suffix, maker.SINGLES[suffix](ZEROS))
    with pytest.raises(SourceRefused, match="decompression bomb"):
        opened(path, limits=BOMB_LIMITS)
    with pytest.raises(SourceTooLarge, match="more than the 20,000,000"):
        opened(path, limits=Limits(max_bytes=20_000_000))


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".deflated.zip"])
def test_an_archive_that_is_a_bomb_is_refused(tmp_path: Path, suffix: str) -> None:
    path = put(tmp_path, "a" + suffix, maker.ARCHIVES[suffix]({"zeros": ZEROS}))
    with pytest.raises(SourceRefused, match="decompression bomb"):
        opened(path, limits=BOMB_LIMITS)


def test_a_zip_whose_members_overlap_is_refused(tmp_path: Path) -> None:
    """One deflated kernel that many directory entries point to."""
    whole = maker.zipped({"a": ZEROS[:1_000_000]}, zipfile.ZIP_DEFLATED)
    start = whole.index(b"PK\x01\x02")
    entry, rest = whole[start : whole.index(b"PK\x05\x06")], whole[whole.index(b"PK\x05\x06") :]
    many = b"".join(entry[:46] + b"%c" % (97 + i) for i in range(20))
    fields = list(struct.unpack("<4s4H2LH", rest))
    fields[3] = fields[4] = 20
    fields[5] = len(many)
    with pytest.raises(SourceRefused, match="members overlap"):
        open_source(str(put(tmp_path, "a.zip", whole[:start] + many + struct.pack("<4s4H2LH", *fields))))


def test_a_member_that_is_longer_than_it_says_is_damage(tmp_path: Path) -> None:
    whole = bytearray(maker.zipped({"a": b"x" * 5000}, zipfile.ZIP_DEFLATED))
    at = whole.index(b"PK\x01\x02") + 24
    whole[at : at + 4] = struct.pack("<L", 100)
    with pytest.raises(SourceCorrupt, match="more than the archive's directory says"):
        opened(put(tmp_path, "a.zip", bytes(whole)))


def test_a_header_that_asks_for_gigabytes_is_refused(tmp_path: Path) -> None:
    """A pax header or long name of 8 GiB would be read into memory."""
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        info = tarfile.TarInfo("long")
        info.type, info.size = kind, 8 << 30
        body = info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000)
        with pytest.raises((SourceRefused, SourceCorrupt)):
            opened(put(tmp_path, "a.tar", body))
        with pytest.raises((SourceRefused, SourceCorrupt)):
            opened(put(tmp_path, "a.tar.gz", maker.gzipped(body + bytes(5 << 20))))


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    tree = {f"f{i}": b"" for i in range(50)}
    for suffix, make in maker.ARCHIVES.items():
        with pytest.raises(SourceTooLarge, match="more than 49"):
            opened(put(tmp_path, "a" + suffix, make(tree)), limits=Limits(max_entries=49))


def test_a_window_that_needs_gigabytes_is_refused(tmp_path: Path) -> None:
    # A frame header without a size and with a window of 2^31, as zstd --long=31 writes; one raw block.
    body = b"\x28\xb5\x2f\xfd\x00\xa8" + (1 << 3 | 1).to_bytes(3, "little") + b"x"
    with pytest.raises(SourceRefused, match="MiB of memory"):
        opened(put(tmp_path, "b.zst", body))
    big = lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}])
    with pytest.raises(SourceRefused, match="MiB of memory"):
        opened(put(tmp_path, "c.xz", big))


# --- Zips -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_every_usual_compression_of_a_zip_is_read(tmp_path: Path, compression: int) -> None:
    assert contents(put(tmp_path, "a.zip", maker.zipped(DAMAGE_TREE, compression))) == {
        path.encode(): body for path, body in DAMAGE_TREE.items()
    }


def with_method(body: bytes, method: int, plain: bytes) -> bytes:
    """A zip of one member whose stored bytes are said to be compressed by ``method``."""
    whole = bytearray(maker.zipped({"a": body}))
    for magic, at_method, at_crc, at_size in ((b"PK\x03\x04", 8, 14, 22), (b"PK\x01\x02", 10, 16, 24)):
        at = whole.index(magic)
        whole[at + at_method : at + at_method + 2] = struct.pack("<H", method)
        whole[at + at_crc : at + at_crc + 4] = struct.pack("<L", zipfile.crc32(plain))  # type: ignore[attr-defined]
        whole[at + at_size : at + at_size + 4] = struct.pack("<L", len(plain))
    return bytes(whole)


def test_zstandard_in_a_zip_is_read(tmp_path: Path) -> None:
    plain = b"words " * 1000
    assert contents(put(tmp_path, "a.zip", with_method(maker.zstandard(plain), ZIP_ZSTD, plain))) == {
        b"a": plain
    }


def test_an_unknown_compression_and_encryption_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match=r"a\.zip: a is compressed by method 9"):
        open_source(str(put(tmp_path, "a.zip", with_method(b"x", 9, b"x"))))
    whole = bytearray(maker.zipped({"secret.bin": b"x"}))
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        whole[whole.index(magic) + at] |= 1
    with pytest.raises(SourceRefused, match=r"secret\.bin is encrypted"):
        open_source(str(put(tmp_path, "a.zip", bytes(whole))))


def test_zip_names_keep_their_bytes(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("ünïcode☃", b"1")
        archive.writestr("../up", b"2")
        archive.writestr("/absolute", b"3")
        archive.writestr("same", b"4")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("same", b"5")
    paths = [entry.path for entry, _ in opened(put(tmp_path, "a.zip", out.getvalue()))]
    # Sources pass names on as they are; admission judges them.
    assert paths == ["ünïcode☃".encode(), b"../up", b"/absolute", b"same", b"same"]


def test_a_name_that_is_utf8_without_being_marked_is_taken_as_utf8(tmp_path: Path) -> None:
    whole = maker.zipped({"naive-name": b"1"}).replace(b"naive-name", "naïv-name".encode())
    assert list(contents(put(tmp_path, "a.zip", whole))) == ["naïv-name".encode()]


def test_special_files_in_a_zip_are_named(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, mode in (("fifo", stat.S_IFIFO), ("device", stat.S_IFBLK), ("suid", stat.S_IFREG | 0o4755)):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, mode << 16
            archive.writestr(info, b"")
        info = zipfile.ZipInfo("from-dos")  # other systems' attributes are no modes
        info.create_system, info.external_attr = 0, stat.S_IFIFO << 16
        archive.writestr(info, b"")
    entries = [entry for entry, _ in opened(put(tmp_path, "a.zip", out.getvalue()))]
    assert entries[:3] == [
        SourceSpecial(b"fifo", "a fifo"),
        SourceSpecial(b"device", "a device"),
        SourceSpecial(b"suid", "a set-uid file"),
    ]
    assert isinstance(entries[3], SourceFile)


def test_a_zip_that_begins_as_a_program_is_not_taken_for_a_zip(tmp_path: Path) -> None:
    path = put(tmp_path, "a.zip", b"#!/bin/sh\nexit 0\n" + b"x" * 1000 + ZIP)
    with pytest.raises(SourceCorrupt, match="not that of an archive"):
        open_source(str(path))


def test_a_zip_of_more_than_65535_members_and_a_comment(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for i in range(66_000):
            archive.writestr(f"f{i}", b"")
        archive.comment = b"a comment " * 100
    with closing(open_source(str(put(tmp_path, "a.zip", out.getvalue())))) as source:
        assert sum(1 for _ in source.entries()) == 66_000


# --- Tars -------------------------------------------------------------------------------------------


def both(tmp_path: Path, tar: bytes) -> list[list[tuple[SourceEntry, bytes]]]:
    """What is found in a tar, plain and compressed."""
    return [
        opened(put(tmp_path, "a.tar", tar)),
        opened(put(tmp_path, "a.tar.gz", maker.gzipped(tar))),
    ]


def test_everything_that_gnu_tar_writes_is_understood(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    long_name = "/".join(["a-long-directory-name" * 5] * 4) + "/" + "f" * 200
    maker.write_tree(
        str(tree), {"a": b"1", "run.sh": b"#!", long_name: b"long", "to": ("link", long_name), "ü☃": b"u"}
    )
    os.link(tree / "a", tree / "same")
    with open(tree / "sparse", "wb") as file:
        file.truncate(10_000_000)
        for at in (0, 1_000_000, 9_990_000):
            file.seek(at)
            file.write(b"data at %d" % at)
    sparse = (tree / "sparse").read_bytes()
    for form in ("gnu", "posix", "oldgnu", "--posix --sparse-version=0.0", "--posix --sparse-version=0.1"):
        options = form.split() if form.startswith("--") else [f"--format={form}"]
        subprocess.run(["tar", *options, "--sort=name", "-S", "-cf", "../t.tar", "."], cwd=tree, check=True)
        for found in both(tmp_path, (tmp_path / "t.tar").read_bytes()):
            by_path = {os.path.normpath(entry.path): (entry, data) for entry, data in found}
            assert by_path[b"sparse"][1] == sparse, form
            assert by_path[long_name.encode()][1] == b"long"
            assert by_path["ü☃".encode()][1] == b"u"
            assert by_path[b"to"][0] == SourceLink(b"./to", long_name.encode())
            assert by_path[b"same"][0] == SourceHardlink(b"./same", b"./a")
            executable = by_path[b"run.sh"][0]
            assert isinstance(executable, SourceFile) and executable.executable
            assert isinstance(by_path[b"a-long-directory-name" * 5][0], SourceDirectory)
            assert b"." not in by_path


def test_a_tar_after_the_end_mark_is_not_left_out_silently(tmp_path: Path) -> None:
    two = maker.tarred({"a": b"1"}) + maker.tarred({"b": b"2"})
    for name, body in (("a.tar", two), ("a.tar.gz", maker.gzipped(two))):
        with pytest.raises(SourceCorrupt, match="something after the tar's end mark"):
            opened(put(tmp_path, name, body))


def test_special_files_in_a_tar_are_named(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind, mode in (
            ("fifo", tarfile.FIFOTYPE, 0o644),
            ("char", tarfile.CHRTYPE, 0o644),
            ("block", tarfile.BLKTYPE, 0o644),
            ("suid", tarfile.REGTYPE, 0o4755),
            ("sgid", tarfile.REGTYPE, 0o2755),
            ("odd", b"Z", 0o644),
            ("directory", tarfile.DIRTYPE, 0o2755),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, mode
            archive.addfile(info)
    for found in both(tmp_path, out.getvalue()):
        assert [entry for entry, _ in found] == [
            SourceSpecial(b"fifo", "a fifo"),
            SourceSpecial(b"char", "a device"),
            SourceSpecial(b"block", "a device"),
            SourceSpecial(b"suid", "a set-uid file"),
            SourceSpecial(b"sgid", "a set-gid file"),
            SourceSpecial(b"odd", "an entry of the unknown type b'Z'"),
            SourceDirectory(b"directory"),
        ]


def test_tar_names_are_passed_on_as_they_are(tmp_path: Path) -> None:
    out = io.BytesIO()
    names = ["../up", "/absolute", "same", "same", "a/../../b", "bad\udcff"]
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    for found in both(tmp_path, out.getvalue()):
        assert [entry.path for entry, _ in found] == [n.encode("utf-8", "surrogateescape") for n in names]


def test_a_lying_sparse_map_is_refused(tmp_path: Path) -> None:
    for sparse in ("0,10,5,10", "0,100000", "10,-5"):
        info = tarfile.TarInfo("sparse")
        info.size = 20
        info.pax_headers = {"GNU.sparse.map": sparse, "GNU.sparse.size": "1000", "GNU.sparse.name": "sparse"}
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(info, io.BytesIO(bytes(20)))
        for name, body in (("a.tar", out.getvalue()), ("a.tar.gz", maker.gzipped(out.getvalue()))):
            with pytest.raises((SourceRefused, SourceCorrupt), match="sparse"):
                opened(put(tmp_path, name, body))


def test_hostile_pax_headers_are_damage_and_never_another_error(tmp_path: Path) -> None:
    for record in (
        b"9999999 path=x\n",
        b"-5 path=x\n",
        b"11 size=-1\n",
        b"x\n",
        b"30 size=" + b"9" * 20 + b"\n",
        b"\xff" * 40,
    ):
        header = tarfile.TarInfo("pax")
        header.type, header.size = tarfile.XHDTYPE, len(record)
        body = header.tobuf() + record.ljust(512, b"\0") + maker.tarred({"a": b"1"})
        for name, whole in (("a.tar", body), ("a.tar.gz", maker.gzipped(body))):
            with contextlib.suppress(SourceCorrupt, SourceRefused, SourceTooLarge):
                assert [data for _, data in opened(put(tmp_path, name, whole))] == [b"1"]


def test_a_sequential_member_is_read_when_the_stream_stands_at_it(tmp_path: Path) -> None:
    path = put(tmp_path, "a.tar.gz", maker.gzipped(maker.tarred({"a": b"1", "b": b"2"})))
    with closing(open_source(str(path))) as source:
        first, _ = list(source.entries())
        assert isinstance(first, SourceFile) and first.stream is not None
        with pytest.raises(RuntimeError, match="was not read when the stream stood at it"):
            first.stream()


# --- Independence from the standard library's own readers -------------------------------------------


def test_what_other_programs_compress_is_read(tmp_path: Path) -> None:
    plain = b"words " * 100_000
    (tmp_path / "in").write_bytes(plain)
    for command, suffix in (
        (["gzip", "-9"], ".gz"),
        (["bzip2"], ".bz2"),
        (["xz", "-9"], ".xz"),
        (["zstd", "-q", "-19"], ".zst"),
    ):
        with open(tmp_path / f"out{suffix}", "wb") as out:
            subprocess.run([*command, "-c", "in"], cwd=tmp_path, stdout=out, check=True)
        assert contents(tmp_path / f"out{suffix}") == {b"out": plain}
    assert gzip.decompress(maker.gzipped(plain)) == plain == bz2.decompress(maker.bzipped(plain))
