"""The teacher as its users see it: a group of actors, one of them today in most jobs.

Every handle holds all weights and follows every publication; scores are split over the handles. A teacher that is sharded
over handles keeps this interface. Invariant: all handles are at the same update and hold the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.errors import HoldfastError, TeacherError
from cluster.messages import TeacherRequest, TeacherScores
from services.teacher.actor import TeacherActor

if TYPE_CHECKING:
    from services.teacher.canary import Follow
    from services.teacher.payload import Payload
    from services.teacher.stage_weights import Anchor

START_DEADLINE_S = 240.0
"""Also of ``begin_stage``, which may be the first call and may read the base model."""
FOLLOW_DEADLINE_S = 120.0
SCORE_DEADLINE_S = 600.0
FILE_DEADLINE_S = 600.0


class TeacherGroup:
    """Around the actor handles; may be built in any process that has them. A dead or silent handle is ``teacher_lost``."""

    def __init__(self, handles: list[Any]):
        self.handles = handles

    @staticmethod
    def create(
        num_teachers: int,
        *,
        model_folder: str,
        device: str,
        threads: int,
        dtype: str = "float32",
        placement_group: Any = None,
        first_bundle: int = 0,
        num_gpus: float = 0.0,
        external_folders: Mapping[str, str] | None = None,
    ) -> TeacherGroup:
        """Start the actors in bundles ``first_bundle`` and following; they load while the caller goes on.

        ``external_folders`` says where other models lie, by ``external_key``.
        """
        options = {
            "model_folder": model_folder,
            "device": device,
            "dtype": dtype,
            "threads": threads,
            "external_folders": dict(external_folders or {}),
        }
        actor = ray.remote(TeacherActor)
        handles = []
        for index in range(num_teachers):
            strategy = (
                "DEFAULT"
                if placement_group is None
                else PlacementGroupSchedulingStrategy(placement_group, placement_group_bundle_index=first_bundle + index)
            )
            placed = actor.options(
                num_cpus=1,
                num_gpus=num_gpus,
                scheduling_strategy=strategy,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
            )
            handles.append(placed.remote(options))
        return TeacherGroup(handles)

    def wait_until_ready(self, deadline_s: float = START_DEADLINE_S) -> list[dict[str, Any]]:
        """Process id and version of every handle, once it has loaded its model."""
        return self._all("probe", deadline_s=deadline_s)

    def begin_stage(self, teacher: Any, *, anchor: Anchor, snapshot: Path | None = None, update: int | None = None) -> Follow:
        """See ``TeacherScorer.begin_stage``."""
        options = {"anchor": anchor, "snapshot": snapshot, "update": update}
        return _agreed(self._all("begin_stage", teacher, options, deadline_s=START_DEADLINE_S))

    def follow(self, update: int, snapshot: Path, *, after: int | None = None, ends_batch: bool = True) -> Follow:
        """Every handle follows publication number ``update``; the same number again changes nothing."""
        options = {"after": after, "ends_batch": ends_batch}
        return _agreed(self._all("follow", update, snapshot, options, deadline_s=FOLLOW_DEADLINE_S))

    def begin_reference(self, *, anchor: Anchor, snapshot: Path | None = None, update: int | None = None) -> Follow:
        """See ``TeacherScorer.begin_reference``."""
        options = {"anchor": anchor, "snapshot": snapshot, "update": update}
        return _agreed(self._all("begin_reference", options, deadline_s=START_DEADLINE_S))

    def score(
        self,
        requests: Sequence[TeacherRequest],
        *,
        temperature: float,
        top_k: int = 0,
        join_sampled: bool = False,
        entropies: bool = False,
        full: str = "none",
    ) -> list[TeacherScores]:
        """Scores in the order of the requests; see ``TeacherScorer.score``."""
        options = {"temperature": temperature, "top_k": top_k, "join_sampled": join_sampled, "entropies": entropies, "full": full}
        return self._dealt("score", requests, options)

    def reference_logprobs(self, requests: Sequence[TeacherRequest], *, temperature: float) -> list[TeacherScores]:
        """See ``TeacherScorer.reference_logprobs``."""
        return self._dealt("reference_logprobs", requests, {"temperature": temperature})

    def _dealt(self, method: str, requests: Sequence[TeacherRequest], options: dict[str, Any]) -> list[TeacherScores]:
        """Answers in the order of the requests; the work is dealt out by length."""
        by_length = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_token_ids) + len(requests[i].completion_token_ids))
        shares = [share for first in range(len(self.handles)) if (share := by_length[first :: len(self.handles)])]
        pending = [
            getattr(handle, method).remote([requests[index] for index in share], options)
            for handle, share in zip(self.handles, shares, strict=False)
        ]
        results: dict[int, TeacherScores] = {}
        for share, scores in zip(shares, _collect(pending, SCORE_DEADLINE_S), strict=True):
            results.update(zip(share, scores, strict=True))
        return [results[index] for index in range(len(requests))]

    def full_payload(self, num_tokens: int) -> Payload:
        """How the whole distribution of ``num_tokens`` tokens travels: the cheaper exact way."""
        return _collect([self.handles[0].full_payload.remote(num_tokens)], FILE_DEADLINE_S)[0]

    def head(self) -> np.ndarray:
        """float32 [V, H']: the teacher's output matrix; of a mixed teacher both side by side, with their exponents."""
        return _collect([self.handles[0].head.remote()], FILE_DEADLINE_S)[0]

    def save(self, folder: Path) -> None:
        """Write the weights and the update count once, on storage that every handle can read."""
        _collect([self.handles[0].save.remote(folder)], FILE_DEADLINE_S)

    def load(self, folder: Path) -> Follow:
        """Every handle takes the weights and the update count that ``save`` wrote."""
        return _agreed(self._all("load", folder, deadline_s=FILE_DEADLINE_S))

    def _all(self, method: str, *arguments: Any, deadline_s: float) -> list[Any]:
        return _collect([getattr(handle, method).remote(*arguments) for handle in self.handles], deadline_s)


def _collect(references: list[Any], deadline_s: float) -> list[Any]:
    """Results in order. An error that the teacher raised comes back as itself, with its own reason code."""
    try:
        return ray.get(references, timeout=deadline_s)
    except ray.exceptions.GetTimeoutError as error:
        raise TeacherError(f"the teacher did not answer within {deadline_s:g} s", reason="teacher_lost") from error
    except ray.exceptions.RayActorError as error:
        raise TeacherError(f"the teacher's process died: {str(error).strip().splitlines()[0]}", reason="teacher_lost") from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, HoldfastError):
            raise error.cause from error
        raise


def _agreed(follows: list[Follow]) -> Follow:
    first = follows[0]
    for other in follows[1:]:
        same = other.canary.keys() == first.canary.keys() and all(np.array_equal(other.canary[n], first.canary[n]) for n in first.canary)
        counts = [(one.teacher_version, one.follows, one.masked_token_ids) for one in (first, other)]
        if counts[0] != counts[1] or not same:
            raise TeacherError(
                f"two teachers of one group are at updates {first.teacher_version} and {other.teacher_version} with "
                f"{'the same' if same else 'different'} weights",
                reason="teacher_diverged",
            )
    return first
