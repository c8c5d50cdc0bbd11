"""API keys: 256 random bits, shown once, stored as a hash. A fast hash is right for a secret of that size."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from sqlalchemy import func, insert, select

from services.jobs.connection import Database, now_text
from services.jobs.tables import api_keys


class KeyRows:
    """Part of ``JobStore``."""

    database: Database

    def create_api_key(self, name: str) -> str:
        """``hf_<id>_<secret>``; this is the only time that the secret is seen."""
        key_id, secret = secrets.token_hex(4), secrets.token_hex(32)
        with self.database.write() as connection:
            connection.execute(insert(api_keys).values(id=key_id, name=name, secret_sha256=_digest(secret), created_at=now_text()))
        return f"hf_{key_id}_{secret}"

    def verify_api_key(self, text: str) -> bool:
        parts = text.split("_")
        if len(parts) != 3 or parts[0] != "hf":
            return False
        with self.database.read() as connection:
            stored = connection.execute(select(api_keys.c.secret_sha256).where(api_keys.c.id == parts[1])).scalar_one_or_none()
        return hmac.compare_digest((stored or "").encode(), _digest(parts[2]).encode())

    def num_api_keys(self) -> int:
        with self.database.read() as connection:
            return connection.execute(select(func.count()).select_from(api_keys)).scalar_one()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
