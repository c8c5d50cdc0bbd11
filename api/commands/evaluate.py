"""``holdfast evaluate``: checkpoints that another trainer wrote, measured as the stages of a job of ours are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from api.commands.console import Format, Output, Refused, guard, leave, settings
from api.commands.files import Changes

Sources = Annotated[
    list[str],
    typer.Argument(help="a job file whose stages have policy; or a base model and its checkpoints, oldest first: folders, or hub:ID@REVISION", show_default=False),
]


def evaluate(
    sources: Sources,
    domain: Annotated[list[str] | None, typer.Option("--domain", help="NAME=KIND[:key=value,...]: sums=arithmetic:digits=2, law=dataset:path=law.jsonl; repeat for more")] = None,
    trained_on: Annotated[
        list[str] | None, typer.Option("--trained-on", help="the domain that a checkpoint was trained on since the one before (a+b for several): one per checkpoint, or one for all")
    ] = None,
    problems: Annotated[int | None, typer.Option(min=1, help="problems per domain, the same ones for every checkpoint (512)")] = None,
    name: Annotated[str, typer.Option(help="of the job")] = "evaluate",
    out: Annotated[Path | None, typer.Option(help="write report.json, figures (PNG) and report.html into this folder")] = None,
    changes: Changes = None,
    keep: Annotated[bool, typer.Option("--keep", help="leave a service that was started for this running")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Score a series of checkpoints on every domain: matrix, retention, drift. Starts the service where none runs, and stops it then."""
    from api.commands.whole_run import run_job, running_service, tell_service

    files: list[str] = []
    with guard(output):
        payload = series(sources, domain or (), trained_on or (), changes or (), problems=problems, name=name)
        _check_out(out)
        configured = settings()
        _check(payload, configured)
        with running_service(configured, keep=keep) as visit:
            visit.code, found, job = run_job(payload, output)
        if found is not None and out is not None:
            files = write_results(found, out)
    if output is Format.JSON:
        print(json.dumps({"job": job, "report": found, "files": files, "exit_code": int(visit.code)}, default=str))
    elif files:
        print("\n".join(["", *files]))
    tell_service(visit, configured, keep=keep)
    leave(visit.code)


def series(sources: list[str], domains: Any, trained_on: Any, changes: Any, *, problems: int | None, name: str) -> dict[str, Any]:
    """The job file: the one that is named, or one made of the arguments. Raises ``Refused``."""
    from api.commands import job_file
    from api.commands.series import build_series

    if len(sources) > 1 or Path(sources[0]).is_dir():
        payload = build_series(sources[0], sources[1:], domains, trained_on, name=name, problems=problems)
        return job_file.changed(payload, changes, Path.cwd())
    given = [option for option, value in (("--domain", domains), ("--trained-on", trained_on)) if value]
    if given:
        raise Refused(f"{' and '.join(given)} go with a base model and checkpoints; {sources[0]} says it itself")
    payload = job_file.load(Path(sources[0]), changes)
    if problems is not None and isinstance(payload, dict) and isinstance(payload.setdefault("evaluation", {}), dict):
        payload["evaluation"]["problems"] = problems
    if isinstance(payload, dict) and not any(isinstance(stage, dict) and stage.get("policy") for stage in payload.get("stages") or ()):
        raise Refused(f"{sources[0]} has no stage with policy, so there is no checkpoint to measure; holdfast submit trains")
    return payload


def _check(payload: dict[str, Any], configured: Any) -> None:
    """Every fault before a service is started for it. Raises ``SpecError``."""
    from api.commands import job_file

    job_file.check(payload, configured)


def _check_out(out: Path | None) -> None:
    if out is not None and out.exists() and not out.is_dir():
        raise Refused(f"--out {out} is a file; a folder is needed")


def write_results(report: dict[str, Any], folder: Path) -> list[str]:
    """report.json, a PNG for each figure, report.html; the paths that were written."""
    from services.evaluation.job_page import write_job_files

    return [str(path) for path in write_job_files(report, folder)]
