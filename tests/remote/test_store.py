"""A store on a URL: measures once, trusts no copy too far."""

from __future__ import annotations

import pyarrow as pa
import pytest

from curator import ImageWriterStage, SemanticDeduplicationStage
from curator.errors import OutsideError
from curator.store import Store
from tests.conftest import tree
from tests.remote.conftest import stages, without_names
from tests.stages import Tiny


def test_a_store_on_a_url_measures_once(pipeline, bucket, shards, tmp_path, monkeypatch):
    """The same objects as on disk; a second run decodes nothing, also on a machine that has no copies."""
    kept = (*stages()[:3], Tiny(), SemanticDeduplicationStage(), ImageWriterStage())
    near = pipeline(kept, input=shards, output=tmp_path / "o0", store=tmp_path / "near")
    first = pipeline(kept, input=shards, output=tmp_path / "o1", store=f"{bucket.url}/st")
    assert first.run["work"] == near.run["work"]
    assert first.run["store"] == f"{bucket.url}/st"
    assert without_names(first.ledger) == without_names(near.ledger)
    found = {name for name in bucket.tree("st/") if not name.startswith("inputs/")}
    disk = tree(tmp_path / "near")
    assert found == {n for n in disk if not n.startswith(("inputs/", ".lock", ".gitignore", "scratch/"))}
    monkeypatch.setenv("CURATOR_CACHE", str(tmp_path / "elsewhere"))
    again = pipeline(kept, input=shards, output=tmp_path / "o2", store=f"{bucket.url}/st")
    assert set(again.run["work"].values()) == {0}
    assert again.ledger == first.ledger


def test_whether_thousands_of_objects_are_there_is_one_listing(bucket, tmp_path):
    """Not a request for each."""
    for n in range(30):
        bucket.put(f"st/read/{n:02x}/{n:02x}abc", b"x")
    bucket.server.asked.clear()
    store = Store(f"{bucket.url}/st")
    assert sum(store.has("read", f"{n:02x}abc") for n in range(1000)) == 30
    assert len(bucket.server.asked) == 1
    bucket.put("st/read/ff/ffabc", b"x")
    store.look_again()
    assert store.has("read", "ffabc")


def test_a_copy_that_rotted_is_fetched_again_and_an_object_that_did_is_measured_again(pipeline, bucket, shards, tmp_path):
    """The trailer's SHA-256 tells; nothing is trusted for having lain in the cache."""
    place = {"input": shards, "store": f"{bucket.url}/st"}
    pipeline(stages(), output=tmp_path / "o1", **place)
    (copy,) = (tmp_path / "cache/stores").glob("*/gathered/*/*")
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    assert pipeline(stages(0.52), output=tmp_path / "o2", **place).run["damaged_objects"] == []
    key = next(name for name in bucket.tree("st/brightness/"))
    bucket.put(f"st/brightness/{key}", b"rotten")
    for rotten in (tmp_path / "cache/stores").glob(f"*/brightness/{key}"):
        rotten.unlink()
    for gathered in bucket.tree("st/gathered/"):
        bucket.delete(f"st/gathered/{gathered}")
    for old in (tmp_path / "cache/stores").glob("*/gathered/*/*"):
        old.unlink()
    again = pipeline(stages(0.53), output=tmp_path / "o3", **place)
    assert again.run["work"]["decoded"] == 12
    assert len(again.run["damaged_objects"]) == 1
    assert [*bucket.tree("st/damaged/")] == [f"brightness-{key.rpartition('/')[2]}"]


def test_an_object_with_open_rows_is_never_served_from_an_old_copy(bucket, tmp_path, monkeypatch):
    """Another machine closes them; this one sees that at once."""
    store = Store(f"{bucket.url}/st")
    with store.opened():
        store.put("read", "ab12", pa.table({"x": [1]}), {"open": True})
        assert store.get("read", "ab12").header["open"]
        assert not store.has("read", "ab12")
        monkeypatch.setenv("CURATOR_CACHE", str(tmp_path / "another"))
        other = Store(f"{bucket.url}/st")
        other.put("read", "ab12", pa.table({"x": [2]}), {"open": True})
        assert store.get("read", "ab12").table["x"].to_pylist() == [2]
        other.put("read", "ab12", pa.table({"x": [3]}), {"open": False})
        assert store.get("read", "ab12").table["x"].to_pylist() == [3]
    assert [*bucket.tree("st/read/")] == ["ab/ab12"]


def test_something_else_is_no_store(pipeline, bucket, shards, tmp_path):
    """As on disk."""
    with pytest.raises(OutsideError, match="holds something else than a store"):
        pipeline(stages(), input=shards, store=f"{bucket.url}/in")
