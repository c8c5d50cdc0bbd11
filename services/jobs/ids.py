"""Identifiers: a prefix that says what it names, then a time-ordered UUID (version 7, RFC 9562) without dashes.

Invariant: ids made by one process sort in the order in which they were made.
"""

from __future__ import annotations

import secrets
import threading
import time

_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """``<prefix>_<32 hex digits>``, for example ``job_0197f3a0c9d17c0e8f0a3b1c2d4e5f60``."""
    ticks = _next_ticks()
    value = (ticks >> 12) << 80 | 0x7 << 76 | (ticks & 0xFFF) << 64 | 0b10 << 62 | secrets.randbits(62)
    return f"{prefix}_{value:032x}"


def _next_ticks() -> int:
    """Milliseconds since the epoch with 12 bits of fraction; never the same twice in a process, never backwards."""
    global _last
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    now = milliseconds << 12 | rest * 4096 // 1_000_000
    with _lock:
        _last = max(now, _last + 1)
        return _last
