"""Text to token ids and back, by the model's own tokenizer and chat template.

Invariant: a completion's ids are never made from its text again; only prompts and demonstrations are tokenised here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from cluster.errors import SpecError
from rollout.token_pieces import byte_level_pieces, prefix_pieces, window_pieces


class ChatFormat:
    """The tokenizer of a model folder. No remote code: a template is data, rendered in transformers' sandbox.

    Raises ``SpecError`` with reason ``no_chat_template`` or ``no_end_of_turn`` where the folder lacks one of them.
    """

    def __init__(self, model_folder: str):
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(model_folder, trust_remote_code=False)
        if self._tokenizer.chat_template is None:
            raise SpecError(f"the tokenizer in {str(model_folder)!r} has no chat template", reason="no_chat_template")
        if self._tokenizer.eos_token_id is None:
            raise SpecError(f"the tokenizer in {str(model_folder)!r} names no end-of-turn token (eos_token)", reason="no_end_of_turn")
        specials = {token_id: added.content for token_id, added in self._tokenizer.added_tokens_decoder.items() if added.special}
        self._specials = list(specials.values())
        self.special_token_ids = frozenset([*specials, *self._tokenizer.all_special_ids])
        """What the tokenizer itself calls special; ``decode`` spells none of them."""
        self.end_token_ids = frozenset([self._tokenizer.eos_token_id, *_ends_of_model(Path(model_folder))])
        """What ends a completion: the tokenizer's end of turn and those that the model folder adds, as the engine reads it."""

    @property
    def eos_token_id(self) -> int:
        return self._tokenizer.eos_token_id

    @property
    def vocabulary_size(self) -> int:
        """Ids that the tokenizer knows; a model's own vocabulary may be padded beyond it."""
        return len(self._tokenizer)

    def prompt_token_ids(self, messages: Sequence[Mapping[str, str]]) -> np.ndarray:
        """int32 [P]: the rendered chat, ending with the assistant header."""
        rendered = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
        return self.text_token_ids(rendered)

    def completion_token_ids(self, text: str) -> np.ndarray:
        """int32 [T]: a demonstration's ids, ending with the end-of-turn id."""
        return np.append(self.text_token_ids(text), np.int32(self.eos_token_id))

    def text_token_ids(self, text: str) -> np.ndarray:
        """int32: the text and nothing around it."""
        return np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """Text without special tokens, otherwise exactly as the ids spell it."""
        return self._tokenizer.decode(
            np.asarray(token_ids).tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def token_pieces(self, token_ids: Sequence[int] | np.ndarray) -> list[str]:
        """The text that each token spells; together exactly ``decode(token_ids)``. A character of several tokens belongs to
        the last of them; special tokens spell nothing."""
        ids = np.asarray(token_ids).tolist()
        text = self.decode(ids)
        for pieces in self._candidate_pieces(ids):
            if "".join(pieces) == text:
                return pieces
        return prefix_pieces(ids, self.decode)

    def _candidate_pieces(self, ids: list[int]) -> Iterator[list[str]]:
        """From the fastest way to the most general one; each is right where its pieces make the text."""
        spelled = self._tokenizer.convert_ids_to_tokens(ids)
        pairs = zip(ids, spelled, strict=True)
        yield byte_level_pieces(["" if token_id in self.special_token_ids else token or "" for token_id, token in pairs])
        yield window_pieces(ids, self.decode)

    def without_special_tokens(self, text: str) -> str:
        """``text`` without the strings that the tokenizer reads as special tokens, so that it cannot forge a turn."""
        while any(special in text for special in self._specials):
            for special in self._specials:
                text = text.replace(special, "")
        return text

    def head(self, text: str, max_tokens: int) -> tuple[str, int]:
        """The longest head of ``text`` that is at most ``max_tokens`` tokens, in whole characters, and how many tokens
        were cut away."""
        total = len(self.text_token_ids(text))
        if total <= max_tokens:
            return text, 0
        if max_tokens <= 0:
            return "", total
        kept = text[: self._start_of_token(text, max_tokens)]
        while len(self.text_token_ids(kept)) > max_tokens:  # a cut may tokenise its last characters otherwise
            kept = kept[:-1]
        return kept, total - len(self.text_token_ids(kept))

    def _start_of_token(self, text: str, index: int) -> int:
        """The character at which token ``index`` of ``text`` starts."""
        if self._tokenizer.is_fast:
            offsets = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            return offsets[index][0]
        return len(self.decode(self.text_token_ids(text)[:index]))


def _ends_of_model(folder: Path) -> list[int]:
    """The end-of-sequence ids of generation_config.json, or of config.json where there is none."""
    file = next((folder / name for name in ("generation_config.json", "config.json") if (folder / name).is_file()), None)
    if file is None:
        return []
    config = json.loads(file.read_text())
    ends = config.get("eos_token_id", config.get("text_config", {}).get("eos_token_id"))
    return ends if isinstance(ends, list) else [] if ends is None else [ends]
