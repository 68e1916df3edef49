"""A model behind a server: what is sent, what is made of replies good and bad, and where the key never stands."""

import email.message
import json
import logging
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from rnope.errors import ConfigError, UserError
from rnope.evals.models import transport
from rnope.evals.models.opening import ModelOptions
from rnope.evals.models.server import ServerModel
from rnope.evals.run import evaluate

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from fake_server import FakeServer, Reply, completion
from model_kit import TOKENIZER, random_ids
from toys import ToySuite

SAMPLING = {
    "temperature": 0, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0,
    "repetition_penalty": 1.0, "repeat_penalty": 1.0,
}  # fmt: skip
KEY = "sk-veryverysecret0123456789"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save(folder)
    return folder


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve():
    """Starts servers, each with the behaviour of all requests but the first, which opening makes."""
    servers = []

    def start(behave=lambda number, path, body: completion(body), first=None):
        def all_of_them(number, path, body):
            if number == 0:
                return first or completion(body)
            return behave(number - 1, path, body)

        servers.append(FakeServer(all_of_them))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def opened(serve, tokenizer):
    """A model on a server with this behaviour, the server, and the seconds that it waited."""

    def make(behave=lambda number, path, body: completion(body), first=None, **options):
        server, slept = serve(behave, first), []
        options = ModelOptions(**{"tokenizer": tokenizer, "timeout_seconds": 5.0} | options)
        return ServerModel(f"{server.url}#it", name="m", options=options, sleep=slept.append), server, slept

    return make


# ---- what is sent, and good replies


def test_one_request_for_each_prompt_in_token_ids(opened):
    told = []
    model, server, slept = opened(lambda n, path, body: completion(body, text=f" {n}", made=2))
    prompts = [random_ids(5), random_ids(7, 1)]
    answers = model.generate(prompts, 6, stop=("\n", ""), progress=told.append)
    assert [(answer.text, answer.tokens, answer.ended) for answer in answers] == [(" 0", 2, "stop"), (" 1", 2, "stop")]
    assert [path for path, _, _ in server.asked] == ["/v1/completions"] * 3
    assert [body for _, _, body in server.asked[1:]] == [
        SAMPLING | {"model": "it", "prompt": ids.tolist(), "max_tokens": 6, "stop": ["\n"]} for ids in prompts
    ]
    assert not any("Authorization" in headers for _, headers, _ in server.asked)
    assert told == [7, 9] and slept == []


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_takes_only_the_protocols_names_gets_no_others(status, serve, tokenizer):
    def strict(number, path, body):
        strange = sorted(body.keys() & {"repetition_penalty", "repeat_penalty"})
        return Reply({"error": f"unknown: {strange}"}, status=status) if strange else completion(body)

    server, slept = FakeServer(strict), []
    try:
        options = ModelOptions(tokenizer=tokenizer, timeout_seconds=5.0)
        model = ServerModel(f"{server.url}#it", name="m", options=options, sleep=slept.append)
        (answer,) = model.generate([random_ids(5)], 6)
    finally:
        server.close()
    assert answer.error is None and slept == []
    bodies = [body for _, _, body in server.asked]
    assert ["repeat_penalty" in body for body in bodies] == [True, False, False] and bodies[2]["temperature"] == 0


def test_no_stop_texts_no_stop(opened):
    model, server, _ = opened()
    model.generate([random_ids(5)], 6)
    assert "stop" not in server.asked[-1][2]


def test_more_stop_texts_than_the_protocol_allows_are_cut_at_here(opened):
    model, server, _ = opened(lambda n, path, body: completion(body, text="one two six ten", ended="length", made=4))
    (answer,) = model.generate([random_ids(5)], 6, stop=[*list("wxyz"), "six", "ten"])
    assert server.asked[-1][2]["stop"] == list("wxyz") and (answer.text, answer.ended) == ("one t", "stop")
    (answer,) = model.generate([random_ids(5)], 6, stop=["A", "B", "C", "D", "six"])
    assert (answer.text, answer.ended) == ("one two ", "stop")


def test_lengths_and_ends(opened):
    model, _, _ = opened(lambda n, path, body: completion(body, ended=["length", "stop", "content_filter", None][n]))
    answers = model.generate([random_ids(5)] * 4, 6)
    assert [answer.ended for answer in answers] == ["length", "stop", "error", "error"]
    assert answers[2].error == "the server ended the answer with 'content_filter'" and not answers[2].text


def test_text_for_servers_that_take_no_ids(opened, tokenizer):
    ids = np.array([1, *TOKENIZER.encode(" needle hay rules list")])
    least = len(ids) - 1
    read = [least + 1, least, least - 2, least - 3]
    model, server, _ = opened(lambda n, path, body: completion(body, read=read[n]), send_text=True)
    answers = model.generate([ids] * 4, 6)
    # BOS is the server's business; a token or two less may be another rule for spaces, more is a cut.
    assert [body["prompt"] for _, _, body in server.asked[1:]] == [" needle hay rules list"] * 4
    assert [answer.error for answer in answers] == [None] * 3 + [
        f"the server read {least - 3} of {len(ids)} tokens: it cut the prompt"
    ]


def test_so_many_requests_at_once_and_answers_in_order(opened):
    gate = threading.Barrier(3, timeout=10)
    late = threading.Event()

    def behave(number, path, body):
        first = body["prompt"][0]
        if first < 3:
            gate.wait()  # only three that are out at the same time get through
        if first == 0:
            late.wait(10)  # the first is the last to be answered
        if first == 5:
            late.set()
        return completion(body, text=str(first))

    model, server, _ = opened(behave, concurrency=3)
    answers = model.generate([np.array([i, 9]) for i in range(6)], 4)
    assert [answer.text for answer in answers] == list("012345")
    assert server.most == 3


def test_one_at_a_time_unless_told(opened):
    model, server, _ = opened()
    model.generate([random_ids(4)] * 5, 4)
    assert server.most == 1


# ---- bad replies


BAD = {
    "busy": Reply({"error": {"message": "slow down"}}, status=429),
    "broken": Reply(b"oops", status=500),
    "loading": Reply({"error": {"message": "Loading model"}}, status=503),
    "half": Reply({"choices": [{"text": "x" * 99}]}, cut=40),
    "no JSON": Reply(b"{'choices': 1}"),
    "no choices": Reply({"usage": {}}),
    "empty choices": Reply({"choices": []}),
    "no text": Reply({"choices": [{"text": None}]}),
    "a list": Reply([1]),
    "reset": Reply(reset=True),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_may_pass_is_tried_again(bad, opened):
    model, server, slept = opened(lambda n, path, body: BAD[bad] if n < 2 else completion(body))
    (answer,) = model.generate([random_ids(5)], 6)
    assert (answer.text, answer.error) == (" yes", None) and len(server.asked) == 4
    assert len(slept) == 2 and 0.5 <= slept[0] <= 1 <= slept[1] <= 2


@pytest.mark.parametrize(
    ("bad", "words"),
    [("busy", "status 429: slow down"), ("broken", "status 500: oops"), ("loading", "status 503: Loading model"),
     ("half", "no connection: "), ("no JSON", "its reply is not JSON"),
     ("no choices", "its reply has not the form of a completion"), ("reset", "no connection: ")],
)  # fmt: skip
def test_after_some_tries_there_is_no_answer(bad, words, opened):
    model, server, slept = opened(lambda n, path, body: BAD[bad])
    (answer,) = model.generate([random_ids(5)], 6)
    assert answer.ended == "error" and answer.tokens == 0 and answer.text == ""
    assert answer.error.startswith(words) and answer.error.endswith(f"({transport.TRIES} tries)")
    assert len(server.asked) == 1 + transport.TRIES and len(slept) == transport.TRIES - 1
    assert all(0.5 * 2**k <= wait <= 2**k for k, wait in enumerate(slept))


def test_a_server_that_says_nothing_is_asked_again(opened):
    never = threading.Event()
    model, _server, slept = opened(
        lambda n, path, body: completion(body) if n == 1 else Reply(wait=never, reset=True), timeout_seconds=0.2
    )
    (answer,) = model.generate([random_ids(5)], 6)
    assert answer.text == " yes" and len(slept) == 1
    (answer,) = model.generate([random_ids(5)], 6)
    assert answer.error == f"no reply within 0.2 seconds ({transport.TRIES} tries)"
    never.set()


def test_retry_after_is_obeyed_up_to_a_bound(opened):
    after = ["7", "1e9", "999999", "-1", "Wed, 21 Oct 2015 07:28:00 GMT", "0.25"]
    replies = [Reply({}, status=429, headers={"Retry-After": value}) for value in after]
    model, _, slept = opened(lambda n, path, body: replies[n])
    model.generate([random_ids(5)], 6)
    assert slept[0] == 7 and slept[2] == transport.LONGEST_RETRY_AFTER
    assert 1 <= slept[1] <= 2 and 4 <= slept[3] <= 8 and 8 <= slept[4] <= 16


def test_waits_are_bounded_the_same_each_time_and_differ_between_requests(opened, monkeypatch):
    monkeypatch.setattr(transport, "TRIES", 12)
    waits = []
    for _ in range(2):
        model, _, slept = opened(lambda n, path, body: BAD["broken"])
        model.generate([random_ids(5)] * 2, 6)
        waits.append(slept)
    assert waits[0] == waits[1] and max(waits[0]) <= transport.LONGEST_WAIT
    assert len(waits[0]) == 22 and len(set(waits[0])) == 22


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_the_server_refuses_is_that_samples_error(status, opened):
    words = "This model's maximum context length is\n8 tokens. " + "x" * 999
    refusal = Reply({"error": {"message": words, "code": status}}, status=status)
    model, server, slept = opened(lambda n, path, body: refusal if len(body["prompt"]) > 8 else completion(body))
    answers = model.generate([random_ids(9), random_ids(4)], 6)
    assert [answer.ended for answer in answers] == ["error", "stop"] and slept == [] and len(server.asked) == 3
    assert answers[0].error.startswith(f"the server refuses the request (status {status}: This model's maximum context")
    assert len(answers[0].error) < 300 and "\n" not in answers[0].error


@pytest.mark.parametrize(
    ("status", "words"), [(401, "refuses the key"), (403, "refuses the key"), (404, "no such model")]
)
def test_what_all_requests_would_meet_ends_the_run(status, words, opened, serve, tokenizer):
    refusal = Reply({"error": {"message": "The model `it` does not exist."}}, status=status)
    model, server, slept = opened(lambda n, path, body: refusal, concurrency=2)
    with pytest.raises(UserError, match=words):
        model.generate([random_ids(4)] * 50, 6)
    assert slept == [] and len(server.asked) < 20
    with pytest.raises(UserError, match=words):
        opened(first=refusal)


def test_a_cut_prompt_is_an_error(opened):
    model, _, _ = opened(lambda n, path, body: completion(body, read=[10, 9, 11][n]))
    answers = model.generate([random_ids(10)] * 3, 6)
    assert [answer.error for answer in answers] == [None, "the server read 9 of 10 tokens: it cut the prompt", None]


def test_a_server_that_does_not_count_is_known_by_it(opened):
    model, _, _ = opened(lambda n, path, body: completion(body, read=False), first=None)
    assert model.facts.sha256.startswith("unknown: it at 127.0.0.1:") and "cut" not in model.facts.sha256
    uncounted = {"choices": [{"text": " needle hay", "finish_reason": "length"}]}
    model, _server, _ = opened(lambda n, path, body: Reply(uncounted), first=Reply(uncounted))
    assert model.facts.sha256.endswith(
        "(it does not say how many tokens of a prompt it reads: a cut prompt would go unseen)"
    )
    (answer,) = model.generate([random_ids(10)], 6)
    assert answer.tokens == len(TOKENIZER.encode(" needle hay"))  # by our count


# ---- probabilities


def echo(body, **changes):
    count = len(body["prompt"])
    table = {
        "tokens": ["t"] * (count + 1),
        "token_logprobs": [None, *(-0.5 * i for i in range(1, count)), -9.0],
        "top_logprobs": [
            None,
            *({"a": -0.5 * i} if i % 2 else {"a": -0.5 * i, "b": -0.25} for i in range(1, count)),
            {},
        ],
    }
    return completion(body, text="", ended="length", logprobs=table | changes)


def test_scores_are_those_of_the_continuation(opened):
    told = []
    model, server, _ = opened(lambda n, path, body: echo(body), concurrency=2)
    requests = [(random_ids(3), random_ids(4, 1)), (random_ids(1), random_ids(1, 1)), (random_ids(9), random_ids(2, 1))]
    scores = {place: score[:2] for place, score in model.scores(requests, progress=told.append)}
    assert scores[0] == ((-1.5, -2.0, -2.5, -3.0), (True, False, True, False))
    assert scores[1] == ((-0.5,), (True,)) and scores[2] == ((-4.5, -5.0), (True, False))
    assert sorted(told) == [2, 7, 11]
    asked = sorted((body for _, _, body in server.asked[1:]), key=lambda body: len(body["prompt"]))
    assert asked[1] == SAMPLING | {"model": "it", "prompt": np.concatenate(requests[0]).tolist(), "max_tokens": 1,
                                   "echo": True, "logprobs": 1}  # fmt: skip


@pytest.mark.parametrize(
    "behave",
    [
        lambda body: completion(body),  # echo was not heard of
        lambda body: completion(body, logprobs=None),
        lambda body: completion(body, logprobs={"content": []}),  # llama.cpp's
        lambda body: completion(body, logprobs={"token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}]}),
        lambda body: echo(body, token_logprobs=[None] * 8),
        lambda body: echo(body, top_logprobs=[None] * 8),
        lambda body: echo(body, top_logprobs=None),
        lambda body: echo(body, token_logprobs=[-1.0] * 20, top_logprobs=[{"a": -1.0}] * 20),
        lambda body: Reply({"error": {"message": "echo is not supported"}}, status=400),
    ],
)
def test_a_server_without_probabilities_is_told_apart(behave, opened):
    model, _, _ = opened(lambda n, path, body: behave(body))
    with pytest.raises(UserError, match=r"m could not score 7 tokens: .*need a server with echo and logprobs"):
        list(model.scores([(random_ids(3), random_ids(4, 1))]))


def test_a_cut_text_is_an_error_of_its_own(opened):
    model, _, _ = opened(lambda n, path, body: completion(body, read=5) if len(body["prompt"]) > 5 else echo(body))
    scores = dict(model.scores([(random_ids(3), random_ids(4, 1)), (random_ids(2), random_ids(2, 1))]))
    assert scores[0][:2] == ((), ()) and "read 5 of 7 tokens" in scores[0].error
    assert scores[1].error is None and len(scores[1].log_probabilities) == 2


def test_a_text_that_is_never_answered_is_an_error_of_its_own(opened):
    model, server, _ = opened(lambda n, path, body: Reply({}, status=503) if len(body["prompt"]) == 7 else echo(body))
    scores = dict(model.scores([(random_ids(3), random_ids(4, 1)), (random_ids(2), random_ids(2, 1))]))
    assert scores[0].error == "status 503 (6 tries)" and scores[1].error is None
    assert sum(len(body["prompt"]) == 7 for _, _, body in server.asked) == 6


# ---- opening


def listing(*names):
    return Reply({"object": "list", "data": [{"id": name} for name in names]})


def test_the_only_model_needs_no_name(serve, tokenizer):
    server = serve(first=listing("org/it"))
    model = ServerModel(server.url + "/", name="m", options=ModelOptions(tokenizer=tokenizer))
    assert [(path, body and body["model"]) for path, _, body in server.asked] == [
        ("/v1/models", None), ("/v1/completions", "org/it"),
    ]  # fmt: skip
    facts = model.facts
    assert facts.sha256 == f"unknown: org/it at {server.url.split('/')[2]}"
    assert (facts.kind, facts.dtype, facts.device, facts.name) == ("server", "unknown", "server", "m")
    assert facts.tokenizer_sha256 == TOKENIZER.digest and facts.begin_ids == (1,)


@pytest.mark.parametrize(
    ("reply", "words"),
    [(listing("a", "b"), "has 2 models: a, b"), (listing(), "has no model"), (Reply({"data": 3}), "not say which models"),
     (Reply({}, status=404), "no such model or address"), (Reply({}, status=405), "not say which models")],
)  # fmt: skip
def test_a_server_with_several_models_or_none(reply, words, serve, tokenizer):
    server = serve(behave=lambda *_: reply, first=reply)
    with pytest.raises(UserError, match=words):
        ServerModel(server.url, name="m", options=ModelOptions(tokenizer=tokenizer), sleep=lambda seconds: None)


def test_a_server_that_is_not_there(tokenizer):
    server = FakeServer(lambda *_: Reply())
    server.close()
    slept = []
    with pytest.raises(UserError, match=r"does not answer: no connection: .*refused"):
        ServerModel(f"{server.url}#it", name="m", options=ModelOptions(tokenizer=tokenizer), sleep=slept.append)
    assert len(slept) == transport.TRIES - 1


def test_the_tokenizer_is_wanted(tmp_path):
    with pytest.raises(ConfigError, match="Give --tokenizer FOLDER"):
        ServerModel("http://127.0.0.1:1/v1#it", name="m", options=ModelOptions())
    with pytest.raises(UserError, match="no tokenizer can be read"):
        ServerModel("http://127.0.0.1:1/v1#it", name="m", options=ModelOptions(tokenizer=tmp_path))


@pytest.mark.parametrize(
    "given",
    [f"http://user:{KEY}@host/v1#it", f"http://{KEY}@host/v1", f"http://u:p@{KEY}@host/v1", f"http://host/v1?key={KEY}#it",
     f"http://{KEY}:port/v1", f"http://[{KEY}/v1", "http:///v1", "http://ho st/v1"],
)  # fmt: skip
def test_addresses_with_secrets_are_refused_and_not_repeated(given, tokenizer):
    with pytest.raises(UserError, match="--model: ") as caught:
        ServerModel(given, name="m", options=ModelOptions(tokenizer=tokenizer))
    assert (
        KEY not in str(caught.value)
        and caught.value.__cause__ is None
        and caught.value.__suppress_context__ is (caught.value.__context__ is not None)
    )


# ---- the key


def everywhere(error):
    """What a traceback of `error` would print."""
    found = []
    while error is not None:
        found.append(f"{type(error).__name__}: {error} {error.args!r}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(found)


def test_the_key_goes_to_the_server_and_stands_nowhere(opened, monkeypatch, tmp_path, capfd, caplog):
    """A server that repeats the key in every way that it can."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    spelt = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
    echoes = [
        Reply({"error": {"message": f"bad key {KEY}"}}, status=400),
        Reply({"error": {"message": "x" * 180 + KEY}}, status=400),
        Reply(b'{"error": {"message": "bad key ' + spelt.encode() + b'"}}', status=422),
        Reply(f"<p>{KEY}</p>".encode(), status=422),
        Reply({"detail": [KEY, {"deep": KEY}]}, status=400),
    ]
    model, server, _ = opened(lambda n, path, body: echoes[n] if n < len(echoes) else completion(body))
    suite = ToySuite(lengths=(8,), samples=7)
    results = evaluate(model, suite, tmp_path / "out", batch=1)
    assert results.cells[0].errors == len(echoes)
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, headers, _ in server.asked)
    assert not any(KEY in json.dumps(body) for _, _, body in server.asked)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) >= 4 and any("[key]" in path.read_text() for path in files)
    secret = KEY[:12]
    assert not any(secret in path.read_text() for path in files)
    assert secret not in repr(model.facts) and secret not in repr(model._address)
    out = capfd.readouterr()
    assert secret not in out.out + out.err + caplog.text


@pytest.mark.parametrize("status", [401, 403, 404])
def test_no_error_holds_the_key(status, opened, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    words = f"Incorrect API key provided: {KEY}, in short {KEY[:8]}***{KEY[-4:]}"
    model, _, _ = opened(lambda n, path, body: Reply({"error": {"message": words}}, status=status))
    with pytest.raises(UserError) as caught:
        model.generate([random_ids(5)], 6)
    assert KEY not in everywhere(caught.value)
    if status != 404:
        assert KEY[:8] not in everywhere(caught.value)


@pytest.mark.parametrize("key", [f"{KEY}\r\nX: y", f"{KEY}é", f"{KEY}\x00"])
def test_a_key_that_is_no_header_is_refused_and_not_repeated(key, serve, tokenizer, monkeypatch):
    server = serve()
    monkeypatch.setattr("os.environ", {"OPENAI_API_KEY": key})
    with pytest.raises(UserError, match="OPENAI_API_KEY holds characters") as caught:
        ServerModel(f"{server.url}#it", name="m", options=ModelOptions(tokenizer=tokenizer))
    assert KEY not in everywhere(caught.value) and server.asked == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status, opened, serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    other = serve()
    model, _, _ = opened(
        lambda n, path, body: Reply({}, status=status, headers={"Location": f"{other.url}/completions?{KEY}"})
    )
    with pytest.raises(UserError, match="sends requests elsewhere") as caught:
        model.generate([random_ids(5)], 6)
    assert other.asked == [] and KEY not in everywhere(caught.value)


def test_no_proxy_sees_what_goes_to_http(opened, serve, monkeypatch):
    proxy = serve()
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model, _, _ = opened()
    assert model.generate([random_ids(5)], 6)[0].error is None and proxy.asked == []


def test_retry_after_is_read_from_headers_only():
    message = email.message.Message()
    message["Retry-After"] = "3"
    assert transport._retry_after(transport.urllib.error.HTTPError("u", 429, "", message, None)) == 3
