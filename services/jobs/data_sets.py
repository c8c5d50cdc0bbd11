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


def check_data_sets(spec: JobSpec, base_dir: Path) -> tuple[list[Fault], dict[str, Any]]:
    """Faults of all data sets, and by path or id what was found: absolute path or revision, sha256, rows, split sizes."""
    faults: list[Fault] = []
    resolved: dict[str, Any] = {}
    for where, domain in _data_sets(spec):
        more, resolved[domain.path or domain.id] = _check_one(where, domain, base_dir)
        faults += more
    return faults, resolved


def _data_sets(spec: JobSpec) -> Iterator[tuple[Where, DatasetDomain]]:
    for index, stage in enumerate(spec.stages):
        if isinstance(stage.domain, DatasetDomain):
            yield ("stages", index, "domain"), stage.domain
        for part, weighted in enumerate(stage.domains or ()):
            if isinstance(weighted.domain, DatasetDomain):
                yield ("stages", index, "domains", part, "domain"), weighted.domain
    for index, suite in enumerate(() if spec.evaluation.domains == "all_stages" else spec.evaluation.domains):
        if isinstance(suite.domain, DatasetDomain):
            yield ("evaluation", "domains", index, "domain"), suite.domain


def _check_one(where: Where, domain: DatasetDomain, base_dir: Path) -> tuple[list[Fault], dict[str, Any]]:
    from rollout.domains.dataset import inspect

    found: dict[str, Any] = {"path": str((base_dir / domain.path).resolve())} if domain.path is not None else {"revision": domain.revision}
    try:
        return [], found | inspect(domain, base_dir)
    except SpecError as error:
        told = error.details.get("faults") or [{"pointer": "", "detail": error.message}]
        return [Fault(pointer(where) + item["pointer"], item["detail"], error.reason) for item in told], found
    except OSError as error:
        return [Fault(pointer((*where, "path")), f"data file {show(domain.path)} cannot be read: {error}", "dataset_invalid")], found
