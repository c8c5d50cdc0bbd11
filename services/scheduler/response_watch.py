"""Response drift of a job, measured by the lead where scores are taken: the answers to fixed probe prompts, policy against base.

Probes are the first ``response_drift.problems`` evaluation problems of every domain, and answers the first completions that the
evaluation samples of them anyway. The base's answers are kept at the first bring-up, when the engines hold the base: to every probe,
and as many as the collapse watch reads. A stage's first answers are the last ones of the stage before. Both lie in the run folder, and
a later incarnation reads them.

Entries go to ``stages/<index>-<name>/responses.json``, figures to the log. Invariants: nothing here changes a step; a figure whose
completions cannot be had any more (an older run folder) is null; entries after a restored step are dropped.
What is held: the base model and, from a stage's first measurement to its end, the weights that the stage began with, both in host
memory in the job's dtype; the policy during a measurement. On a GPU they visit the learner's device one after the other as it has
room (``trainer/divergence/placement.py``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.spec.job import JobSpec, ResolvedStage, own_domains
from services.evaluation.evaluator import DomainScores, Evaluator, FirstCompletions
from services.scheduler.probe_files import PROBES_FILE, read_probes, write_probes
from services.scheduler.reporting import write_json

if TYPE_CHECKING:
    from trainer.divergence.probe_drift import ProbeDrift
    from trainer.divergence.response_drift import ResponseDrift

FORMAT = 1
ENTRIES_FILE = "responses.json"
DISTANCES_FILE = "domain_distances.json"
BASE_COMPLETIONS = 512
"""Of a domain, that the collapse watch counts n-grams in; how many probes there are changes nothing of what it sees."""
METRICS = {
    "kl_policy_base": ("base", "kl_policy_base"),
    "kl_base_policy": ("base", "kl_base_policy"),
    "kl_policy_start": ("start", "kl_policy_start"),
    "kl_start_policy": ("start", "kl_start_policy"),
    "similarity_median": ("base", "similarity", "median"),
    "similarity_q25": ("base", "similarity", "q25"),
    "similarity_q75": ("base", "similarity", "q75"),
    "entropy": ("policy", "entropy"),
    "distinct_1": ("policy", "distinct_1"),
    "distinct_2": ("policy", "distinct_2"),
    "mean_tokens": ("policy", "mean_tokens"),
}
"""metric: where it stands in an entry."""


class ResponseWatch:
    """``model`` says how weights are loaded: ``dtype``, ``device`` and ``embedding_folder`` of ``ResponseDrift``."""

    def __init__(self, log: Any, evaluator: Evaluator, *, job: JobSpec, base_folder: Path, run_dir: Path, model: Mapping[str, Any]):
        self._log, self._evaluator, self._job = log, evaluator, job
        self._spec = job.evaluation.response_drift
        self._base_folder, self._run_dir, self._model = base_folder, run_dir, dict(model)
        self._base: dict[str, FirstCompletions] = {}
        self._drift: ResponseDrift | None = None
        self._probes: dict[str, ProbeDrift] = {}
        self._stage_ready: int | None = None

    # -- the base ----------------------------------------------------------------------------------------------------

    def base_row(self, scored: Mapping[str, DomainScores], *, engines_hold_base: bool) -> None:
        """Keep the base's answers: those of a base evaluation that was just run, those of the file, or sampled now."""
        path = self._run_dir / PROBES_FILE
        found = read_probes(path, self._digests())
        known = {name for name, first in found.items() if self._enough(name, first)}
        new = {name: result.first.head(self._kept) for name, result in scored.items() if name not in known}
        missing = [name for name in self._evaluator.names if name not in known and name not in new]
        if missing and engines_hold_base:
            new |= self._sampled(missing)
        found |= new
        if new:
            self._write(path, found)
        self._base = found
        if self._spec.when != "never" and len(self._evaluator.names) > 1 and not (self._run_dir / DISTANCES_FILE).exists():
            self._measure_distances()

    def _sampled(self, missing: list[str]) -> dict[str, FirstCompletions]:
        """As many of the stages' own domains as a base evaluation would have given: the collapse watch must not depend on who
        scored the base. Of the others what drift is measured on."""
        own = {part.name for stage in self._job.stages for part in own_domains(stage)}
        found = self._evaluator.sample([name for name in missing if name in own], self._kept)
        others = [name for name in missing if name not in own]
        return found | (self._evaluator.sample(others, self._spec.problems) if others and self._spec.when != "never" else {})

    @property
    def _kept(self) -> int:
        """Of a domain's base answers."""
        return BASE_COMPLETIONS if self._spec.when == "never" else max(BASE_COMPLETIONS, self._spec.problems)

    def _enough(self, name: str, first: FirstCompletions) -> bool:
        """Whether every probe has its answer; a file of before they were all kept may hold fewer."""
        return self._spec.when == "never" or len(first.token_ids) >= len(self._prompts(name))

    def base_completions(self, names: list[str]) -> dict[str, FirstCompletions] | None:
        """The base's answers on some domains, for the collapse watch; None where one has none."""
        return {name: self._base[name].head(BASE_COMPLETIONS) for name in names} if all(name in self._base for name in names) else None

    def _base_answers(self) -> dict[str, FirstCompletions]:
        """One to each probe, of the domains that have them."""
        return {name: first.head(self._spec.problems) for name, first in self._base.items() if self._enough(name, first)}

    def _measure_distances(self) -> None:
        """MMD^2 between the domains' prompts, once in a job; a domain that can have none is in the file's notes."""
        from trainer.divergence.domain_distance import domain_distances

        drift = self._open()
        try:
            embedded = {name: drift.embed(self._prompts(name)) for name in self._evaluator.names}
        finally:
            drift.release()
        found = domain_distances(embedded)
        write_json(self._run_dir / DISTANCES_FILE, found)
        values = {f"domains/mmd_squared/{one}/{other}": value for one, of_one in found["mmd_squared"].items() for other, value in of_one.items()}
        self._log.metrics(stage=None, stage_index=None, step=0, global_step=0, values=values)

    # -- a measurement -----------------------------------------------------------------------------------------------

    def measure(
        self, stage: ResolvedStage, step: int, global_step: int, snapshot: Path, scored: Mapping[str, DomainScores], *, start: Path | None
    ) -> None:
        """Every domain at a stage's end, inside a stage its own. ``snapshot`` holds the weights that the engines have,
        ``scored`` what they have just been asked; ``start`` is a folder with the stage's first weights, None for the base."""
        ends = step >= stage.steps
        if self._spec.when == "never" or (self._spec.when == "stage_ends" and not ends):
            return
        started = time.perf_counter()
        roles = self._roles(stage)
        names = [name for name in self._evaluator.names if ends or roles[name] == "own"]
        answers = self._answers(names, scored)
        self._begin(stage, start)
        drift = self._open()
        policy, entries, values = drift.load(snapshot), [], {}
        for name in names:
            found = self._probes[name].measure(policy, answers[name].token_ids, answers[name].cut, each=ends)
            entries.append(
                {
                    "stage": stage.name,
                    "stage_index": stage.index,
                    "step": step,
                    "global_step": global_step,
                    "at": "stage_end" if ends else "during",
                    "domain": name,
                    "role": roles[name],
                    "num_prompts": len(answers[name].token_ids),
                }
                | found
            )
            values |= _metrics(name, found)
        drift.release()
        self._append(stage, step, entries)
        if ends:
            digests = self._digests()
            write_probes(self._stage_folder(stage.index) / PROBES_FILE, {name: (digests[name], answers[name]) for name in names})
        values["responses/seconds"] = time.perf_counter() - started
        self._log.metrics(stage=stage.name, stage_index=stage.index, step=step, global_step=global_step, values=values)

    def _answers(self, names: list[str], scored: Mapping[str, DomainScores]) -> dict[str, FirstCompletions]:
        """The policy's: as the evaluation sampled them, or sampled now where its row was recorded before a restart."""
        missing = [name for name in names if name not in scored]
        sampled = self._evaluator.sample(missing, self._spec.problems) if missing else {}
        return {name: scored[name].first.head(self._spec.problems) if name in scored else sampled[name] for name in names}

    def _begin(self, stage: ResolvedStage, start: Path | None) -> None:
        """The probes of every domain, put at this stage's start."""
        if self._stage_ready == stage.index:
            return
        from trainer.divergence.probe_drift import ProbeDrift

        drift, answers = self._open(), self._base_answers()
        for name in self._evaluator.names:
            if name not in self._probes:
                base = answers[name].token_ids if name in answers else None
                self._probes[name] = ProbeDrift(drift, self._prompts(name), base, temperature=self._job.evaluation.temperature)
        if start is None:
            first, model = answers, drift.base
        else:
            first = read_probes(self._stage_folder(stage.index - 1) / PROBES_FILE, self._digests())
            model = drift.load(start)
        for name, probes in self._probes.items():
            probes.begin_stage(model, first[name].token_ids if name in first else None)
        self._stage_ready = stage.index

    def _open(self) -> ResponseDrift:
        """The base model, loaded once in an incarnation."""
        if self._drift is None:
            from trainer.divergence.response_drift import ResponseDrift

            self._drift = ResponseDrift(self._base_folder, **self._model)
        return self._drift

    # -- files -------------------------------------------------------------------------------------------------------

    def rewind(self, stage_index: int, step: int) -> None:
        """Drop the entries of what a restored checkpoint undid: this stage's after ``step``, and all of later stages."""
        for index in range(stage_index, len(self._job.stages)):
            kept = [entry for entry in self._entries(index) if index == stage_index and entry["step"] <= step]
            if (self._stage_folder(index) / ENTRIES_FILE).exists():
                self._write_entries(index, kept)
            if index > stage_index:
                (self._stage_folder(index) / PROBES_FILE).unlink(missing_ok=True)

    def _append(self, stage: ResolvedStage, step: int, entries: list[dict[str, Any]]) -> None:
        # one that is measured again after a restart takes the place of the first
        kept = [entry for entry in self._entries(stage.index) if entry["step"] < step]
        self._write_entries(stage.index, kept + entries)

    def _entries(self, index: int) -> list[dict[str, Any]]:
        path = self._stage_folder(index) / ENTRIES_FILE
        return json.loads(path.read_text())["entries"] if path.exists() else []

    def _write_entries(self, index: int, entries: list[dict[str, Any]]) -> None:
        path = self._stage_folder(index) / ENTRIES_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, "entries": entries})

    def _stage_folder(self, index: int) -> Path:
        return self._run_dir / "stages" / f"{index}-{self._job.stages[index].name}"

    def _write(self, path: Path, found: Mapping[str, FirstCompletions]) -> None:
        digests = self._digests()
        write_probes(path, {name: (digests[name], first) for name, first in found.items()})

    # -- domains -----------------------------------------------------------------------------------------------------

    def _roles(self, stage: ResolvedStage) -> dict[str, str]:
        """own: of this stage; earlier: of a stage before it, replayed or not; other: all else."""
        own = {part.name for part in own_domains(self._job.stages[stage.index])}
        earlier = {part.name for past in self._job.stages[: stage.index] for part in own_domains(past)}
        return {name: "own" if name in own else "earlier" if name in earlier else "other" for name in self._evaluator.names}

    def _prompts(self, name: str) -> list[Any]:
        return self._evaluator.prompts(name, self._spec.problems)[0]

    def _digests(self) -> dict[str, str]:
        return {name: self._evaluator.prompts(name, 0)[1] for name in self._evaluator.names}


def _metrics(domain: str, found: dict[str, Any]) -> dict[str, float]:
    """Flat figures for the log; what is null is left out."""
    values = {}
    for metric, place in METRICS.items():
        value: Any = found
        for key in place:
            value = None if value is None else value.get(key)
        if value is not None:
            values[f"responses/{domain}/{metric}"] = float(value)
    return values
