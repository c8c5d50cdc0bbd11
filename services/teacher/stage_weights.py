"""The weight sets that a stage's teachers hold: how they begin, how they follow the policy, how they are kept on disk.

Invariants: every set is a function of its anchor, the spec and the published snapshots, each applied exactly once, in
order; only the sets that the stage scores with are held, and own sets that a boundary ``keep`` carries over an external one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from cluster.errors import TeacherError
from cluster.spec.teachers import external_key, external_teachers
from services.teacher.canary import Follow, canary_of_sets
from services.teacher.mixture import Mixture
from services.teacher.strategies import EXTERNAL, OWN, POLICY, Moment, State, blend, own_set, parts_of, stay, strategy_of
from services.teacher.vocabulary import compare_vocabularies
from services.teacher.weights import PolicyWeights, WeightSet, load_external

Anchor = Literal["keep", "resume", "policy", "base"]


class StageWeights:
    """The teachers of one process, without their scores."""

    def __init__(self, policy: PolicyWeights, external_folders: Mapping[str, str]):
        self._policy = policy
        self._external_folders = external_folders
        self._masked: dict[str, frozenset[int]] = {}
        self.sets: dict[str, WeightSet] = {OWN: policy.new_set()}
        self._vocabulary = self.sets[OWN].model.head_weight.shape[0]
        self._spec: Any = None
        self._singles: dict[str, Any] = {}
        self.teachers: dict[str, Mixture] = {"": self._mixture(((OWN, 1.0),))}
        """By domain; the empty name is that of a stage's only teacher."""
        self.anchored = False
        self.version = 0
        """Number of the last update that was followed; counts the policy's optimizer steps over all stages."""
        self.follows = 0
        """Batches followed since the stage began."""
        self._before: int | None = None
        """The update before the last one that was followed; the same again where it is followed again."""
        self._inside_batch = False
        """Whether the last update that was followed did not end its batch."""

    # -- a stage begins ----------------------------------------------------------------------------------------------

    def begin(self, spec: Any, *, anchor: Anchor, snapshot: Path | None, update: int | None) -> Follow:
        """See ``TeacherScorer.begin_stage``."""
        update = self.version if update is None else update
        singles = strategy_of(spec).teachers(spec)
        parts = {domain: parts_of(single, own_set(domain)) for domain, single in singles.items()}
        wanted = {name for of_teacher in parts.values() for name, _ in of_teacher}
        if anchor == "policy" and snapshot is None:
            raise ValueError("anchor 'policy' needs the snapshot to anchor at")
        own = {own_set(domain): single for domain, single in singles.items() if own_set(domain) in wanted}
        masked = {domain: self._check_vocabularies(single) for domain, single in singles.items()}
        self._hold(own, wanted, self._continued(own, anchor, update), anchor=anchor, snapshot=snapshot)
        self._spec, self._singles = spec, singles
        self.teachers = {domain: self._mixture(of_teacher, masked[domain]) for domain, of_teacher in parts.items()}
        self.follows = self.follows if anchor == "resume" else 0
        self._before, self._inside_batch = None, False
        self.anchored, self.version = True, update
        return self.report()

    def _continued(self, own: Mapping[str, Any], anchor: Anchor, update: int) -> dict[str, str | None]:
        """By own set, the held set whose weights it goes on with; None where it begins anew."""
        if anchor in ("policy", "base"):
            return dict.fromkeys(own)
        missing = [name for name in own if name not in self.sets]
        if anchor == "resume" and not (self.anchored and self.version == update and not missing):
            found = f"at update {self.version}{f' without {missing}' if missing else ''}" if self.anchored else "not restored"
            raise TeacherError(f"the stage resumes at update {update}, but the teacher is {found}", reason="teacher_stale")
        if self.anchored and self.version > update:
            if update > 0:
                raise TeacherError(
                    f"the teacher has followed update {self.version}, the policy is at {update}: restore the teacher from the "
                    "policy's checkpoint first",
                    reason="teacher_stale",
                )
            return dict.fromkeys(own)  # the policy began again from the base model, and so do its teachers
        return {name: self._kept(name) for name in own}

    def _kept(self, name: str) -> str | None:
        """Whose weights a kept own set goes on with: its own, the only teacher's before it, a live teacher's last ones."""
        if not self.anchored:
            return None
        for candidate in (name, OWN):
            if candidate in self.sets:
                return candidate
        others = [held for held in self.sets if held.startswith(f"{OWN}/")]
        if others and name == OWN:
            raise TeacherError(
                f"boundary.teacher keep: the stage before had teachers by domain ({sorted(others)}), so one teacher has no weights to "
                "keep; use re_anchor or reset",
                reason="teacher_stale",
            )
        if others:
            raise TeacherError(
                f"boundary.teacher keep: the stage before had teachers of {sorted(others)} and none of {name}, so it has no weights to keep; "
                "use re_anchor or reset",
                reason="teacher_stale",
            )
        return POLICY if POLICY in self.sets else None

    def _hold(
        self, own: Mapping[str, Any], wanted: set[str], continued: dict[str, str | None], *, anchor: Anchor, snapshot: Path | None
    ) -> None:
        """Turn the held sets into those that are wanted; a set that is no longer needed is used for another."""
        held, sources = self.sets, {source for source in continued.values() if source is not None}
        # a live teacher's weights are the policy's, they replace what was kept; an external one leaves it alone
        parked = {name for name in held if anchor in ("keep", "resume") and POLICY not in wanted and name.startswith(OWN)} - sources
        staying = (wanted & set(held)) | parked
        spare = [held[name] for name in held if name not in staying | sources and not name.startswith(EXTERNAL)]
        sets: dict[str, WeightSet] = {name: held[name] for name in staying}

        def place(name: str) -> WeightSet:
            if name not in sets:
                sets[name] = spare.pop() if spare else self._policy.new_set()
            return sets[name]

        for name, single in own.items():
            source = continued[name]
            if source is None:
                place(name).adopt(self._beginning(single, anchor, snapshot))
            elif source != name:
                place(name).adopt(held[source].state)
        if POLICY in wanted:
            self._place_policy(place(POLICY), snapshot, held=POLICY in held, anchor=anchor)
        for name in wanted:
            if name.startswith(EXTERNAL) and name not in sets:
                sets[name] = self._load_external(name)
        self.sets = sets

    def _beginning(self, single: Any, anchor: Anchor, snapshot: Path | None) -> State:
        """The anchor's weights, with the checkpoint's share where the teacher names one."""
        anchored = self._policy.snapshot(snapshot) if anchor == "policy" else self._policy.base()
        initial = getattr(single, "initial", None)
        if initial is None:
            return anchored
        checkpoint = self._policy.checkpoint(Path(self._external_folders.get(initial.path, initial.path)))
        mixed = {name: tensor.clone() for name, tensor in anchored.items()}
        blend(mixed, checkpoint, initial.share)
        return mixed

    def _place_policy(self, place: WeightSet, snapshot: Path | None, *, held: bool, anchor: Anchor) -> None:
        if snapshot is not None:
            place.adopt(self._policy.snapshot(snapshot))
        elif anchor == "base" or not self.anchored:
            place.adopt(self._policy.base())
        elif not held:
            raise ValueError(f"anchor {anchor!r} needs the snapshot of the current policy, which this teacher scores with")

    # -- other models ------------------------------------------------------------------------------------------------

    def _check_vocabularies(self, single: Any) -> frozenset[int]:
        """The ids on which an external model of a teacher differs. Raises TeacherError ``teacher_vocabulary``."""
        masked: frozenset[int] = frozenset()
        for key in map(external_key, external_teachers(single)):
            if key not in self._masked:
                answer = compare_vocabularies(self._policy.folder, self._folder_of(key))
                if isinstance(answer, str):
                    raise TeacherError(answer, reason="teacher_vocabulary")
                self._masked[key] = answer
            masked |= self._masked[key]
        return masked

    def _folder_of(self, key: str) -> Path:
        if key not in self._external_folders:
            raise ValueError(f"external_folders has no folder of {key!r}; known are {sorted(self._external_folders)}")
        return Path(self._external_folders[key])

    def _load_external(self, name: str) -> WeightSet:
        folder = self._folder_of(name.removeprefix(EXTERNAL))
        return load_external(folder, device=self._policy.device, dtype=self._policy.dtype)

    def _mixture(self, parts: tuple[tuple[str, float], ...], masked: frozenset[int] = frozenset()) -> Mixture:
        foreign = any(name.startswith(EXTERNAL) for name, _ in parts)
        sets = [(self.sets[name], exponent) for name, exponent in parts]
        return Mixture(sets, vocabulary=self._vocabulary, masked=masked if foreign else frozenset())

    # -- following ---------------------------------------------------------------------------------------------------

    def follow(self, update: int, snapshot: Path, *, after: int | None = None, ends_batch: bool = True) -> Follow:
        """See ``TeacherScorer.follow``."""
        if self._spec is None:
            raise TeacherError("the teacher was told to follow before a stage began", reason="teacher_stale")
        if update == self.version:
            if self._inside_batch and ends_batch:
                self._take(update, snapshot, Moment(follows=self.follows + 1, new_update=False))
            return self.report()
        before = update - 1 if after is None else after
        sees_every_update = any(strategy_of(single).sees_every_update for single in self._singles.values())
        if update < self.version or (sees_every_update and before != self.version):
            raise TeacherError(
                f"the {self._spec.kind} teacher is at update {self.version} and cannot follow update {update} after {before}",
                reason="teacher_stale",
                details={"teacher_version": self.version, "update": update},
            )
        self._before = self.version
        self._take(update, snapshot, Moment(follows=self.follows + ends_batch, ends_batch=ends_batch))
        return self.report()

    def _take(self, update: int, snapshot: Path, moment: Moment) -> None:
        if POLICY in self.sets or any(strategy_of(single).update is not stay for single in self._singles.values()):
            self._move(self._policy.snapshot(snapshot), moment)
        self.version, self.follows, self._inside_batch = update, moment.follows, not moment.ends_batch

    def _move(self, policy: State, moment: Moment) -> None:
        for domain, single in self._singles.items():
            update = strategy_of(single).update
            if update is not stay:
                own = self.sets[own_set(domain)]
                update(own.state, policy, single, moment)
                own.settle()
        if POLICY in self.sets:
            self.sets[POLICY].adopt(policy)
        for teacher in self.teachers.values():
            teacher.moved()

    def report(self) -> Follow:
        return Follow(
            before=self._before,
            teacher_version=self.version,
            canary=canary_of_sets({name: held.state for name, held in self.sets.items()}),
            follows=self.follows,
            masked_token_ids={domain: teacher.masked_token_ids for domain, teacher in self.teachers.items() if teacher.masked_token_ids},
        )

    def release_unanchored(self) -> WeightSet | None:
        """Give away the base model's weights that no stage has asked for yet."""
        if self.anchored or OWN not in self.sets:
            return None
        self.teachers = {}
        return self.sets.pop(OWN)

    # -- kept on disk ------------------------------------------------------------------------------------------------

    def kept_states(self) -> dict[str, State]:
        """By name, the sets that a checkpoint must hold; external models are read from their folders again."""
        return {name: held.state for name, held in self.sets.items() if not name.startswith(EXTERNAL)} if self.anchored else {}

    def restore(self, states: Mapping[str, Mapping[str, Tensor]], *, anchored: bool, version: int, follows: int) -> Follow:
        """Undo a save; the stage begins again with ``begin``. Before the first anchoring the weights are the base model's."""
        spare = [held for name, held in self.sets.items() if not name.startswith(EXTERNAL) and name not in states]
        sets: dict[str, WeightSet] = {}
        for name, weights in states.items():
            sets[name] = self.sets[name] if name in self.sets else (spare.pop() if spare else self._policy.new_set())
            sets[name].adopt(weights)
        if not anchored:
            sets[OWN] = spare.pop() if spare else self._policy.new_set()
            sets[OWN].adopt(self._policy.base())
        self.sets, self._spec, self._singles = sets, None, {}
        self.teachers = {"": self._mixture(((OWN, 1.0),))} if OWN in sets else {}
        self.anchored, self.version, self.follows, self._before = anchored, version, follows, None
        return self.report()
