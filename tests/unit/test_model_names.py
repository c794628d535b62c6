from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfs.errors import SpecificationError
from ckptfs.model.names import (
    check_checkpoint_name,
    check_job_id,
    decode_path,
    encode_path,
    show_path,
    show_text,
)


@pytest.mark.parametrize(
    "name",
    ["llama", "Llama 3.1 8B", "a", "a.b-c_d", "модель", "模型", "é", "x" * 255, "b3", "1", "a\\b", "a%2Fb"],
)
def test_good_names(name: str) -> None:
    assert check_checkpoint_name(name) == name


BAD_NAMES = {
    "empty": "",
    "dot": ".",
    "dots": "..",
    "hidden": ".x",
    "an option": "-x",
    "slash": "a/b",
    "colon": "name:x",
    "NUL": "a\0b",
    "newline": "a\nb",
    "escape": "a\x1bb",
    "delete": "a\x7fb",
    "C1 control": "a\x9bb",
    "line separator": "a\u2028b",
    "right to left override": "a\u202eb",
    "isolate": "a\u2066b",
    "a surrogate": "a\udcffb",
    "leading blank": " a",
    "trailing blank": "a ",
    "trailing wide blank": "a\u3000",
    "only a blank": " ",
    "256 bytes": "x" * 256,
    "256 bytes of few characters": "é" * 128,
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_bad_names(name: str) -> None:
    with pytest.raises(SpecificationError) as caught:
        check_checkpoint_name(name)
    assert caught.value.attribute == "name"
    assert caught.value.message.isprintable()


def test_names_are_composed() -> None:
    assert check_checkpoint_name("e\u0301") == "\u00e9"


def test_a_name_is_measured_after_composition() -> None:
    """Hangul shrinks to a third; some letters grow."""
    assert len(check_checkpoint_name("\u1112\u1161\u11ab" * 80).encode()) == 240
    with pytest.raises(SpecificationError, match="longer than 255"):
        check_checkpoint_name("\u0958" * 85)  # 3 bytes each, 6 when composed


@given(st.text())
def test_an_accepted_name_is_a_directory_entry_and_stays_as_it_is(name: str) -> None:
    try:
        accepted = check_checkpoint_name(name)
    except SpecificationError:
        return
    assert 1 <= len(accepted.encode()) <= 255
    assert "/" not in accepted and "\0" not in accepted and accepted not in (".", "..")
    assert check_checkpoint_name(accepted) == accepted


@pytest.mark.parametrize("job", ["1", "slurm-123.4", "pod:ns@node_1", "x" * 128])
def test_good_job_ids(job: str) -> None:
    assert check_job_id(job) == job


@pytest.mark.parametrize("job", ["", "x" * 129, "a b", "a/b", "a\n", "é", "a\0"])
def test_bad_job_ids(job: str) -> None:
    with pytest.raises(SpecificationError) as caught:
        check_job_id(job)
    assert caught.value.attribute == "job"


@given(st.binary())
def test_paths_survive_as_text(path: bytes) -> None:
    assert encode_path(decode_path(path)) == path


def test_text_that_no_path_decodes_to() -> None:
    with pytest.raises(SpecificationError):
        encode_path("\ud800")


def test_shown_paths() -> None:
    assert show_path("ordner/modèle 1.bin".encode()) == "ordner/modèle 1.bin"
    assert show_path(b"a\nb\x1b[31m") == r"a\x0ab\x1b[31m"
    assert show_path(b"\xff\xfe") == r"\xff\xfe"
    assert show_path("\u202e\u2028".encode()) == r"\u202e\u2028"
    assert show_path(b"a\\x0ab") == r"a\\x0ab"
    assert show_text("\U000e0001") == r"\U000e0001"


@given(st.binary())
def test_nothing_that_is_shown_can_drive_a_terminal(path: bytes) -> None:
    shown = show_path(path)
    assert shown.isprintable()
    shown.encode()


@given(st.binary(), st.binary())
def test_different_paths_of_one_kind_are_shown_differently(one: bytes, other: bytes) -> None:
    """Only a character from U+0080 to U+00FF that is not printable looks like the byte of its number."""
    if one != other and all(b < 0x80 for b in one + other):
        assert show_path(one) != show_path(other)


def test_an_empty_name_is_shown_as_one() -> None:
    with pytest.raises(SpecificationError, match=r'^"" cannot be the name of a checkpoint: it is empty$'):
        check_checkpoint_name("")
