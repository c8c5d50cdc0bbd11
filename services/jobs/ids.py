"""Identifiers that sort by time: a prefix, 48 bits of milliseconds, 80 random bits (the layout of UUID version 7)."""

from __future__ import annotations

import secrets
import time


def new_id(prefix: str) -> str:
    """``job_019...``: lower-case hexadecimal, later ids sort after earlier ones."""
    return f"{prefix}_{int(time.time() * 1000):012x}{secrets.token_hex(10)}"
