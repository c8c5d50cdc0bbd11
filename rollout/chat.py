"""Text to token ids and back, by the model's own tokenizer and chat template.

Invariant: a completion's ids are never made from its text again; only prompts and demonstrations are tokenised here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


class ChatFormat:
    """The tokenizer of a model folder. No remote code: a template is data, rendered in transformers' sandbox."""

    def __init__(self, model_folder: str):
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(model_folder, trust_remote_code=False)

    @property
    def eos_token_id(self) -> int:
        return self._tokenizer.eos_token_id

    @property
    def vocabulary_size(self) -> int:
        return len(self._tokenizer)

    def prompt_token_ids(self, messages: Sequence[Mapping[str, str]]) -> np.ndarray:
        """int32 [P]: the rendered chat, ending with the assistant header."""
        rendered = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return self._ids(rendered)

    def completion_token_ids(self, text: str) -> np.ndarray:
        """int32 [T]: a demonstration's ids, ending with the end-of-turn id."""
        return np.append(self._ids(text), np.int32(self.eos_token_id))

    def text_token_ids(self, text: str) -> np.ndarray:
        """int32: plain text, without special tokens."""
        return self._ids(text)

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """Text without special tokens, exactly as the ids spell it."""
        return self._tokenizer.decode(
            np.asarray(token_ids).tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _ids(self, text: str) -> np.ndarray:
        return np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
