"""What a training recipe says of one arm, value by value, each with where it is from. It knows no number that follows."""

from dataclasses import asdict, dataclass

from rnope.config.training import Arm, Stage, TrainingRecipe
from rnope.model.spec import SIZES
from rnope.strict import to_plain


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
    config = recipe.model_config(arm)
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
    sections = {"model": tuple(model), "optimizer": _section(recipe, "optimizer", recipe.optimizer)}
    for name in dict.fromkeys(stage.schedule for stage in arm.stages):
        sections[f"schedule {name}"] = _section(recipe, f"schedules.{name}", recipe.schedules[name])
    return sections | {"execution": _section(recipe, "execution", recipe.execution)}


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
