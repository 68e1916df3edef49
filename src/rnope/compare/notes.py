"""What a reader of a comparison must know beside its numbers."""

from rnope.compare.tasks import UNREAD
from rnope.config import TASKS, Recipe


def notes(recipe: Recipe) -> tuple[str, ...]:
    """What every variant was given alike, and what the numbers are not."""
    first = recipe.arms[0].stages[0]
    trained = "tiny and trained in a minute or so on one core"
    if recipe.execution.device == "cuda":
        trained = f"small and trained in minutes on one GPU, in {recipe.execution.precision}"
    found = [
        "Answers are teacher-forced: an answer counts when the model's most likely next token is the value, with the gold "
        "answers of earlier questions in place.",
        "One BOS stands at the start of every row and prompt; needles and questions are planted in token space.",
        f"Every model is fresh, {trained}; scores are of this synthetic task alone.",
    ]
    if first.curriculum:
        lengths = ", ".join(map(str, first.curriculum))
        alike = len({(arm.stages[0].steps, arm.stages[0].batch_tokens) for arm in recipe.arms}) == 1
        budget = "the same for all" if alike else "fixed beforehand for each stage"
        found.append(
            f"Help given to every arm alike: rows of {lengths} tokens come first, each length left when the running "
            f"accuracy exceeds {first.promote_accuracy}; the number of steps and tokens is {budget}."
        )
    if first.warmup_window:
        found.append(
            f"Help given to every arm alike: in the first row length, every layer but the last sees {first.warmup_window} "
            "tokens at most. Layers of full span need it more than windowed ones: their attention is flat at the start."
        )
    if recipe.model_config(recipe.arms[0]).init.tie_query_key:
        but = ", unless its sweep chose otherwise" if len(recipe.sweep.settings) > 1 else ""
        found.append(f"Help given to every arm alike: the last layer's keys start out equal to its queries{but}.")
    if recipe.optimizer.name == "muon":
        found.append("Every arm is trained with Muon for its matrices and AdamW for embedding and norms.")
    if len(recipe.sweep.settings) > 1:
        found.append(
            "Learning rate and initialisation were chosen per variant from the same list, by development needles at the "
            "trained length alone; every trial is below."
        )
    else:
        found.append("No arm was tuned here: the optimizer's rates are the recipe's, the same for all.")
    if any(stage.variant for arm in recipe.arms for stage in arm.stages):
        found.append(
            "A stage that converts gives the model the layers of another variant, with the weights of the stage before; a "
            "stage of no steps trains nothing, so that its model is asked as conversion left it."
        )
    if recipe.tasks.context_tokens or recipe.tasks.far_tokens:
        unread = "; ".join(f"{names} ({why})" for names, why in UNREAD.items())
        found.append(
            "RULER's tasks are put in the words of the needles: keys and values are single words, depths are random, answers "
            f"are teacher-forced. niah_multikey_2 hides {TASKS['niah_multikey_2'].needles} needles, as many as there are "
            f"keys, in text; RULER fills the whole context with them. Not testable at this scale: {unread}."
        )
    if recipe.costs.context_tokens:
        found.append(
            "Times are of one thread of the run's machine, with random weights; arms that differ in θ alone share one "
            "measurement."
        )
    return tuple(found)
