"""Where models look: attention of some rows of a text, exactly, at any length, and what is measured of it.

Importing this package loads no torch; the names below do, on first use. The probe itself is `rnope.analysis.probe.probe`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnope.analysis.hub import HubProbed as HubProbed
    from rnope.analysis.measures import MEASURES as MEASURES
    from rnope.analysis.ours import EngineProbed as EngineProbed
    from rnope.analysis.probe import Marks as Marks
    from rnope.analysis.results import AnalysisResults as AnalysisResults
    from rnope.analysis.rows import Rows as Rows

_PUBLIC = {
    "AnalysisResults": "rnope.analysis.results",
    "EngineProbed": "rnope.analysis.ours",
    "HubProbed": "rnope.analysis.hub",
    "MEASURES": "rnope.analysis.measures",
    "Marks": "rnope.analysis.probe",
    "Rows": "rnope.analysis.rows",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'rnope.analysis' has no attribute {name!r}")
