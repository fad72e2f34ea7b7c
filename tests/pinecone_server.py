"""A server that answers as Pinecone's data plane is documented to: a map of namespaces, searched by NumPy."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

KEY = "pc-test-key"
PAGE = 7  # ids of a page, so that every list has several


class Pinecone:
    """Rows by namespace and id; `upserts` has the sizes of all upserts; `before` is called ahead of each request."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.rows: dict[str, dict[str, dict[str, Any]]] = {}
        self.upserts: list[int] = []
        self.before: Callable[[str, Pinecone], int | None] = lambda *_: None
        self.host = ""

    def answer(self, path: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of one request."""
        there = self.rows.setdefault(asked.get("namespace", ""), {})
        if path == "/describe_index_stats":
            spaces = {name: {"vectorCount": len(rows)} for name, rows in self.rows.items()}
            return 200, {"dimension": self.dim, "indexFullness": 0, "namespaces": spaces,
                         "totalVectorCount": sum(map(len, self.rows.values()))}  # fmt: skip
        if path == "/vectors/upsert":
            wrong = [v for v in asked["vectors"] if len(v["values"]) != self.dim or None in v["metadata"].values()]
            if wrong or any(len(json.dumps(v["metadata"])) > 40960 for v in asked["vectors"]):
                return 400, {"code": 3, "message": "a vector of another dimension, null metadata or too much of it"}
            there.update({v["id"]: v for v in asked["vectors"]})
            self.upserts.append(len(asked["vectors"]))
            return 200, {"upsertedCount": len(asked["vectors"])}
        if path == "/vectors/fetch":
            return 200, {"namespace": asked.get("namespace", ""), "usage": {"readUnits": 1},
                         "vectors": {i: there[i] for i in asked["ids"] if i in there}}  # fmt: skip
        if path == "/vectors/list":
            ids = sorted(there)
            start, most = int(asked.get("paginationToken", 0)), int(asked.get("limit", PAGE))
            more = {"pagination": {"next": str(start + most)}} if start + most < len(ids) else {}
            return 200, {"vectors": [{"id": i} for i in ids[start : start + most]], "namespace": "",
                         "usage": {"readUnits": 1}, **more}  # fmt: skip
        if path == "/vectors/delete":
            for id_ in asked["ids"]:
                there.pop(id_, None)
            return 200, {}
        if path == "/query":
            return 200, {"matches": list(self._nearest(there, asked)), "namespace": asked.get("namespace", "")}
        return 404, {"code": 5, "message": f"no {path}"}

    def _nearest(self, there: dict[str, dict[str, Any]], asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
        def cosine(row: dict[str, Any]) -> float:
            a, b = np.array(row["values"]), np.array(asked["vector"])
            return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

        met = [row for row in there.values() if meets(row["metadata"], asked.get("filter", {}))]
        for row in sorted(met, key=cosine, reverse=True)[: asked["topK"]]:
            yield {**row, "score": cosine(row)}


def meets(metadata: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether metadata meets a filter, by Pinecone's documented words."""
    signs: dict[str, Callable[[Any, Any], bool]] = {
        "$eq": lambda a, b: a == b, "$ne": lambda a, b: a != b, "$gt": lambda a, b: a > b, "$gte": lambda a, b: a >= b,
        "$lt": lambda a, b: a < b, "$lte": lambda a, b: a <= b,
    }  # fmt: skip

    def one(name: str, how: dict[str, Any]) -> bool:
        ((sign, value),) = how.items()
        if sign == "$exists":
            return (name in metadata) == value
        return sign == "$ne" if name not in metadata else signs[sign](metadata[name], value)

    return all(
        all(meets(metadata, part) for part in how) if name == "$and"
        else any(meets(metadata, part) for part in how) if name == "$or"
        else one(name, how)
        for name, how in wanted.items()
    )  # fmt: skip


@contextmanager
def serving(dim: int) -> Iterator[Pinecone]:
    """The server, on loopback, while the block runs."""
    state = Pinecone(dim)

    class Handler(BaseHTTPRequestHandler):
        def _go(self, asked: dict[str, Any], path: str) -> None:
            status = state.before(path, state)
            if self.headers.get("Api-Key") != KEY:
                status, body = 401, {"code": 16, "message": "Invalid API Key"}
            elif status is not None:
                body = {"code": 3, "message": "the test says no"}
            else:
                status, body = state.answer(path, asked)
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._go(json.loads(content or b"{}"), self.path)

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked = {name: values if name == "ids" else values[0] for name, values in parse_qs(parts.query).items()}
            self._go(asked, parts.path)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.host = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
