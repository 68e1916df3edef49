"""The table of a results file as Markdown: what was compared, where and when, and what failed. From the file alone."""

from rnope.bench.compare import lines
from rnope.bench.lines import Data, Line, where

HEAD = ["figure", "ours", "peer", "ratio", "target", "reached"]


def markdown(data: Data) -> str:
    """The table, below a line on the machine and above the notes."""
    machine, model, session = data["machine"], data["model"], data["sessions"][-1]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    found = lines(data)
    aimed, others = [[x for x in found if (x.target is not None) == wanted] for wanted in (True, False)]
    processor = f"{machine['processor']}, {machine['cores']} cores ({', '.join(machine['features'])})"
    loads = ", ".join(str(each["load_average"][0]) for each in data["sessions"])
    layers = f", {model['layers']} layers" if data["plan"].get("layers") else ""
    text = [
        f"# {data['plan']['what']}: {model['variant']} {model['size']}{layers}, {model['parameters']:,} parameters",
        "",
        f"{machine['gpu']}; {processor}" if "gpu" in machine else processor,
        f"{versions}; source {session['revision']}; {session['date']}; load at the start {loads}",
        f"medians, in turn; `{session['command']}`",
        *(_table("Against the targets", aimed) if aimed else []),
        *(_table("Everything else" if aimed else "Comparisons", others) if others else []),
    ]
    notes = [f"- {where(row)}: {note}." for row in data["rows"] for note in row["notes"]]
    for row in data["rows"]:
        for name, entry in row["contestants"].items():
            if entry["error"]:
                notes.append(f"- {where(row)}: {name} failed: {entry['error']}")
    return "\n".join([*text, "", *dict.fromkeys(notes)]).rstrip() + "\n"


def _table(title: str, found: list[Line]) -> list[str]:
    rows = [HEAD, ["---"] * len(HEAD), *(line.cells() for line in found)]
    return ["", f"## {title}", "", *(f"| {' | '.join(cells)} |" for cells in rows)]
