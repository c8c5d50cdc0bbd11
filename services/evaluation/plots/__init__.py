"""What runs look like: series from reports, and figures of them, for a single job and for a study."""

from services.evaluation.plots.job import job_figures
from services.evaluation.plots.style import figure_png, figure_svg

__all__ = ["figure_png", "figure_svg", "job_figures"]
