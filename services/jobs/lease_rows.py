"""The scheduler's lease: one holder at a time, and an epoch that only grows, checked by every write of a scheduler."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from cluster.errors import FencedError
from services.jobs.connection import Database
from services.jobs.tables import leases

SCHEDULER = "scheduler"


class LeaseRows:
    """Part of ``JobStore``."""

    database: Database

    def acquire_lease(self, holder: str, ttl_s: float) -> int | None:
        """The new epoch, or None while another holder's lease runs."""
        try:
            with self.database.write() as connection:
                clock, now = self.database.clock(connection)
                row = connection.execute(select(leases).where(leases.c.name == SCHEDULER).with_for_update()).first()
                if row is None:
                    connection.execute(insert(leases).values(name=SCHEDULER, holder=holder, epoch=1, expires_at=now + ttl_s, clock=clock))
                    return 1
                if row.clock == clock and row.expires_at > now and row.holder != holder:
                    return None
                values = {"holder": holder, "epoch": row.epoch + 1, "expires_at": now + ttl_s, "clock": clock}
                connection.execute(update(leases).where(leases.c.name == SCHEDULER).values(**values))
                return row.epoch + 1
        except IntegrityError:
            return None  # two first acquisitions at once: the other one has it

    def renew_lease(self, holder: str, epoch: int, ttl_s: float) -> bool:
        """False where the lease is another's now."""
        with self.database.write() as connection:
            clock, now = self.database.clock(connection)
            mine = (leases.c.name == SCHEDULER, leases.c.holder == holder, leases.c.epoch == epoch)
            return connection.execute(update(leases).where(*mine).values(expires_at=now + ttl_s, clock=clock)).rowcount == 1

    def release_lease(self, holder: str, epoch: int) -> None:
        with self.database.write() as connection:
            mine = (leases.c.name == SCHEDULER, leases.c.holder == holder, leases.c.epoch == epoch)
            connection.execute(update(leases).where(*mine).values(expires_at=0.0, holder=""))


def check_epoch(connection: Connection, epoch: int) -> None:
    """Raises ``FencedError`` unless ``epoch`` is the newest, and keeps it so until the transaction ends."""
    newest = connection.execute(select(leases.c.epoch).where(leases.c.name == SCHEDULER).with_for_update(read=True)).scalar_one_or_none()
    if newest != epoch:
        raise FencedError(f"a scheduler of epoch {epoch} tried to write, the newest epoch is {newest}")
