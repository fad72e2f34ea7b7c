"""The search for near pairs as a whole: resumed after a kill, in bounded tables, and what its settings trade."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator import here, progress
from curator.cluster import Cluster, ClusterSettings
from curator.desk import Desk
from curator.errors import ConfigError
from curator.pairs.bounds import FullProducts, as_tensor, candidates, directions_of, leads_of, least_product
from curator.pairs.exact import cosines
from curator.pairs.found import CELL, CROWDED, NEAR, Found
from curator.pairs.known import Known
from curator.stages.dedup import SemanticDeduplicationStage
from curator.store import Store, StoredVectors, vectors_column
from curator.voice import Voice
from tests.conftest import ROOT


def unit(rows):
    """(N, D) float16 of unit length."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def clustered(seed, count, dims=32, centres=40, spread=0.25):
    """Rows around some centres, a tenth of them close to another."""
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centres, dims))
    rows = middle[rng.integers(0, centres, count)] + spread * np.linalg.norm(middle[0]) / dims**0.5 * rng.normal(
        size=(count, dims)
    )
    close = rng.choice(count, count // 10, replace=False)
    rows[close] = rows[rng.integers(0, count, len(close))] + 0.05 * rng.normal(size=(len(close), dims))
    return unit(rows)


def stored(folder, emb, rows_per_piece=50):
    """Vectors in a store, and a desk."""
    store = Store(folder)
    addresses = []
    for n, at in enumerate(range(0, len(emb), rows_per_piece)):
        part = emb[at : at + rows_per_piece]
        addresses.append(f"{n:064x}")
        store.put("embed", addresses[-1], pa.table({"embedding": vectors_column(part, np.ones(len(part), bool))}), {})
    return StoredVectors(store, "embed", addresses, Desk(store, "desk"))


def truth_of(emb, floor):
    """All pairs of rows at or above the floor, by their numbers, and the cosine of each."""
    wide = emb.astype(np.float64)
    norms = (wide**2).sum(axis=1)
    similar = (wide @ wide.T) / np.sqrt(np.outer(norms, norms))
    a, b = np.nonzero(np.triu(similar >= floor, 1))
    return dict(zip(zip(a.tolist(), b.tolist(), strict=True), similar[a, b].tolist(), strict=True))


def pairs_of(found, rows_per_piece=50):
    """The same of what was found."""
    near = Found(found).of_kind(NEAR).to_pydict()
    a, b = ([p * rows_per_piece + r for p, r in zip(near[f"piece_{s}"], near[f"row_{s}"], strict=True)] for s in "ab")
    return dict(zip(zip(a, b, strict=True), near["similarity"], strict=True))


STEPS = """\
    import os, signal, sys
    sys.path.insert(0, {root!r})
    from curator import SemanticDeduplicationStage
    from curator.desk import Desk
    from curator.store import Store, StoredVectors
    from tests.test_search import pairs_of
    store = Store(sys.argv[1])
    vectors = StoredVectors(store, "embed", sorted(p.name for p in store.root.glob("embed/*/*")), Desk(store, "desk"))
    left = int(sys.argv[2])

    def each(fn, items):
        global left
        for item in items:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            print(fn.__name__, flush=True)
            yield fn(item)

    stage = SemanticDeduplicationStage(similarity_floor=0.9, n_clusters=40, recall=0.999999)
    found = stage.find(vectors, each)
    print(sorted(pairs_of(found, 5).items()))
"""


@pytest.mark.slow
def test_a_search_that_is_killed_at_any_task_goes_on_where_it_was_and_finds_the_same(tmp_path):
    """Each step in turn; what was laid down is not done again."""
    emb = clustered(3, 700)
    stored(tmp_path / "store", emb, 5)  # 140 pieces: three groups
    script = tmp_path / "steps.py"
    script.write_text(textwrap.dedent(STEPS.format(root=str(ROOT))))
    done: list[str] = []
    for _ in range(40):
        ran = subprocess.run(
            [sys.executable, str(script), str(tmp_path / "store"), "3"], capture_output=True, text=True, check=False
        )
        lines = ran.stdout.splitlines()
        if ran.returncode == 0:
            break
        assert ran.returncode == -signal.SIGKILL, ran.stderr
        assert len(lines) == 3
        done += lines
    done += lines[:-1]
    assert {"hash_rows", "take_sample", "plan", "assign", "place", "measure_margins", "mark_visits", "compare"} <= {
        *done
    }
    counts = {name: done.count(name) for name in done}
    assert counts["hash_rows"] == counts["assign"] == counts["place"] == 3
    assert counts["plan"] == counts["compare"] == 1
    assert lines[-1] == str(sorted(truth_of(emb, 0.9).items()))


def pid_of(_):
    """The worker that this runs in."""
    return os.getpid()


@pytest.mark.slow
def test_workers_killed_in_every_step_change_nothing(tmp_path):
    """SIGKILL of a worker while each step's tasks are under way; another takes them, and the pairs are all there."""
    emb = clustered(9, 700)
    vectors = stored(tmp_path / "store", emb, 5)
    killed: dict[str, int] = {}
    with Cluster(ClusterSettings(kind="local", n_workers=2)) as cluster:

        def each(fn, items, **options):
            pid = next(iter(set(cluster.each(pid_of, range(4)))))
            killer = threading.Timer(0.02, os.kill, (pid, signal.SIGKILL))
            killer.start()
            yield from cluster.each(fn, items, **options)
            killer.join()
            killed[fn.__name__] = pid

        found = SemanticDeduplicationStage(similarity_floor=0.9, n_clusters=40).find(vectors, each)
    assert len(killed) >= 8
    assert pairs_of(found, 5) == truth_of(emb, 0.9)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 33, 100]), st.sampled_from([0.3, 0.9, 0.99]), st.booleans())
def test_no_bound_rules_out_a_pair_at_the_floor(seed, dims, floor, narrow):
    """Pairs made to lie at the floor, the last float16 bit more or less; any rotation, any width."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(40, dims))
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    away = rng.normal(size=(40, dims))
    away -= (away * base).sum(axis=1, keepdims=True) * base
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    near = floor + rng.uniform(0, 2e-3, (40, 1)) * (1 - floor)
    a, b = unit(base), unit(near * base + np.sqrt(1 - near**2) * away)
    width = int(rng.integers(2, dims)) if narrow else dims
    rotation = (
        np.ascontiguousarray(directions_of(unit(rng.normal(size=(64, dims))))[:, : width - 1]) if narrow else None
    )
    mine, theirs = leads_of(a, rotation), leads_of(b, rotation)
    least = least_product(floor, max(mine.lost, theirs.lost), width)
    full = FullProducts(b, 0, len(b), floor, "cpu").of_rows(a, np.arange(len(a)))
    found = candidates(as_tensor(mine.coordinates), as_tensor(theirs.coordinates), least, full, 1000)
    exact = cosines(a, np.arange(40), b, np.arange(40))
    missed = set(np.flatnonzero(exact >= floor)) - {int(i) for i, j in zip(found.i, found.j, strict=True) if i == j}
    assert not missed


@pytest.mark.parametrize("cells", [None, 2, 30, 5000])
def test_a_thousand_copies_cost_no_pairs_and_any_number_of_cells_works(tmp_path, cells):
    """All rows the same; one row; no row; more cells than rows."""
    for name, emb in (("same", np.repeat(clustered(1, 1), 1000, axis=0)), ("one", clustered(1, 1)), ("none", [])):
        vectors = stored(tmp_path / name, np.asarray(emb, np.float16).reshape(-1, 32))
        found = SemanticDeduplicationStage(n_clusters=cells).find(vectors, map)
        assert Found(found).of_kind(NEAR).num_rows == 0
        count = len(emb)
        rows = {"piece": np.arange(count) // 50, "row": np.arange(count) % 50}
        choice = SemanticDeduplicationStage().choose(rows, found, np.ones(count, bool))
        assert (choice.dropped_by < 0).sum() == min(count, 1)


def test_rows_that_are_not_of_unit_length_are_refused_with_advice(tmp_path):
    """A cosine of them would be right, but they are not what embed stores: another tool's raw vectors, most likely."""
    vectors = stored(tmp_path / "store", clustered(1, 100) * np.float16(3))
    with pytest.raises(ConfigError, match=r"must have unit length; row .* has 3\.0.*Divide each by its length"):
        SemanticDeduplicationStage().find(vectors, map)


def test_a_crowd_is_not_stored_in_pairs_and_is_decided_as_if_it_were(tmp_path):
    """1,500 frames of one scene, all alike: 1.1 M pairs, none of which is stored; a sweep decides from their vectors."""
    rng = np.random.default_rng(0)
    frames = unit(rng.normal(size=(1, 32)) + 0.04 * rng.normal(size=(1500, 32)))
    emb = np.concatenate([frames, clustered(5, 300)])
    vectors = stored(tmp_path / "store", emb)
    found = SemanticDeduplicationStage(max_pairs_per_row=50).find(vectors, map)
    view = Found(found)
    assert view.of_kind(CROWDED).num_rows >= 1500
    assert view.of_kind(NEAR).num_rows < 50 * len(emb)
    rows = {"piece": np.arange(len(emb)) // 50, "row": np.arange(len(emb)) % 50}
    similar = truth_of(emb, 0.9)
    for threshold in (0.95, 0.98, 0.999):
        choice = SemanticDeduplicationStage(similarity_threshold=threshold).choose(rows, found, np.ones(len(emb), bool))
        kept: list[int] = []
        for row in range(len(emb)):
            if not any(similar.get((other, row), 0) >= threshold for other in kept):
                kept.append(row)
        assert np.flatnonzero(choice.dropped_by < 0).tolist() == kept
        for row in np.flatnonzero(choice.dropped_by >= 0).tolist():
            by = int(choice.dropped_by[row])
            assert choice.similarity[row] == similar[min(row, by), max(row, by)]
        assert choice.walked >= 1500


def test_less_than_all_pairs_is_a_subset_and_its_measured_recall_is_told(tmp_path):
    """`recall=0.9` on rows whose pairs cross cells; what was missed is measured on pairs that did not set the border."""
    emb = unit(np.random.default_rng(0).normal(size=(6000, 8)))
    vectors = stored(tmp_path / "store", emb)
    lines: list[str] = []
    told = StoredVectors(vectors.store, "embed", vectors.addresses, Desk(vectors.store, "desk", lines.append))
    found = pairs_of(SemanticDeduplicationStage(n_clusters=60, recall=0.9, similarity_floor=0.95).find(told, map))
    truth = truth_of(emb, 0.95)
    assert set(found) <= set(truth)
    share = len(found) / len(truth)
    assert 0.88 <= share < 1
    measured = float(next(line for line in lines if "recall" in line).split()[2].rstrip(","))
    assert measured == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("new", [40, 3000])
def test_of_a_collection_that_grew_recall_is_measured_on_pairs_with_a_new_image(tmp_path, new):
    """Those among old ones are taken over, and nobody looks for them: they were counted as missed once."""
    emb = unit(np.random.default_rng(1).normal(size=(6000, 8)))
    stage = SemanticDeduplicationStage(n_clusters=60, recall=0.9, similarity_floor=0.95)
    lines: list[str] = []
    vectors = stored(tmp_path / "store", emb)
    old = vectors.addresses[: (6000 - new) // 50]
    before = stage.find(StoredVectors(vectors.store, "embed", old, Desk(vectors.store, "old")), map)
    desk = Desk(vectors.store, "grown", lines.append)
    grown = StoredVectors(vectors.store, "embed", vectors.addresses, desk, Known(before, old))
    found = {pair for pair in pairs_of(stage.find(grown, map)) if pair[1] >= 6000 - new}
    truth = {pair for pair in truth_of(emb, 0.95) if pair[1] >= 6000 - new}
    assert found <= truth
    line = next(line for line in lines if "recall" in line)
    assert float(line.split()[2].rstrip(",")) == pytest.approx(len(found) / len(truth), abs=0.04)
    assert len(found) / len(truth) > 0.86


def test_recall_of_crowds_counts_pairs_that_are_walked(tmp_path):
    """They are not stored, and found all the same when deciding."""
    rng = np.random.default_rng(0)
    emb = unit(rng.normal(size=(1, 32)) + 0.04 * rng.normal(size=(600, 32)))
    lines: list[str] = []
    vectors = stored(tmp_path / "store", emb)
    told = StoredVectors(vectors.store, "embed", vectors.addresses, Desk(vectors.store, "desk", lines.append))
    SemanticDeduplicationStage(n_clusters=4, recall=0.999, max_pairs_per_row=5).find(told, map)
    assert any("recall 1.0000, measured on" in line for line in lines)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_clusters": 40, "recall": 0.9, "similarity_floor": 0.9999, "similarity_threshold": 1},
         "recall was not measured, for a sample has too few near pairs to be looked for; none was left out"),
        ({"recall": 0.9}, "recall=0.9 saves nothing here: without cells every pair is found"),
        ({"n_clusters": 1000}, "300 k-means cells (n_clusters=1000 is more than there are different images), about"),
    ],
)  # fmt: skip
def test_a_setting_that_has_no_effect_is_told(tmp_path, settings, said):
    """Nobody is left to believe that it did something."""
    lines: list[str] = []
    vectors = stored(tmp_path / "store", unit(np.random.default_rng(0).normal(size=(300, 32))))
    told = StoredVectors(vectors.store, "embed", vectors.addresses, Desk(vectors.store, "desk", lines.append))
    SemanticDeduplicationStage(**settings).find(told, map)
    assert any(said in line for line in lines), lines


def test_how_far_a_long_search_is_shows_while_a_task_is_at_it(tmp_path, monkeypatch, capsys):
    """One task compares tens of thousands of images: it says in between how much of its work is done."""
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    monkeypatch.setattr(here, "REPORT_EVERY_S", 0.0)
    voice = Voice()
    monkeypatch.setattr(here._here, "listener", voice.heard)
    vectors = stored(tmp_path / "store", clustered(0, 3000))
    desk = Desk(vectors.store, "desk", voice.say, voice)
    watched = StoredVectors(vectors.store, "embed", vectors.addresses, desk)
    SemanticDeduplicationStage(block_rows=512, n_clusters=20).find(watched, map)
    shares = [int(s) for s in re.findall(r"^dedup: comparing: (\d+)% done", capsys.readouterr().err, re.MULTILINE)]
    assert len(shares) >= 6
    assert shares == sorted(shares)
    assert shares[0] < 50
    assert shares[-1] == 100


def cells_and_truth(tmp_path, emb, floor=0.9, cells=8):
    """What was found, rows to choose from, and everybody's cell."""
    found = SemanticDeduplicationStage(n_clusters=cells, similarity_floor=floor).find(stored(tmp_path / "s", emb), map)
    rows = {"piece": np.arange(len(emb)) // 50, "row": np.arange(len(emb)) % 50}
    listed = Found(found).of_kind(CELL).to_pydict()
    cell, cosine = np.zeros(len(emb), int), np.zeros(len(emb))
    for piece, row, its, near in zip(*(listed[n] for n in ("piece_a", "row_a", "row_b", "similarity")), strict=True):
        cell[piece * 50 + row], cosine[piece * 50 + row] = its, near
    return found, rows, cell, cosine


def test_hard_keeps_who_lies_far_from_the_centroid_and_easy_who_lies_near(tmp_path):
    """As SemDeDup's users know them."""
    emb = clustered(2, 400)
    found, rows, _, cosine = cells_and_truth(tmp_path, emb)
    for policy, sign in (("hard", 1), ("easy", -1)):
        choice = SemanticDeduplicationStage(keep=(policy,)).choose(rows, found, np.ones(400, bool))
        dropped = np.flatnonzero(choice.dropped_by >= 0)
        assert len(dropped) > 10
        similar, kept = truth_of(emb, 0.95), list[int]()
        for row in np.lexsort((np.arange(400), sign * cosine)).tolist():
            if not any((min(row, k), max(row, k)) in similar for k in kept):
                kept.append(row)
        assert np.flatnonzero(choice.dropped_by < 0).tolist() == sorted(kept)


def test_the_published_rule_is_what_it_is_said_to_be_and_what_it_loses_is_told(tmp_path):
    """In each cell, in order, a row goes when any before it is too near: misses pairs across cells, follows chains."""
    emb = unit(np.cumsum(np.random.default_rng(1).normal(size=(300, 6)) * 0.12, axis=0) + 1)  # a walk: chains
    found, rows, cell, _ = cells_and_truth(tmp_path, emb, cells=5)
    stage = SemanticDeduplicationStage(rule="semdedup", keep=("first",))
    choice = stage.choose(rows, found, np.ones(300, bool))
    similar = truth_of(emb, 0.95)
    plain = [row for row in range(300) if any((o, row) in similar and cell[o] == cell[row] for o in range(row))]
    gone = (choice.dropped_by >= 0) | choice.unrepresented
    assert np.flatnonzero(gone).tolist() == plain
    inside = sum(cell[a] == cell[b] for a, b in similar)
    alone = [r for r in plain if not any((min(r, o), max(r, o)) in similar for o in range(300) if not gone[o])]
    assert np.flatnonzero(choice.unrepresented).tolist() == alone
    assert len(alone) > 5
    assert f"saw {inside:,} of {len(similar):,} near pairs" in choice.remarks[0]
    assert f"dropped {len(alone):,} images without a kept one" in choice.remarks[0]


def test_a_search_waits_for_another_one_of_the_same(tmp_path):
    """Two runs over one store: the desk is held by one at a time, and the second is told."""
    vectors = stored(tmp_path / "store", clustered(1, 60))
    vectors.desk.folder.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, os, sys, time; fd = os.open(sys.argv[1], os.O_RDONLY);"
         "fcntl.flock(fd, fcntl.LOCK_EX); print('held', flush=True); time.sleep(1)", str(vectors.desk.folder)],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    lines: list[str] = []
    with Desk(vectors.store, "desk", lines.append).held():
        assert holder.poll() is not None or not os.path.exists(f"/proc/{holder.pid}/fd/3")
    assert lines == ["another run looks for the same; waiting for it"]
    holder.wait()
