"""The piece of text that each token of a completion spells.

Invariant: the pieces together are exactly the decoded text. A character whose bytes are spread over several tokens belongs
to the token with its last byte; the tokens before it, like tokens that spell nothing, have the empty piece.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from functools import cache

Decode = Callable[[Sequence[int]], str]
REPLACEMENT = "\ufffd"


@cache
def byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: printable Latin-1 for itself, the 68 others shifted."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(shifted)}


def byte_level_pieces(tokens: Sequence[str]) -> list[str]:
    """From the vocabulary's spelling of each token, one character for each byte; linear in the bytes."""
    table = byte_of_character()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = []
    for token in tokens:
        known = all(character in table for character in token)
        pieces.append(decoder.decode(bytes(table[character] for character in token) if known else token.encode()))
    if pieces:
        pieces[-1] += decoder.decode(b"", final=True)
    return pieces


def window_pieces(token_ids: Sequence[int], decode: Decode) -> list[str]:
    """For any tokenizer: what each token adds to the text of the few before it. A window starts where a character did."""
    pieces, start, read = [], 0, 0
    for end in range(1, len(token_ids) + 1):
        before, after = decode(token_ids[start:read]), decode(token_ids[start:end])
        if after.endswith(REPLACEMENT) and end < len(token_ids):
            pieces.append("")
            continue
        pieces.append(after[len(before) :])
        start, read = read, end
    return pieces


def prefix_pieces(token_ids: Sequence[int], decode: Decode) -> list[str]:
    """By decoding every head of the completion against the whole; quadratic, and right whatever the tokenizer does."""
    text, pieces, done = decode(token_ids), [], 0
    for end in range(1, len(token_ids) + 1):
        head = text if end == len(token_ids) else _common(decode(token_ids[:end]).rstrip(REPLACEMENT), text)
        pieces.append(text[done : len(head)])
        done = max(done, len(head))
    return pieces


def _common(head: str, text: str) -> str:
    """The longest head of both."""
    pairs = enumerate(zip(head, text, strict=False))
    return head[: next((place for place, (ours, theirs) in pairs if ours != theirs), min(len(head), len(text)))]
