"""``holdfast model``: models that the project makes itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from api.commands.console import Exit, Format, Output, emit, guard, leave, stderr

app = typer.Typer(help="Make the small model that the demonstration uses.", no_args_is_help=True)


@app.callback()
def models() -> None:
    """Make the small model that the demonstration uses."""


@app.command("build-pebble")
def build_pebble(
    folder: Annotated[Path, typer.Argument(help="where to write the model")] = Path("deploy/models/pebble"),
    mixture: Annotated[str, typer.Option(help="demo: three unrelated domains; rivals: four operations on strings that compete")] = "demo",
    steps: Annotated[int | None, typer.Option(min=1, help="length of the base training; its own default otherwise")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    problems: Annotated[int, typer.Option(min=1, help="problems per domain for the model card")] = 512,
    output: Output = Format.TEXT,
) -> None:
    """Train a demonstration model from nothing and measure it. Takes minutes on two cores."""
    from services.pebble.build import build
    from services.pebble.mixtures import MIXTURES

    console, started = stderr(), time.monotonic()
    length = {} if steps is None else {"steps": steps}
    if mixture not in MIXTURES:
        raise typer.BadParameter(f"{mixture!r} is not known; allowed are {', '.join(MIXTURES)}", param_hint="--mixture")
    with guard(output):
        try:
            build(folder, MIXTURES[mixture], seed=seed, problems=problems, report=lambda line: console.print(line, markup=False), **length)
        except OSError as error:
            console.print(f"cannot write {folder}: {error}", markup=False)
            leave(Exit.FAILED)
    data = {"folder": str(folder.absolute()), "seconds": round(time.monotonic() - started, 1)}
    emit(output, data, lambda: f"{data['folder']} in {data['seconds']} s; its README.md is the model card")
