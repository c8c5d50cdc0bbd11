"""Pebble's tokenizer: one token a character, a few marks of JSON, and the turn marks of the Qwen family.

Invariant: decoding the ids of a text of printable ASCII and newlines gives that text back. The opposite does not hold, as
with any tokenizer: a policy may spell ``{"tool":"`` letter by letter, which no encoder would.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))
JSON_MARKS = ('{"tool":"', '","args":{"', '":"', '":', '","', ',"', '"}}', "}}")
"""What a tool call is framed by; longer ones first where one begins another."""
END_OF_TEXT, END_OF_TURN, UNKNOWN = "<|endoftext|>", "<|im_end|>", "<unk>"
TURN_MARKS = ("<|im_start|>", "<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n")
"""A turn's header is one token with its role, so that a miniature does not read it letter by letter."""
SPECIAL = (END_OF_TEXT, END_OF_TURN, *TURN_MARKS)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
VOCABULARY_SIZE = 128
"""Padded to a round number; the ids above the known ones are never trained on."""
CONTEXT_LENGTH = 2048


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer without merges. Characters outside printable ASCII and newline become the unknown token."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import Fuse
    from transformers import PreTrainedTokenizerFast

    entries = (*SPECIAL, UNKNOWN, *CHARACTERS, *JSON_MARKS)
    tokenizer = Tokenizer(models.WordLevel({entry: index for index, entry in enumerate(entries)}, unk_token=UNKNOWN))
    pieces = "|".join("".join("\\" + c if c in string.punctuation else c for c in mark) for mark in JSON_MARKS)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces + r"|[\s\S]"), behavior="isolated")
    tokenizer.decoder = Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_LENGTH,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tokenizer(folder: Path) -> None:
    build_tokenizer().save_pretrained(folder)
