"""What a job may be trained and evaluated on: three procedural domains, and a user's own data set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cluster.spec.base import Count, Spec


class ArithmeticDomain(Spec):
    """Sums of two numbers, answered with the number."""

    kind: Literal["arithmetic"] = "arithmetic"
    digits: int = Field(2, ge=1, le=9, description="digits of each operand")
    operations: tuple[Literal["+", "-", "*"], ...] = Field(("+",), min_length=1)


class StringsDomain(Spec):
    """An operation on a random lower-case string, answered with the resulting string."""

    kind: Literal["strings"] = "strings"
    operation: Literal["reverse", "sort", "rotate", "swap", "uppercase", "dedupe"] = Field(
        "sort", description="rotate: the first letter goes to the end; swap: neighbours change places, two by two"
    )
    length: tuple[int, int] = Field((4, 6), description="shortest and longest string, both included")

    @model_validator(mode="after")
    def _range(self) -> StringsDomain:
        low, high = self.length
        if not 1 <= low <= high <= 64:
            raise ValueError(f"length must be [shortest, longest] with 1 <= shortest <= longest <= 64, got {list(self.length)}")
        return self


class ToolCallDomain(Spec):
    """Write one JSON tool call that fits the request and the tool's JSON Schema."""

    kind: Literal["tool_call"] = "tool_call"
    tools: int = Field(4, ge=1, le=8, description="how many different tools the requests use")
    max_value: int = Field(99, ge=1, le=9999, description="largest number that appears as an argument")


class ExactMatch(Spec):
    kind: Literal["exact_match"] = "exact_match"
    ignore_case: bool = False
    strip: bool = True


class MultipleChoice(Spec):
    kind: Literal["multiple_choice"] = "multiple_choice"
    choices: str = Field("ABCD", min_length=2, max_length=26, description="the letters that may be answered")


class JsonSchemaVerifier(Spec):
    kind: Literal["json_schema"] = "json_schema"
    json_schema: dict[str, Any] | None = Field(None, description="one schema for all; otherwise the answer column holds it")


class MathEquivalence(Spec):
    kind: Literal["math_equivalence"] = "math_equivalence"


VerifierSpec = Annotated[ExactMatch | MultipleChoice | JsonSchemaVerifier | MathEquivalence, Field(discriminator="kind")]


class Columns(Spec):
    """Which columns of the data hold what."""

    problem: str = "problem"
    answer: str = "answer"
    solution: str | None = Field(None, description="a full worked solution; the answer stands in where absent")
    split: str | None = Field(None, description="a column whose value is train or evaluation; otherwise split by hash")


class DatasetDomain(Spec):
    """A JSONL, Parquet or CSV file, or a Hugging Face data set, with a named verifier."""

    kind: Literal["dataset"] = "dataset"
    path: str | None = Field(None, description="a .jsonl, .parquet or .csv file")
    id: str | None = Field(None, description="a Hugging Face data set id")
    revision: str | None = Field(None, description="commit of the data set id")
    subset: str | None = Field(None, description="configuration name of the data set id")
    hub_split: str = Field("train", description="split of the data set id to read")
    columns: Columns = Columns()
    system: str | None = None
    template: str = Field("{problem}", description="the user message; {problem} and any other column in braces")
    verifier: VerifierSpec = ExactMatch()
    evaluation_fraction: float = Field(0.2, gt=0.0, lt=1.0, description="share held out, by hash, where there is no split column")

    @model_validator(mode="after")
    def _source(self) -> DatasetDomain:
        if (self.path is None) == (self.id is None):
            raise ValueError("exactly one of path and id must be given")
        if self.path is not None and not self.path.endswith((".jsonl", ".parquet", ".csv")):
            raise ValueError(f"path must end in .jsonl, .parquet or .csv, got {self.path!r}")
        return self


DomainSpec = Annotated[ArithmeticDomain | StringsDomain | ToolCallDomain | DatasetDomain, Field(discriminator="kind")]


class WeightedDomain(Spec):
    """One part of a mixture."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    domain: DomainSpec
    weight: float = Field(1.0, gt=0.0)


class EvaluationDomain(Spec):
    """A suite that is scored and never trained on."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    domain: DomainSpec
    problems: Count | None = None
