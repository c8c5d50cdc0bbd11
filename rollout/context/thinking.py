"""The thinking part of a completion, told apart from its answer.

Chat templates of thinking models often open ``<think>`` in the prompt, so a completion may close what it never opened.
"""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"
WHOLE = re.compile(re.escape(OPEN) + r".*?(?:" + re.escape(CLOSE) + r"|\Z)", re.DOTALL)


def without_thinking(text: str) -> str:
    """``text`` without its thinking: all up to the first ``</think>`` where nothing was opened before it, every whole
    ``<think>`` part, and one that was cut before it closed. Text without thinking stays as it is."""
    first_close, first_open = text.find(CLOSE), text.find(OPEN)
    if first_close < 0 and first_open < 0:
        return text
    if first_close >= 0 and not 0 <= first_open < first_close:
        text = text[first_close + len(CLOSE) :]
    return WHOLE.sub("", text).strip()


def shown(text: str, thinking: str) -> str:
    """A solution or an attempt as the spec's ``thinking`` (strip, keep) wants it shown."""
    return text if thinking == "keep" else without_thinking(text)


def spoken(text: str, thinking: str) -> str:
    """What the policy wrote for a context: as ``shown``, but where all of it is thinking, the thinking is what it said."""
    return shown(text, thinking) or text.replace(OPEN, "").replace(CLOSE, "").strip()
