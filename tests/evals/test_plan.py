"""The cost of an evaluation before it starts, against a model whose speed is known."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from toys import TOKENIZER, ToyModel, ToySuite

from rnope.errors import UserError
from rnope.evals import plan
from rnope.evals.models.model import Answer, Score
from rnope.evals.plan import Speed, plan_table
from rnope.evals.suite import Cell


class Timed(ToyModel):
    """Takes exactly what a `Speed` says, by a clock of its own; stops after `stop` tokens."""

    def __init__(self, speed, monkeypatch, stop=1000):
        super().__init__()
        self.speed, self.stop, self.now = speed, stop, 0.0
        monkeypatch.setattr(plan.time, "perf_counter", lambda: self.now)

    def generate(self, prompts, max_new_tokens, *, stop=(), progress=lambda tokens: None):
        made = min(max_new_tokens, self.stop)
        for ids in prompts:
            assert ids.max() < TOKENIZER.vocab_size
            self.now += self.speed.seconds(len(ids), made - 1)  # the first new token comes with the prompt's last
        return [Answer(text="", tokens=made, ended="length") for _ in prompts]


def measure(model, cells, scored=False):
    return plan.measure(model, cells, every_token_scored=scored)


def cells(*lengths, new=10):
    return [Cell(name=f"c{n}", context_tokens=n, samples=1, max_new_tokens=new) for n in lengths]


@pytest.mark.parametrize(
    ("speed", "timed"),
    [
        (Speed(1e-3, 1e-6, 0.5, 1), 1024),
        (Speed(2e-3, 0.0, 0.01, 1), 512),
        (Speed(1e-6, 1e-9, 1.0, 1), 32_768),
        (Speed(1, 0, 1, 1), 128),
    ],
)
def test_the_measured_speed_is_the_models(speed, timed, monkeypatch):
    """Slow models are timed on short prompts only, fast ones on prompts long enough to show how the cost grows."""
    found = measure(Timed(speed, monkeypatch), cells(1000, 200_000))
    assert (found.token, found.new, found.timed) == (pytest.approx(speed.token), pytest.approx(speed.new), timed)
    assert found.square == pytest.approx(speed.square, abs=1e-12)


def test_no_prompt_is_longer_than_what_is_asked(monkeypatch):
    asked = []

    class Listening(Timed):
        def generate(self, prompts, max_new_tokens, **more):
            asked.append(len(prompts[0]) + max_new_tokens)
            return super().generate(prompts, max_new_tokens, **more)

    for room, longest in ((32, 23 + 9), (200, 128 + 9), (1024, 512 + 1), (1025, 1024 + 1)):
        asked.clear()
        measure(Listening(Speed(1e-6, 0.0, 1e-6, 1), monkeypatch), cells(room))
        assert max(asked) == longest <= room


def test_a_model_that_reads_no_more_is_timed_on_what_it_reads(monkeypatch):
    """Learned positions: GPT-2 takes 1,024 tokens, whatever contexts are asked."""

    class Short(Timed):
        def generate(self, prompts, max_new_tokens, **more):
            if len(prompts[0]) + max_new_tokens > 1024:
                return [Answer(text="", tokens=0, ended="error", error="too long")]
            return super().generate(prompts, max_new_tokens, **more)

    found = measure(Short(Speed(1e-6, 1e-9, 1e-3, 1), monkeypatch), cells(8192))
    assert found.timed == 512 and found.square == pytest.approx(1e-9)


def test_what_is_scored_in_full_is_timed_so(monkeypatch):
    class Scoring(Timed):
        def scores(self, requests, **more):
            ((context, rest),) = requests
            self.now += 7 * self.speed.seconds(len(context) + len(rest), 0)
            yield 0, Score((), ())

    found = measure(Scoring(Speed(1e-4, 1e-7, 0.5, 1), monkeypatch), cells(300, new=0), scored=True)
    assert (found.token, found.square) == (pytest.approx(7e-4), pytest.approx(7e-7)) and found.new == found.token


def test_a_model_that_stops_at_once_has_a_speed_too(monkeypatch):
    found = measure(Timed(Speed(1e-3, 0.0, 0.5, 1), monkeypatch, stop=1), cells(1000))
    assert found.new == found.token == pytest.approx(1e-3)


def test_a_model_that_does_not_answer_is_said_before_the_plan():
    with pytest.raises(UserError, match="toy-model does not answer: no answer came"):
        measure(ToyModel(errors=[2]), cells(1000))


def test_the_table_adds_up():
    cells = [
        Cell(name=f"c{n}-{i}", context_tokens=n, samples=10, max_new_tokens=100) for n in (1100, 10_100) for i in (1, 2)
    ]
    speed = Speed(1e-3, 1e-7, 0.1, 1000)
    text = plan_table(ToyModel().facts, cells, speed)
    short, long = 10 * (1.0 + 0.1 + 10.0), 10 * (10.0 + 10.0 + 10.0)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:5]}
    assert rows["1,100"] == ["2", "20", "22,000", f"{2 * short / 3600:.4f}"]
    assert rows["10,100"] == ["2", "20", "202,000", f"{2 * long / 3600:.2f}"]
    assert rows["all"] == ["4", "40", "224,000", f"{2 * (short + long) / 3600:.2f}"]
    assert "909 tokens/s of a prompt of 1,000" in text and "10.0 new tokens/s" in text
    without = plan_table(ToyModel().facts, ToySuite().cells(), None)
    assert "tokens/s" not in without and without.splitlines()[-1].split() == ["all", "2", "10", "120"]
