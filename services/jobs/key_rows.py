"""API keys: 256 random bits, shown once, stored as a hash. A fast hash is right for a secret of that size."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from sqlalchemy import func, insert, select

from services.jobs.connection import Database, now_text
from services.jobs.tables import api_keys

KEY = re.compile(r"hf_([0-9a-f]{8})_([0-9a-f]{64})")


class KeyRows:
    """Part of ``JobStore``."""

    database: Database

    def create_api_key(self, name: str) -> str:
        """``hf_<id>_<secret>``; this is the only time that the secret is seen."""
        key_id, secret = secrets.token_hex(4), secrets.token_hex(32)
        with self.database.write() as connection:
            connection.execute(insert(api_keys).values(id=key_id, name=name[:64], secret_sha256=_digest(secret), created_at=now_text()))
        return f"hf_{key_id}_{secret}"

    def verify_api_key(self, text: str) -> bool:
        """Whether this is the whole text of a key. Takes as long for a wrong secret as for a right one."""
        match = KEY.fullmatch(text)
        if match is None:
            return False
        key_id, secret = match.groups()
        with self.database.read() as connection:
            stored = connection.execute(select(api_keys.c.secret_sha256).where(api_keys.c.id == key_id)).scalar_one_or_none()
        same = hmac.compare_digest((stored or _digest("")).encode(), _digest(secret).encode())
        return same and stored is not None

    def num_api_keys(self) -> int:
        with self.database.read() as connection:
            return connection.execute(select(func.count()).select_from(api_keys)).scalar_one()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
