"""The reference of a KL penalty: frozen weights of the policy's architecture, and never the teacher.

Invariant: the weights are those of the policy's update ``version`` (0 is the base model) and do not move until a stage
anchors them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from cluster.errors import TeacherError
from services.teacher.canary import Follow, canary_of_sets
from services.teacher.mixture import Mixture
from services.teacher.strategies import State
from services.teacher.weights import PolicyWeights, WeightSet

Anchor = Literal["keep", "resume", "policy", "base"]
REFERENCE = "reference"


class Reference:
    """Held only once a stage has asked for it."""

    def __init__(self, policy: PolicyWeights):
        self._policy = policy
        self._set: WeightSet | None = None
        self.version = 0
        """The policy's update whose weights it holds."""

    @property
    def held(self) -> bool:
        return self._set is not None

    def begin(self, *, anchor: Anchor, snapshot: Path | None, update: int | None, spare: WeightSet | None = None) -> Follow:
        """See ``TeacherScorer.begin_reference``; ``spare`` is a set that nobody needs."""
        update = self.version if update is None else update
        if anchor == "policy":
            if snapshot is None:
                raise ValueError("anchor 'policy' needs the snapshot to anchor at")
            self._adopt(self._policy.snapshot(snapshot), update, spare)
        elif anchor == "base" or (anchor == "keep" and (not self.held or update == 0)):
            self._adopt(self._policy.base(), 0, spare)
        elif not self.held or self.version > update:
            found = f"of update {self.version}" if self.held else "not restored"
            raise TeacherError(f"the policy is at update {update}, but the reference is {found}", reason="teacher_stale")
        return self.report()

    def _adopt(self, weights: Mapping[str, Tensor], version: int, spare: WeightSet | None) -> None:
        self._set = self._set or spare or self._policy.new_set()
        self._set.adopt(weights)
        self.version = version

    def scoring(self) -> Mixture:
        if self._set is None:
            raise TeacherError("the reference was asked before a stage began with one", reason="teacher_stale")
        return Mixture([(self._set, 1.0)], vocabulary=self._set.model.head_weight.shape[0])

    def report(self) -> Follow:
        held = {} if self._set is None else {REFERENCE: self._set.state}
        return Follow(teacher_version=self.version, canary=canary_of_sets(held))

    def kept_state(self) -> State | None:
        return None if self._set is None else self._set.state

    def restore(self, weights: Mapping[str, Tensor] | None, version: int, spare: WeightSet | None = None) -> None:
        if weights is None:
            self._set, self.version = None, 0
        else:
            self._adopt(weights, version, spare)
