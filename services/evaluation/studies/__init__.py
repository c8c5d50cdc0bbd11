"""What a study of many runs shows: figures of every member, paired hypotheses with verdicts, tables, plots, one page."""

from services.evaluation.studies.figures import study_figures
from services.evaluation.studies.html import write_html
from services.evaluation.studies.markdown import render_markdown
from services.evaluation.studies.member_figures import member_figures
from services.evaluation.studies.study_report import build_study_report
from services.evaluation.studies.text import render_text

__all__ = ["build_study_report", "member_figures", "render_markdown", "render_text", "study_figures", "write_html"]
