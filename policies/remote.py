"""A chat model behind an OpenAI-compatible endpoint: time-outs, retries, and a bound on what is asked."""

from __future__ import annotations

import base64
import http.client
import io
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tool_actors.errors import IrEnvError

__all__ = ["BudgetSpent", "ChatEndpoint", "data_url"]

logger = logging.getLogger(__name__)

REFUSALS = (400, 401, 403, 404, 422)
"""What the same request will be told again."""
LONGEST_WAIT = 60.0
MAX_BYTES = 1 << 20
"""Of an answer, which is text."""
WORKERS = 8
BUDGET = 2000
"""Requests, where nothing else is said: a benchmark's, and no bill that surprises."""


class BudgetSpent(IrEnvError):
    """As many requests were made as were allowed."""


class ChatEndpoint:
    """Asks for one answer per chat.

    Args:
        url: of the API, up to ``/v1``.
        model: its name there.
        key_variable: environment variable that holds the key; without one, none is sent.
        timeout: of a request, in seconds.
        retries: further requests for an answer that did not come.
        wait: seconds before the first of them, doubled before each further one; a server's ``Retry-After`` holds if it is longer.
        budget: most requests in all, retries too; None: no bound.
        max_tokens: of an answer.
        workers: chats asked at the same time.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        retries: int = 3,
        wait: float = 0.5,
        budget: int | None = None,
        max_tokens: int = 512,
        workers: int = 1,
    ):
        if not url.startswith(("http://", "https://")):
            raise IrEnvError(f"the endpoint {url!r} is no address: give one like https://HOST/v1")
        self.url, self.model, self.key_variable = url.rstrip("/"), model, key_variable
        self.timeout, self.retries, self.wait, self.budget = timeout, retries, wait, budget
        self.max_tokens, self.workers = max_tokens, workers
        self.requests = 0
        """Made so far."""
        self.unanswered = 0
        """Chats that got no answer so far, those that the budget did not allow too."""
        self._warned = False
        self._lock = threading.Lock()

    @classmethod
    def at(cls, address: str, **options: Any) -> ChatEndpoint:
        """The endpoint of ``URL#MODEL``, with :data:`BUDGET` requests and :data:`WORKERS` at a time unless ``options`` say otherwise.

        >>> ChatEndpoint.at("https://HOST/v1#MODEL")
        """
        url, _, model = address.rpartition("#")
        if not url or not model:
            raise IrEnvError(f"a remote model is URL#MODEL, like https://HOST/v1#MODEL, not {address!r}")
        settings: dict[str, Any] = {"budget": BUDGET, "workers": WORKERS, **options}
        return cls(url, model, **settings)

    def ask(self, messages: Sequence[dict[str, Any]]) -> str | None:
        """The answer to a chat, whose pictures are uint8 arrays (:data:`policies.vlm.prompts.Messages`); None if none came, and the log
        says why.

        Raises:
            IrEnvError: the server refuses the request.
            BudgetSpent: this request would be one too many.
        """
        chat = to_openai(messages)
        body = json.dumps({"model": self.model, "messages": chat, "temperature": 0.0, "max_tokens": self.max_tokens}).encode()
        failure, pause = "", self.wait
        for attempt in range(1 + self.retries):
            if attempt:
                time.sleep(min(pause, LONGEST_WAIT))
                pause = self.wait * 2**attempt
            self._spend()
            try:
                return self._post(body)
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
                failure = f"{type(error).__name__}: {error}"
                if isinstance(error, urllib.error.HTTPError):
                    if error.code in REFUSALS:
                        raise IrEnvError(
                            f"{self.model!r} at {self.url} refuses: {failure}; check url, model and the key in {self.key_variable}"
                        ) from error
                    asked = error.headers.get("Retry-After", "")
                    pause = max(pause, float(asked) if asked.isdigit() else 0.0)
        logger.warning("%r at %s did not answer %d times (%s)", self.model, self.url, 1 + self.retries, failure)
        return None

    def ask_all(self, chats: Sequence[Sequence[dict[str, Any]]]) -> list[str | None]:
        """Answers in the order of the chats; None from where the budget is spent, too."""

        def ask(chat: Sequence[dict[str, Any]]) -> str | None:
            try:
                answer = self.ask(chat)
            except BudgetSpent as error:
                answer = None
                with self._lock:
                    if not self._warned:
                        logger.warning("%s", error)
                    self._warned = True
            with self._lock:
                self.unanswered += answer is None
            return answer

        if self.workers == 1 or len(chats) < 2:
            return [ask(chat) for chat in chats]
        with ThreadPoolExecutor(min(self.workers, len(chats))) as pool:
            return list(pool.map(ask, chats))

    def _spend(self) -> None:
        with self._lock:
            if self.budget is not None and self.requests >= self.budget:
                raise BudgetSpent(f"{self.model!r} at {self.url}: the budget of {self.budget} requests is spent; raise it to ask more")
            self.requests += 1

    def _post(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
        with _OPENER.open(request, timeout=self.timeout) as answer:
            said = json.loads(answer.read(MAX_BYTES))["choices"][0]["message"]["content"]
        if not isinstance(said, str):
            raise TypeError(f"the answer is {type(said).__name__}, not text")
        return said


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the address that it was given for, and to no other."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _content(content: str | Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A message's content as the API takes it: text alone as text, which every server reads."""
    if isinstance(content, str):
        return content
    if all(part["type"] == "text" for part in content):
        return "\n".join(part["text"] for part in content)
    return [{"type": "image_url", "image_url": {"url": data_url(part["image"])}} if part["type"] == "image" else part for part in content]


def to_openai(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A chat with images as arrays, as OpenAI's API takes it."""
    return [{**message, "content": _content(message["content"])} for message in messages]


def data_url(image: np.ndarray) -> str:
    """An image as PNG in base64: another compression would be another degradation."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
