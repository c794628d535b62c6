"""Which form a file has, told by its content; and whether its content is what the user wants.

Many model files are archives inside: a ``torch.save`` file and an ``.npz`` are zips, a wheel too. They
stay files unless extraction is asked for. The name decides only between those two; it never makes an
archive of something that is none.
"""

from __future__ import annotations

import enum
import tarfile

from ckptfs.errors import SourceCorrupt, SpecificationError
from ckptfs.model.names import show_path
from ckptfs.source.limits import Extract

#: How much of a file's beginning :func:`choose` wants: two tar blocks.
HEAD_BYTES = 1024


class Form(enum.Enum):
    ZIP = "zip"
    TAR = "tar"
    GZIP = "gzip"
    BZ2 = "bzip2"
    XZ = "xz"
    ZSTD = "zstd"

    @property
    def compressed(self) -> bool:
        """One compressed stream, with or without a tar in it."""
        return self not in (Form.ZIP, Form.TAR)


#: Endings that promise an archive. The tar ones are listed for :func:`name_inside`.
TAR_SUFFIXES = (b".tgz", b".tbz2", b".tbz", b".txz", b".tzst")
ARCHIVE_SUFFIXES = (b".zip", b".tar", b".gz", b".bz2", b".xz", b".zst", b".zstd", *TAR_SUFFIXES)
#: Endings of files that are archives inside but are used as they are.
KEPT_SUFFIXES = frozenset(
    (
        b".whl .egg .npz .npy .pt .pth .pt2 .ptl .bin .ckpt .safetensors .gguf .ggml .keras .h5 .hdf5 .onnx "
        b".mlmodel .mar .nemo .tflite .task .pkl .pickle .joblib .model .msgpack .parquet .arrow .jar .war "
        b".apk .ipa .aar .docx .xlsx .pptx .odt .ods .odp .epub .pdf .svgz .exe .so .deb .rpm .vsix .nupkg "
        b".crx .sif .squashfs"
    ).split()
)
#: First members that give a document or model file away when its name does not.
_DOCUMENT_MEMBERS = (b"[Content_Types].xml", b"META-INF/", b"mimetype", b"AndroidManifest.xml")
_DOCUMENT_MEMBER_ENDS = (b"/data.pkl", b".npy", b".dist-info/METADATA", b"/data/0")

_MAGIC = (
    (b"PK\x03\x04", Form.ZIP),
    (b"PK\x05\x06", Form.ZIP),  # an empty one
    (b"\x1f\x8b\x08", Form.GZIP),
    (b"\xfd7zXZ\x00", Form.XZ),
    (b"\x28\xb5\x2f\xfd", Form.ZSTD),
)
_BZ2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")


def form_of(head: bytes) -> Form | None:
    """The form of a file whose first :data:`HEAD_BYTES` bytes are given; None for an ordinary file."""
    for magic, form in _MAGIC:
        if head.startswith(magic):
            return form
    if head[:3] == b"BZh" and head[3:4] in b"123456789" and head[4:10] in _BZ2_BLOCKS:
        return Form.BZ2
    if len(head) >= 16 and 0x50 <= head[0] <= 0x5F and head[1:4] == b"\x2a\x4d\x18":
        return Form.ZSTD  # begins with a skippable frame, as parallel compressors write
    return Form.TAR if is_tar(head) else None


def is_tar(head: bytes) -> bool:
    """Whether a file begins with a tar header (its checksum is right) or is a tar of nothing."""
    block = head[: tarfile.BLOCKSIZE]
    if len(block) < tarfile.BLOCKSIZE:
        return False
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    except ValueError:  # a number that is none: a header all the same would have parsed
        return False
    return True


def choose(name: bytes, head: bytes, extract: Extract, label: str) -> Form | None:
    """The form to open a file as, or None to keep it as a file.

    Raises :class:`~ckptfs.errors.SourceCorrupt` for a name that promises an archive over content that
    is none, and :class:`~ckptfs.errors.SpecificationError` where extraction was asked for in vain.
    """
    if extract == "no":
        return None
    form = form_of(head)
    lower = name.lower()
    promises = lower.endswith(ARCHIVE_SUFFIXES)
    if form is None and promises and head.count(0) == len(head) >= tarfile.BLOCKSIZE:
        form = Form.TAR  # nothing but an end mark: an empty tar
    if form is None:
        if extract == "yes":
            raise SpecificationError(
                "extract", f"{label} is not an archive that ckptfs knows; leave out --extract"
            )
        if promises:
            raise SourceCorrupt(
                f"{label}: the content of {show_path(name)} is not that of an archive: it is damaged or "
                "something "
                "else (--no-extract keeps the file as it is)"
            )
        return None
    if extract == "yes" or promises:
        return form
    stem, dot, suffix = lower.rpartition(b".")
    if (stem and dot + suffix in KEPT_SUFFIXES) or (form is Form.ZIP and _is_document(head)):
        return None
    return form


def _is_document(head: bytes) -> bool:
    """Whether a zip's first member says that it is a document or a model file."""
    length = int.from_bytes(head[26:28], "little")
    first = head[30 : 30 + length]
    return first.startswith(_DOCUMENT_MEMBERS) or first.endswith(_DOCUMENT_MEMBER_ENDS)


def name_inside(name: bytes) -> bytes:
    """The name of the one file in a compressed file: without the suffix that said so."""
    lower = name.lower()
    for suffix in (*TAR_SUFFIXES, b".gz", b".bz2", b".xz", b".zst", b".zstd"):
        if lower.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def ends_as_compressed(name: bytes) -> bool:
    return name.lower().endswith((*TAR_SUFFIXES, b".gz", b".bz2", b".xz", b".zst", b".zstd"))
