"""What ``holdfast study`` prints: plans, lists, members, progress."""

from __future__ import annotations

from collections import Counter
from typing import Any

from api.commands.job import coloured

FINISHED = ("succeeded", "failed", "cancelled")


def plan_text(title: str, plan: dict[str, Any]) -> Any:
    """A short description of what a study would run."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("arm", "order", "seeds", "recorded"):
        table.add_column(name)
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for member in plan["members"]:
        cells.setdefault((member["arm"], member["order"]), []).append(member)
    for (arm, order), members in cells.items():
        table.add_row(arm, order, ", ".join(str(member["seed"]) for member in members), str(sum(member["recorded"] for member in members)))
    lines = [
        f"[green]{escape(title)} is valid[/green]: {plan['num_members']} members, {plan['num_recorded']} of them recorded; {plan['total_steps']} steps to run",
        table,
        *unmatched_lines(plan["unmatched_records"]),
        *(f"[yellow]warning:[/yellow] {escape(text)}" for text in plan["warnings"]),
    ]
    return Group(*lines)


def unmatched_lines(names: list[str] | None) -> list[str]:
    """Markup; the names come from files and stand in it as they are."""
    from rich.markup import escape

    if not names:
        return []
    shown = escape(", ".join(names[:10])) + (" ..." if len(names) > 10 else "")
    return [f"[yellow]{len(names)} record(s) belong to no member of this file, or were made with another base model or other data, and are left out:[/yellow] {shown}"]


def studies_table(page: dict[str, Any]) -> Any:
    from rich.table import Table

    if not page["data"]:
        return "No studies."
    table = Table(box=None, pad_edge=False)
    for name in ("study", "name", "status", "members", "created"):
        table.add_column(name, overflow="fold" if name == "study" else "ellipsis", no_wrap=name == "status")
    for study in page["data"]:
        table.add_row(study["id"], study["name"], coloured(study["status"]), counts_text(study), str(study["created_at"])[:19].replace("T", " "))
    return table


def counts_text(study: dict[str, Any]) -> str:
    """Such as ``3/12 succeeded, 1 running, 8 queued``."""
    counts = dict(study["counts"])
    done = counts.pop("succeeded", 0)
    return ", ".join([f"{done}/{study['num_members']} succeeded", *(f"{count} {status}" for status, count in sorted(counts.items()))])


def study_text(study: dict[str, Any], *, members: bool = True) -> Any:
    from rich.console import Group
    from rich.table import Table

    lines: list[Any] = [f"[bold]{study['name']}[/bold]  {study['id']}  {coloured(study['status'])}: {counts_text(study)}", *unmatched_lines(study.get("unmatched_records"))]
    if members and study.get("members") is not None:
        table = Table(box=None, pad_edge=False)
        for name in ("arm", "order", "seed", "status", "steps", "took", "job"):
            table.add_column(name, overflow="fold" if name == "job" else "ellipsis")
        for member in study["members"]:
            table.add_row(
                member["arm"], member["order"], str(member["seed"]), coloured(member["status"]),
                f"{member['steps_done']}/{member['steps_total']}", _took(member), "a record" if member["recorded"] else member["job_id"] or "-",
            )
        lines.append(table)
    if study["links"].get("mlflow"):
        lines.append(f"MLflow {study['links']['mlflow']}")
    return Group(*lines)


def _took(member: dict[str, Any]) -> str:
    seconds = member.get("seconds")
    return "-" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def member_lines(members: list[dict[str, Any]], known: dict[int, str]) -> list[str]:
    """A line for every member that started or ended since the last call; ``known`` remembers the states."""
    lines = []
    first = not known
    for member in members:
        before, status = known.get(member["position"]), member["status"]
        known[member["position"]] = status
        if status == before or (first and status in (*FINISHED, "queued")) or status == "starting":
            continue
        text = f"{member['arm']}/{member['order']}-{member['seed']} {status}"
        if status in FINISHED:
            text += f" after {_took(member)}"
        if status in ("failed", "cancelled") and member.get("message"):
            text += f": {member['message']}"
        lines.append(text)
    return lines


def progress_line(study: dict[str, Any]) -> str:
    """Where a study stands, and when it would end if the rest takes as long as what has ended."""
    took = [member["seconds"] for member in study["members"] if member["status"] == "succeeded" and member["seconds"]]
    text = f"  {study['name']}: {counts_text(study)}"
    running = [member for member in study["members"] if member["status"] in ("running", "pausing", "cancelling")]
    if running:
        text += " | " + ", ".join(f"{member['arm']}/{member['order']}-{member['seed']} {member['steps_done']}/{member['steps_total']}" for member in running)
    left = Counter(member["status"] in FINISHED for member in study["members"])[False]
    if took and left:
        seconds = sum(took) / len(took) * left / max(1, len(running))
        text += f" | about {seconds / 3600:.1f} h left"
    return text
