"""A real server on loopback that answers as a test decides, and replies in the form of chat completions."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Reply = tuple[int, bytes]


class Server(ThreadingHTTPServer):
    """Answers what ``decide`` says of a request; remembers the requests. It ends with the test."""

    daemon_threads = True

    def __init__(self, decide: Callable[[dict[str, Any]], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.decide, self.seen, self.keys = decide, list[dict[str, Any]](), set[str]()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.seen.append(asked)
            server.keys.add(self.headers["Authorization"])
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            status, body = server.decide(asked)
        finally:
            with server.lock:
                server.at_once -= 1
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client timed out

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any]], Reply]], Server]]:
    servers: list[Server] = []

    def start(decide: Callable[[dict[str, Any]], Reply]) -> Server:
        server = Server(decide)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def said(finish: str = "stop", **message: Any) -> Reply:
    body = {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "finish_reason": finish}]}
    body["choices"][0]["message"] = {"role": "assistant", "content": None, **message}  # type: ignore[index]
    return 200, json.dumps(body).encode()


def called(name: Any, arguments: Any, **message: Any) -> Reply:
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return said("tool_calls", tool_calls=[call], **message)
