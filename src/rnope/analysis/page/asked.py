"""What was looked into: the models with their layers as read off them, the settings, and what to be careful of."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rnope.analysis.page.view import CALLED, NO_SUCH_LAYERS, Part, Seen, View
from rnope.analysis.results import KINDS, LayerFacts
from rnope.report import words
from rnope.report.blocks import Block, Cell, Items, Listing, Table, Text, table


def part(view: View) -> Part:
    """Warnings, models, layers, settings, versions, the command."""
    found = list(warnings(view))
    blocks: list[Block] = []
    if found:
        blocks += [Text("Read with care:", "withheld"), Items(tuple(found), "withheld")]
    blocks.append(_models(view))
    layers = "\n\n".join(f"{model.name}\n{layer_table(model.own.layers)}" for model in view.models)
    blocks.append(Listing("Layers of each model", layers, folded=True))
    for caption, values in (("Settings", view.results.settings), ("Versions of packages", view.results.versions)):
        if values:
            rows = [[key, words.plain(value)] for key, value in values.items()]
            blocks.append(table(caption, ["", "value"], rows, folded=True, prose=True))
    if view.results.command:
        blocks.append(Listing("The command", view.results.command, folded=True))
    return Part(blocks=blocks)


def warnings(view: View) -> Iterator[str]:
    """Notes, each once with the models and lengths that it is about; then what makes models unlike."""
    said: dict[str, dict[str, list[str]]] = {}
    for model in view.models:
        for note in model.own.notes:
            said.setdefault(note, {}).setdefault("", []).append(model.name)
        for length, found in model.lengths.items():
            for note in found.notes:
                said.setdefault(note, {}).setdefault(model.name, []).append(words.tokens(length))
    for note, about in said.items():
        yield f"{'; '.join(_about(name, items) for name, items in about.items())}: {note}"
    tokenizers = {model.own.facts.tokenizer_sha256 for model in view.models}
    if len(tokenizers) > 1:
        yield "The models have different tokenizers, so that as many tokens are not the same text."
    elif len({model.own.facts.begin_ids for model in view.models}) > 1:
        yield "The models' texts begin with different ids (BOS)."
    asked = {model.name: {(length, found.n) for length, found in model.lengths.items()} for model in view.models}
    if len({frozenset(cells) for cells in asked.values()}) > 1:
        yield "The models do not have the same lengths and samples."
    if any(found.n == 1 for found in view.results.lengths):
        yield "Where there is a single sample there is no interval."


def _about(model: str, items: Sequence[str]) -> str:
    return f"{model} at {words.listed(list(items))} tokens" if model else words.listed(list(items))


def _models(view: View) -> Table:
    rows: list[list[Cell | str]] = []
    for model in view.models:
        facts = model.own.facts
        rows.append([
            Cell(model.name, facts.sha256[:12], colour=model.colour),
            Cell(model.own.class_name, facts.model_type or ""),
            "" if facts.parameters is None else f"{facts.parameters:,}",
            f"{facts.dtype} on {facts.device}",
            "" if facts.trained_tokens is None else words.tokens(facts.trained_tokens),
            *(_layers(model, kind) for kind in view.kinds),
            words.listed([f"{h} / {kv}" for h, kv in dict.fromkeys((x.heads, x.kv_heads) for x in model.own.layers)]),
            words.listed([words.short_tokens(length) for length in model.lengths]),
        ])  # fmt: skip
    head = [
        "model", "class", "parameters", "computed in", "trained length",
        *(f"{CALLED[kind]} layers" for kind in view.kinds), "heads / key-value heads", "lengths",
    ]  # fmt: skip
    note = (
        "Below a model's name the begin of its weights' SHA-256. Layers are read off the model's behaviour: a NoPE layer's "
        "keys stay the same when the text is moved; RoPE also stands for any other rule by which they change."
    )
    return table("The models", head, rows, note)


def _layers(model: Seen, kind: str) -> Cell:
    count, windows = sum(layer.kind == kind for layer in model.own.layers), model.windows_of(kind)
    said = f"window {words.listed([words.tokens(window) for window in windows])}" if windows else ""
    return Cell(f"{count}" if count else NO_SUCH_LAYERS, said)


def layer_table(layers: Sequence[LayerFacts]) -> str:
    """Alike neighbours on one line."""
    lines = []
    for _, same in groupby(layers, key=lambda x: (x.kind, x.window, x.heads, x.kv_heads)):
        run = list(same)
        first, last = run[0], run[-1]
        numbers = f"{first.index}" if first is last else f"{first.index}–{last.index}"
        sees = "all tokens before" if first.window is None else f"window {words.tokens(first.window)}"
        lines.append(f"{numbers:>7}  {first.kind:<11}  {sees:<17}  {first.heads} heads, {first.kv_heads} key-value")
    counts = {kind: sum(layer.kind == kind for layer in layers) for kind in KINDS}
    lines.append(f"{len(layers):>7}  layers: {', '.join(f'{n} {kind}' for kind, n in counts.items() if n)}")
    return "\n".join(lines)
