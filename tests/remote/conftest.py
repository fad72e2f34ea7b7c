"""An S3-compatible server on loopback (moto's), its requests counted; a bucket on it, and runs that reach it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from curator import FilePartitioningStage, ImageReaderStage, ImageWriterStage
from curator.cluster import Cluster, ClusterSettings
from curator.pipeline import Pipeline, Result
from curator.voice import Voice
from tests.conftest import make_samples, make_shard
from tests.stages import Brightness

_made: list[str] = []
KEYS = {"AWS_ACCESS_KEY_ID": "curator", "AWS_SECRET_ACCESS_KEY": "of the tests"}


class Quiet(MotoRequestHandler):
    """Says nothing of its requests."""

    def log(self, *_: Any) -> None:
        """Nothing."""


@dataclass
class Server:
    """What answers on loopback, and what it was asked."""

    url: str = ""
    asked: list[tuple[str, str, int]] = field(default_factory=list)  # method, path with its query, bytes of the answer
    refuse: Callable[[str, str], bool] | None = None  # of which method and path it is said: 403
    app: Any = None

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, query = environ["REQUEST_METHOD"], environ.get("QUERY_STRING", "")
        path = environ["PATH_INFO"] + (f"?{query}" if query else "")
        if self.refuse is not None and self.refuse(method, path):
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        content = b"".join(self.app(environ, start))
        self.asked.append((method, path, len(content)))
        return [content]

    def client(self) -> Any:
        """Another program's view of it."""
        return boto3.client(
            "s3", endpoint_url=self.url, region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"], aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip


@contextmanager
def serving() -> Iterator[Server]:
    """A server of its own on a free port."""
    server = Server()
    server.app = DomainDispatcherApplication(create_backend_app)
    http = make_server("127.0.0.1", 0, server, threaded=True, request_handler=Quiet)
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@dataclass
class Bucket:
    """One bucket on a server, as another program sees it."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        """`s3://name`."""
        return f"s3://{self.name}"

    def put(self, key: str, content: bytes | Path) -> str:
        """An object; gives its URL."""
        body = content.read_bytes() if isinstance(content, Path) else content
        self.server.client().put_object(Bucket=self.name, Key=key, Body=body)
        return f"{self.url}/{key}"

    def tree(self, prefix: str = "") -> dict[str, bytes]:
        """Every object below a prefix, by its name below it."""
        client = self.server.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return {key[len(prefix) :]: client.get_object(Bucket=self.name, Key=key)["Body"].read() for key in keys}

    def delete(self, key: str) -> None:
        """An object goes."""
        self.server.client().delete_object(Bucket=self.name, Key=key)


@pytest.fixture(scope="package", name="s3")
def a_server() -> Iterator[Server]:
    """One server for the tests in this folder."""
    with serving() as server:
        yield server


@pytest.fixture(scope="package", name="far_cluster")
def a_cluster(s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An environment that leads to the server, and a worker process that was started in it."""
    place = tmp_path_factory.mktemp("s3")
    with pytest.MonkeyPatch.context() as patch:
        settings = {
            **KEYS, "AWS_ENDPOINT_URL": s3.url, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(place / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(place / "none"),
            "CURATOR_CACHE": str(place / "cache"),
        }  # fmt: skip
        for name, value in settings.items():
            patch.setenv(name, value)
        with Cluster(ClusterSettings(kind="local", n_workers=1)) as started:
            yield started


@pytest.fixture(name="bucket")
def a_bucket(
    s3: Server, far_cluster: Cluster, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Bucket]:
    """An empty bucket, and a cache of its own."""
    monkeypatch.setenv("CURATOR_CACHE", str(tmp_path / "cache"))
    name = f"{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower())[:50].strip('-')}-{len(_made)}"
    _made.append(name)
    s3.client().create_bucket(Bucket=name)
    s3.asked.clear()
    yield Bucket(s3, name)
    s3.refuse = None


@pytest.fixture(name="pipeline")
def a_pipeline(far_cluster: Cluster, tmp_path: Path) -> Callable[..., Result]:
    """As the shared cast's, over workers that reach the server."""

    def run(stages: Any, **settings: Any) -> Result:
        given = {"output": tmp_path / "out", "store": tmp_path / "store", **settings}
        return Pipeline("test", stages).run(started=lambda _: far_cluster, voice=Voice(quiet=True), **given)

    return run


def stages(threshold: float = 0.5, **write: object) -> tuple[object, ...]:
    """Read, measure brightness, keep about half, write."""
    write = {"samples_per_shard": 10, **write}
    return FilePartitioningStage(), ImageReaderStage(), Brightness(score_threshold=threshold), ImageWriterStage(**write)


@pytest.fixture(name="shards")
def three_shards(tmp_path: Path, bucket: Bucket) -> Path:
    """Three tars on disk and the same in the bucket, below `in/`."""
    for n in range(3):
        bucket.put(f"in/{n:05d}.tar", make_shard(tmp_path / f"in/{n:05d}.tar", make_samples(12, 12 * n)))
    bucket.server.asked.clear()
    return tmp_path / "in"


def without_names(ledger: Any) -> Any:
    """A ledger less the columns that name the shards of the input."""
    return ledger.drop_columns(["shard", "duplicate_of_shard", "reason"])


def tars(files: dict[str, bytes]) -> dict[str, bytes]:
    """The tars among some files."""
    return {name: content for name, content in files.items() if name.endswith(".tar")}
