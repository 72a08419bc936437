"""A real HTTP server on loopback that completes prompts as vLLM does, and does it badly: late, wrong or not at all."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STOP_TOKEN = 9
TROUBLES = ("none", "http 500", "http 429", "drop", "cut off", "no json", "no choices")


def answer_to(prompt: list[int]) -> tuple[list[int], str]:
    """(token ids, finish reason) as the model behind the server would give them: a function of the prompt alone."""
    number = prompt[0]
    if number % 29 == 3:
        return [STOP_TOKEN], "stop"  # empty
    if number % 31 == 4:
        return [1, 2, 3, 4], "length"
    if number % 37 == 5:
        return [5], "content_filter"
    return [100 + number % 50, *range(number % 5), STOP_TOKEN], "stop"


class FlakyServer(ThreadingHTTPServer):
    """troubles: whether first requests of most prompts go wrong. down: everything does. attempts: requests by prompt.

    delivered: whole completions by prompt. most_at_once: requests being answered at the same time.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *, troubles: bool = True, delay: float = 0.0, token_ids: bool = True):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.troubles, self.delay, self.token_ids = troubles, delay, token_ids
        self.down = False
        self.unknown_model = False
        self.attempts: Counter[int] = Counter()
        self.delivered: Counter[int] = Counter()
        self.seeds: dict[int, set[int]] = defaultdict(set)
        self.order: list[int] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.enough = threading.Event()
        self.enough_at = 10**9

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address) -> None:
        """Nothing to say: clients are killed on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: FlakyServer = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = body["prompt"][0]
        with server.lock:
            first = not server.attempts[number]
            server.attempts[number] += 1
            server.seeds[number].add(body["seed"])
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            self._respond(body, number, first)
        finally:
            with server.lock:
                server.at_once -= 1

    def _respond(self, body: dict, number: int, first: bool) -> None:
        server: FlakyServer = self.server
        time.sleep(server.delay * (number * 7 % 5) / 5)  # later prompts overtake earlier ones
        if server.unknown_model:
            return self._send(404, b'{"error": "no such model"}')
        if server.down:
            return self._send(503, b"")
        trouble = TROUBLES[number % len(TROUBLES)] if server.troubles and first else "none"
        if number % 23 == 2:
            return self._send(400, b'{"error": "prompt too long"}')
        if trouble == "http 500":
            return self._send(500, b"out of memory")
        if trouble == "http 429":
            return self._send(429, b"", {"Retry-After": "0"})
        if trouble == "drop":
            self.close_connection = True
            return None
        if trouble == "no json":
            return self._send(200, b"<html>a proxy's page</html>")
        if trouble == "no choices":
            return self._send(200, b'{"choices": []}')
        ids, reason = answer_to(body["prompt"])
        choice = {"index": 0, "text": " ".join(map(str, ids)), "finish_reason": reason, "stop_reason": None}
        if server.token_ids:
            choice["token_ids"] = ids
        payload = json.dumps({"choices": [choice]}).encode()
        if trouble == "cut off":
            self._send(200, payload[:-9], {"Content-Length": str(len(payload))})
            self.close_connection = True
            return None
        self._send(200, payload)
        with server.lock:
            server.delivered[number] += 1
            server.order.append(number)
            if sum(server.delivered.values()) >= server.enough_at:
                server.enough.set()
        return None

    def _send(self, status: int, payload: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(payload)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_) -> None:
        """Nothing."""


@contextmanager
def serve(**options) -> Iterator[FlakyServer]:
    """The server, running."""
    with FlakyServer(**options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
