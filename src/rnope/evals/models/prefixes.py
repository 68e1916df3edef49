"""Prompts that begin alike, as a tree: what they share is read once. It knows token ids and no model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST = 16
"""A shorter common beginning is read again: a fork of the caches costs more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """Prompts that share their first `end` tokens."""

    depth: int
    """Nodes above it; the root's is 0."""
    begin: int
    """Tokens that the nodes above read."""
    end: int
    """Tokens begin … end are read here, once for all prompts below; equal to `begin` where nothing is shared."""
    first: int
    """One of the prompts below, to take the shared tokens from."""
    prompts: int
    """How many there are below."""
    members: tuple[int, ...]
    """Those whose rest is not shared, in the order given: to be continued from here."""


def tree(prompts: Sequence[np.ndarray]) -> list[Node]:
    """The tree of `prompts`, each node before those below it: a node's parent is the last one before it of less depth.

    At least the last token of each prompt is left unread, so that its logits follow from reading it. The order is that of
    the first members, so that neither the order of dictionaries nor that of threads has a say.
    """
    nodes = []
    waiting = [(0, 0, list(range(len(prompts))))] if len(prompts) else []
    while waiting:  # no recursion: a chain of prompts that each go on from the last is as deep as it is long
        depth, begin, group = waiting.pop()
        end = begin + _common([prompts[i][begin:-1] for i in group]) if len(group) > 1 else begin
        if end - begin < LEAST:
            end = begin
        alike: dict[bytes, list[int]] = {}
        for i in group:
            # Prompts that share at least LEAST more tokens have the same key; the last token never counts.
            rest = prompts[i][end:-1][:LEAST]
            alike.setdefault(rest.tobytes() if len(rest) == LEAST else f"alone {i}".encode(), []).append(i)
        alone = tuple(each[0] for each in alike.values() if len(each) == 1)
        nodes.append(Node(depth=depth, begin=begin, end=end, first=group[0], prompts=len(group), members=alone))
        waiting += [(depth + 1, end, each) for each in reversed(alike.values()) if len(each) > 1]
    return nodes


def shared_tokens(nodes: Sequence[Node]) -> int:
    """Tokens that need not be read thanks to the tree."""
    return sum((node.prompts - 1) * (node.end - node.begin) for node in nodes)


def _common(rows: Sequence[np.ndarray]) -> int:
    """How many first tokens all of `rows` share."""
    common = min(len(row) for row in rows)
    first = rows[0]
    for row in rows[1:]:
        differ = np.flatnonzero(row[:common] != first[:common])
        common = int(differ[0]) if len(differ) else common
    return common
