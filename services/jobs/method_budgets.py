"""Methods against the budget of their stage and the size of the model: what could not learn, or would not fit.

Invariant: only figures of the job file and of ``config.json`` are looked at. What needs neither is refused by the spec itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.spec.contexts import SiblingSolution, UserTemplate
from cluster.spec.experience import PolicyExperience
from cluster.spec.job import JobSpec, ResolvedStage, context_tokens, own_domains, with_replay
from cluster.spec.masks import PatternMask, SkipFirstMask, SpecialTokensMask
from cluster.spec.objectives import PolicyGradient
from cluster.spec.teachers import PerDomainTeacher
from services.jobs.faults import CANNOT_LEARN, Fault, pointer, show
from services.jobs.model_files import ModelFacts

MAX_ENGINE_SUPPORT = 1024
"""Most likely ids that the engine is allowed to return at each position; each one costs memory and time per token."""


def check_budget(stage: ResolvedStage) -> list[Fault]:
    """What a stage's own figures leave nothing to learn from, whatever the model."""
    return [fault for part in (_single_rollout, _lengths_of_parts, _masks, _templates) for fault in part(stage)]


def check_kept_teachers(stages: tuple[ResolvedStage, ...]) -> list[Fault]:
    """``boundary.teacher: keep`` of one teacher where the stage before had one for each domain: there is none to keep."""
    found: list[Fault] = []
    last: ResolvedStage | None = None
    for stage in stages:
        teacher = stage.composition.teacher
        if teacher is None:
            continue
        before = last.composition.teacher if last is not None else None
        if isinstance(before, PerDomainTeacher) and stage.boundary.teacher == "keep":
            new = set(teacher.teachers) - set(before.teachers) if isinstance(teacher, PerDomainTeacher) else {"all domains"}
            if new:
                detail = (
                    f"keep is not possible: stage {last.name!r} has teachers of {sorted(before.teachers)}, stage {stage.name!r} asks for one of "
                    f"{sorted(new)}; allowed: re_anchor, reset, or teachers of the same domains"
                )
                found.append(Fault(pointer(("stages", stage.index, "boundary", "teacher")), detail, "no_teacher_to_keep"))
        last = stage
    return found


def check_stage_replay(spec: JobSpec) -> list[Fault]:
    """``replay`` of stages that do not come before, or of domains that the stage trains on anyway."""
    found: list[Fault] = []
    for index, stage in enumerate(spec.stages):
        if stage.replay is None:
            continue
        at, before = ("stages", index, "replay"), [past.name for past in spec.stages[:index]]
        if not before:
            found.append(Fault(pointer(at), f"stage {stage.name!r} is the first, there is nothing to replay; remove replay", "nothing_to_replay"))
            continue
        unknown = [name for name in stage.replay.stages or () if name not in before]
        for name in unknown:
            found.append(Fault(pointer((*at, "stages")), f"{show(name)} is not an earlier stage; allowed: {', '.join(before)}", "nothing_to_replay"))
        if not unknown and len(with_replay(spec, index)) == len(own_domains(stage)):
            detail = f"stage {stage.name!r} trains on every domain that it would replay; remove replay, or name other stages"
            found.append(Fault(pointer(at), detail, "nothing_to_replay"))
    return found


def _method(stage: ResolvedStage) -> str:
    return pointer(("stages", stage.index, "method"))


def _contexts(stage: ResolvedStage) -> list[object]:
    """The contexts of the stage's domains, each once."""
    found: list[object] = []
    for part in stage.domains:
        context = stage.composition.context_of(part.name)
        if context not in found:
            found.append(context)
    return found


def _single_rollout(stage: ResolvedStage) -> Iterator[Fault]:
    """What needs more than one rollout of a problem."""
    composition = stage.composition
    if stage.rollouts_per_problem > 1 or composition.experience.kind == "demonstrations":
        return
    at = pointer(("stages", stage.index, "rollouts_per_problem"))
    gradients = [term.objective.advantage for term in composition.terms if isinstance(term.objective, PolicyGradient)]
    if any(one.outcome_weight > 0.0 for one in gradients) and composition.advantage.baseline != "none":
        detail = (
            f"1 is not enough: a policy gradient of the outcome compares the rollouts of a problem ({composition.advantage.baseline}), and a "
            "single one has nothing to be compared with; at least 2, or advantage.baseline none for the plain score, or outcome_weight 0"
        )
        yield Fault(at, detail, CANNOT_LEARN)
    if any(isinstance(one, SiblingSolution) and not one.own_success and one.feedback == "never" for one in _contexts(stage)):
        detail = (
            "1 is not enough: sibling_solution shows another rollout of the same problem, and there is none; "
            "at least 2, or own_success, or feedback"
        )
        yield Fault(at, detail, CANNOT_LEARN)
    if isinstance(composition.experience, PolicyExperience) and composition.experience.dynamic_sampling is not None:
        detail = "1 is not enough: dynamic sampling drops groups whose scores are equal, and a single one's always are; at least 2"
        yield Fault(at, detail, CANNOT_LEARN)


def _lengths_of_parts(stage: ResolvedStage) -> Iterator[Fault]:
    """Numbers of tokens that only make sense below the longest completion."""
    composition, longest = stage.composition, stage.sampling.max_tokens
    overlong = composition.advantage.overlong
    if overlong is not None and overlong.buffer_tokens >= longest:
        detail = (
            f"the overlong buffer of {overlong.buffer_tokens} tokens is not smaller than max_tokens {longest}, so every completion would be "
            f"penalised; a fifth is the paper's proportion: {max(1, longest // 5)}"
        )
        yield Fault(_method(stage), detail, "buffer_too_long")
    prefix = getattr(composition.experience, "prefix", None)
    if prefix is not None and prefix.start_tokens > longest:
        detail = f"the prefix starts at {prefix.start_tokens} tokens, max_tokens is {longest}; start_tokens must be at most that"
        yield Fault(_method(stage), detail, "prefix_too_long")
    for term in composition.terms:
        for mask in term.masks:
            if isinstance(mask, SkipFirstMask) and mask.tokens >= longest:
                detail = f"term {term.name!r}: skip_first {mask.tokens} leaves no token of completions of at most {longest}; use less than that"
                yield Fault(_method(stage), detail, CANNOT_LEARN)


def _masks(stage: ResolvedStage) -> Iterator[Fault]:
    """Patterns that do not compile, texts without a token."""
    from trainer.masks import check_pattern

    for term in stage.composition.terms:
        for mask in term.masks:
            if isinstance(mask, PatternMask):
                try:
                    check_pattern(mask.pattern)
                except Exception as error:  # whatever the library says of a user's pattern is the user's to read
                    yield Fault(_method(stage), f"term {term.name!r}: {error}", "pattern_invalid")
            if isinstance(mask, SpecialTokensMask) and "" in mask.texts:
                yield Fault(_method(stage), f"term {term.name!r}: special_tokens has an empty text, which is no token", "text_empty")


def _templates(stage: ResolvedStage) -> Iterator[Fault]:
    """User templates that are no templates, or name what there is not."""
    from rollout.context.user_template import check_template

    for context in _contexts(stage):
        template = getattr(context, "template", None)
        if isinstance(template, UserTemplate):
            for problem in check_template(template.text):
                yield Fault(_method(stage), f"context {context.kind}, template {show(template.text)}: {problem}", "template_invalid")


# -- against the model -----------------------------------------------------------------------------------------------


def check_lengths(spec: JobSpec, stage: ResolvedStage, facts: ModelFacts, *, whose: str = "the model") -> list[Fault]:
    """The policy's prompt, the teacher's context and the completion must fit the model together."""
    prompt, limit = stage.max_prompt_tokens, facts.max_positions
    if limit is None:
        return []
    context, written = context_tokens(stage), context_tokens(stage, generated=True)
    sums = {
        f"max_prompt_tokens {prompt} + context {context} + max_tokens {stage.sampling.max_tokens}": prompt + context + stage.sampling.max_tokens,
        f"max_prompt_tokens {prompt} + context and what the policy writes for it {written}": prompt + written,
    }
    worst = max(sums, key=lambda words: sums[words])
    if sums[worst] <= limit:
        return []
    detail = f"stage {stage.name!r} needs {worst} = {sums[worst]} tokens, {whose} has {limit}; shorten one of them"
    return [Fault(_where_of_lengths(spec, stage), detail, "context_too_long")]


def _where_of_lengths(spec: JobSpec, stage: ResolvedStage) -> str:
    named = spec.stages[stage.index]
    if named.max_prompt_tokens:
        return pointer(("stages", stage.index, "max_prompt_tokens"))
    return pointer(("stages", stage.index) if named.sampling else ("defaults", "max_prompt_tokens"))


def check_evaluation_length(spec: JobSpec, stages: tuple[ResolvedStage, ...], facts: ModelFacts) -> list[Fault]:
    """Evaluation takes the longest prompts of the stages and its own longest completion."""
    longest = max(stage.max_prompt_tokens for stage in stages)
    completion = max(*(stage.sampling.max_tokens for stage in stages), spec.evaluation.max_tokens or 1)
    needed = longest + completion
    if facts.max_positions is None or needed <= facts.max_positions:
        return []
    detail = (
        f"{completion} is too long: with max_prompt_tokens {longest} it makes {needed} tokens, the model has {facts.max_positions} "
        "(where unset it is the largest max_tokens of the stages)"
    )
    return [Fault("/evaluation/max_tokens", detail, "context_too_long")]


def check_support(stage: ResolvedStage, facts: ModelFacts) -> list[Fault]:
    """K against the vocabulary and against what the engine may return."""
    support = stage.composition.top_k
    if support is None:
        return []
    if facts.vocabulary is not None and support.k > facts.vocabulary:
        detail = f"top_k {support.k} is larger than the model's vocabulary of {facts.vocabulary}; use a full support"
        return [Fault(_method(stage), detail, "top_k_too_large")]
    if support.support_from == "rollout" and support.k > MAX_ENGINE_SUPPORT:
        detail = f"top_k {support.k} is more than the engine returns ({MAX_ENGINE_SUPPORT}); use support_from: teacher, or a full support"
        return [Fault(_method(stage), detail, "top_k_too_large")]
    return []
