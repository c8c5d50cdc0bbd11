"""``holdfast``: the command line. This file only says which commands there are; each group is a file under ``api/commands``.

Invariant: importing this module loads neither ray nor torch nor mlflow, so that ``holdfast --help`` is there at once.
"""

from __future__ import annotations

import typer

from api.commands import demo, drift, evaluate, files, job, log, model, report, service, study, watch
from api.commands.console import EXIT_CODES

app = typer.Typer(
    name="holdfast",
    help="Continual post-training of language models, as a service on your own machines.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SERVICE, JOBS, FILES = "Service", "Jobs", "Job files and models"

for command, panel in (
    (service.up, SERVICE),
    (service.down, SERVICE),
    (service.status, SERVICE),
    (service.doctor, SERVICE),
    (demo.demo, SERVICE),
    (job.submit, JOBS),
    (watch.watch, JOBS),
    (job.ls, JOBS),
    (job.show, JOBS),
    (job.cancel, JOBS),
    (job.pause, JOBS),
    (job.resume, JOBS),
    (report.report, JOBS),
    (evaluate.evaluate, JOBS),
    (log.logs, JOBS),
    (log.events, JOBS),
    (files.validate, FILES),
    (files.schema, FILES),
    (drift.drift, FILES),
):
    app.command(rich_help_panel=panel, epilog=EXIT_CODES)(command)
app.add_typer(study.app, name="study", rich_help_panel=JOBS)
app.add_typer(model.app, name="model", rich_help_panel=FILES)


def main() -> None:
    """The entry point of the ``holdfast`` script."""
    app()


if __name__ == "__main__":
    main()
