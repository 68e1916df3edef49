"""rnope's models as a model of lm-evaluation-harness, named ``rnope`` there.

    python -m rnope.evals.standard.harness run --model rnope --model_args pretrained=FOLDER --device cpu --tasks hellaswag

is the harness's own command line with this model known to it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from rnope.errors import ConfigError
from rnope.evals.models.model import EvalModel
from rnope.evals.models.opening import ModelOptions, default_name, open_model
from rnope.evals.standard.requests import Responder


@register_model("rnope")  # type: ignore[misc, untyped-decorator, unused-ignore]
class RnopeLM(LM):  # type: ignore[misc, unused-ignore]
    """A model for the harness.

    Args:
        pretrained: a folder, ``transformers:FOLDER`` or a server, as `rnope eval --model` takes it.
        model: instead of `pretrained`, one that is open already.
        max_length: tokens that the model may read and write [default: what it was trained on].
        batch_size: prompts that are continued together.

    Attributes:
        cut_requests: how many requests lost their beginning, since they were longer than `max_length`.
    """

    def __init__(
        self, pretrained: str | None = None, *, model: EvalModel | None = None, max_length: int | None = None,
        batch_size: int | str = 1, max_batch_size: int | None = None, device: str | None = None,
        dtype: str | None = None, chunk: int = 2048,
    ) -> None:  # fmt: skip
        super().__init__()
        if (pretrained is None) == (model is None):
            raise ConfigError("pretrained", pretrained, "must name the model", "Give pretrained=FOLDER.")
        if not str(batch_size).isdigit():
            raise ConfigError("batch_size", batch_size, "must be a whole number", "Give --batch_size 8.")
        if model is None:
            assert pretrained is not None
            options = ModelOptions(dtype=dtype, device=device or "cpu", chunk=chunk, concurrency=int(batch_size))
            model = open_model(pretrained, default_name(pretrained), options)
        self.responder = Responder(model, max_tokens=max_length, batch=int(batch_size))
        self.cut_requests = 0

    @property
    def max_length(self) -> int | None:
        """Tokens that the model may read and write; None if it sets no limit."""
        return self.responder.max_tokens

    @property
    def tokenizer_name(self) -> str:
        """For the harness's caches."""
        return self.responder.model.facts.tokenizer_sha256

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results; it calls this after the last request."""
        facts = self.responder.model.facts
        return {
            "model_sha256": facts.sha256,
            "max_length": self.max_length,
            "requests_cut_to_max_length": self.cut_requests,
        }

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding would write it) of each continuation."""
        return self._asked("loglikelihood", self.responder.log_likelihoods, requests, [each.args for each in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text."""
        texts = [each.args[0] for each in requests]
        return self._asked("loglikelihood_rolling", self.responder.rolling, requests, texts)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A greedy continuation of each context; a prompt that fails alone ends the run, the harness having no such case."""
        return self._asked("generate_until", self.responder.generate, requests, [each.args for each in requests])

    def _asked(self, name: str, ask: Callable[..., Any], requests: Sequence[Any], given: list[Any]) -> list[Any]:
        values: list[Any] = [None] * len(requests)
        for place, response in ask(given):
            if response.error is not None:
                raise RuntimeError(response.error)
            self.cut_requests += response.cut_tokens > 0
            values[place] = response.value
            # Into the harness's own cache (--use_cache) as it comes: a killed run does not ask again.
            self.cache_hook.add_partial(name, requests[place].args, response.value)
        return values


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
