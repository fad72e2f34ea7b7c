"""`curate recipe=demo`, as a new user runs it: what was planted comes out, in under a minute."""

from __future__ import annotations

import csv
import json

import pyarrow.parquet as pq
import pytest

from tests.conftest import run_command, tar_members, tree


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The command's folder, what it printed, its ledger, and the truth by key."""
    place = tmp_path_factory.mktemp("demo")
    ran = run_command("recipe=demo", cwd=place)
    assert ran.code == 0, ran.said
    lines = [line for line in (place / ".curator/demo/truth.csv").read_text().splitlines() if not line.startswith("#")]
    truth = {row["key"]: row for row in csv.DictReader(lines)}
    return place, ran, pq.read_table(place / "curated/demo/ledger").to_pylist(), truth


def test_every_broken_file_is_a_failed_row_with_its_cause_and_nothing_else_fails(demo):
    """inputs = kept + dropped + failed."""
    place, ran, ledger, truth = demo
    failed = {row["key"]: row["cause"] for row in ledger if row["status"] == "failed"}
    assert set(failed) == {key for key, row in truth.items() if row["broken"]}
    # a JPEG whose tables were scrambled may lead the decoder to look for more data than there are
    also = {"corrupt": {"corrupt", "truncated"}}
    for key, cause in failed.items():
        assert cause in also.get(truth[key]["broken"], {truth[key]["broken"]})
    counts = json.loads((place / "curated/demo/run.json").read_text())["counts"]
    assert counts["inputs"] == len(truth) == counts["kept"] + counts["dropped"] + counts["failed"]
    assert f"{counts['inputs']:,} in = {counts['kept']:,} kept" in ran.out


def test_the_unsafe_stand_in_is_found(demo):
    """Precision at least 0.95 and recall at least 0.9, on pictures drawn with another seed than the training's."""
    _, _, ledger, truth = demo
    dropped = [row["key"] for row in ledger if row["stage"] == "nsfw" and row["status"] == "dropped"]
    unsafe = {key for key, row in truth.items() if row["unsafe"] == "1" and not row["broken"]}
    right = len(unsafe.intersection(dropped))
    assert right / len(dropped) >= 0.95
    assert right / len(unsafe) >= 0.9


def test_near_duplicates_are_found(demo):
    """Precision at least 0.95 and recall at least 0.9 among the pictures that the filters let through."""
    _, _, ledger, truth = demo
    dropped = [row for row in ledger if row["stage"] == "dedup"]
    right = sum(truth[row["key"]]["group"] == truth[row["duplicate_of_key"]]["group"] != "" for row in dropped)
    alive = [row for row in ledger if row["status"] == "kept" or row["stage"] == "dedup"]
    groups = [truth[row["key"]]["group"] for row in alive if truth[row["key"]]["group"]]
    copies = len(groups) - len(set(groups))
    assert right / len(dropped) >= 0.95
    assert right / copies >= 0.9


def test_spoiled_pictures_are_what_the_aesthetic_filter_drops(demo):
    """A sensible minority, and mostly pictures that were spoiled when they were drawn."""
    _, _, ledger, truth = demo
    dropped = [row["key"] for row in ledger if row["stage"] == "aesthetic"]
    assert 0.05 * len(ledger) < len(dropped) < 0.4 * len(ledger)
    assert sum(float(truth[key]["quality"]) < 0.7 for key in dropped) / len(dropped) >= 0.9


def test_what_is_kept_leaves_with_its_own_bytes(demo):
    """Picture, caption and json of every kept sample."""
    place, _, ledger, _ = demo
    kept = {row["key"] for row in ledger if row["status"] == "kept"}
    before = tar_members(*sorted((place / ".curator/demo").glob("*.tar")))
    after = tar_members(*sorted((place / "curated/demo/shards").glob("*.tar")))
    assert after == {name: content for name, content in before.items() if name.split(".")[0] in kept}


def test_the_end_says_what_other_thresholds_would_have_kept(demo):
    """So that people can tune without another run."""
    _, ran, _, _ = demo
    assert "nsfw_score" in ran.out
    assert "aesthetic_score" in ran.out
    assert ran.out.count("  keeps of ") == 2
    assert "[0.50: " in ran.out
    assert "the result is in curated/demo" in ran.out


def test_running_it_again_does_nothing_and_says_so(demo):
    """The second `make demo` is quick."""
    place, *_ = demo
    again = run_command("recipe=demo", cwd=place)
    assert again.code == 0
    assert "finished already" in again.err


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_worker_and_two_give_the_same_bytes(demo, tmp_path, precision):
    """With torch in play: another number of workers, threads and partitions in flight, and other arrivals."""
    place, *_ = demo
    trees = []
    for workers, files in ((1, 4), (2, 1)):
        ran = run_command(
            "recipe=demo", f"input={place}/.curator/demo", "demo=false", f"output=out{workers}", f"store=store{workers}",
            f"embed.precision={precision}", f"cluster.n_workers={workers}", f"partition.files_per_partition={files}",
            cwd=tmp_path,
        )  # fmt: skip
        assert ran.code == 0, ran.said
        assert f"{workers} local worker" in ran.err
        trees.append(tree(tmp_path / f"out{workers}", "shards", "ledger"))
    assert trees[0] == trees[1]
