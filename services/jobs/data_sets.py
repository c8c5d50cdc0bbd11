"""The data sets of a job: found, readable line by line, with the columns and splits that the job file speaks of.

Invariant: rows are read by the code that training reads them with, so what passes here does not fail there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.errors import SpecError
from cluster.spec.domains import DatasetDomain
from cluster.spec.job import JobSpec
from services.jobs.faults import Fault, pointer, show

Where = tuple[str | int, ...]


def check_data_sets(spec: JobSpec, base_dir: Path, memo: dict[Any, Any] | None = None) -> tuple[list[Fault], dict[str, Any]]:
    """Faults of all data sets, and by path or id what was found: absolute path or revision, sha256, rows, split sizes.

    ``memo`` keeps what was found for other jobs of the same admission.
    """
    memo = {} if memo is None else memo
    faults: list[Fault] = []
    resolved: dict[str, Any] = {}
    for where, domain in data_sets(spec):
        key = ("data set", domain.model_dump_json(), base_dir)
        if key not in memo:
            memo[key] = _check_one(domain, base_dir)
        told, resolved[domain.path or domain.id] = memo[key]
        faults += [Fault(pointer(where) + fault.pointer, fault.detail, fault.code) for fault in told]
    return faults, resolved


def data_sets(spec: JobSpec) -> Iterator[tuple[Where, DatasetDomain]]:
    """Every data set of a job with its place in the job file."""
    for index, stage in enumerate(spec.stages):
        if isinstance(stage.domain, DatasetDomain):
            yield ("stages", index, "domain"), stage.domain
        for part, weighted in enumerate(stage.domains or ()):
            if isinstance(weighted.domain, DatasetDomain):
                yield ("stages", index, "domains", part, "domain"), weighted.domain
    for index, suite in enumerate(() if spec.evaluation.domains == "all_stages" else spec.evaluation.domains):
        if isinstance(suite.domain, DatasetDomain):
            yield ("evaluation", "domains", index, "domain"), suite.domain


def _check_one(domain: DatasetDomain, base_dir: Path) -> tuple[list[Fault], dict[str, Any]]:
    """Faults with pointers into the domain."""
    from rollout.domains.dataset import inspect

    found: dict[str, Any] = {"path": str((base_dir / domain.path).resolve())} if domain.path is not None else {"revision": domain.revision}
    try:
        return [], found | inspect(domain, base_dir)
    except SpecError as error:
        told = error.details.get("faults") or [{"pointer": "", "detail": error.message}]
        return [Fault(item["pointer"], item["detail"], error.reason) for item in told], found
    except OSError as error:
        return [Fault("/path", f"data file {show(domain.path)} cannot be read: {error}", "dataset_invalid")], found
