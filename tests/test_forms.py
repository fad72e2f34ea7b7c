"""The same real photos in every form that is read, and through every writer: bytes identical, counts that add up."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator import (
    EmbeddingWriterStage,
    ExactDeduplicationStage,
    FilePartitioningStage,
    GroupWriterStage,
    ImageEmbeddingStage,
    ImageFolderWriterStage,
    ImageReaderStage,
    ImageWriterStage,
    ManifestWriterStage,
)
from tests.conftest import make_shard, shared, tar_members
from tests.servers import reply, serving

COUNT = 100


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes]:
    """One shard of the shared photos, by key."""
    members = tar_members(shared("data/photos/00000.tar"))
    return {name.split(".")[0]: content for name, content in members.items() if name.endswith(("jpg", "png"))}


def suffix(content: bytes) -> str:
    return "png" if content.startswith(b"\x89PNG") else "jpg"


def as_tar(place: Path, photos: dict[str, bytes]) -> Path:
    return make_shard(place / "in.tar", {f"{key}.{suffix(c)}": c for key, c in photos.items()})


def as_gzip(place: Path, photos: dict[str, bytes]) -> Path:
    packed = place / "in.tar.gz"
    packed.write_bytes(gzip.compress(as_tar(place / "plain", photos).read_bytes(), 1))
    return packed


def as_folder(place: Path, photos: dict[str, bytes]) -> Path:
    for key, content in photos.items():
        path = place / f"in/{key[-1]}/{key}.{suffix(content)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return place / "in"


def as_list(place: Path, photos: dict[str, bytes]) -> Path:
    folder = as_folder(place, photos)
    paths = sorted(str(path.relative_to(place)) for path in folder.rglob("*.*"))
    pq.write_table(pa.table({"image_path": paths}), place / "list.parquet")
    return place / "list.parquet"


def as_parquet(place: Path, photos: dict[str, bytes]) -> Path:
    rows = [{"bytes": content, "path": f"{key}.{suffix(content)}"} for key, content in photos.items()]
    pq.write_table(pa.table({"image": rows}), place / "in.parquet", row_group_size=40)
    return place / "in.parquet"


@pytest.fixture
def as_urls() -> Iterator[Callable[[Path, dict[str, bytes]], Path]]:
    """A list of URLs, and the server that has them."""
    with serving() as site:

        def made(place: Path, photos: dict[str, bytes]) -> Path:
            site.answers |= {f"/{key}": reply(200, content) for key, content in photos.items()}
            (place / "urls.txt").write_text("".join(f"{site.url}/{key}\n" for key in photos))
            return place / "urls.txt"

        yield made


@pytest.mark.parametrize("form", [as_tar, as_gzip, as_folder, as_list, as_parquet, "as_urls"])
def test_photos_leave_as_they_came_whatever_form_they_came_in(pipeline, photos, tmp_path, request, form):
    """Every byte of every image, and one row for each."""
    made = request.getfixturevalue(form) if isinstance(form, str) else form
    read = ImageReaderStage(download={"allow_private_addresses": True})
    result = pipeline([FilePartitioningStage(), read, ImageWriterStage()], input=made(tmp_path, photos))
    assert result.counts == {"inputs": COUNT, "kept": COUNT, "dropped": 0, "failed": 0, "by_stage": {}}
    members = tar_members(*(tmp_path / "out/shards").glob("*.tar"))
    images = [content for name, content in members.items() if not name.endswith((".json", ".txt"))]
    assert sorted(images) == sorted(photos.values())
    hashes = sorted(hashlib.sha256(content).hexdigest() for content in photos.values())
    assert sorted(result.ledger.column("content_hash").to_pylist()) == hashes


def test_all_writers_tell_of_the_same_photos(pipeline, photos, tmp_path):
    """Shards, files, keep-list, vectors and groups of one run, among photos of which some are copies."""
    copies = photos | {f"copy{key}": photos[key] for key in list(photos)[:10]}
    stages = [
        FilePartitioningStage(), ImageReaderStage(),
        ImageEmbeddingStage(model="curator-demo", pretrained="curator-demo"), ExactDeduplicationStage(),
        ImageWriterStage(), ImageFolderWriterStage(), ManifestWriterStage(), EmbeddingWriterStage(), GroupWriterStage(),
    ]  # fmt: skip
    result = pipeline(stages, input=as_tar(tmp_path, copies))
    assert (result.counts["kept"], result.counts["dropped"]) == (COUNT, 10)
    out = tmp_path / "out"
    rows = [row for row in result.ledger.to_pylist() if row["status"] == "kept"]
    keys = [row["key"] for row in rows]
    assert sorted(tar_members(*(out / "shards").glob("*.tar")).values()) == sorted(photos.values())
    metadata = pq.read_table(out / "folder/metadata.parquet").to_pylist()
    assert sorted((out / "folder" / row["file_name"]).read_bytes() for row in metadata) == sorted(photos.values())
    (keep_list,) = (out / "manifest").glob("*.parquet")
    assert pq.read_table(keep_list).column("key").to_pylist() == keys
    (vectors,) = (out / "embeddings/img_emb").glob("*.npy")
    (table,) = (out / "embeddings/metadata").glob("*.parquet")
    assert pq.read_table(table).column("image_path").to_pylist() == keys
    assert np.abs(np.linalg.norm(np.load(vectors).astype(np.float32), axis=1) - 1).max() < 1e-2
    groups = pq.read_table(out / "groups/groups.parquet").to_pylist()
    assert len(groups) == 20
    assert len(json.loads((out / "run.json").read_text())["write"]) == 5
