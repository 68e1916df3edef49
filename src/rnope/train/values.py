"""What a training recipe says of one arm, value by value, each with where it is from. It knows no number that follows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rnope.config.stage import Stage
from rnope.config.training import Arm, Start, TrainingRecipe
from rnope.model.spec import SIZES
from rnope.strict import to_plain

_SHAPE = ("width", "heads", "kv_heads", "head_size", "ffn_width", "vocab_size", "logit_scale", "norm_eps")


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """One value of the recipe and where it is from."""

    name: str
    value: object
    """As plain data."""
    origin: str
    """As in `TrainingRecipe.origins`; empty where nothing is said."""


def _origin(recipe: TrainingRecipe, *paths: str) -> str:
    """Where the value at the first of `paths` that has a mark is from, or what is inside it."""
    for path in paths:
        found = {
            origin
            for name, origin in recipe.origins.items()
            if name == path or name.startswith((f"{path}[", f"{path}."))
        }
        if found:
            return "; ".join(sorted(found))
    return ""


def arm_values(recipe: TrainingRecipe, arm: Arm) -> dict[str, tuple[Value, ...]]:
    """What the recipe says of `arm`, section by section, but for the stages."""
    model = _started(recipe, recipe.opened) if recipe.opened is not None else _fresh(recipe, arm)
    sections = {"model": tuple(model), "optimizer": _section(recipe, "optimizer", recipe.optimizer)}
    for name in dict.fromkeys(stage.schedule for stage in arm.stages):
        sections[f"schedule {name}"] = _section(recipe, f"schedules.{name}", recipe.schedules[name])
    return sections | {"execution": _section(recipe, "execution", recipe.execution)}


def _started(recipe: TrainingRecipe, start: Start) -> list[Value]:
    """The folder that the models start from, and where that came from."""
    known = {"start": recipe.start, "seed": recipe.seed}
    model = [Value(name=name, value=value, origin=_origin(recipe, name)) for name, value in known.items()]
    config = {theirs: getattr(start.config, theirs) for theirs in _SHAPE}
    found = {
        "weights": start.weights,
        "context_tokens": start.context_tokens,
        **config,
        **_flat(start.provenance, "from"),
    }
    return model + [Value(name=name, value=value, origin="start: its folder") for name, value in found.items()]


def _flat(table: Mapping[str, object], path: str) -> dict[str, object]:
    """Dotted name -> value, of tables in tables."""
    found: dict[str, object] = {}
    for key, value in table.items():
        found |= _flat(value, f"{path}.{key}") if isinstance(value, Mapping) else {f"{path}.{key}": value}
    return found


def _fresh(recipe: TrainingRecipe, arm: Arm) -> list[Value]:
    config = recipe.model_config(arm)
    assert recipe.size is not None
    model = [Value(name="variant", value=arm.variant, origin=_origin(recipe, f"arms.{arm.name}.variant"))]
    model += [Value(name=name, value=getattr(recipe, name), origin=_origin(recipe, name)) for name in ("size", "seed")]
    chosen = SIZES[recipe.size] | recipe.model | arm.model | {"vocab_size": config.vocab_size}
    chosen |= {f"init.{name}": value for name, value in asdict(config.init).items()}
    for name, used in (("init", False), ("window", any(s.window for s in config.layers)), ("theta", config.thetas)):
        if not used:
            del chosen[name]
    for name, value in chosen.items():
        paths = [name] if name == "vocab_size" else [f"arms.{arm.name}.model.{name}", f"model.{name}"]
        origin = _origin(recipe, *paths)
        model.append(Value(name=name, value=value, origin=origin))
    return model


def _section(recipe: TrainingRecipe, path: str, table: object) -> tuple[Value, ...]:
    plain = to_plain(table)
    return tuple(Value(name=n, value=value, origin=_origin(recipe, f"{path}.{n}")) for n, value in plain.items())


def stage_values(recipe: TrainingRecipe, arm: Arm, stage: Stage) -> tuple[Value, ...]:
    """What the recipe says of `stage`; what does not apply is left out."""
    plain = {name: value for name, value in to_plain(stage).items() if name != "name" and value not in (None, [])}
    if stage.short_context_tokens is None:
        plain = {name: value for name, value in plain.items() if name not in ("short_to_long", "interleave_unit")}
    places = (f"arms.{arm.name}.stage.{stage.name}", f"stages.{stage.name}")
    return tuple(
        Value(name=name, value=value, origin=_origin(recipe, *(f"{place}.{name}" for place in places)))
        for name, value in plain.items()
    )
