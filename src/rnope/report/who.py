"""Who is who: the groups of arms that the page shows apart, the model of the paper that an arm stands for, and our
lengths for the paper's.
"""

from dataclasses import dataclass

from rnope.report import draw, paper
from rnope.report.gate import arms
from rnope.results import Model, Results

FEW = 6
"""Up to so many arms are one group."""
PRETRAINING = 8192
"""The paper's pretraining length, in tokens: ours stands for it."""
_TITLES = {
    "pretrained": "As pretrained",
    "tuned": "After further stages",
    "variations": "Pretrained with another θ, window or depth",
}
KEYS = ("", *_TITLES)
"""Of every group that a page may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    key: str
    """One of `KEYS`; empty: all arms of a small comparison."""
    title: str
    arms: tuple[str, ...]


def titled(stem: str, group: Group) -> str:
    """``Loss by position: as pretrained``"""
    return f"{stem}: {group.title[0].lower()}{group.title[1:]}" if group.title else stem


def groups(results: Results) -> tuple[Group, ...]:
    """Every arm in one group, in the order of `gate.arms`: by how many stages it went through, and whether the recipe
    changed its model."""
    every = arms(results)
    if len(every) <= FEW:
        return (Group(key="", title="", arms=every),) if every else ()
    changed = {arm["name"] for arm in results.recipe.get("arms", ()) if arm.get("model")}
    stages = {model.arm: len(model.stages) for model in results.models}
    found: dict[str, list[str]] = {key: [] for key in _TITLES}
    for arm in every:
        found["tuned" if stages.get(arm, 1) > 1 else "variations" if arm in changed else "pretrained"].append(arm)
    return tuple(Group(key=key, title=_TITLES[key], arms=tuple(names)) for key, names in found.items() if names)


def group(results: Results, key: str) -> tuple[str, ...]:
    """Arms of the group `key`; none where there is no such group."""
    return next((found.arms for found in groups(results) if found.key == key), ())


def named(stem: str, key: str) -> str:
    """Name of the figure `stem` of the group `key`."""
    return f"{stem}-{key}" if key else stem


def styles(results: Results) -> dict[str, tuple[str, str]]:
    """Arm -> (colour, marker), distinct within each group."""
    return {arm: style for found in groups(results) for arm, style in draw.styles(found.arms).items()}


def model(results: Results, arm: str) -> Model | None:
    """The first seed's."""
    return next((found for found in results.models if found.arm == arm), None)


def variant(results: Results, arm: str) -> str:
    found = model(results, arm)
    return arm if found is None else found.variant


def stands_for(results: Results) -> dict[str, str]:
    """The paper's model -> the arm that stands for it.

    As the recipe says; where it says nothing, the arm of that variant with the longest trained context.
    """
    marked = {arm["paper"]: arm["name"] for arm in results.recipe.get("arms", ()) if arm.get("paper")}
    if marked:
        return marked
    found: dict[str, Model] = {}
    for one in results.models:
        name = paper.name(one.variant)
        if name is not None and (name not in found or one.trained_tokens > found[name].trained_tokens):
            found[name] = one
    return {name: one.arm for name, one in found.items()}


def nearest(results: Results, arm: str) -> str | None:
    """The model of tables 3 and 8 that `arm` is set beside: the one it stands for, else that of its variant."""
    mine = {own: name for name, own in stands_for(results).items()}.get(arm)
    return mine if mine in paper.WITH_MASSES else paper.counterpart(variant(results, arm))


def here(results: Results, tokens: int) -> int:
    """What stands here for `tokens` of the paper: the same multiple of the pretraining length."""
    own = min((found.stages[0].context_tokens for found in results.models if found.stages), default=PRETRAINING)
    return tokens * own // PRETRAINING


def there(results: Results, tokens: int) -> int:
    """What `tokens` of ours stand for in the paper."""
    return tokens * PRETRAINING // max(1, here(results, PRETRAINING))
