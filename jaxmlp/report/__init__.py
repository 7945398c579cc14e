"""What do people see of finished runs? One self-contained HTML file about one run, or several side by side."""

from jaxmlp.report.facts import RunFacts, expand, gather
from jaxmlp.report.page import Written, write_report

__all__ = ["RunFacts", "Written", "expand", "gather", "write_report"]
