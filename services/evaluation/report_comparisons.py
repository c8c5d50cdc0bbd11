"""What the report says of rows against each other: relative change, suites out of domain, paired tests, pass@k.

Invariant: only rows that were measured on the same problems, seeds, sampling and verifier are compared. A cell without a digest
(recorded before digests were kept) is taken as comparable, and a note says so. Every figure is a JSON value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from services.evaluation.paired import PairedTest, holm, paired_tests
from services.evaluation.pass_at_k import pass_at_k_estimate
from services.evaluation.relative import out_of_domain, relative_changes
from services.evaluation.text_tables import percent, signed, table

Cells = Mapping[tuple[int, str], Mapping[str, Any]]
Rows = Sequence[Mapping[str, Sequence[float]]]


INSIDE_LEFT_OUT = (
    "scores inside {stage} at steps {steps} are left out: evaluations_not_comparable, they were measured with other problems, "
    "seeds, sampling or verifier than the rows"
)


def comparable(cells: Cells, domains: Sequence[str], num_rows: int) -> tuple[int, list[str]]:
    """How many rows, from the base model on, may stand in one matrix; and what has to be said about that.

    A cell that is not measured yet is passed over.
    """
    notes, known = [], {}
    for row in range(num_rows):
        changed = []
        for name in domains:
            digest = cells.get((row, name), {}).get("problems_digest")
            if digest is not None and known.setdefault(name, digest) != digest:
                changed.append(name)
        if changed:
            notes.append(
                f"row {row} and later ones are left out: evaluations_not_comparable, {changed} were measured with other problems, seeds, "
                "sampling or verifier than the rows before"
            )
            num_rows = row
            break
    measured = [(row, name) for row in range(num_rows) for name in domains if (row, name) in cells]
    unknown = sorted({row for row, name in measured if cells[row, name].get("problems_digest") is None})
    if unknown:
        notes.append(f"rows {unknown} have no digest of their problems (recorded before it was kept); taken as comparable")
    return num_rows, notes


def inside_that_compare(
    evaluations: Sequence[Mapping[str, Any]], cells: Cells, num_rows: int, was_cut: bool, stages: Sequence[str]
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The scores inside stages that were measured as the matrix's rows were, and what has to be said of the others. ``was_cut``: there
    are later rows that do not compare; what was measured inside their stages is left out with them."""
    known: dict[str, Any] = {}
    for (row, name), item in sorted(cells.items()):
        if row < num_rows and item.get("problems_digest") is not None:
            known.setdefault(name, item["problems_digest"])
    kept, left_out = [], {}
    for item in evaluations:
        if item["at"] == "during" and not (was_cut and item["row"] >= num_rows):
            digest = item.get("problems_digest")
            if digest is None or known.get(item["domain"], digest) == digest:
                kept.append(item)
            else:
                left_out.setdefault(stages[item["stage_index"]], set()).add(item["step"])
    return kept, [INSIDE_LEFT_OUT.format(stage=stage, steps=sorted(steps)) for stage, steps in left_out.items()]


def comparisons(rows: Rows, names: Sequence[str], stage_domains: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Sections ``relative``, ``out_of_domain``, ``paired_tests``; ``names`` of the rows, base first."""
    relative = relative_changes(rows)
    suites = out_of_domain(rows, [name for of_stage in stage_domains for name in of_stage])
    return {
        "relative": {
            "percent_of_base": [_by_domain(of_row) for of_row in relative],
            "gain": [_by_domain({name: change and change.gain() for name, change in of_row.items()}) for of_row in relative],
            "forgetting": [_by_domain({name: change and change.forgetting() for name, change in of_row.items()}) for of_row in relative],
        },
        "out_of_domain": [{"row": name, **dataclasses.asdict(of_row)} for name, of_row in zip(names, suites, strict=True)] if suites else None,
        "paired_tests": _paired(rows, names, stage_domains),
    }


def pass_at(cells: Cells, domains: Sequence[str], num_rows: int, wanted: Sequence[int]) -> dict[str, Any] | None:
    """``estimates[k][row][domain]`` as lists in the order of rows and domains; None where no k is asked for."""
    if not wanted:
        return None
    return {"k": list(wanted), "estimates": [[[_pass_at(cells[row, name], k) for name in domains] for row in range(num_rows)] for k in wanted]}


def _pass_at(cell: Mapping[str, Any], k: int) -> dict[str, float] | None:
    if not cell.get("passed") or not cell.get("samples_per_problem") or k > cell["samples_per_problem"]:
        return None
    return dataclasses.asdict(pass_at_k_estimate(cell["passed"], cell["samples_per_problem"], k))


def pairs_of_rows(num_rows: int) -> list[tuple[int, int]]:
    """Neighbours, and every row against the last: what a stage did, and what became of it."""
    last = num_rows - 1
    return sorted({(row, row + 1) for row in range(last)} | {(row, last) for row in range(last)})


def _paired(rows: Rows, names: Sequence[str], stage_domains: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    pairs = pairs_of_rows(len(rows))
    if not pairs:
        return []
    found: list[tuple[int, int, str, PairedTest]] = []
    for domain in rows[0]:
        tests = paired_tests([(rows[earlier][domain], rows[later][domain]) for earlier, later in pairs])
        found += [(earlier, later, domain, test) for (earlier, later), test in zip(pairs, tests, strict=True)]
    adjusted = holm([test.p_value for *_, test in found])
    return [
        {"earlier": names[earlier], "later": names[later], "rows": [earlier, later], "domain": domain, **dataclasses.asdict(test), "p_value_holm": holm_value}
        for (earlier, later, domain, test), holm_value in zip(found, adjusted, strict=True)
    ]


def _by_domain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if value is None else dataclasses.asdict(value) for name, value in values.items()}


# -- for people ------------------------------------------------------------------------------------------------------


def render_comparisons(report: Mapping[str, Any]) -> list[str]:
    """Blocks of text; none for a report of before there were such sections."""
    matrix, blocks = report["score_matrix"], []
    if matrix.get("notes"):
        blocks.append("\n".join(f"Note: {note}" for note in matrix["notes"]))
    found = report.get("comparisons")
    if found:
        blocks.append(_render_relative(found["relative"]["percent_of_base"], matrix))
        if found["out_of_domain"]:
            blocks.append(_render_out_of_domain(found["out_of_domain"]))
        blocks.append(_render_paired(found["paired_tests"], len(matrix["rows"])))
    if report.get("pass_at"):
        blocks.append(_render_pass_at(report["pass_at"], matrix))
    return blocks


def _render_relative(of_rows: Sequence[Mapping[str, Any]], matrix: Mapping[str, Any]) -> str:
    lines = [["after", *matrix["domains"]]]
    lines += [[name, *(percent(of_row[domain]) for domain in matrix["domains"])] for name, of_row in list(zip(matrix["rows"], of_rows, strict=True))[1:]]
    return "Change in percent of the base's score\n" + table(lines)


def _render_out_of_domain(of_rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [["after", "mean", "change from base", "relative"]]
    lines += [[item["row"], signed(item["score"], sign=""), signed(item["change_from_base"]), percent(item["relative_percent"])] for item in of_rows]
    return "Suites that no stage trains on\n" + table(lines)


def _render_paired(tests: Sequence[Mapping[str, Any]], num_rows: int) -> str:
    """Every stage's row against the last one and the base against it; the others are in report.json."""
    lines = [["from", "to", "domain", "difference", "better/worse", "p", "p (Holm)", "test"]]
    for test in tests:
        if test["rows"][1] == num_rows - 1:
            counts = f"{test['num_gained']}/{test['num_lost']}"
            p_values = [f"{test[key]:.2g}" for key in ("p_value", "p_value_holm")]
            lines.append([test["earlier"], test["later"], test["domain"], signed(test["difference"]), counts, *p_values, test["method"]])
    return "Against the last row, problem by problem\n" + table(lines)


def _render_pass_at(section: Mapping[str, Any], matrix: Mapping[str, Any]) -> str:
    lines = [["after", "k", *matrix["domains"]]]
    for k, of_rows in zip(section["k"], section["estimates"], strict=True):
        lines += [[name, str(k), *(signed(cell, sign="") for cell in of_row)] for name, of_row in zip(matrix["rows"], of_rows, strict=True)]
    return "pass@k\n" + table(lines)
