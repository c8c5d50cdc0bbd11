"""Signs that a stage is going wrong while its loss looks fine, looked for at every step and in every evaluation."""

from services.evaluation.collapse.evaluations import active_signs, evaluation_warnings
from services.evaluation.collapse.records import CollapseWarning, Findings
from services.evaluation.collapse.watch import CollapseWatch

__all__ = ["CollapseWarning", "CollapseWatch", "Findings", "active_signs", "evaluation_warnings"]
