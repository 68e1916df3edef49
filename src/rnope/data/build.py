"""``rnope data build``: what is asked for, what stands in the folder already, the tokenizer, and the way through the input.

Blocks of input are taken in order, and written whenever they fill a shard. So a killed build goes on behind its last
shard, and the result depends on neither the kills nor the number of workers. ``index.json`` comes last and makes the
folder whole.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rnope.data.encode import encode_in_order
from rnope.data.parts import PROGRESS, SEEN, State, Work, is_validation
from rnope.data.shards import INDEX, SPLITS, Index, Shards, Vocabulary
from rnope.data.sources import BLOCK_BYTES, Block, Source, examples, find_sources, read_blocks
from rnope.errors import UserError, check
from rnope.strict import from_plain
from rnope.tokenizer import COMPANIONS, Tokenizer

_SAMPLE_BYTES = 2**26
_SAMPLE_SOURCES = 1024
"""A tokenizer is trained on so much text, of so many files, taken evenly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRequest:
    """What to build."""

    inputs: tuple[str, ...]
    tokenizer: Path | None = None
    vocab_size: int | None = None
    """In place of `tokenizer`: train one of this size on the input, for conversations too."""
    shard_tokens: int = 100_000_000
    """A shard ends with the block of input that fills it; splits end theirs together."""
    validation: float = 0.005
    """Share of the documents."""
    text_field: str = "text"

    def __post_init__(self) -> None:
        check("input", self.inputs, bool(self.inputs), "is missing", "Name files, folders or datasets:NAME.")
        one = (self.tokenizer is None) != (self.vocab_size is None)
        check(
            "tokenizer",
            self.tokenizer and str(self.tokenizer),
            one,
            "give either a tokenizer or a vocab_size to train one",
            "Give one.",
        )
        check("shard_tokens", self.shard_tokens, 1 <= self.shard_tokens < 2**40, "must be at least 1",
              "Use 100000000.")  # fmt: skip
        check("validation", self.validation, 0 <= self.validation < 1, "must lie in 0 … 1", "Use 0.005.")
        check("text_field", self.text_field, bool(self.text_field), "is empty", "Use text.")

    def identity(self, sources: tuple[Source, ...]) -> dict[str, Any]:
        """What makes this build another one than the last; the number of workers does not."""
        files = json.dumps([[s.kind, s.name, s.bytes, s.modified] for s in sources])
        tokenizer = Tokenizer.load(self.tokenizer) if self.tokenizer else None
        template = tokenizer and tokenizer.chat_template
        # Without a template there is no such key, as in builds from before there were templates.
        chat = {"chat_template": hashlib.sha256(template.encode()).hexdigest()} if template else {}
        return chat | {
            "input": f"{len(sources)} files, {sum(s.bytes for s in sources):,} bytes, "
            + hashlib.sha256(files.encode()).hexdigest()[:16],
            "tokenizer": tokenizer and tokenizer.digest,
            "vocab_size": self.vocab_size,
            "shard_tokens": self.shard_tokens,
            "validation": self.validation,
            "text_field": self.text_field,
            "block_bytes": BLOCK_BYTES,
        }


Report = Callable[[int, int, int], None]


def build(
    request: BuildRequest,
    out: Path,
    *,
    workers: int = 1,
    report: Report = lambda done, total, tokens: None,
) -> tuple[Index, int]:
    """Build the folder `out`, or go on where an earlier call was stopped, or find it done.

    Args:
        request: what to build.
        out: a folder that does not exist, is empty, or holds this same build.
        workers: processes that tokenise; one more reads and writes. 1: all in this one.
        report: told the bytes of input that are done and those of all (0: not known), and the tokens so far.

    Returns:
        What stands in `out`, and how many tokens this call has brought there.

    Raises:
        ConfigError: an option or an input that does not serve; of a record, the file and line.
        UserError: `out` holds something else, the inputs hold no text, or a worker was killed.
    """
    sources = find_sources(request.inputs)
    found = _find(out, request.identity(sources))
    if isinstance(found, Index):
        _clear(out)
        return found, 0
    if found.vocabulary is None:
        found = replace(found, vocabulary=_vocabulary(request, sources, out))
        found.write(out)
    work = Work(found, out, request.inputs, request.validation)
    held = work.tokens
    known = all(source.kind != "datasets" for source in sources)
    place = {source.name: number for number, source in enumerate(sources)}
    before = (0, *itertools.accumulate(source.bytes for source in sources))
    blocks = _blocks(sources[found.source :], found.blocks)
    with closing(encode_in_order(blocks, out, request.text_field, workers)) as encoded:
        for block, documents in encoded:
            work.add(block.source.argument, documents)
            number = place[block.source.name]
            report(before[number] + block.read_bytes, before[-1] if known else 0, work.tokens)
            if work.part_tokens >= request.shard_tokens:
                work.commit(number, block.number + 1)
    if not work.tokens:
        raise UserError(f"{', '.join(request.inputs)}: no document in it. Give files with text.")
    work.commit(len(sources), 0)
    index = work.state.index()
    index.write(out)
    _clear(out)
    return index, work.tokens - held


def _blocks(sources: tuple[Source, ...], skip: int) -> Iterator[Block]:
    for number, source in enumerate(sources):
        yield from read_blocks(source, 0 if number else skip)


def _find(out: Path, identity: dict[str, Any]) -> Index | State:
    """What stands in `out` of this very build; a new state where there is nothing worth keeping."""
    if (out / INDEX).exists():
        index = Index.read(out)
        _refuse_other(out, index.build, identity, "a build")
        _check_sizes(out, index)
        return index
    if (out / PROGRESS).exists():
        try:
            state = from_plain(State, json.loads((out / PROGRESS).read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{out / PROGRESS}: cannot be read ({error}). Delete {out} and start again.") from None
        if state.parts:
            _refuse_other(out, state.build, identity, "an unfinished build")
            _check_sizes(out, state.index())
        if state.build == identity:
            return state
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: holds something else. Give --out a new or empty folder.")
    state = State(build=identity)
    state.write(out)
    return state


def _refuse_other(out: Path, held: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    other = [f"{key} {held.get(key)} and not {wanted[key]}" for key in wanted if held.get(key) != wanted[key]]
    if other:
        remedy = "Give another --out, or delete that folder to build it anew."
        raise UserError(f"{out}: holds {what} of another kind: {'; '.join(other)}. {remedy}")


def _check_sizes(out: Path, index: Index) -> None:
    for split in SPLITS:
        Shards(out, split, index).check_sizes()


def _clear(out: Path) -> None:
    """Remove what only an unfinished build needs."""
    (out / PROGRESS).unlink(missing_ok=True)
    shutil.rmtree(out / SEEN, ignore_errors=True)


def _vocabulary(request: BuildRequest, sources: tuple[Source, ...], out: Path) -> Vocabulary:
    """Bring the tokenizer into `out`."""
    if request.tokenizer is not None:
        tokenizer = Tokenizer.load(request.tokenizer)
    else:
        assert request.vocab_size is not None
        tokenizer = Tokenizer.train(_sample(request, sources), vocab_size=request.vocab_size, chat=True)
    vocabulary = Vocabulary(
        digest=tokenizer.digest, vocab_size=tokenizer.vocab_size, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )  # fmt: skip
    for name in COMPANIONS:
        (out / name).unlink(missing_ok=True)  # of a start with another tokenizer
    tokenizer.save(out)
    return vocabulary


def _sample(request: BuildRequest, sources: tuple[Source, ...]) -> Iterator[str]:
    """Text to train a tokenizer on: from the beginning of each source, or of each of many taken evenly; none of validation."""
    chosen = sources[:: 1 + (len(sources) - 1) // _SAMPLE_SOURCES]
    for source in chosen:
        left = _SAMPLE_BYTES // len(chosen)
        for block in read_blocks(source):
            for example in examples(block, request.text_field):
                if example and left > 0 and not is_validation(example.digest, request.validation):
                    yield (example.prompt + example.text)[:left]
                    left -= len(example.prompt + example.text)
            if left <= 0:
                break
