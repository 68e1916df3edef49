"""Requests to one server: JSON there and back, tried again where that may help. It knows no model.

The key is sent to the address that was given and to no other, and no message holds it.
"""

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from rnope.errors import UserError

TRIES = 6
"""Of one request."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second try; twice as many before each next one, up to the longest. Drawn between half and all of it."""
LONGEST_RETRY_AFTER = 300.0
"""Seconds that a server may ask for."""
AGAIN = frozenset({408, 409, 425, 429}) | frozenset(range(500, 600))
"""Statuses that may be others the next time."""
HOPELESS = frozenset({401, 403, 404})
"""Statuses that every other request would have too."""
_WORDS = 200
"""Characters of a server's own words that are quoted."""


class Failure(Exception):
    """One request has no answer: the words for people, without a full stop."""


class Unanswered(Failure):
    """This request has no answer; others may have one."""


class Refusal(Failure):
    """The server will not have this request, however often it is sent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a server is, and which of its models is meant."""

    shown: str
    """Without key, user or query."""
    host: str
    """With its port."""
    model: str | None
    key: str = field(repr=False)

    @classmethod
    def parse(cls, given: str, *, key: str) -> "Address":
        """``http(s)://HOST[:PORT]/PATH#MODEL``.

        Raises:
            UserError: a user, password or query in it, which are not repeated; no host; a key that is no header.
        """
        try:
            parts = urlsplit(given)
            parts.port  # noqa: B018  # a number, or it raises
        except ValueError:
            raise UserError(
                "--model: the address of the server cannot be read. Write http://HOST:PORT/v1#MODEL."
            ) from None
        if "@" in parts.netloc or parts.query:
            raise UserError(
                "--model: the server's address has a user, a password or a query in it, which would stand in logs and "
                "reports. Put the key into the environment variable OPENAI_API_KEY, and give http(s)://HOST:PORT/v1#MODEL."
            )
        if not parts.hostname or not re.fullmatch(r"[\x21-\x7e]*", parts.netloc + parts.path):
            raise UserError("--model: the server's address has no host. Write http://HOST:PORT/v1#MODEL.")
        if not re.fullmatch(r"[\x20-\x7e]*", key):
            raise UserError("OPENAI_API_KEY holds characters that no key has. Set it again, or unset it.")
        shown = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        return cls(shown=shown, host=parts.netloc, model=parts.fragment or None, key=key)


class Post:
    """Sends requests to `address`; may be used by several threads.

    Args:
        timeout_seconds: of waiting for the server's next bytes.
        sleep: waits so many seconds.
    """

    def __init__(self, address: Address, *, timeout_seconds: float, sleep: Callable[[float], None]) -> None:
        self._address, self._timeout, self._sleep = address, timeout_seconds, sleep
        # A proxy sees what goes to http addresses, the key too: only https goes through the one of the environment.
        proxies = {scheme: proxy for scheme, proxy in urllib.request.getproxies().items() if scheme == "https"}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _Stay())

    def __call__(self, path: str, body: dict[str, Any] | None, place: int, holds: Callable[[Any], bool]) -> Any:
        """POST `body`, or GET without one: what the server replies.

        Args:
            place: of the request among others, so that they do not all wait for the same time.
            holds: whether a reply has the form that is wanted.

        Raises:
            Failure: no such reply after `TRIES`, or the server refuses the request.
            UserError: it would refuse all requests: the key, the model or the address is wrong.
        """
        chance = np.random.default_rng([place, TRIES])
        for tried in range(1, TRIES + 1):
            asked = 0.0
            try:
                reply = self._once(path, body)
                if holds(reply):
                    return reply
                wrong = "its reply has not the form of a completion" if body else "its reply has not the form of a list"
            except urllib.error.HTTPError as error:
                wrong = self._refused(error)
                asked = _retry_after(error)
            except (ValueError, RecursionError):
                wrong = "its reply is not JSON"
            except TimeoutError:
                wrong = f"no reply within {self._timeout:g} seconds"
            except (OSError, http.client.HTTPException) as error:
                reason = error.reason if isinstance(error, urllib.error.URLError) else error
                late = isinstance(reason, TimeoutError)
                wrong = f"no reply within {self._timeout:g} seconds" if late else self._said(f"no connection: {reason}")
            if tried < TRIES:
                wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tried - 1)) * chance.uniform(0.5, 1.0)
                self._sleep(max(wait, asked))
        raise Unanswered(f"{wrong} ({TRIES} tries)")

    def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        request = urllib.request.Request(
            self._address.shown + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Accept": "application/json"},
        )
        if self._address.key:
            request.add_unredirected_header("Authorization", f"Bearer {self._address.key}")
        with self._opener.open(request, timeout=self._timeout) as response:
            return json.loads(response.read())

    def _refused(self, error: urllib.error.HTTPError) -> str:
        """What to say before the next try.

        Raises:
            Failure, UserError: there is no use in one.
        """
        with error:
            status = error.code
            if 300 <= status < 400:
                rule = f"sends requests elsewhere (status {status}), where the key would go too"
                raise UserError(f"{self._address.shown} {rule}. Give the address that it sends them to.")
            if status in (401, 403):  # its words may hold the key, or parts of it
                remedy = "Set OPENAI_API_KEY to a key of this server."
                raise UserError(f"{self._address.shown} refuses the key (status {status}). {remedy}")
            try:
                words = _message(self._said(error.read(1 << 16).decode("utf-8", errors="replace")))
            except (OSError, http.client.HTTPException):
                words = ""
        words = self._said(words)[:_WORDS]  # once more: JSON may have spelt the key otherwise
        if status in HOPELESS:
            remedy = "See that the address ends as the server's documents say (mostly /v1), and the model's name."
            raise UserError(f"{self._address.shown} has no such model or address (status {status}: {words}). {remedy}")
        said = f"status {status}: {words}" if words else f"status {status}"
        if status in AGAIN:
            return said
        raise Refusal(f"the server refuses the request ({said})")

    def _said(self, words: str) -> str:
        """`words` of a server, which may repeat the key."""
        return words.replace(self._address.key, "[key]") if self._address.key else words


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would take the key along, and prompts."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks to wait; a date is not read."""
    given = error.headers.get("Retry-After", "")
    seconds = float(given) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", given) else 0.0
    return min(seconds, LONGEST_RETRY_AFTER)


def _message(text: str) -> str:
    """What an error's body says."""
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError):
        plain = text
    if isinstance(plain, dict):
        plain = plain.get("error", plain.get("message", plain.get("detail", "")))
    if isinstance(plain, dict):
        plain = plain.get("message", "")
    return " ".join(str(plain).split())
