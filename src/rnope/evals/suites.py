"""Which scoring belongs to which suite. Only the one that is asked for is imported."""

from importlib import import_module

from rnope.errors import unknown
from rnope.evals.suite import Scoring

_SCORINGS = {
    "niah": ("rnope.evals.niah.scoring", "NiahScoring"),
    "ruler": ("rnope.evals.ruler.scoring", "RulerScoring"),
    "standard": ("rnope.evals.standard.scoring", "StandardScoring"),
    "perplexity": ("rnope.evals.perplexity.scoring", "PerplexityScoring"),
}


def scoring_of(suite: str) -> Scoring:
    """The scoring of a suite by its name.

    Raises:
        ConfigError: there is no such suite.
    """
    if suite not in _SCORINGS:
        raise unknown("suite", suite, "suite", _SCORINGS)
    module, name = _SCORINGS[suite]
    scoring: Scoring = getattr(import_module(module), name)()
    return scoring
