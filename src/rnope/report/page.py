"""Sections to text: one self-contained HTML page, and a Markdown twin that points at the figures' files."""

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rnope.files import beside, write_text
from rnope.report import paper, sections, words
from rnope.report.blocks import Section
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


def pages(
    *,
    title: str,
    facts: Sequence[str],
    answer: str,
    body: Sequence[Section],
    figures: Mapping[str, bytes],
    command: str,
    source: str,
) -> tuple[str, str]:
    """Sections as (HTML, Markdown).

    Args:
        facts: of the line above the title; empty ones are left out.
        answer: the sentence below it.
        figures: name -> PNG bytes; HTML holds them, Markdown points at ``figures/NAME.png``.
        command: what writes the page, and `source` from what.
    """
    environment = _environment()
    context = {
        "title": title,
        "facts": [fact for fact in facts if fact],
        "answer": answer,
        "sections": body,
        "images": {name: base64.b64encode(data).decode("ascii") for name, data in figures.items()},
        "citation": paper.CITATION,
        "link": paper.LINK,
        "command": command,
        "source": source,
    }
    return environment.get_template("page.html").render(context), environment.get_template("page.md").render(context)


def render(gate: Gate, figures: Mapping[str, bytes]) -> tuple[str, str]:
    """The comparison's page; see `pages`."""
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
    return pages(
        title=TITLE,
        facts=facts,
        answer=sections.answer(gate),
        body=sections.sections(gate, figures),
        figures=figures,
        command="rnope report",
        source="results.json",
    )


def write_pages(
    out: Path, page: str, markdown: str, figures: Mapping[str, bytes], *, names: Iterable[str]
) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``figures/*.png`` into `out`; each file is replaced whole.

    Args:
        names: of all figures that such a report may have; those that are there from an earlier one and not among
            `figures` are removed.

    Returns:
        The files written, the page first.
    """
    written = [out / "report.html", out / "report.md"]
    for name in names:
        path = out / "figures" / f"{name}.png"
        if name in figures:
            with beside(path) as place:
                place.write_bytes(figures[name])
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    write_text(written[0], page)
    write_text(written[1], markdown)
    return written
