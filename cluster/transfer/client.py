"""The four calls by which a learner drives its engines' weight updates, over Ray actor handles, each with a deadline.

Unlike vLLM's own Ray client it gives every engine its own rank offset, passes the version on, and does not wait for ever.
"""

from __future__ import annotations

from typing import Any

from cluster.errors import HoldfastError, WeightTransferError

INIT_DEADLINE_S = 120.0
CALL_DEADLINE_S = 120.0


class RolloutWorkersClient:
    """One engine per handle; a call returns when every engine has done it, or raises."""

    def __init__(self, workers: list[Any], *, ranks_per_worker: int = 1):
        self._workers = workers
        self._ranks_per_worker = ranks_per_worker

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = []
        for index in range(len(self._workers)):
            info = dict(init_info)
            if "rank_offset" in info:  # NCCL: rank 0 is the learner's
                info["rank_offset"] = info["rank_offset"] + index * self._ranks_per_worker
            infos.append(info)
        self._all("init_weight_transfer_engine", [(info,) for info in infos], INIT_DEADLINE_S)

    def start_weight_update(self) -> None:
        self._all("start_weight_update", [()] * len(self._workers))

    def update_weights(self, update_info: Any) -> None:
        self._all("update_weights", [(update_info,)] * len(self._workers))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_weight_update", [()] * len(self._workers))
        if weight_version is not None:
            self._all("update_weight_version", [(weight_version,)] * len(self._workers))

    def drain(self) -> None:
        """Close half-open updates on every worker."""
        self._all("drain", [()] * len(self._workers))

    def _all(self, method: str, arguments: list[tuple], deadline_s: float = CALL_DEADLINE_S) -> None:
        import ray

        pending = [getattr(worker, method).remote(*args) for worker, args in zip(self._workers, arguments, strict=True)]
        try:
            ray.get(pending, timeout=deadline_s)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, HoldfastError) else None
            raise cause or WeightTransferError(f"{method} failed in an engine: {error.cause!r}") from error
        except ray.exceptions.GetTimeoutError as error:
            raise WeightTransferError(f"{method} was not done by every engine within {deadline_s:g} s") from error
        except ray.exceptions.RayActorError as error:
            raise WeightTransferError(f"an engine died during {method}", reason="rollout_worker_lost") from error
