"""/v1/problems: what each kind of problem document means; the address in its ``type``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from api.problems import PROBLEMS, ProblemError
from api.responses import problems
from api.schemas import ProblemMeaning

router = APIRouter(prefix="/v1/problems", tags=["service"])


@router.get("")
def list_problem_kinds() -> list[ProblemMeaning]:
    """Every kind of problem that the API answers with."""
    return [_meaning(code) for code in PROBLEMS]


@router.get("/{code}", responses=problems("not_found"))
def get_problem_kind(code: Annotated[str, Path(max_length=80)]) -> ProblemMeaning:
    """One kind of problem."""
    if code not in PROBLEMS:
        raise ProblemError("not_found", f"there is no such kind of problem; there are {sorted(PROBLEMS)}")
    return _meaning(code)


def _meaning(code: str) -> ProblemMeaning:
    kind = PROBLEMS[code]
    return ProblemMeaning(code=code, status=kind.status, title=kind.title, meaning=kind.meaning)
