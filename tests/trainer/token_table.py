"""A tokenizer's table for the tests of masks and packing: every id below 128 spells its ASCII character."""

from __future__ import annotations

from collections.abc import Sequence

END, THINK_END, HALF, REST = 200, 201, 202, 203
"""The end of a turn, a closing tag that is one id, and a character spelled by two ids (the first spells nothing)."""
PIECES = {END: "", THINK_END: "</think>", HALF: "", REST: "\u00e9"}


class AsciiTable:
    """One id per character, and a few that are not."""

    special_token_ids = frozenset({END})
    end_token_ids = frozenset({END})

    def text_token_ids(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def token_pieces(self, token_ids: Sequence[int]) -> list[str]:
        return [PIECES.get(int(token_id)) if int(token_id) in PIECES else chr(token_id) for token_id in token_ids]
