"""The tree of what prompts share, against a table of who reads which token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnope.evals.models import prefixes
from rnope.evals.models.prefixes import LEAST, Node, shared_tokens, tree


def arrays(rows):
    return [np.array(row, dtype=np.int64) for row in rows]


def paths(nodes: list[Node]) -> list[tuple[list[Node], Node]]:
    """Each node with those above it, by its depth alone."""
    found, above = [], []
    for node in nodes:
        del above[node.depth :]
        assert len(above) == node.depth
        found.append((list(above), node))
        above.append(node)
    return found


def reading(prompts, nodes):
    """Who reads what: for each prompt the tokens that its nodes read, then its rest; and the tokens read in all."""
    read, total = {}, 0
    for above, node in paths(nodes):
        assert node.begin == (above[-1].end if above else 0) and node.begin <= node.end
        assert node.end == node.begin or node.end - node.begin >= LEAST
        total += node.end - node.begin
        for i in node.members:
            assert i not in read
            ids = []
            for each in [*above, node]:
                ids += prompts[each.first][each.begin : each.end].tolist()
            assert len(ids) < len(prompts[i]), "nothing would be left to take the logits from"
            read[i] = ids + prompts[i][node.end :].tolist()
            total += len(prompts[i]) - node.end
    return read, total


@st.composite
def families(draw):
    """Prompts that go on from each other, at lengths around where sharing begins."""
    rows = [draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))]
    for _ in range(draw(st.integers(0, 9))):
        parent = draw(st.sampled_from(rows))
        keep = draw(st.integers(0, len(parent)))
        more = draw(st.integers(1, 3)) * LEAST + draw(st.integers(-2, 2))
        rows.append(parent[:keep] + [draw(st.integers(0, 2))] * more + draw(st.lists(st.integers(0, 2), max_size=3)))
    return arrays(draw(st.permutations(rows)))


@settings(max_examples=300, deadline=None)
@given(families())
def test_every_token_of_every_prompt_is_read_once_and_in_order(prompts):
    nodes = tree(prompts)
    read, total = reading(prompts, nodes)
    assert read == {i: prompt.tolist() for i, prompt in enumerate(prompts)}
    assert shared_tokens(nodes) == sum(map(len, prompts)) - total
    for _, node in paths(nodes):
        assert list(node.members) == sorted(node.members)


@settings(max_examples=200, deadline=None)
@given(families())
def test_no_two_prompts_read_apart_what_is_worth_sharing(prompts):
    """A naive twin: any two prompts part at a node behind all but LEAST - 1 of the tokens that they share."""
    ends = {}
    for above, node in paths(tree(prompts)):
        for i in node.members:
            ends[i] = [*above, node]
    for i in range(len(prompts)):
        for j in range(i):
            a, b = prompts[i][:-1].tolist(), prompts[j][:-1].tolist()
            common = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            together = [x for x, y in zip(ends[i], ends[j], strict=False) if x is y]
            assert common - together[-1].end < LEAST


def test_the_order_is_that_of_the_prompts():
    head = list(range(20))
    prompts = arrays([[5], [*head, 1], [9, 9], [*head, 2, *head], [*head, 2, *head, 3]])
    nodes = tree(prompts)
    assert [(n.depth, n.begin, n.end, n.members, n.prompts) for n in nodes] == [
        (0, 0, 0, (0, 2), 5), (1, 0, 20, (1,), 3), (2, 20, 40, (3, 4), 2),
    ]  # fmt: skip
    assert shared_tokens(nodes) == 2 * 20 + 20
    prompts = arrays([[*head, i, *head, j] for i, j in ((3, 0), (1, 0), (3, 1), (2, 0), (2, 1), (1, 1))])
    assert [n.members for n in tree(prompts)] == [(), (0, 2), (1, 5), (3, 4)]


@pytest.mark.parametrize("length", [1, LEAST, LEAST + 1, 3 * LEAST])
def test_equal_prompts_leave_their_last_token_each(length):
    nodes = tree(arrays([[7] * length] * 3))
    shared = length - 1 if length > LEAST else 0
    assert nodes[-1].members == (0, 1, 2) and nodes[-1].end == shared and shared_tokens(nodes) == 2 * shared


def test_no_prompts_no_nodes():
    assert tree([]) == [] and shared_tokens([]) == 0


def test_a_chain_of_prompts_is_as_deep_as_it_is_long():
    count = 1050  # beyond the limit of recursion
    whole = np.random.default_rng(0).integers(0, 9, size=count * LEAST + 1)
    nodes = tree([whole[: i * LEAST + 1] for i in range(1, count + 1)])
    # Each prompt leaves its last token, so the last two of them part at one node.
    assert max(node.depth for node in nodes) >= count - 2
    assert shared_tokens(nodes) >= sum((i - 1) * LEAST for i in range(1, count))


def test_least_is_what_the_name_says(monkeypatch):
    prompts = arrays([[1, 2, 3, 4], [1, 2, 3, 5]])
    assert shared_tokens(tree(prompts)) == 0
    monkeypatch.setattr(prefixes, "LEAST", 3)
    assert shared_tokens(tree(prompts)) == 3
