"""Scores of the policy that the engines hold, recorded in the job store and in the log.

Row 0 is the base model, row i + 1 the policy after stage i; both are scored on every domain, with the same problems and
sampling. A row that the store holds already is not scored again, and neither is a base model that another member of the job's study
was scored with on the same problems, unless the verifier failed on one of them: that failure was that member's.
"""

from __future__ import annotations

from typing import Any

from cluster.spec.job import ResolvedStage
from services.evaluation.evaluator import DomainScores


class Evaluations:
    """Runs ``services/evaluation/evaluator.py`` and writes what it finds."""

    def __init__(self, evaluator: Any, link: Any, log: Any, *, measured_on: str | None = None):
        """``measured_on``: device and dtype of the engines; scores of other devices are not taken over."""
        self._evaluator = evaluator
        self._link = link
        self._log = log
        self._measured_on = measured_on

    def boundary(self, row: int, stage: ResolvedStage | None, global_step: int) -> dict[str, DomainScores]:
        """Score every domain for one row of the score matrix; returns those that were scored now."""
        recorded = set(self._link.call("evaluated_domains", row))
        missing = [name for name in self._evaluator.names if name not in recorded]
        if row == 0 and missing and self._measured_on is not None:
            shared = self._take_base_scores(missing)
            missing = [name for name in missing if name not in shared]
        if not missing:
            if stage is not None:  # an attempt that died between the rows and the look at them has said nothing of them yet
                self._link.call("look_at_evaluations", stage=stage.name, stage_index=stage.index, step=stage.steps, at="boundary")
            return {}
        return self._score(missing, row=row, stage=stage, step=stage.steps if stage else 0, global_step=global_step, at="boundary")

    def _take_base_scores(self, names: list[str]) -> set[str]:
        """Copy the base's scores that the job's study has already; returns the domains."""
        digests = {name: self._evaluator.digest(name) for name in names}
        found = self._link.call("base_evaluations", digests, self._measured_on)
        if not found:
            return set()
        keys = {"score": "mean", "truncation_rate": "truncation_rate", "mean_tokens": "mean_tokens"}
        values = {f"eval/{item['domain']}/{key}": item[field] for item in found for key, field in keys.items()}
        values |= {f"eval/{item['domain']}/verifier_errors": 0.0 for item in found}  # else they would not be shared
        self._log.metrics(stage=None, stage_index=None, step=0, global_step=0, values=values)
        for item in found:
            self._link.call("share_evaluation", item)
        return {item["domain"] for item in found}

    def during(self, stage: ResolvedStage, step: int, global_step: int) -> dict[str, DomainScores]:
        """Score the stage's own domains inside the stage."""
        names = [part.name for part in stage.domains]
        return self._score(names, row=stage.index + 1, stage=stage, step=step, global_step=global_step, at="during")

    def _score(
        self, names: list[str], *, row: int, stage: ResolvedStage | None, step: int, global_step: int, at: str
    ) -> dict[str, DomainScores]:
        results, values = self._evaluator.score(names), {}
        for name, result in results.items():
            values |= {
                f"eval/{name}/score": result.mean,
                f"eval/{name}/truncation_rate": result.truncation_rate,
                f"eval/{name}/mean_tokens": result.mean_tokens,
                f"eval/{name}/verifier_errors": float(result.verifier_errors),
            }
            if at == "boundary":
                self._log.table(
                    f"evaluation_samples_{name}", result.samples, stage=stage.name if stage else None, global_step=global_step
                )
        # The log before the rows: a row says that nothing of this measurement is still to be done.
        self._log.metrics(
            stage=stage.name if stage else None,
            stage_index=stage.index if stage else None,
            step=step,
            global_step=global_step,
            values=values,
        )
        for name, result in results.items():
            self._link.call(
                "record_evaluation",
                row=row,
                stage_index=stage.index if stage else None,
                step=step,
                domain=name,
                mean=result.mean,
                num_problems=len(result.scores),
                truncation_rate=result.truncation_rate,
                mean_tokens=result.mean_tokens,
                scores=[float(score) for score in result.scores],
                at=at,
                problems_digest=result.problems_digest,
                samples_per_problem=result.samples_per_problem,
                passed=[int(count) for count in result.passed],
                # scores with failures of the verifier are this job's alone: a row that does not say where it was measured is not taken over
                measured_on=None if result.verifier_errors else self._measured_on,
                verifier_errors=result.verifier_errors,
            )
        if stage is not None:
            unverified = {name: result.verifier_errors / (len(result.scores) * result.samples_per_problem) for name, result in results.items()}
            self._link.call("look_at_evaluations", stage=stage.name, stage_index=stage.index, step=step, at=at, unverified=unverified)
        return results
