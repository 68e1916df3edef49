"""A name on the command line opened to be looked into: which model, its layers as read off it, and what it cannot read."""

from dataclasses import dataclass, replace

from rnope.analysis.probe import Probed, given
from rnope.analysis.results import AnalysedModel, LayerFacts
from rnope.analysis.rows import Captured, rows_by_group
from rnope.errors import ConfigError
from rnope.evals.models.model import EvalModel
from rnope.evals.models.opening import ModelOptions, check_model, default_name, is_server, open_model


@dataclass(kw_only=True, slots=True, eq=False)
class Opened:
    """A model with its weights in memory."""

    model: EvalModel
    probed: Probed
    described: AnalysedModel
    head_size: int
    value_bytes: int
    """Of one value of its keys."""
    positions: int | None = None
    """How many it has learned, where there is no going beyond them."""


def check_given(given: str) -> None:
    """Refuse what `open_probed` cannot open for sure, without opening it.

    Raises:
        UserError: as `check_model`; a server.
    """
    check_model(given)
    if is_server(given):
        rule = "is a server, and a server answers but does not show what its model attends to"
        raise ConfigError("--model", default_name(given), rule, "Give the folder of its model.")


def open_probed(given: str, name: str, options: ModelOptions) -> Opened:
    """The model that `given` names, a folder or ``transformers:FOLDER``, through rnope's engine where it can open it.

    It has read two tokens by then: its weights are in memory, and it is known that its attention shows.

    Raises:
        UserError: as `check_given` and `open_model`; a model whose attention transformers does not show.
    """
    check_given(given)
    model = open_model(given, name, options)
    from rnope.evals.models.ours import EngineModel

    if isinstance(model, EngineModel):
        from rnope.analysis.ours import EngineProbed

        return _opened(model, EngineProbed(model.engine.model, chunk=options.chunk), model.engine.model)
    from rnope.analysis.hub import HubProbed
    from rnope.evals.models.hub import TransformersModel
    from rnope.evals.models.pretrained import learned_positions

    assert isinstance(model, TransformersModel)
    opened = _opened(model, HubProbed(model.model, chunk=options.chunk), model.model)
    config = model.model.config.get_text_config(decoder=True)
    opened.positions = learned_positions(model.model, config)
    layers, seen = config.num_hidden_layers, len(opened.described.layers)
    if seen < layers:
        note = f"{layers - seen} of its {layers} layers have no attention and are left out"
        opened.described = replace(opened.described, notes=(note,))
    return opened


def _opened(model: EvalModel, probed: Probed, code: object) -> Opened:
    seen: list[Captured] = []
    probed.read([0, 0], rows_from=1, take=seen.append)
    for found in seen:
        for rows in rows_by_group(found):
            given(rows, found.layer)
    layers = tuple(
        LayerFacts(
            index=each.index, kind=each.kind, window=each.window, heads=each.heads, kv_heads=each.kv_heads
        )
        for each in probed.layers
    )  # fmt: skip
    return Opened(
        model=model,
        probed=probed,
        described=AnalysedModel(facts=model.facts, class_name=type(code).__name__, layers=layers),
        head_size=max(found.keys.shape[-1] for found in seen),
        value_bytes=max(found.keys.itemsize for found in seen),
    )
