"""The recipes as rows of one table, made from what they resolve to: ``holdfast schema --recipes`` and trainer/README.md. Pure.

Invariant: nothing here repeats a value of a recipe; only papers and equations are written down.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from api.method_words import LEGEND, context_words, normaliser_words, objective_words, support_words, teacher_words, weight_words
from cluster.spec.composition import Composition
from cluster.spec.recipes import MethodSpec, resolve

STAND_IN = {"kind": "external", "path": "FOLDER"}
ROWS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"recipe": "grpo"}, "2402.03300 eq. 3"),
    ({"recipe": "grpo", "variant": "sdpo_code", "reference_coefficient": 0.001}, "code of 2601.20802"),
    ({"recipe": "dr_grpo"}, "2503.20783"),
    ({"recipe": "dapo"}, "2503.14476 eq. 11, 13"),
    ({"recipe": "sdpo"}, "2601.20802, whole vocabulary"),
    ({"recipe": "sdpo", "variant": "paper"}, "2601.20802 eq. 11 to 13"),
    ({"recipe": "sdpo", "variant": "code"}, "code of 2601.20802"),
    ({"recipe": "sdpo", "variant": "paper", "feedback": True}, "2601.20802 Table 12"),
    ({"recipe": "sdpo", "level": "token"}, "2601.20802 Fig. 10"),
    ({"recipe": "sdpo", "level": "sequence"}, "2601.20802 Fig. 10"),
    ({"recipe": "stable_sdpo"}, "2607.01763"),
    ({"recipe": "sdpo_grpo"}, "2601.20802, hybrid"),
    ({"recipe": "sdpo_grpo", "blend": "loss"}, "the same as two terms"),
    ({"recipe": "sdft"}, "2601.19897, its code"),
    ({"recipe": "sdft", "variant": "paper"}, "2601.19897 eq. 1"),
    ({"recipe": "opsd"}, "2601.18734"),
    ({"recipe": "opsd", "variant": "code"}, "code of 2601.18734"),
    ({"recipe": "opd_sampled", "teacher": STAND_IN}, "2603.25562, baseline"),
    ({"recipe": "opd_topk", "teacher": STAND_IN}, "2603.25562 eq. 6 to 8 (V1)"),
    ({"recipe": "opd_topk", "teacher": STAND_IN, "support_from": "policy", "join_sampled": True}, "2603.25562 V2"),
    ({"recipe": "opd_topk", "teacher": STAND_IN, "variant": "code", "tail": "sampled_correction"}, "2603.25562 V5, its code"),
    ({"recipe": "tm_opd", "teacher": STAND_IN}, "tinker-cookbook"),
    ({"recipe": "exopd", "teacher": STAND_IN}, "2602.12125"),
    ({"recipe": "eopd", "teacher": STAND_IN}, "2603.07079"),
    ({"recipe": "prefix_opd", "teacher": STAND_IN}, "2602.15260"),
    ({"recipe": "sft"}, "-"),
)
COLUMNS = ("recipe", "teacher weights", "context", "objective", "support, tail", "masks, weights", "normaliser", "scores", "from")


def recipe_table() -> str:
    """A Markdown table with a row for every recipe and every variant that differs; several terms stand one above the other."""
    method = TypeAdapter(MethodSpec)
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for parameters, paper in ROWS:
        lines.append("| " + " | ".join([_name(parameters), *_cells(resolve(method.validate_python(parameters))), paper]) + " |")
    return "\n".join([*lines, "", LEGEND + ".", ""])


def _name(parameters: dict[str, Any]) -> str:
    more = [f"{key} {str(value).lower() if isinstance(value, bool) else value}" for key, value in parameters.items() if key not in ("recipe", "teacher")]
    return f"`{parameters['recipe']}`" + (f" {', '.join(more)}" if more else "")


def _cells(composition: Composition) -> list[str]:
    terms = composition.terms
    return [
        teacher_words(composition.teacher),
        context_words(composition),
        _stacked([objective_words(term) for term in terms]),
        _stacked([support_words(term.support) for term in terms]),
        _stacked([weight_words(term) for term in terms]),
        _stacked([normaliser_words(term) for term in terms]),
        _scores(composition),
    ]


def _stacked(cells: list[str]) -> str:
    """One cell where all are alike."""
    return cells[0] if len(set(cells)) == 1 else "<br>".join(cells)


def _scores(composition: Composition) -> str:
    """How scores become advantages, and what else is said of the experience."""
    parts = []
    if any(term.objective.kind == "policy_gradient" and term.objective.advantage.outcome_weight > 0.0 for term in composition.terms):
        advantage = composition.advantage
        parts.append(f"{advantage.baseline}, scale {advantage.scale}")
        if advantage.overlong is not None:
            parts.append(f"overlong {advantage.overlong.buffer_tokens}")
    experience = composition.experience
    if experience.kind != "policy":
        parts.append(experience.kind)
    elif experience.dynamic_sampling is not None:
        parts.append(f"refills {experience.dynamic_sampling.max_refills}")
    if getattr(experience, "prefix", None) is not None:
        parts.append(f"prefix {experience.prefix.start_tokens} + {experience.prefix.tokens_per_step:g} per step")
    return "; ".join(parts) or "-"
