"""llama.cpp with our weights, through llama-cpp-python in a process of its own and a temporary GGUF file.

Its flash attention, micro-batch and extra weight layouts are tried out, and the fastest is measured.
"""

import importlib.util
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from rnope.bench import worker
from rnope.bench.plan import Plan
from rnope.bench.timing import Contestant, Sample
from rnope.hf.gguf import export_gguf
from rnope.model.decoder import Decoder

WARM_TOKENS = 64
PILOT_TOKENS = 8192
"""Settings are tried on prompts of at most so many tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What llama.cpp lets one choose."""

    flash: bool = False
    """Its own flash attention."""
    ubatch: int = 512
    extra: bool = True
    """Weights rearranged for AMX and the like, its default."""

    def __str__(self) -> str:
        return f"flash {'on' if self.flash else 'off'}, ubatch {self.ubatch}, extra buffers {'on' if self.extra else 'off'}"


class Files:
    """GGUF files of the models in a temporary folder, written when first asked for."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rnope-bench-")

    def get(self, model: Decoder, weights: str, name: str) -> Path:
        path = Path(self._folder.name) / f"{name}-{weights}.gguf"
        if not path.exists():
            export_gguf(model, path, dtype=weights, context_tokens=2**20)
        return path

    def close(self) -> None:
        self._folder.cleanup()


class Worker(worker.Worker):
    """A `rnope.bench.llama_worker` process.

    Raises:
        ImportError: llama-cpp-python is not installed.
    """

    def __init__(self, threads: int) -> None:
        if importlib.util.find_spec("llama_cpp") is None:
            raise ImportError("llama-cpp-python is not installed: pip install llama-cpp-python")
        super().__init__("rnope.bench.llama_worker", threads)


class _Llama(Contestant):
    """The settings that are tried, and the process with the one that is measured."""

    def __init__(self, path: Path, threads: int, ids: Tensor) -> None:
        super().__init__()
        self.path, self.threads = path, threads
        self.ids: list[int] = ids.tolist()
        self.worker: Worker | None = None

    def ask(self, method: str, **arguments: Any) -> Any:
        assert self.worker is not None
        return self.worker.ask(method, **arguments)

    def start(self, setting: Setting, context_tokens: int) -> None:
        """A fresh process with an empty context."""
        self.close()
        self.worker = Worker(self.threads)
        self.ask("open", path=str(self.path), context_tokens=context_tokens, threads=self.threads, **asdict(setting))

    def choose(self, settings: list[Setting], tokens: int) -> Setting:
        """The setting with the fastest `trial`; one that fails is left out.

        Raises:
            RuntimeError: all fail.
        """
        tried = self.facts.setdefault("tried_seconds", {})
        best: tuple[float, Setting] | None = None
        for setting in settings:
            took = tried.get(str(setting))
            if took is None:
                try:
                    self.start(setting, tokens)
                    took = self.trial()
                except RuntimeError as error:
                    took = str(error)
                tried[str(setting)] = took
            if isinstance(took, float) and (best is None or took < best[0]):
                best = (took, setting)
        if best is None:
            raise RuntimeError(f"no setting of llama.cpp works: {tried}")
        self.facts["setting"] = asdict(best[1])
        return best[1]

    def trial(self) -> float:
        """Seconds of a short version of the work."""
        raise NotImplementedError

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None


class Prefill(_Llama):
    """Reading a prompt, with the fastest of its settings."""

    def warm_up(self) -> None:
        tokens = min(len(self.ids), PILOT_TOKENS)
        best = self.choose([Setting(flash=flash, ubatch=n) for flash in (False, True) for n in (512, 2048)], tokens)
        best = self.choose([best, replace(best, extra=False)], tokens)
        self.start(best, len(self.ids))
        self.ask("prefill", ids=self.ids[:WARM_TOKENS])

    def trial(self) -> float:
        self.ask("prefill", ids=self.ids[:WARM_TOKENS])
        took: float = self.ask("prefill", ids=self.ids[:PILOT_TOKENS])
        return took

    def measure(self) -> Sample:
        took = self.ask("prefill", ids=self.ids)
        self.logits = torch.tensor(self.ask("logits"))
        return Sample(took, {})


class Decode(_Llama):
    """Token after token behind a prompt that it has really read."""

    def __init__(self, path: Path, threads: int, ids: Tensor, plan: Plan, *, flash: bool) -> None:
        super().__init__(path, threads, ids)
        self.count, self.spare, self.flash = plan.decoded_tokens, (plan.repeats + 3) * plan.decoded_tokens, flash

    def warm_up(self) -> None:
        settings = [Setting(flash=self.flash, extra=extra) for extra in (True, False)]
        best = self.choose(settings, len(self.ids) + self.spare)
        if best != settings[-1]:
            self.start(best, len(self.ids) + self.spare)
            self.trial()

    def trial(self) -> float:
        self.ask("prefill", ids=self.ids)
        self.ask("decode", tokens=2, first=1)
        return self.measure().seconds

    def measure(self) -> Sample:
        times: list[float] = self.ask("decode", tokens=self.count, first=1)
        return Sample(median(times), {"tokens": times})
