"""The four calls by which a learner drives its engines' weight updates, over Ray actor handles, each with a deadline.

vLLM's own Ray client gives every engine the same NCCL rank, waits for ever and leaves the version behind; this one does
not. Invariant: a call returns when every engine has done it, and raises a ``WeightTransferError`` otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.errors import HoldfastError, WeightTransferError

INIT_DEADLINE_S = 120.0
CALL_DEADLINE_S = 120.0


class WorkerClient:
    """One engine per handle. ``version`` is what the next finished update is tagged with."""

    def __init__(self, workers: Sequence[Any], *, ranks_per_worker: int = 1, deadline_s: float = CALL_DEADLINE_S):
        self._workers = list(workers)
        self._ranks_per_worker = ranks_per_worker
        self._deadline_s = deadline_s
        self.version: int | None = None

    @property
    def num_ranks(self) -> int:
        """Engine processes that receive weights; NCCL's world is these and the learner's rank 0."""
        return len(self._workers) * self._ranks_per_worker

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Open the way to every engine; with NCCL, each one gets ranks of its own."""
        infos = []
        for index in range(len(self._workers)):
            own = {"rank_offset": init_info["rank_offset"] + index * self._ranks_per_worker} if "rank_offset" in init_info else {}
            infos.append(({**init_info, **own},))
        self._all("init_weight_transfer_engine", infos, INIT_DEADLINE_S)

    def start_weight_update(self) -> None:
        self._everywhere("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._everywhere("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Finish and tag; vLLM's own trainers pass no version, then ``self.version`` is it."""
        if weight_version is None and self.version is not None:
            weight_version = str(self.version)
        self._everywhere("finish_weight_update", weight_version)

    def drain(self) -> None:
        """Close half-open updates on every engine."""
        self._everywhere("drain")

    def info(self) -> list[dict[str, Any]]:
        """What every worker says of itself."""
        return self._everywhere("info")

    def _everywhere(self, method: str, *arguments: Any) -> list[Any]:
        return self._all(method, [arguments] * len(self._workers), self._deadline_s)

    def _all(self, method: str, arguments: list[tuple], deadline_s: float) -> list[Any]:
        import ray

        pending = [getattr(worker, method).remote(*args) for worker, args in zip(self._workers, arguments, strict=True)]
        try:
            return ray.get(pending, timeout=deadline_s)
        except ray.exceptions.GetTimeoutError as error:
            raise WeightTransferError(f"{method} was not done by every engine within {deadline_s:g} s") from error
        except ray.exceptions.RayActorError as error:
            raise WeightTransferError(f"an engine died during {method}: {str(error).strip().splitlines()[0]}", reason="rollout_worker_lost") from error
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, HoldfastError):
                raise error.cause from error
            raise WeightTransferError(f"{method} failed in an engine: {error.cause!r}") from error
