"""A server on this machine that answers as it is told, or misbehaves. For tests of what asks servers."""

import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np


@dataclass
class Reply:
    """What one request gets."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Send only so many bytes of the body, and close."""
    reset: bool = False
    """Close without a word, so that the other side is reset."""
    wait: threading.Event | None = None
    """Say nothing until then."""


def completion(body, text=" yes", ended="stop", read=None, made=1, **more):
    """A completion as OpenAI's protocol has it; `read` False leaves out how many tokens were read."""
    usage = {"prompt_tokens": len(body["prompt"]) if read is None else read, "completion_tokens": made}
    reply = {"object": "text_completion", "choices": [{"text": text, "finish_reason": ended, "index": 0, **more}]}
    return Reply(reply | ({} if read is False else {"usage": usage}))


class FakeServer:
    """``http://127.0.0.1:PORT``; `behave` gets each request's number, counted from 0, its path and its body."""

    def __init__(self, behave: Callable[[int, str, Any], Reply]) -> None:
        self.behave = behave
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.open, self.most = 0, 0
        self._lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def handle_one_request(self):
                try:
                    super().handle_one_request()
                except OSError:  # the other side has gone
                    self.close_connection = True

            def do_POST(self):
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = json.loads(raw) if raw else None
                with fake._lock:
                    number = len(fake.asked)
                    fake.asked.append((self.path, dict(self.headers), body))
                    fake.open += 1
                    fake.most = max(fake.most, fake.open)
                try:
                    reply = fake.behave(number, self.path, body)
                    if reply.wait is not None:
                        reply.wait.wait(10)
                finally:
                    with fake._lock:  # before the answer: who has it may ask again at once
                        fake.open -= 1
                self.answer(reply)

            do_GET = do_POST

            def answer(self, reply):
                if reply.reset:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    self.connection.close()
                    return
                data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: reply.cut])

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(poll_interval=0.01), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serving(model):
    """Behaviour of a server that has `model` (an `EvalModel` with token ids as prompts)."""
    lock = threading.Lock()

    def behave(number, path, body):
        ids = np.array(body["prompt"])
        with lock:
            if body.get("echo"):
                ((_, chances),) = model.scores([(ids[:1], ids[1:])])
                own = [None, *chances.log_probabilities, -0.5]
                # The likeliest has what the token has where it is the token, and more where it is not.
                best = [None] + [
                    {"a": chance} if top else {"a": chance, "b": chance + 0.25}
                    for chance, top in zip(chances.log_probabilities, chances.likeliest, strict=True)
                ]
                logprobs = {"token_logprobs": own, "top_logprobs": [*best, {"c": -0.5}], "tokens": ["x"] * len(own)}
                return completion(body, text="x" * len(own), ended="length", logprobs=logprobs)
            (answer,) = model.generate([ids], body["max_tokens"], stop=body.get("stop", ()))
        return completion(body, text=answer.text, ended=answer.ended, made=answer.tokens)

    return behave
