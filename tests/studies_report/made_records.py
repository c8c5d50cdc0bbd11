"""Made records of study members: reports by hand, and whole studies with planted differences."""

from __future__ import annotations

from typing import Any

import numpy as np

from cluster.spec.study import Member, StudySpec, expand

DOMAINS = ("arithmetic", "strings", "tool_call", "sequences", "logic", "counting", "dates", "units")

HYPOTHESES = (
    {"name": "denser-drifts", "claim": "Drift is <larger> & stays so.", "figure": "parameter_drift", "arm": "arm-1", "against": "arm-0", "expect": "higher"},
    {"name": "wrong-way", "claim": "It drifts less.", "figure": "parameter_drift", "arm": "arm-1", "against": "arm-0", "expect": "lower", "margin": 0.001},
    {"name": "matched", "claim": "At the same gain too.", "figure": "drift_at_matched_gain", "arm": "arm-1", "against": "arm-0", "expect": "higher"},
    {"name": "no-warnings", "claim": "Nothing collapses.", "figure": "collapse_warnings", "arm": "arm-1", "expect": "similar", "margin": 0.5},
)


COMPARISONS = ({"name": "thought-of-later", "claim": "It also <gains> more.", "figure": "gain", "arm": "arm-1", "against": "arm-0"},)


def made_study(*, arms: int = 2, orders: int = 1, seeds: int = 3, stages: int = 3, hypotheses: tuple = (), comparisons: tuple = (), suites: int = 1) -> StudySpec:
    names = DOMAINS[:stages]
    turned = [names[shift:] + names[:shift] for shift in range(orders)]
    return StudySpec.model_validate(
        {
            "name": "toy-study",
            "description": "A made study.",
            "base": {
                "name": "base",
                "model": {"path": "models/base"},
                "seed": 7,
                "stages": [{"name": name, "domain": {"kind": "arithmetic", "digits": 2}, "method": {"recipe": "grpo"}, "steps": 60} for name in names],
                "evaluation": {"domains": [{"name": f"suite-{i}", "domain": {"kind": "strings", "operation": "sort"}} for i in range(suites)]} if suites else {},
            },
            "arms": [{"name": f"arm-{i}", "title": TITLES[i % len(TITLES)] if i < len(TITLES) else f"Arm number {i}", "set": {"defaults.optimizer": {"lr": 1e-5 * (i + 1)}}} for i in range(arms)],
            "orders": [{"name": f"order-{i}", "stages": list(turned[i]), "seeds": list(range(1, seeds + 1))} for i in range(orders)],
            "hypotheses": list(hypotheses),
            "comparisons": list(comparisons),
        }
    )


TITLES = ("GRPO", "SDPO, frozen teacher", "SDPO, EMA 5 %", "SDPO, restart-and-freeze", "Hybrid 0.5", "Gated refresh", "Random mask 0.5", "SFT")


def made_report(
    stages: list[dict[str, Any]],
    domains: list[str],
    means: list[list[float]],
    *,
    during: list[dict[str, Any]] = (),
    parameters: list[dict[str, Any]] = (),
    responses: list[dict[str, Any]] = (),
    distances: dict[str, dict[str, float]] | None = None,
    warnings: list[dict[str, Any]] | None = (),
    truncation: list[list[float]] | None = None,
) -> dict[str, Any]:
    """A report.json of format 2 with what the study's report reads; ``stages`` have name, domains and steps."""
    return {
        "format": 2,
        "job": {"id": "job_1", "name": "made", "seed": 7, "spec_hash": "abc"},
        "score_matrix": {
            "rows": ["base", *(stage["name"] for stage in stages)][: len(means)],
            "domains": domains,
            "means": means,
            "truncation_rate": truncation or [[0.0] * len(domains) for _ in means],
            "problems_digest": [["d"] * len(domains) for _ in means],
        },
        "stages": [{"index": index, "recipe": "grpo", **stage} for index, stage in enumerate(stages)],
        "during": list(during),
        "drift": {"parameters": list(parameters), "responses": list(responses), "domain_distances": {"bandwidth": 1.0, "mmd_squared": distances} if distances else None},
        "collapse": None if warnings is None else {"warnings": list(warnings), "stages": {}},
    }


def made_record(study: StudySpec, member: Member, report: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "study": study.name,
        "arm": member.arm,
        "order": member.order,
        "seed": member.seed,
        "digest": member.digest,
        "status": "succeeded",
        "reason": None,
        "message": None,
        "job_id": f"job_{member.position}",
        "started_at": "2026-11-21T10:00:00Z",
        "finished_at": f"2026-11-21T11:{member.position % 60:02d}:00Z",
        "seconds": 100.0 + member.position,
        "machine": {"cpus": 2, "platform": "Linux-x86_64", "gpus": 0},
        "report": report,
    } | changes


def point(stage: int, step: int, base: float, own: float) -> dict[str, Any]:
    """One measurement of parameter drift."""
    return {
        "stage": DOMAINS[stage], "stage_index": stage, "step": step, "global_step": step,
        "base": {"relative_l2": base, "nss_weighted": base / 10.0, "nss_median": base / 9.0, "max_angle_deg_median": 40.0 * base}, "start": {"relative_l2": own},
    }  # fmt: skip


def answers(stage: int, step: int, domain: str, kl: float, cosines: list[float] | None, *, role: str = "own") -> dict[str, Any]:
    """One measurement of the answers to one domain's probes."""
    base: dict[str, Any] = {"kl_policy_base": kl, "kl_base_policy": kl, "similarity": {"mean": 0.9, "q25": 0.8, "median": 0.9, "q75": 1.0}}
    at = "during" if cosines is None else "stage_end"
    return {"stage": DOMAINS[stage], "stage_index": stage, "step": step, "global_step": step, "at": at, "domain": domain, "role": role, "num_prompts": 8, "base": base | ({} if cosines is None else {"cosines": cosines})}


def simulated_report(study: StudySpec, member: Member, *, stages_done: int | None = None) -> dict[str, Any]:
    """A run whose arm's number sets what it learns, moves and forgets: later arms learn faster, drift more and forget more."""
    arm = int(member.arm.split("-")[1])
    generator = np.random.default_rng([arm, member.seed, *map(ord, member.order)])
    order = next(order for order in study.orders if order.name == member.order)
    steps = 60
    stages = [{"name": name, "domains": [name], "steps": steps, "gain": None} for name in order.stages]
    domains = [*order.stages, *(suite.name for suite in study.base.evaluation.domains if hasattr(suite, "name"))]
    learn, forget, move = 0.35 + 0.03 * arm, 0.03 + 0.025 * arm, 0.01 * (1 + arm)
    score = {name: 0.2 + 0.02 * index for index, name in enumerate(domains)}
    means = [[round(score[name], 4) for name in domains]]
    during, parameters, responses, base_drift = [], [], [], 0.0
    for index, name in enumerate(order.stages[: stages_done if stages_done is not None else len(order.stages)]):
        start = dict(score)
        for step in (15, 30, 45, 60):
            share = 1.0 - np.exp(-3.0 * step / steps)
            for domain in domains:
                change = learn * share if domain == name else -forget * share * (domain in order.stages[:index])
                score[domain] = float(np.clip(start[domain] + change + generator.normal(0.0, 0.015), 0.0, 1.0))
                if step < steps:
                    during.append({"stage": name, "stage_index": index, "step": step, "global_step": index * steps + step, "domain": domain, "mean": score[domain], "truncation_rate": 0.0})
            own = move * step / steps * float(generator.uniform(0.9, 1.1))
            parameters.append(point(index, step, float(np.hypot(base_drift, own)), own))
            for domain in domains:
                earlier = domain in order.stages[:index]
                kl = (0.05 + 0.05 * arm) * (index + step / steps) * (1.0 if domain == name else 0.5)
                cosines = [float(value) for value in np.clip(1.0 - generator.gamma(2.0, 0.01 * (1 + arm) * (1 + index), 24), -1, 1)] if step == steps else None
                responses.append(answers(index, step, domain, kl, cosines, role="own" if domain == name else "earlier" if earlier else "other"))
        base_drift = float(np.hypot(base_drift, own))
        means.append([round(score[domain], 4) for domain in domains])
    distances = {a: {b: abs(i - j) * 0.05 for j, b in enumerate(DOMAINS)} for i, a in enumerate(DOMAINS)}
    warnings = [{"code": "ngrams_amplified", "raised": True, "stage": order.stages[0], "step": 9}] * (arm > 2)
    return made_report(stages, domains, means, during=during, parameters=parameters, responses=responses, distances=distances, warnings=warnings)


def simulated_records(study: StudySpec, *, of_members: int | None = None) -> list[dict[str, Any]]:
    return [made_record(study, member, simulated_report(study, member)) for member in expand(study)[:of_members]]
