"""Sections to text: one self-contained HTML page, and a Markdown twin that points at the figures' files."""

import base64
import html
import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rnope.report import paper, sections, words
from rnope.report.gate import Gate

TITLE = "Rope to Nope, measured"


def markdown_text(value: object) -> str:
    """`value` as plain text inside Markdown, tables included: nothing in it is read as markup or HTML."""
    text = " ".join(str(value).split())
    return html.escape(re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text), quote=False)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = markdown_text
    return environment


def render(gate: Gate, figures: Mapping[str, bytes]) -> tuple[str, str]:
    """The page as (HTML, Markdown).

    Args:
        figures: name -> PNG bytes; HTML holds them, Markdown points at ``figures/NAME.png``.
    """
    environment = _environment()
    results = gate.results
    name = results.recipe.get("name")
    when = next((str(results.provenance[key]) for key in ("date", "when", "started") if key in results.provenance), "")
    trained = [words.tokens(n) for n in sorted({model.trained_tokens for model in results.models})]
    facts = [
        f"recipe {name}" if name else "",
        f"{len(results.models)} models of {len(results.arms)} arms",
        f"trained to {words.listed(trained)} tokens" if trained else "",
        when,
    ]
    context = {
        "title": TITLE,
        "facts": [fact for fact in facts if fact],
        "answer": sections.answer(gate),
        "sections": sections.sections(gate, figures),
        "images": {name: base64.b64encode(data).decode("ascii") for name, data in figures.items()},
        "citation": paper.CITATION,
        "link": paper.LINK,
    }
    return environment.get_template("page.html").render(context), environment.get_template("page.md").render(context)
