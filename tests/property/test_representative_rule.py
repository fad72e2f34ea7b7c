"""The representative rule and the exactness of pairs, on drawn vectors, against a plain float64 reference."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.desk import Desk
from curator.pairs import standing
from curator.pairs.found import CELL, NEAR, PLACES, SAME, Found
from curator.pairs.known import Known
from curator.pairs.representatives import Pairs, keep_representatives
from curator.stages.dedup import SemanticDeduplicationStage
from curator.store import Store, StoredVectors, vectors_column


@dataclass
class Pieces:
    """Vectors in memory, by address."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    desk: Desk | None = None
    known: Known | None = None

    @property
    def addresses(self):
        """Sorted."""
        return sorted(self.arrays)

    def only(self, addresses):
        """Fewer of them."""
        return Pieces({a: self.arrays[a] for a in addresses}, self.desk)

    def read(self, address):
        """Rows, all of them there."""
        emb = self.arrays[address]
        return emb, np.ones(len(emb), bool)


def find(stage, vectors, each=map):
    """What the stage finds, on a desk of its own."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        return stage.find(replace(vectors, desk=Desk(Store(folder), "desk")), each)


def near(found):
    """The near pairs alone: what must not depend on cells."""
    return Found(found).of_kind(NEAR).select([*PLACES, "similarity"])


def inline(fn, items):
    """One after the other."""
    return map(fn, items)


def backwards(fn, items):
    """The last first."""
    return map(fn, reversed(list(items)))


def exact(emb):
    """(N, N) float64 cosines of float16 rows."""
    wide = emb.astype(np.float64)
    norms = (wide**2).sum(axis=1)
    return (wide @ wide.T) / np.sqrt(np.outer(norms, norms))


@st.composite
def collections(draw):
    """Rows in clusters, some equal bit by bit, cut into pieces with names in any order."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(0, 45))
    centres = rng.normal(size=(max(1, count // 4), 12))
    rows = centres[rng.integers(0, len(centres), count)] + rng.normal(size=(count, 12)) * draw(
        st.sampled_from([0.0, 0.1, 0.3])
    )
    emb = (
        (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
        if count
        else np.zeros((0, 12), np.float16)
    )
    cuts = np.sort(rng.integers(0, count + 1, draw(st.integers(0, 4))))
    parts = np.split(emb, cuts)
    names = [f"{x:03d}" for x in rng.permutation(len(parts))]
    return emb, list(zip(names, parts, strict=True)), rng


def places(pieces, parts):
    """Where each row stands among the sorted addresses."""
    number = {name: n for n, name in enumerate(pieces.addresses)}
    piece = np.concatenate([np.full(len(part), number[name]) for name, part in parts])
    return piece.astype(np.int64), np.concatenate([np.arange(len(part)) for _, part in parts])


def reference(similar, rank, alive, threshold):
    """The rule as one would say it: in rank order, a row stays unless it is a duplicate of one that stays."""
    kept: list[int] = []
    for row in np.argsort(rank):
        if alive[row] and not any(similar[row, other] >= threshold for other in kept):
            kept.append(int(row))
    return sorted(kept)


@settings(max_examples=150, deadline=None)
@given(
    collections(), st.sampled_from([0.7, 0.8, 0.9]), st.integers(16, 40), st.booleans(),
    st.sampled_from([None, 1, 3, 60]), st.sampled_from([1, 2, 5, 256]),
)  # fmt: skip
def test_who_stays_is_what_the_rule_says(collection, threshold, block_rows, reverse, cells, crowd):
    """For any vectors, thresholds, ranks, filters, pieces, blocks, cells, crowds and orders of completion."""
    emb, parts, rng = collection
    pieces = Pieces(dict(parts))
    stage = SemanticDeduplicationStage(
        similarity_floor=0.7,
        similarity_threshold=threshold,
        block_rows=block_rows,
        keep=("bytes",),
        n_clusters=cells,
        max_pairs_per_row=crowd,
    )
    found = find(stage, pieces, backwards if reverse else inline)
    piece, row = places(pieces, parts)
    alive, size = rng.random(len(emb)) < 0.8, rng.permutation(len(emb)).astype(float)
    choice = stage.choose({"piece": piece, "row": row, "bytes": size}, found, alive)
    similar = exact(emb)
    kept = reference(similar, -size, alive, threshold)
    assert np.flatnonzero(alive & (choice.dropped_by < 0)).tolist() == kept
    for dropped in np.flatnonzero(alive & (choice.dropped_by >= 0)):
        by = choice.dropped_by[dropped]
        assert by in kept
        assert choice.similarity[dropped] >= threshold
        assert choice.similarity[dropped] == similar[dropped, by]
        assert similar[dropped, by] == max(similar[dropped, kept])


@settings(max_examples=60, deadline=None)
@given(collections(), st.integers(16, 30), st.sampled_from([None, 1, 4, 60]))
def test_every_pair_at_the_floor_is_found_and_none_below(collection, block_rows, cells):
    """Against brute force in float64; copies of a vector are listed once each and make no pairs."""
    emb, parts, _ = collection
    pieces = Pieces(dict(parts))
    found = find(SemanticDeduplicationStage(similarity_floor=0.8, block_rows=block_rows, n_clusters=cells), pieces)
    piece, row = places(pieces, parts)
    number = {(int(p), int(r)): n for n, (p, r) in enumerate(zip(piece, row, strict=True))}
    listed = found.to_pylist()
    pairs = {
        frozenset((number[x["piece_a"], x["row_a"]], number[x["piece_b"], x["row_b"]])): x["similarity"]
        for x in listed if x["kind"] == NEAR
    }  # fmt: skip
    copies = {number[x["piece_b"], x["row_b"]] for x in listed if x["kind"] == SAME}
    similar = exact(emb)
    single = [n for n in range(len(emb)) if n not in copies]
    truth = {frozenset((a, b)): similar[a, b] for i, a in enumerate(single) for b in single[:i] if similar[a, b] >= 0.8}
    assert pairs == truth
    assert len(copies) == len(emb) - len({row.tobytes() for row in emb})


@settings(max_examples=30, deadline=None)
@given(collections())
def test_what_is_found_does_not_depend_on_blocks_or_order(collection):
    """The same table, to the bit; with other cells, the same pairs."""
    _, parts, _ = collection
    pieces = Pieces(dict(parts))
    tables = [
        find(SemanticDeduplicationStage(block_rows=rows, n_clusters=cells), pieces, each)
        for rows, each, cells in ((16, inline, None), (23, backwards, None), (64, inline, 1), (16, backwards, 7))
    ]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])
    assert near(tables[0]).equals(near(tables[3]))


@settings(max_examples=60, deadline=None)
@given(collections(), st.sampled_from([None, 3]), st.sampled_from([1, 3, 256]), st.randoms())
def test_a_collection_that_grew_searches_only_what_is_new_and_finds_the_same(collection, cells, crowd, random):
    """Pairs among the old ones are taken over, copies and crowds included; who stays is the same."""
    emb, parts, _ = collection
    pieces = Pieces(dict(parts))
    stage = SemanticDeduplicationStage(n_clusters=cells, max_pairs_per_row=crowd, keep=("first",))
    old = pieces.only([address for address in pieces.addresses if random.random() < 0.5])
    known = Known(find(stage, old), old.addresses)
    grown, whole = find(stage, replace(pieces, known=known)), find(stage, pieces)
    if crowd == 256:
        assert near(grown).equals(near(whole))
    piece, row = places(pieces, parts)
    rows = {"piece": piece, "row": row}
    alive = np.ones(len(emb), bool)
    assert stage.choose(rows, grown, alive).dropped_by.tolist() == stage.choose(rows, whole, alive).dropped_by.tolist()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A real one for all drawn collections: objects bear the hashes of what is in them."""
    with Store(tmp_path_factory.mktemp("store")).opened() as opened:
        yield opened


def stored(store, parts):
    """Vectors put in the store piece by piece, as measuring leaves them; and each piece's number among the addresses."""
    addresses = []
    for emb, has in parts:
        addresses.append(hashlib.sha256(emb.tobytes() + has.tobytes()).hexdigest())
        if not store.has("embed", addresses[-1]):
            store.put("embed", addresses[-1], pa.table({"embedding": vectors_column(emb, has)}), {})
    distinct = sorted(set(addresses))
    return StoredVectors(store, "embed", distinct), [distinct.index(address) for address in addresses]


def unit(rows):
    """(N, D) float16 of unit length."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("keep", [("bytes",), ("sharpness asc",), ("aesthetic", "resolution")])
def test_a_chain_of_six_each_close_to_the_next_keeps_the_first_third_and_fifth(store, keep):
    """The published rule keeps one, and drops rows that resemble nothing that is kept."""
    angle = np.arccos(0.96)
    chain = unit(np.array([[np.cos(n * angle), np.sin(n * angle)] for n in range(6)]))
    place_in_chain = np.array([3, 0, 5, 2, 4, 1])  # as they are stored: in two pieces, out of order
    parts = [(chain[part], np.ones(3, bool)) for part in np.split(place_in_chain, 2)]
    vectors, numbers = stored(store, parts)
    stage = SemanticDeduplicationStage(similarity_threshold=0.95, keep=keep)
    found = find(stage, vectors, inline)
    assert near(found).num_rows == 5
    rows = {
        "piece": np.repeat(numbers, 3), "row": np.tile(np.arange(3), 2), "bytes": 60 - place_in_chain,
        "sharpness": place_in_chain / 7, "aesthetic_score": np.ones(6), "width": 9 - place_in_chain, "height": np.ones(6),
    }  # fmt: skip
    choice = stage.choose(rows, found, np.ones(6, bool))
    by = {int(place_in_chain[n]): int(place_in_chain[to]) for n, to in enumerate(choice.dropped_by) if to >= 0}
    assert set(range(6)) - set(by) == {0, 2, 4}
    assert all(abs(dropped - stays) == 1 for dropped, stays in by.items())
    assert choice.similarity[choice.dropped_by >= 0] == pytest.approx(0.96, abs=1e-3)


POLICIES = (
    None, ("first",), ("bytes",), ("bytes asc",), ("resolution",), ("sharpness",), ("sharpness asc",),
    ("sharpness", "bytes asc"), ("aesthetic", "first", "bytes"), ("width asc", "height", "sharpness"),
)  # fmt: skip


def plainly(policies, rows, count):
    """Row numbers, the best first: by each policy in turn, rows without a value last, ties in input order."""
    large_first = {
        "aesthetic": rows["aesthetic_score"], "resolution": rows["width"] * rows["height"],
        **{name: rows[name] for name in ("bytes", "sharpness", "width", "height")},
    }  # fmt: skip

    def key(row):
        values = []
        for policy in policies or ("aesthetic", "resolution", "bytes"):
            if policy == "first":
                break
            value = float(large_first[policy.split()[0]][row])
            missing = value != value
            values.append((missing, 0 if missing else value if policy.endswith(" asc") else -value))
        return values

    return sorted(range(count), key=key)  # stable


@st.composite
def runs(draw):
    """Rows of a run as choosing sees them: few dimensions, copies, rows without a vector, pieces that are given twice."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dims, on_a_grid, parts = draw(st.integers(2, 5)), draw(st.booleans()), []
    for _ in range(draw(st.integers(1, 4))):
        rows = rng.normal(size=(draw(st.integers(1, 14)), dims))
        if on_a_grid:  # many pairs are alike to the bit
            rows = np.round(rows)
            rows[~rows.any(axis=1), 0] = 1
        emb = unit(rows + 0.0)  # no -0
        for row in range(len(emb)) if parts else ():  # some are rows of an earlier piece
            earlier = parts[rng.integers(len(parts))][0]
            if rng.random() < 0.2:
                emb[row] = earlier[rng.integers(len(earlier))]
        parts.append((emb, rng.random(len(emb)) < 0.9))
    given_twice = rng.integers(0, len(parts), draw(st.integers(0, 2)))
    order = rng.permutation([*range(len(parts)), *given_twice])
    return [parts[n] for n in order], rng


@settings(max_examples=200, deadline=None)
@given(runs(), st.floats(0.3, 1), st.sampled_from(POLICIES), st.integers(16, 64), st.booleans(), st.booleans())
def test_nobody_is_dropped_without_a_kept_neighbour_and_no_two_kept_are_duplicates(
    store, run, threshold, keep, block_rows, reverse, exactly
):
    """Whatever is kept first, by whichever columns, from a real store: what a plain quadratic loop would keep."""
    parts, rng = run
    emb, has = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    count = len(emb)
    similar = np.where(has[:, None] & has, exact(emb), -1)
    lower = similar[np.triu_indices(count, 1)]
    if exactly and (met := lower[(lower >= 0.3) & (lower <= 1)]).size:  # a threshold that some pair meets to the bit
        threshold = float(rng.choice(met))
    vectors, numbers = stored(store, parts)
    stage = SemanticDeduplicationStage(
        similarity_floor=0.3, similarity_threshold=threshold, keep=keep, block_rows=block_rows
    )
    rows = {
        "piece": np.repeat(numbers, [len(part) for part, _ in parts]),
        "row": np.concatenate([np.arange(len(part)) for part, _ in parts]),
        "bytes": rng.integers(0, 9, count), "width": rng.integers(1, 4, count), "height": rng.integers(1, 4, count),
        "aesthetic_score": np.where(rng.random(count) < 0.2, np.nan, rng.integers(0, 3, count) / 3),
        "sharpness": np.where(rng.random(count) < 0.2, np.nan, rng.normal(size=count)),
    }  # fmt: skip
    alive = has & (rng.random(count) < 0.9)  # what has no vector has failed before
    choice = stage.choose(rows, find(stage, vectors, backwards if reverse else inline), alive)

    kept: list[int] = []
    for row in plainly(keep, rows, count):
        if alive[row] and not any(similar[row, other] >= threshold for other in kept):
            kept.append(row)
    stays = alive & (choice.dropped_by < 0)
    assert np.flatnonzero(stays).tolist() == sorted(kept)
    for row in np.flatnonzero(alive & ~stays):
        best = max(kept, key=lambda other: similar[row, other])  # the first in rank of those
        assert choice.dropped_by[row] == best
        assert choice.similarity[row] == similar[row, best] >= threshold
    assert not [(a, b) for a in kept for b in kept if a < b and similar[a, b] >= threshold]


def test_copies_of_a_row_that_is_dropped_for_another_are_dropped_with_it():
    """Rows of one vector have the same neighbours: none of them may stay when the best of them goes."""
    emb = np.array([[1, 0], [0.96, 0.28], [0.96, 0.28], [0.96, 0.28]]).astype(np.float16)
    stage = SemanticDeduplicationStage(keep=("first",))
    found = find(stage, Pieces({"a": emb}))
    choice = stage.choose({"piece": np.zeros(4, np.int64), "row": np.arange(4)}, found, np.ones(4, bool))
    assert choice.dropped_by.tolist() == [-1, 0, 0, 0]


def test_a_threshold_that_is_met_exactly_is_a_duplicate():
    """At or above."""
    emb = np.array([[1, 0], [0.6, 0.8]]).astype(np.float16)
    cosine = exact(emb)[0, 1]
    stage = SemanticDeduplicationStage(similarity_threshold=float(cosine), similarity_floor=float(cosine))
    found = find(stage, Pieces({"a": emb}))
    assert near(found).num_rows == 1
    choice = stage.choose({"piece": np.zeros(2, np.int64), "row": np.arange(2)}, found, np.ones(2, bool))
    assert choice.dropped_by.tolist() == [-1, 0]


def test_a_long_chain_takes_no_rounds_without_end():
    """A hundred thousand rows, each a duplicate of the next: every other stays."""
    n = 100_000
    rank = np.arange(n)
    dropped_by, _ = keep_representatives(n, Pairs.of(rank[:-1], rank[1:], np.ones(n - 1), rank), rank)
    assert (dropped_by < 0).sum() == n // 2


def test_one_more_setting_is_chosen_as_if_it_were_the_first(monkeypatch):
    """What is kept from one setting to the next depends on none of them: not on threshold, policy or who is alive."""
    rng = np.random.default_rng(0)
    count = 300
    a, b = np.triu_indices(count, 1)
    some = rng.random(len(a)) < 0.02
    table = table_of(a[some], b[some], rng.choice([0.9, 0.93, 0.95, 0.97], some.sum()), count)
    rows = {"piece": np.zeros(count, np.int64), "row": np.arange(count), "bytes": rng.integers(0, 9, count)}

    def choices(again: bool):
        for alive in (rng_of(1, count), rng_of(2, count)):
            for threshold in (0.93, 0.97, 0.9):
                for keep in (None, ("bytes asc",), ("first",)):
                    if again:
                        monkeypatch.setattr(standing, "_last", (None, None))
                    stage = SemanticDeduplicationStage(similarity_threshold=threshold, keep=keep)
                    choice = stage.choose(rows, table, alive)
                    yield choice.dropped_by.tolist(), np.nan_to_num(choice.similarity).tolist()

    assert list(choices(False)) == list(choices(True))


def rng_of(seed: int, count: int):
    return np.random.default_rng(seed).random(count) < 0.8


def table_of(a, b, similarity, count):
    """What a search of one piece found, of so many rows."""
    order = np.lexsort((b, a))
    everybody = np.arange(count)
    return pa.table({
        "kind": np.repeat(np.array([NEAR, CELL], np.int8), [len(a), count]),
        "piece_a": np.zeros(len(a) + count, np.int32), "row_a": np.concatenate([a[order], everybody]).astype(np.int32),
        "piece_b": np.repeat(np.array([0, -1], np.int32), [len(a), count]),
        "row_b": np.concatenate([b[order], np.zeros(count)]).astype(np.int32),
        "similarity": np.concatenate([similarity[order], np.ones(count)]), "vector": pa.nulls(len(a) + count, pa.binary()),
    })  # fmt: skip
