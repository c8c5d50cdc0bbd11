"""What methods name on disk: teachers' models, the checkpoints that teachers begin at, recorded rollouts.

Invariant: models are looked at by the checks of the base model (``model_files``), so none that could execute is let in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.spec.composition import Composition
from cluster.spec.experience import ReplayedExperience
from cluster.spec.job import JobSpec, ModelSpec, ResolvedStage
from cluster.spec.teachers import ExternalTeacher, InitialBlend, TeacherSpec, external_key, external_teachers, single_teachers
from services.jobs.faults import Fault, pointer, show
from services.jobs.method_budgets import check_lengths
from services.jobs.model_files import check_model

SHAPE_FIELDS = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
"""Of ``config.json``: what two models must share to be blended weight by weight."""


def check_teacher_models(
    spec: JobSpec, stages: tuple[ResolvedStage, ...], base_dir: Path, policy_folder: str | None
) -> tuple[list[Fault], dict[str, Any]]:
    """Faults of every other checkpoint, and ``teachers`` (key: folder), ``teacher_sha256``, ``teacher_revisions`` for the row."""
    faults: list[Fault] = []
    resolved: dict[str, Any] = {}
    for stage in stages:
        at = pointer(("stages", stage.index, "method"))
        for external in external_teachers(stage.composition.teacher):
            faults += _check_external(spec, stage, external, at, base_dir, policy_folder, resolved)
        for blend in initial_blends(stage.composition.teacher):
            faults += _check_initial(blend, at, base_dir, policy_folder, resolved)
    return faults, resolved


def initial_blends(teacher: TeacherSpec | None) -> Iterator[InitialBlend]:
    """The blends that a method's teachers begin at."""
    for single in () if teacher is None else single_teachers(teacher):
        if getattr(single, "initial", None) is not None:
            yield single.initial


def _check_external(
    spec: JobSpec, stage: ResolvedStage, external: ExternalTeacher, at: str, base_dir: Path, policy_folder: str | None, resolved: dict[str, Any]
) -> list[Fault]:
    key = external_key(external)
    model = ModelSpec(path=external.path, id=external.id, revision=external.revision)
    found, facts, known = check_model(model, base_dir)
    faults = [Fault(at, f"teacher {key}: {fault.detail}", fault.code) for fault in found]
    _note(resolved, key, known)
    if facts is not None:
        faults += [Fault(at, fault.detail, fault.code) for fault in check_lengths(spec, stage, facts, whose=f"the teacher {key}")]
    if not faults and policy_folder is not None and "model_path" in known:
        problem = vocabulary_problem(policy_folder, known["model_path"], stage.composition)
        if problem is not None:
            faults.append(Fault(at, f"teacher {key}: {problem}", "vocabulary_differs"))
    return faults


def vocabulary_problem(policy_folder: str, teacher_folder: str, composition: Composition) -> str | None:
    """Why a teacher's token ids cannot stand for the policy's in this composition, or None."""
    from services.teacher.vocabulary import compare_vocabularies

    compared = compare_vocabularies(policy_folder, teacher_folder)
    if isinstance(compared, str) or not compared:
        return compared or None
    if not composition.needs_full_teacher and composition.rollout_support_k == 0:
        return None
    return (
        f"{len(compared)} special ids mean other tokens to it ({sorted(compared)[:5]} ...); they can be masked where the support is the "
        "sampled token or the teacher's top_k, not in a full one or in a top_k of the policy or the rollout"
    )


def _check_initial(blend: InitialBlend, at: str, base_dir: Path, policy_folder: str | None, resolved: dict[str, Any]) -> list[Fault]:
    found, _, known = check_model(ModelSpec(path=blend.path), base_dir)
    faults = [Fault(at, f"initial {blend.path}: {fault.detail}", fault.code) for fault in found]
    _note(resolved, blend.path, known)
    if faults or policy_folder is None:
        return faults
    ours, theirs = _config(policy_folder), _config(known["model_path"])
    differing = [f"{name} {theirs.get(name)} against {ours.get(name)}" for name in SHAPE_FIELDS if theirs.get(name) != ours.get(name)]
    if not differing:
        return []
    detail = f"initial {blend.path} is blended with the policy weight by weight, but differs from it in {', '.join(differing)}; use an external teacher"
    return [Fault(at, detail, "architecture_differs")]


def _note(resolved: dict[str, Any], key: str, known: dict[str, Any]) -> None:
    for name, group in (("model_path", "teachers"), ("model_sha256", "teacher_sha256"), ("model_revision", "teacher_revisions")):
        if name in known:
            resolved.setdefault(group, {})[key] = known[name]


def _config(folder: str) -> dict[str, Any]:
    content = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return content.get("text_config") or content


# -- recorded rollouts -----------------------------------------------------------------------------------------------


def check_replayed(stages: tuple[ResolvedStage, ...], base_dir: Path) -> tuple[list[Fault], dict[str, Any]]:
    """Recorded rollouts that are not there, or will not be when the stage begins; ``replayed`` (path: folder) for the row."""
    from rollout.sources.recording import step_file

    faults: list[Fault] = []
    resolved: dict[str, Any] = {}
    for stage in stages:
        experience = stage.composition.experience
        if not isinstance(experience, ReplayedExperience):
            continue
        at = pointer(("stages", stage.index, "method", "experience", "stage" if experience.path is None else "path"))
        if experience.path is None:
            reason = _unusable_record(stage, experience.stage, stages)
            faults += [Fault(at, reason, "nothing_recorded")] if reason else []
            continue
        folder = base_dir / experience.path
        resolved.setdefault("replayed", {})[experience.path] = str(folder.resolve())
        missing = [step for step in range(stage.steps) if not step_file(folder, step).is_file()]
        if missing:
            detail = (
                f"{show(experience.path)} has no recorded rollouts of step {missing[0]}, stage {stage.name!r} replays {stage.steps} steps; "
                "a stage with experience.record writes such a folder"
            )
            faults.append(Fault(at, detail, "nothing_recorded"))
    return faults, resolved


def _unusable_record(stage: ResolvedStage, name: str, stages: tuple[ResolvedStage, ...]) -> str | None:
    """Why stage ``name`` leaves nothing that ``stage`` could replay."""
    earlier = {past.name: past for past in stages[: stage.index]}
    if name not in earlier:
        return f"stage {stage.name!r} replays stage {name!r}, which is not an earlier one; earlier stages are {list(earlier)}"
    past = earlier[name]
    if not getattr(past.composition.experience, "record", False):
        return f"stage {stage.name!r} replays stage {name!r}, which does not record its rollouts; set experience.record there (recipe custom)"
    if stage.steps > past.steps:
        return f"stage {stage.name!r} replays {stage.steps} steps, stage {name!r} records {past.steps}; use at most as many"
    differing = [name for name in ("temperature", "top_p", "top_k") if getattr(stage.sampling, name) != getattr(past.sampling, name)]
    if differing or stage.sampling.max_tokens < past.sampling.max_tokens:
        return (
            f"stage {stage.name!r} replays what stage {name!r} sampled with another sampling ({', '.join(differing) or 'a longer max_tokens'}); "
            "the recorded probabilities would not be those of this stage: use the same"
        )
    strange = sorted({part.name for part in past.domains} - {part.name for part in stage.domains})
    if strange:
        return f"stage {name!r} records problems of {strange}, which stage {stage.name!r} does not name; name its domains alike (domains: [...])"
    if stage.composition.rollout_support_k > past.composition.rollout_support_k:
        return (
            f"stage {stage.name!r} needs the rollout's {stage.composition.rollout_support_k} most likely ids, stage {name!r} records "
            f"{past.composition.rollout_support_k}; use support_from policy or teacher"
        )
    return None
