"""A composition in few words: the cells of the recipes' table, and what ``holdfast validate`` says of a stage. Pure."""

from __future__ import annotations

from cluster.spec.composition import Composition, Term
from cluster.spec.job import ResolvedStage
from cluster.spec.masks import MaskSpec
from cluster.spec.supports import SupportSpec, TopKSupport
from cluster.spec.teachers import (
    MixTeacher,
    PerDomainTeacher,
    RestartAndFreezeTeacher,
    TeacherSpec,
    external_key,
    single_teachers,
)

ABBREVIATED = {"policy_gradient": "PG", "forward_kl": "FKL", "reverse_kl": "RKL", "jensen_shannon": "JSD"}
LEGEND = (
    "PG policy gradient, FKL KL(teacher || policy), RKL KL(policy || teacher), JSD Jensen-Shannon; A outcome's advantage, q the teacher's "
    "probability of the sampled token, p the policy's; cap: of the truncated importance weight"
)


def teacher_words(teacher: TeacherSpec | None) -> str:
    """Which weights, with the number that matters."""
    if teacher is None:
        return "-"
    if isinstance(teacher, PerDomainTeacher):
        return ", ".join(f"{name}: {teacher_words(one)}" for name, one in teacher.teachers.items())
    if isinstance(teacher, MixTeacher):
        return f"mix {teacher.first.kind}^{1.0 - teacher.weight:g} {teacher.second.kind}^{teacher.weight:g}"
    numbers = {
        "ema": lambda one: f"ema {one.update_rate:g}" + ("" if one.every == "rollout_batch" else " per optimizer step"),
        "restart_and_freeze": lambda one: f"restart_and_freeze {one.gamma:g} every {one.period}",
        "trust_region": lambda one: f"trust_region {one.mix:g}",
        "external": lambda one: f"external {external_key(one).rpartition('/')[2]}",
    }
    return numbers[teacher.kind](teacher) if teacher.kind in numbers else teacher.kind


def context_words(composition: Composition) -> str:
    """What the teacher reads besides the prompt; domains with a context of their own by name."""
    if composition.teacher is None:
        return "-"
    own = [f"{name}: {_context(context)}" for name, context in composition.domain_contexts.items()]
    return ", ".join(own) if own else _context(composition.context)


def _context(context) -> str:
    if context.kind == "none":
        return "none"
    extras = [word for word in ("own_success", "show_attempt") if getattr(context, word, False)]
    feedback = getattr(context, "feedback", "never")
    extras += [] if feedback == "never" else [f"feedback {feedback}"]
    extras += [] if context.reason_first is None else ["reason_first"]
    return " + ".join([context.kind, *extras])


def objective_words(term: Term) -> str:
    """The summand: coefficient, objective, and for a policy gradient what its advantage is."""
    objective = term.objective
    words = ABBREVIATED.get(objective.kind, objective.kind)
    if objective.kind == "policy_gradient":
        words = f"{words} of {_advantage(objective.advantage)}"
        clips = [f"{value:g}" if value is not None else "none" for value in (objective.clip_low, objective.clip_high)]
        words += f", clip {clips[0]}" if clips[0] == clips[1] else f", clip {'/'.join(clips)}"
        words += f", dual {objective.dual_clip:g}" if objective.dual_clip is not None else ""
    if objective.kind == "jensen_shannon":
        words += f" {objective.weight:g}"
    if objective.kind == "reference_kl":
        words += f" {objective.estimator}"
    for name in ("entry_clip", "token_clip", "log_ratio_clip"):
        value = getattr(objective, name, None)
        words += f", {name} {value:g}" if value is not None else ""
    words = words if term.coefficient == 1.0 else f"{term.coefficient:g} x {words}"
    return words if term.samples == "all" else f"{words} ({term.samples})"


def _advantage(advantage) -> str:
    parts = []
    if advantage.outcome_weight:
        parts.append("A" if advantage.outcome_weight == 1.0 else f"{advantage.outcome_weight:g} A")
    if advantage.teacher_weight:
        weight = "" if round(advantage.teacher_weight, 9) == 1.0 else f"{advantage.teacher_weight:g} "
        parts.append(f"{weight}log q/p")
    level = "" if advantage.level == "token" else " averaged over the sequence"
    return " + ".join(parts) + level


def support_words(support: SupportSpec) -> str:
    if not isinstance(support, TopKSupport):
        return support.kind
    return f"top {support.k} of {support.support_from}" + (" + sampled" if support.join_sampled else "") + f", {support.tail}"


def mask_words(mask: MaskSpec) -> str:
    """The mask and its main number."""
    shown = {
        "random": lambda one: f"{one.ratio:g}, of {one.denominator}",
        "skip_first": lambda one: str(one.tokens),
        "special_tokens": lambda one: f"{one.occurrences} {' '.join(one.texts)}".strip(),
        "entropy_quantile": lambda one: f"{one.keep:g} by {one.of}",
        "entropy_threshold": lambda one: f"{one.of} > {one.above_nats:g} nats, of {one.denominator}",
        "region": lambda one: one.keep,
    }
    return f"{mask.kind} {shown[mask.kind](mask)}" if mask.kind in shown else mask.kind


def weight_words(term: Term) -> str:
    """Masks and importance weights of a term."""
    parts = [mask_words(mask) for mask in term.masks]
    if term.importance_cap is not None:
        parts.append(f"cap {term.importance_cap:g}" + (" per sequence" if term.importance_level == "sequence_mean" else ""))
    return "; ".join(parts) or "-"


def normaliser_words(term: Term) -> str:
    return term.normaliser + (", samples without a target count" if term.count_missing_targets else "")


def stage_notes(stage: ResolvedStage) -> list[str]:
    """What a stage's method stands for and needs, where that is not to be read off the file."""
    composition, where, found = stage.composition, f"stage {stage.name!r}", []
    if stage.policy is not None:
        return [f"{where} is given: it takes the weights of {external_key(stage.policy)} and trains nothing"]
    for teacher in () if composition.teacher is None else single_teachers(composition.teacher):
        if isinstance(teacher, RestartAndFreezeTeacher):
            found.append(
                f"{where}: a jump of {teacher.gamma:g} every {teacher.period} steps keeps as much of the old teacher as an EMA of rate "
                f"{teacher.equivalent_update_rate:.4g} per step"
            )
    if composition.needs_scorer:
        needs = [f"a teacher ({teacher_words(composition.teacher)})"] if composition.teacher is not None else []
        needs += [f"a reference ({stage.boundary.reference})"] if composition.needs_reference else []
        found.append(f"{where} needs {' and '.join(needs)}")
    if stage.needs_policy_pass:
        why = "a mask by the policy's entropy" if composition.needs_policy_entropy else f"updates_per_batch {stage.updates_per_batch}"
        found.append(f"{where}: the learner scores each batch before it trains on it ({why}), one more forward pass")
    return found
