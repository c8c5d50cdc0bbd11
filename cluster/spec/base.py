"""The base of every spec class: frozen, unknown fields refused."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Spec(BaseModel):
    """Immutable and strict: a field that does not exist is a fault, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


Name = Annotated[
    str,
    Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="lower-case letters, digits, '-' and '_'; at most 63"),
]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


def cannot_learn(reasons: list[str]) -> PydanticCustomError:
    """What a validator raises against a method: all reasons in one error, each a fault of its own in the answer to a user."""
    return PydanticCustomError("cannot_learn", "{text}", {"text": "; ".join(reasons), "reasons": reasons})
