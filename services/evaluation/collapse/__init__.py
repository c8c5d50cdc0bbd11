"""Signs that a stage is going wrong while its loss looks fine, looked for at every step."""

from services.evaluation.collapse.records import CollapseWarning, Findings
from services.evaluation.collapse.watch import CollapseWatch

__all__ = ["CollapseWarning", "CollapseWatch", "Findings"]
