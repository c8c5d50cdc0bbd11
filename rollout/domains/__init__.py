"""Domains by kind. A new one is one file here, one spec class, one line in the table, one test."""

from __future__ import annotations

from cluster.spec.domains import DomainSpec
from rollout.domains.arithmetic import Arithmetic
from rollout.domains.base import Domain
from rollout.domains.dataset import Dataset
from rollout.domains.strings import Strings
from rollout.domains.tool_call import ToolCall

DOMAINS: dict[str, type] = {"arithmetic": Arithmetic, "strings": Strings, "tool_call": ToolCall, "dataset": Dataset}


def build_domain(spec: DomainSpec, *, name: str, seed: int) -> Domain:
    """The domain that a spec asks for, under the name that it has in the job."""
    return DOMAINS[spec.kind](spec, name, seed)
