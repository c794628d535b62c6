from __future__ import annotations

import pytest

from ckptfs.errors import Ambiguous, NotFound
from ckptfs.model.reference import match

A, B, C = ("b3:" + digits * 16 for digits in ("abcd", "abce", "1234"))
CHECKPOINTS = [
    ("llama", A, "c-00000000000000000001"),
    ("mistral", B, "c-00000000000000000002"),
    ("1234", A.replace("a", "f"), "c-00000000000000000003"),
    ("twin one", C, "c-00000000000000000004"),
    ("twin two", C, "c-00000000000000000005"),
    ("caf\u00e9", "c-00000000000000000006", "c-00000000000000000006"),
]


@pytest.mark.parametrize(
    ("reference", "index"),
    [
        ("llama", 0),
        ("name:llama", 0),
        (A, 0),
        ("b3:abcda", 0),
        ("abcda", 0),
        ("ABCDA", 0),
        ("b3:ABCE", 1),
        ("c-00000000000000000002", 1),
        ("name:1234", 2),
        ("b3:fbcd", 2),
        ("twin two", 4),
        ("cafe\u0301", 5),
        ("name:cafe\u0301", 5),
        ("c-00000000000000000006", 5),
    ],
)
def test_what_a_text_means(reference: str, index: int) -> None:
    assert match(reference, CHECKPOINTS) == index


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "name:",
        "b3:",
        "b3:abc",
        "abc",
        "nobody",
        "Llama",
        "name:abcd",
        "b3:llama",
        "b3:" + "abcd" * 17,
        "c-0000",
        "b3:xyzw",
        "\x1b[2J",
    ],
)
def test_what_means_nothing(reference: str) -> None:
    with pytest.raises(NotFound) as caught:
        match(reference, CHECKPOINTS)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("reference", "names"),
    [
        ("1234", ["1234", "twin one", "twin two"]),
        ("b3:1234", ["twin one", "twin two"]),
        (C, ["twin one", "twin two"]),
    ],
)
def test_what_means_several(reference: str, names: list[str]) -> None:
    with pytest.raises(Ambiguous) as caught:
        match(reference, CHECKPOINTS)
    assert caught.value.data["candidates"] == names


def test_a_prefix_of_two_ids() -> None:
    two = [("a", "b3:" + "abcd1" + "0" * 59, "c-1"), ("b", "b3:" + "abcd2" + "0" * 59, "c-2")]
    with pytest.raises(Ambiguous, match="a, b"):
        match("abcd", two)
    assert match("abcd2", two) == 1


def test_a_name_that_is_a_prefix_of_its_own_id_is_one_checkpoint() -> None:
    assert match("abcd", [("abcd", A, "c-1")]) == 0


def test_an_empty_creation_is_nobodys() -> None:
    with pytest.raises(NotFound):
        match("", [("a", A, "")])
