"""One HTML page about a run: what was trained, how well it does, where the time went, and what the episodes look like."""

from vla_train.report.page import write_report

__all__ = ["write_report"]
