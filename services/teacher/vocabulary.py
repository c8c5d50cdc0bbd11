"""Whether another model reads and writes the policy's token ids: the two tokenizers, compared by the bytes of each id.

No torch: admission asks before anything is loaded. Legend: an *added* id is one that the tokenizer lists beside its
vocabulary or marks as special (end of turn, roles, tools). Invariant: two ids count as the same token only if they spell
the same bytes; ids that only added tokens tell apart are masked, everything else that differs is a refusal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_SHOWN = 3
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What each id of a tokenizer spells."""

    spelling: dict[int, bytes]
    added: frozenset[int]


def compare_vocabularies(policy_folder: str | Path, teacher_folder: str | Path) -> frozenset[int] | str:
    """The ids on which a teacher must not be asked (empty where the vocabularies are equal), or a refusal in words."""
    try:
        policy, teacher = read_vocabulary(Path(policy_folder)), read_vocabulary(Path(teacher_folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"the tokenizers of {policy_folder} and {teacher_folder} cannot be compared: {type(error).__name__}: {error}"
    known = policy.spelling.keys() | teacher.spelling.keys()
    differing = {token for token in known if policy.spelling.get(token) != teacher.spelling.get(token)}
    ordinary = sorted(token for token in differing if any(_is_ordinary(token, side) for side in (policy, teacher)))
    if not ordinary:
        return frozenset(differing)
    shown = "; ".join(
        f"id {token} is {_show(policy, token)} to the policy, {_show(teacher, token)} to the teacher" for token in ordinary[:MAX_SHOWN]
    )
    return (
        f"the teacher in {teacher_folder} has another vocabulary than the policy: {len(ordinary)} of {len(known)} ids that are not "
        f"special differ ({shown}); a teacher must read and write the policy's token ids"
    )


def _is_ordinary(token: int, side: Vocabulary) -> bool:
    return token in side.spelling and token not in side.added


def _show(side: Vocabulary, token: int) -> str:
    return repr(side.spelling[token]) if token in side.spelling else "unknown"


def read_vocabulary(folder: Path) -> Vocabulary:
    """From ``tokenizer.json``, and the added tokens that only ``tokenizer_config.json`` names."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    spell = _spelling(content)
    spelling = {token: spell(text) for text, token in _entries(content["model"]["vocab"])}
    added = {int(entry["id"]): str(entry["content"]) for entry in content.get("added_tokens") or ()}
    for token, text in _configured(folder / "tokenizer_config.json").items():
        if token not in spelling:
            added.setdefault(token, text)
    spelling |= {token: text.encode() for token, text in added.items()}
    return Vocabulary(spelling=spelling, added=frozenset(added))


def _entries(vocabulary: Mapping[str, int] | list) -> Iterator[tuple[str, int]]:
    """(text, id) of a dict of BPE, word pieces or words, or of a unigram's list, where the place is the id."""
    if isinstance(vocabulary, Mapping):
        yield from vocabulary.items()
    else:
        yield from ((entry[0], token) for token, entry in enumerate(vocabulary))


def _configured(path: Path) -> dict[int, str]:
    if not path.is_file():
        return {}
    listed = json.loads(path.read_text(encoding="utf-8")).get("added_tokens_decoder") or {}
    return {int(token): str(entry["content"]) for token, entry in listed.items()}


# -- from a vocabulary's entry to bytes ------------------------------------------------------------------------------


def _spelling(content: dict[str, Any]):
    """The function that gives an entry's bytes, by how the tokenizer decodes."""
    kinds = set(_kinds(content.get("decoder"))) | set(_kinds(content.get("pre_tokenizer")))
    if "ByteLevel" in kinds:
        table = _byte_of_character()
        return lambda text: bytes(table[character] for character in text) if all(c in table for c in text) else text.encode()
    marks_spaces = "Metaspace" in kinds or "\\u2581" in json.dumps(content.get("decoder") or {})
    falls_back = bool(content["model"].get("byte_fallback")) or "ByteFallback" in kinds

    def spell(text: str) -> bytes:
        if falls_back and (found := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(found.group(1), 16)])
        return (text.replace("\u2581", " ") if marks_spaces else text).encode()

    return spell


def _kinds(part: Any) -> Iterator[str]:
    """The types of a decoder or pre-tokenizer and of everything in it."""
    if isinstance(part, dict):
        yield str(part.get("type"))
        for inside in part.values():
            yield from _kinds(inside)
    elif isinstance(part, list):
        for inside in part:
            yield from _kinds(inside)


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes every byte as one printable character: itself where it is one, else 256 and following."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(256 + place): byte for place, byte in enumerate(byte for byte in range(256) if byte not in printable)}
    return table
