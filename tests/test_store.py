"""The store: whole objects or none, damage noticed, open rows apart, other layouts refused."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pytest

from curator import address
from curator.errors import StoreError
from curator.store import Store, vectors_column, vectors_of

TABLE = pa.table({"x": [1, 2, 3], "word": ["a", None, "c"]})
KEY = "ab" * 32


@pytest.fixture
def store(tmp_path):
    """An opened store."""
    with Store(tmp_path / "store").opened() as opened:
        yield opened


def test_an_object_comes_back_with_its_header(store):
    """And another tool reads it as an Arrow stream, as it lies."""
    store.put("read", KEY, TABLE, {"stage": "read"})
    found = store.get("read", KEY)
    assert found.table.to_pylist() == TABLE.to_pylist()
    assert found.header == {"stage": "read"}
    with open(store.path("read", KEY), "rb") as file:
        assert pa.ipc.open_stream(file).read_all().to_pylist() == TABLE.to_pylist()


@pytest.mark.parametrize("kind", ["flip", "truncate", "zero", "empty", "swap"])
def test_every_damage_is_noticed_and_set_aside(store, kind):
    """Each byte counts: a flip anywhere, a cut, zeros, nothing, another file's content under this name."""
    store.put("read", KEY, TABLE, {})
    path = store.path("read", KEY)
    whole = path.read_bytes()
    for at in range(0, len(whole), 37):
        broken = bytearray(whole)
        broken[at] ^= 1
        content = {
            "flip": bytes(broken), "truncate": whole[:at], "zero": bytes(len(whole)), "empty": b"", "swap": whole[::-1],
        }[kind]  # fmt: skip
        path.write_bytes(content)
        fresh = Store(store.root)
        assert fresh.get("read", KEY) is None
        assert fresh.damaged == [str(path)]
        assert not path.exists()
    assert list((store.root / "damaged").iterdir())


def test_open_rows_lie_under_another_name_until_they_are_closed(store):
    """Whether all is measured is a look at names."""
    store.put("read", KEY, TABLE, {"open": True})
    assert not store.has("read", KEY)
    assert store.get("read", KEY).header["open"]
    store.put("read", KEY, TABLE, {"open": False})
    assert store.has("read", KEY)
    assert os.listdir(store.path("read", KEY).parent) == [KEY]


def test_vectors_come_back_bit_by_bit_with_their_gaps(store):
    """float16 rows, null where a row has none; also a slice and no row at all."""
    emb = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float16)
    for has in (np.ones(7, bool), np.array([1, 0, 1, 1, 0, 1, 1], bool)):
        store.put("embed", KEY, pa.table({"embedding": vectors_column(emb, has)}), {})
        found, there = vectors_of(Store(store.root).get("embed", KEY).table)
        assert np.array_equal(there, has)
        assert np.array_equal(found[has], emb[has])
    none, _ = vectors_of(pa.table({"embedding": vectors_column(emb[:0], has[:0])}))
    assert none.shape == (0, 5)


def test_another_layout_and_a_folder_of_other_things_are_refused(tmp_path):
    """Never guessed."""
    with Store(tmp_path / "s").opened():
        pass
    (tmp_path / "s/FORMAT").write_text("3\n")
    with (
        pytest.raises(StoreError, match="written by store format 3; this Curator reads 1"),
        Store(tmp_path / "s").opened(),
    ):
        pass
    (tmp_path / "t").mkdir()
    (tmp_path / "t/notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="holds something else than a store"), Store(tmp_path / "t").opened():
        pass


def test_the_store_ignores_itself_in_git(store):
    """Its default place is the working directory."""
    assert (store.root / ".gitignore").read_text() == "*\n"


def key(**changed):
    """A stage's key, with some ingredient changed."""
    usual = {"identity": "curator.X:1", "fields": {"a": 1}, "weights": ["w"], "inputs": ["k"]}
    return address.stage_key(**{**usual, **changed})


@pytest.mark.parametrize(
    "changed",
    [{"identity": "curator.X:2"}, {"identity": "mine.X:1"}, {"fields": {"a": 2}}, {"fields": {"b": 1}}, {"weights": ["v"]},
     {"weights": []}, {"inputs": ["l"]}],
)  # fmt: skip
def test_each_ingredient_takes_part_in_an_address(changed):
    """Class, version, measure-fields, weights, what it was computed from; and the piece."""
    assert key(**changed) != key()
    assert address.measurement(key(), "c1") != address.measurement(key(), "c2")
    assert address.measurement(key(), "c1") != address.measurement(key(**changed), "c1")


def test_the_order_of_settings_and_inputs_takes_no_part():
    """Canonical JSON."""
    assert key(fields={"a": 1, "b": 2}) == key(fields={"b": 2, "a": 1})
    assert key(inputs=["k", "l"]) == key(inputs=["l", "k"])
    assert address.found("x", ["b", "a", "a"]) == address.found("x", ["a", "b"])
    rows = [["b"], ["a"]]
    assert address.gathered(["x"], rows) != address.gathered(["x"], [["a"], ["b"]])
    assert address.gathered(["x"], rows) != address.gathered(["y"], rows), "its columns bear the stages' names"


def test_addresses_are_frozen():
    """Another spelling would orphan every store; the value was computed with sha256sum over the documented text."""
    text = b'curator:measurement:1\n["k","c"]'
    import hashlib

    assert address.measurement("k", "c") == hashlib.sha256(text).hexdigest()
