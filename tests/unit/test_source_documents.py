"""docs/sources.md says what the code does: its lists and numbers are compared with the code."""

from __future__ import annotations

import re
from pathlib import Path

from ckptfs.source import spool, tries, web
from ckptfs.source.archive import codec, detect
from ckptfs.source.limits import Limits
from ckptfs.source.s3_options import OPTIONS
from ckptfs.source.uri import KIND_OF_TYPE

TEXT = (Path(__file__).parents[2] / "docs" / "sources.md").read_text()
FLAT = " ".join(TEXT.split())


def test_the_endings_that_stay_files() -> None:
    listed = re.search(r"<!-- kept:.*?-->\s*`(.*?)`\s*<!-- /kept -->", TEXT, re.DOTALL)
    assert listed is not None
    assert set(listed[1].split()) == {suffix.decode() for suffix in detect.KEPT_SUFFIXES}


def test_the_endings_that_promise_an_archive() -> None:
    for suffix in (
        ".zip",
        ".tar",
        ".tar.gz",
        ".tgz",
        ".tar.bz2",
        ".tbz2",
        ".tar.xz",
        ".tar.zst",
        ".gz",
        ".zst",
    ):
        assert f"`{suffix}`" in TEXT
        assert f"x{suffix}".encode().endswith(detect.ARCHIVE_SUFFIXES)


def test_the_options_of_s3() -> None:
    assert set(re.findall(r"^\| `([a-z_]+)=", TEXT, re.MULTILINE)) == set(OPTIONS)


def test_the_source_types() -> None:
    assert all(f"`{word}`" in TEXT for word in KIND_OF_TYPE)


def test_the_limits_and_their_keys() -> None:
    from ckptfsd.config import SourceSection, StoreSection

    rows = dict(re.findall(r"^\| `\[(\w+\] \w+)` \| ([^|]+?) \|", TEXT, re.MULTILINE))
    sections = {"store": StoreSection(), "source": SourceSection()}
    for key, said in rows.items():
        section, name = key.split("] ")
        value = getattr(sections[section], name)
        number = float(said.replace(",", "").removesuffix(" GB")) * (10**9 if said.endswith("GB") else 1)
        assert value == number, key
    assert {key.split("] ")[1] for key in rows} == {
        "max_checkpoint_bytes",
        *SourceSection.__struct_fields__,
    }


def test_the_other_numbers() -> None:
    limits = Limits()
    for words in (
        f"over {limits.expansion_floor_bytes >> 30} GiB and more than {limits.max_expansion} times",
        f"more than {codec.WINDOW_BYTES >> 20} MiB of memory",
        f"{2**codec.ZSTD_WINDOW_LOG >> 20} MiB of window for zstd",
        f"({spool.PART_BYTES >> 20} MiB each)",
        f"At most {web.MOST_REDIRECTS} redirects",
        f"up to {tries.LARGEST_PAUSE_SECONDS:.0f} s, or up to {tries.LARGEST_ASKED_PAUSE_SECONDS:.0f} s if",
    ):
        assert words in FLAT, words
