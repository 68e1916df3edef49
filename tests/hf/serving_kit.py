"""Models for comparing what two programs answer: random, and nowhere a close call."""

import torch

from rnope import Engine
from rnope.model.spec import Init
from rnope.testing import tiny_model

NEW = 40
MARGIN = 1e-3
TOLERANCE = 1e-4  # of logits, whose standard deviation is about 1.3


def prompts(lengths):
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 97, (n,), generator=generator).tolist() for n in lengths]


def margin(model, rows, answers):
    """Smallest distance between the best and the second-best logit over all greedy choices."""
    smallest = float("inf")
    for prompt, answer in zip(rows, answers, strict=True):
        best = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1].topk(2).values
        smallest = min(smallest, (best[:, 0] - best[:, 1]).min().item())
    return smallest


@torch.no_grad()
def lively(variant, rows, **overrides):
    """A tiny model and what our engine answers: the first seed whose answers are varied and nowhere a close call."""
    for seed in range(50):
        init = Init(embedding_std=0.1, matrix_gain=3.0)
        model = tiny_model(variant, seed, init=init, logit_scale=2.25, **overrides)
        answers = Engine(model, prefill_chunk_tokens=4).generate(rows, NEW).tokens
        if min(len(set(answer)) for answer in answers) >= 6 and margin(model, rows, answers) > MARGIN:
            return model, answers
    raise AssertionError("no seed answers clearly")
