"""Which checkpoint a user means: by name, by id, by a unique prefix of the id, by its creation.

``name:X`` forces the name and ``b3:HEX`` the id; any other text may be either, and when it fits two
different checkpoints it is an error rather than a guess.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from ckptfs.errors import Ambiguous, NotFound
from ckptfs.model.digest import TEXT_PREFIX
from ckptfs.model.names import show_text

NAME_PREFIX = "name:"

#: Fewer hexadecimal digits would make ids of short words ("bad", "fee").
MIN_DIGITS = 4

_DIGITS = re.compile(rf"[0-9a-fA-F]{{{MIN_DIGITS},64}}")


def match(reference: str, candidates: Iterable[tuple[str, str, str]]) -> int:
    """The index of the one candidate ``(name, id text, creation id)`` that the reference means.

    Raises NotFound, or Ambiguous with ``data["candidates"]``: the names of all that it fits.
    """
    name, id_prefix, creation = _meanings(reference)
    found: list[int] = []
    names: list[str] = []
    for index, (its_name, its_id, its_creation) in enumerate(candidates):
        if its_name == name or its_creation == creation or (id_prefix and its_id.startswith(id_prefix)):
            found.append(index)
            names.append(its_name)
    shown = show_text(reference)
    if not found:
        raise NotFound(f'there is no checkpoint "{shown}" (`ckptfs list` shows what there is)')
    if len(found) > 1:
        names.sort()
        raise Ambiguous(
            f'"{shown}" fits {len(found)} checkpoints ({", ".join(map(show_text, names))}): '
            f"give more digits of the id, or {NAME_PREFIX}NAME",
            candidates=names,
        )
    return found[0]


def _meanings(reference: str) -> tuple[str | None, str | None, str | None]:
    """The name, the prefix of an id and the creation that the text can stand for; None: not that."""
    if reference.startswith(NAME_PREFIX):
        return _composed(reference.removeprefix(NAME_PREFIX)), None, None
    if reference.startswith(TEXT_PREFIX):
        return None, _id_prefix(reference.removeprefix(TEXT_PREFIX)), None
    # an empty text is nothing's creation: a checkpoint may lack that id
    return _composed(reference), _id_prefix(reference), reference or None


def _composed(name: str) -> str:
    """As `check_checkpoint_name` stores it."""
    return unicodedata.normalize("NFC", name)


def _id_prefix(digits: str) -> str | None:
    return TEXT_PREFIX + digits.lower() if _DIGITS.fullmatch(digits) else None
