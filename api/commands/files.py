"""``holdfast validate`` and ``holdfast schema``: both work with no service running."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from api.commands.console import Format, Output, emit, guard, settings

Changes = Annotated[list[str] | None, typer.Option("--set", help="change a value: defaults.steps=10, stages.strings.optimizer.lr=1e-5; repeat for more")]
JobFile = Annotated[Path, typer.Argument(help="the job file, YAML or JSON", show_default=False)]


def validate(
    file: JobFile,
    changes: Changes = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="print what every stage became: defaults filled in, recipe as a composition")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Check a job file and list every fault in it. Nothing is sent."""
    from api.commands import job_file

    with guard(output):
        plan = job_file.check(job_file.load(file, changes or ()), settings())
    document = plan.model_dump(mode="json")
    if output is Format.TEXT and resolved:
        import yaml

        print(yaml.safe_dump({key: document[key] for key in ("stages", "evaluation_domains", "resources", "resolved")}, sort_keys=False), end="")
    else:
        emit(output, document, lambda: plan_text(str(file), document))


def plan_text(title: str, plan: dict[str, Any]) -> Any:
    """A short description of what a job would do."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    from api.method_words import context_words, teacher_words
    from cluster.spec.composition import Composition, NoMethod

    table = Table(box=None, pad_edge=False)
    for name in ("stage", "recipe", "teacher", "context", "domains", "steps", "rollouts a step"):
        table.add_column(name)
    for stage in plan["stages"]:
        composition = (NoMethod if stage["policy"] else Composition).model_validate(stage["composition"])
        table.add_row(
            stage["name"],
            stage["recipe"],
            teacher_words(composition.teacher),
            context_words(composition),
            ", ".join(part["name"] for part in stage["domains"]),
            str(stage["steps"]),
            "-" if stage["policy"] else f"{stage['problems_per_step']} x {stage['rollouts_per_problem']}",
        )
    needed = ", ".join(f"{value:g} {name}" for name, value in plan["resources"]["needed"].items())
    lines = [
        f"[green]{escape(title)} is valid[/green]: {len(plan['stages'])} stages, {plan['total_steps']} steps, {plan['evaluation_problems']} problems evaluated",
        table,
        f"device {plan['resources']['device']}, needs {needed}; spec {plan['spec_hash'][:12]}",
        *(f"[cyan]note:[/cyan] {escape(text)}" for text in plan["notes"]),
        *(f"[yellow]warning:[/yellow] {escape(text)}" for text in plan["warnings"]),
    ]
    return Group(*lines)


def schema(
    output: Output = Format.JSON,
    recipes: Annotated[bool, typer.Option("--recipes", help="print what every recipe becomes, as a table in Markdown")] = False,
) -> None:
    """Print the JSON Schema of the job file, for editors and validators."""
    import json

    if recipes:
        from api.recipe_table import recipe_table

        print(recipe_table(), end="")
        return

    from cluster.spec.job import JobSpec

    print(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **JobSpec.model_json_schema()}, indent=2))
