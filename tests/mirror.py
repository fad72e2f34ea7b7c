"""A real server on the loopback interface that breaks off when told to, and a home with empty caches."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from curator.models.published import File

ZIP = "clip_autokeras_binary_nsfw.zip"


class Handler(BaseHTTPRequestHandler):
    """Serves bytes by name, with ranges; `cuts` are how many bytes the next answers give before they break off."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        wanted = self.headers.get("Range") if self.server.ranges else None
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if first >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        end = first + self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[first:end])

    def log_message(self, *_: object) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    """A real server on the loopback interface, and what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.cuts: list[int] = []
        self.ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture(name="server")
def a_mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The mirror that Curator fetches from."""
    with Server() as serving:
        monkeypatch.setenv("CURATOR_WEIGHTS_URL", serving.url)
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.fixture(name="home")
def an_empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with nothing in any cache."""
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CURATOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "home"


def served(server: Server, name: str = "a.safetensors", size: int = 3_000_000) -> File:
    """A file on the server, as the table of published weights would have it."""
    content = np.random.default_rng(0).bytes(size)
    server.files[f"/{name}"] = content
    return File(name, hashlib.sha256(content).hexdigest(), f"{server.url}/{name}", size)
