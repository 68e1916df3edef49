"""Blocks of text into token ids, in this process or in several, in order. It knows no shards.

The ids depend on the block alone, so that any number of workers gives the same.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rnope.data.pieces import PieceEncoder
from rnope.data.sources import Block, Example, examples
from rnope.errors import ConfigError, UserError
from rnope.tokenizer import Tokenizer
from rnope.workers import belong_to

_AHEAD = 3
"""Blocks per worker that are read before they are needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """The documents of a block."""

    ids: NDArray[np.uint32]
    """[tokens] without BOS, each document with its EOS."""
    lengths: NDArray[np.int64]
    """[documents] tokens, EOS included."""
    completions: NDArray[np.int64]
    """[documents] where the completion begins; 0: all of it."""
    digests: NDArray[np.uint64]
    """[documents] of the text."""
    empty: int
    """Documents without text, left out."""

    def only(self, kept: NDArray[np.bool_]) -> "Encoded":
        """The documents that are `kept` [documents]."""
        return Encoded(
            ids=self.ids[np.repeat(kept, self.lengths)],
            lengths=self.lengths[kept],
            completions=self.completions[kept],
            digests=self.digests[kept],
            empty=self.empty,
        )


class Encoder:
    """Blocks to ids by the tokenizer of a folder."""

    def __init__(self, folder: Path, text_field: str) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # workers are processes; threads in each would fight for cores
        self.tokenizer = Tokenizer.load(folder)
        self.text_field = text_field
        self.encode = PieceEncoder(self.tokenizer)

    def __call__(self, block: Block) -> Encoded:
        """Ids of the documents of `block`.

        Raises:
            ConfigError: a record is not as it must be.
        """
        found = list(examples(block, self.text_field))
        held = [example for example in found if example]
        plain = iter(self.encode([each.text for each in held if not each.prompt and not each.messages]))
        # Text is as it was found, and may not spell a special token; who writes examples may mean to, in a template.
        parts = [text for each in held if each.prompt and not each.messages for text in (each.prompt, each.text)]
        pairs = iter(self.tokenizer.encode_batch(parts))
        ids, lengths, completions, digests = [], [], [], []
        for example in held:
            if example.messages:
                prompt, text = self._conversation(example)
            else:
                prompt, text = (next(pairs), next(pairs)) if example.prompt else ([], next(plain))
            if not text:
                continue
            ids.append(np.array([*prompt, *text, self.tokenizer.eos_id], dtype=np.uint32))
            lengths.append(len(prompt) + len(text) + 1)
            completions.append(len(prompt))
            digests.append(example.digest)
        return Encoded(
            ids=np.concatenate([np.zeros(0, dtype=np.uint32), *ids]),
            lengths=np.array(lengths, dtype=np.int64),
            completions=np.array(completions, dtype=np.int64),
            digests=np.array(digests, dtype=np.uint64),
            empty=len(found) - len(lengths),
        )

    def _conversation(self, example: Example) -> tuple[list[int], list[int]]:
        """Ids up to the last answer and of it, without the BOS and EOS that every document has."""
        try:
            prompt, answer = self.tokenizer.encode_example(example.messages)
        except UserError as error:
            said = str(error).rstrip(".")
            raise ConfigError("input", example.where, said, "Or leave the record out.") from None
        begin = 1 if prompt[:1] == [self.tokenizer.bos_id] else 0
        end = len(answer) - 1 if answer[-1:] == [self.tokenizer.eos_id] else len(answer)
        return prompt[begin:], answer[:end]


def encode_in_order(
    blocks: Iterable[Block], folder: Path, text_field: str, workers: int
) -> Generator[tuple[Block, Encoded], None, None]:
    """Each block (its records left out) and what the tokenizer of `folder` makes of it, in the order of `blocks`.

    Raises:
        ConfigError: a record is not as it must be; of the first such one.
        UserError: a worker was killed, as by the system when memory runs out.
    """
    if workers == 1:
        encode = Encoder(folder, text_field)
        for block in blocks:
            yield block, encode(block)
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(folder, text_field, os.getpid())
    )
    waiting: deque[tuple[Block, Future[Encoded]]] = deque()
    try:
        for block in blocks:
            waiting.append((replace(block, records=()), executor.submit(_encode, block)))
            if len(waiting) > _AHEAD * workers:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    except BrokenProcessPool:
        raise UserError(
            "A worker was killed, most likely because memory ran out. Finished shards are kept: "
            "run the same command again, with fewer --workers."
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


_encoder: Encoder


def _start_worker(folder: Path, text_field: str, parent: int) -> None:
    global _encoder
    belong_to(parent)
    _encoder = Encoder(folder, text_field)


def _encode(block: Block) -> Encoded:
    return _encoder(block)
