"""Where learner ranks meet: one broadcast on a gloo control group, which carries the lead's errors too.

Only the lead (rank 0) talks to other actors. If it fails there, the others must not wait in a collective for ever: what it
raised travels in place of the value, and every rank raises it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from cluster.errors import HoldfastError

T = TypeVar("T")

LEAD_MAY_TAKE = timedelta(hours=12)
"""The other ranks wait while the lead rolls out or evaluates; a lead that died breaks the connection at once."""


class Ranks:
    """This process's place among the learner ranks."""

    def __init__(self, rank: int, world_size: int):
        self.rank = rank
        self.world_size = world_size
        self._group = dist.new_group(backend="gloo", timeout=LEAD_MAY_TAKE) if world_size > 1 else None

    @property
    def is_lead(self) -> bool:
        return self.rank == 0

    def from_lead(self, produce: Callable[[], T]) -> T:
        """Run ``produce`` on the lead and give its value to every rank, or raise its error on every rank."""
        message: list[Any] = [self._guard(produce) if self.is_lead else None]
        if self._group is not None:
            dist.broadcast_object_list(message, src=0, group=self._group)
        return self._open(message[0])

    def scatter_from_lead(self, produce: Callable[[], Sequence[T]]) -> T:
        """As ``from_lead``, but rank i receives item i of the sequence."""
        if self._group is None:
            return self.from_lead(produce)[0]
        outgoing: list[Any] | None = None
        if self.is_lead:
            kind, value = self._guard(produce)
            outgoing = [(kind, item) for item in value] if kind == "value" else [(kind, value)] * self.world_size
        received: list[Any] = [None]
        dist.scatter_object_list(received, outgoing, src=0, group=self._group)
        return self._open(received[0])

    def barrier(self) -> None:
        if self._group is not None:
            dist.barrier(group=self._group)

    @staticmethod
    def _guard(produce: Callable[[], T]) -> tuple[str, Any]:
        try:
            return "value", produce()
        except HoldfastError as error:
            return "error", error

    @staticmethod
    def _open(message: tuple[str, Any]) -> Any:
        kind, value = message
        if kind == "error":
            raise value
        return value
