"""faiss, milvus, pinecone: each kept row once, under a stable id, with its vector and columns; nothing else stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from pymilvus import MilvusClient

import curator
from curator import (
    FaissWriterStage,
    FilePartitioningStage,
    ImageReaderStage,
    MilvusWriterStage,
    PineconeWriterStage,
)
from curator.errors import ConfigError, OutsideError
from curator.indexes import milvus
from curator.indexes.base import lacking
from curator.indexes.faiss import cells_for
from curator.store import Store, vectors_of
from tests.conftest import ROOT, make_image, make_samples, make_shard, tree
from tests.pinecone_server import KEY, serving
from tests.stages import Brightness, Tiny

SOURCES = (FilePartitioningStage(), ImageReaderStage())
DIM = 192


class Other(Tiny):
    """The same numbers under another name."""

    version: ClassVar[int] = 1


@pytest.fixture
def shard(tmp_path):
    """Forty pictures with captions."""
    return make_shard(tmp_path / "in/a.tar", make_samples(40))


@pytest.fixture
def service():
    """A server that answers like Pinecone, and the key that it wants."""
    before = os.environ.get("PINECONE_API_KEY")
    os.environ["PINECONE_API_KEY"] = KEY
    with serving(DIM) as server:
        yield server
    os.environ.pop("PINECONE_API_KEY")
    if before is not None:
        os.environ["PINECONE_API_KEY"] = before


def stored_vectors(tmp_path):
    """(N, D) float32 unit vectors as they lie in the store, read by address, not by a writer."""
    paths = [p for p in sorted((tmp_path / "store/tiny").rglob("*")) if p.is_file()]
    (path,) = paths
    stored = Store(tmp_path / "store").get("tiny", path.name)
    emb = vectors_of(stored.table)[0].astype(np.float32)
    return emb / np.linalg.norm(emb, axis=1, keepdims=True)


def in_milvus(path, collection="curator"):
    """Every row of a Milvus Lite database by shard and key."""
    with milvus.connected(str(path)) as client:
        client.load_collection(collection)
        rows = client.query(collection, filter="", limit=16384, output_fields=["*"])
        assert len({row["id"] for row in rows}) == len(rows)
        return {(Path(row["shard"]).name, row["key"]): row for row in rows}


def test_an_index_of_faiss_is_read_by_faiss_and_its_rows_lie_beside_it(pipeline, shard, tmp_path):
    """Row n of the metadata is vector n; the nearest of each stored vector is itself."""
    pipeline([*SOURCES, Brightness(), Tiny(), FaissWriterStage()], input=shard)
    index = faiss.read_index(str(tmp_path / "out/faiss/image.index"))
    rows = pq.read_table(tmp_path / "out/faiss/metadata.parquet").to_pylist()
    truth = stored_vectors(tmp_path)
    assert np.allclose(index.reconstruct_n(0, 40), truth, atol=1e-6)
    assert index.search(truth, 1)[1][:, 0].tolist() == list(range(40))
    assert [(r["key"], r["caption"]) for r in rows] == [(f"{n:06d}", f"picture {n}") for n in range(40)]
    assert set(rows[0]) == {"id", "shard", "key", "index", "image", "format", "width", "height", "content_hash",
                            "caption", "brightness"}  # fmt: skip
    about = json.loads((tmp_path / "out/faiss/index.json").read_text())
    assert (about["count"], about["dim"], about["metric"], about["place"]) == (40, DIM, "cosine", {"type": "Flat"})
    assert (about["model"]["space"], about["model"]["weights"]) == ("stages.Tiny", [])


def test_the_same_command_gives_the_same_files_and_dropped_rows_come_when_asked_for(pipeline, shard, tmp_path):
    """With `status` then, to be asked for."""
    stages = [*SOURCES, Brightness(score_threshold=0.5), Tiny()]
    kept = len(pipeline([*stages, FaissWriterStage()], input=shard))
    assert 0 < kept < 40
    first = tree(tmp_path / "out", "faiss")
    pipeline([*stages, FaissWriterStage()], input=shard, output=tmp_path / "again")
    assert tree(tmp_path / "again", "faiss") == first
    pipeline([*stages, FaissWriterStage(include_dropped=True)], input=shard, output=tmp_path / "all")
    statuses = pq.read_table(tmp_path / "all/faiss/metadata.parquet").column("status").to_pylist()
    assert (len(statuses), statuses.count("kept")) == (40, kept)


@pytest.mark.parametrize("count", [0, 1, 12])
def test_few_images_make_a_flat_index_and_k_is_cut_to_what_there_is(pipeline, tmp_path, count):
    """No index type that has to be trained: asked for ivf, a dozen rows are flat all the same."""
    members = {f"{n}.jpg": make_image(n) for n in range(count)} or {"bad.jpg": b"nothing"}
    make_shard(tmp_path / "in/a.tar", members)
    pipeline([*SOURCES, Tiny(), FaissWriterStage(index="ivf")], input=tmp_path / "in")
    found = curator.search(tmp_path / "out", vector=np.ones(DIM), k=50)
    assert found.num_rows == count
    assert found.column("rank").to_pylist() == list(range(1, count + 1))
    assert (tmp_path / "out/faiss/image.index").exists() == bool(count)


def test_cells_find_what_a_whole_comparison_finds(pipeline, tmp_path):
    """With every cell looked into the answers are those of NumPy; the rule: 64 rows at least to train a cell."""
    assert [cells_for(n) for n in (0, 63, 64, 400, 10_000, 1_000_000)] == [1, 1, 1, 6, 156, 4000]
    make_shard(tmp_path / "in/a.tar", {f"{n:04d}.jpg": make_image(n, (32, 32)) for n in range(300)})
    pipeline([*SOURCES, Tiny(), FaissWriterStage(index="ivf")], input=tmp_path / "in")
    about = json.loads((tmp_path / "out/faiss/index.json").read_text())
    assert about["place"] == {"type": "IVF", "cells": 4, "probes": 4}
    truth = stored_vectors(tmp_path)
    for n in (0, 99, 299):
        found = curator.search(tmp_path / "out", vector=truth[n], k=7, fold=1)
        order = np.argsort(-(truth @ truth[n]), kind="stable")[:7]
        assert found.column("key").to_pylist() == [f"{row:04d}" for row in order]
        assert np.allclose(found.column("similarity").to_numpy(), (truth @ truth[n])[order], atol=1e-3)


def test_a_database_of_milvus_in_the_output_holds_each_row_once_and_a_search_changes_none_of_its_files(
    pipeline, shard, tmp_path
):
    """So that the run still counts as whole, and the same command has nothing to do."""
    stages = [*SOURCES, Brightness(), Tiny(), MilvusWriterStage()]
    pipeline(stages, input=shard)
    before = tree(tmp_path / "out", "milvus")
    found = curator.search(tmp_path / "out", vector=stored_vectors(tmp_path)[5], k=3)
    assert found.column("key")[0].as_py() == "000005"
    assert found.column("similarity")[0].as_py() == pytest.approx(1, abs=1e-5)
    assert tree(tmp_path / "out", "milvus") == before
    rows = in_milvus(tmp_path / "out/milvus/vectors.db")
    assert len(rows) == 40
    row = rows["a.tar", "000005"]
    assert np.allclose(row["vector"], stored_vectors(tmp_path)[5], atol=1e-6)
    assert (row["caption"], row["curator_space"], row["curator_output"]) == ("picture 5", "stages.Tiny", str(tmp_path / "out"))
    assert pipeline(stages, input=shard).unchanged


def test_written_twice_and_stricter_a_database_holds_each_kept_row_once(pipeline, shard, tmp_path):
    """What is there in the same form is not sent again; what is no longer kept is gone, also from searches."""
    def written(threshold, output="out", **more):
        writer = MilvusWriterStage(uri=uri, namespace="out", **more)
        stages = [*SOURCES, Brightness(score_threshold=threshold), Tiny(), writer]
        result = pipeline(stages, input=shard, output=tmp_path / output)
        return result, {name: result.run["write"]["milvus"][name] for name in ("rows", "sent", "there", "deleted")}

    uri = str(tmp_path / "db/vectors.db")
    assert written(0.0)[1] == {"rows": 40, "sent": 40, "there": 0, "deleted": 0}
    shutil.rmtree(tmp_path / "out")  # as if the run had ended before its output was in place
    assert written(0.0)[1] == {"rows": 40, "sent": 0, "there": 40, "deleted": 0}
    result, counts = written(0.5)
    kept = {row["key"] for row in result.ledger.to_pylist() if row["status"] == "kept"}
    assert counts == {"rows": len(kept), "sent": 0, "there": len(kept), "deleted": 40 - len(kept)}
    assert {key for _, key in in_milvus(uri)} == kept
    found = curator.search(tmp_path / "out", vector=np.ones(DIM), k=40, fold=1)
    assert set(found.column("key").to_pylist()) == kept
    assert written(0.0)[1]["sent"] == 40 - len(kept)
    other = make_shard(tmp_path / "in/b.tar", make_samples(3, 50))
    pipeline([*SOURCES, Tiny(), MilvusWriterStage(uri=uri, namespace="other")], input=other, output=tmp_path / "other")
    assert len(in_milvus(uri)) == 43
    assert written(0.5)[1]["deleted"] == 40 - len(kept)
    assert len(in_milvus(uri)) == len(kept) + 3
    assert {r["key"] for r in curator.search(uri, vector=np.ones(DIM), k=9, namespace="other").to_pylist()} == {
        "000050", "000051", "000052"
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"holds other, out; say which with namespace=NAME"):
        curator.search(uri, vector=np.ones(DIM))


def test_a_row_whose_score_changed_is_sent_again_and_one_of_somebody_else_is_left_alone(pipeline, shard, tmp_path):
    """The hash covers columns as well as vectors; only ids of Curator's own form are ever deleted."""
    uri = str(tmp_path / "vectors.db")
    pipeline([*SOURCES, Brightness(), Tiny(), MilvusWriterStage(uri=uri, namespace="out")], input=shard)
    with milvus.connected(uri) as client:
        mine = {"id": "mine", "vector": [1.0] * DIM, milvus.NAMESPACE: "out", milvus.HASH: "", "shard": "x", "key": "y"}
        client.upsert("curator", [mine])
    result = pipeline([*SOURCES, Brightness(scale=0.5), Tiny(), MilvusWriterStage(uri=uri, namespace="out")], input=shard)
    assert result.run["write"]["milvus"]["sent"] == 40
    rows = in_milvus(uri)
    assert len(rows) == 41
    scores = {row["key"]: row["brightness"] for row in result.ledger.to_pylist()}
    assert all(rows["a.tar", key]["brightness"] == pytest.approx(score) for key, score in scores.items())


def test_outputs_of_one_name_share_no_rows_and_a_namespace_of_another_is_taken_only_when_told(
    pipeline, shard, tmp_path
):
    """What an output sent is not deleted by another that is called the same, nor by one that names its namespace."""
    uri = str(tmp_path / "vectors.db")
    other = make_shard(tmp_path / "in/b.tar", make_samples(3, 50))

    def written(output, input, **more):
        return pipeline([*SOURCES, Tiny(), MilvusWriterStage(uri=uri, **more)], input=input, output=tmp_path / output)

    written("one/out", shard)
    written("two/out", other)
    assert len(in_milvus(uri)) == 43
    written("one/named", shard, namespace="mine")
    with pytest.raises(ConfigError, match=r"milvus\.namespace: .* rows of mine were written by the output .*/one/named,"):
        written("two/named", other, namespace="mine")
    with milvus.connected(uri) as client:
        assert len(in_milvus_of(client, "mine")) == 40
    facts = written("two/named", other, namespace="mine", overwrite=True).run["write"]["milvus"]
    assert (facts["sent"], facts["deleted"]) == (3, 40)
    with pytest.raises(ConfigError, match=r"rows of the namespace mine were replaced by those of the output .*/two/named"):
        curator.search(tmp_path / "one/named", vector=np.ones(DIM))
    with pytest.raises(ConfigError, match=r"has no mien\. Did you mean mine\? There are mine, out-\w{6}, out-\w{6}\."):
        curator.search(uri, vector=np.ones(DIM), namespace="mien")
    with milvus.connected(uri) as client:
        ids = [row["id"] for row in in_milvus_of(client, "mine")]
        client.delete("curator", ids=ids[:1])
    with pytest.warns(UserWarning, match="the namespace mine holds 2 rows, and its run wrote 3"):
        assert curator.search(tmp_path / "two/named", vector=np.ones(DIM)).num_rows == 2
    with milvus.connected(uri) as client:
        client.delete("curator", ids=ids)
    with pytest.raises(ConfigError, match="the namespace mine held 3 rows and is empty now"):
        curator.search(tmp_path / "two/named", vector=np.ones(DIM))


def in_milvus_of(client, namespace):
    """The ids of one namespace."""
    client.load_collection("curator")
    return client.query("curator", filter=milvus.in_namespace(namespace), limit=100, output_fields=["id"])


def test_a_namespace_of_pinecone_that_another_output_wrote_is_taken_only_when_told(pipeline, shard, service, tmp_path):
    """As with Milvus."""
    def written(output, **more):
        stages = [*SOURCES, Tiny(), PineconeWriterStage(host=service.host, **more)]
        return pipeline(stages, input=shard, output=tmp_path / output)

    written("one/out")
    written("two/out")
    assert [len(rows) for rows in service.rows.values() if rows] == [40, 40]
    written("one/named", namespace="mine")
    with pytest.raises(ConfigError, match=r"pinecone\.namespace: .* written by the output .*/one/named,"):
        written("two/named", namespace="mine")
    assert written("two/named", namespace="mine", overwrite=True).run["write"]["pinecone"]["sent"] == 40


def test_a_database_is_found_from_any_folder_and_a_search_makes_none(pipeline, shard, tmp_path, monkeypatch):
    """Its place is kept whole; where it is gone, that is said."""
    monkeypatch.chdir(tmp_path)
    pipeline([*SOURCES, Tiny(), MilvusWriterStage(uri="db/vectors.db")], input=shard)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert curator.search(tmp_path / "out", vector=np.ones(DIM), k=3).num_rows == 3
    (tmp_path / "db").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"its database .*/db/vectors\.db is not there"):
        curator.search(tmp_path / "out", vector=np.ones(DIM))
    assert not (tmp_path / "db").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_database_that_another_process_has_open_is_said_to_be(pipeline, shard, tmp_path):
    """Milvus Lite lets in one at a time."""
    uri = tmp_path / "vectors.db"
    pipeline([*SOURCES, Tiny(), MilvusWriterStage(uri=str(uri))], input=shard)
    hold = f"import fcntl; f = open({str(uri / 'LOCK')!r}); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(OutsideError, match=r"another process has it open, .* try again\.$"):
            curator.search(tmp_path / "out", vector=np.ones(DIM))
        process.communicate(b"\n")
    assert curator.search(tmp_path / "out", vector=np.ones(DIM), k=1).num_rows == 1


def test_a_run_that_fills_a_database_says_nothing_in_its_librarys_words(curate, shard, tmp_path):
    """No line of a log: what a person sees is Curator's."""
    ran = curate("stages=[partition,read,embed,milvus]", "embed.model=curator-demo", "embed.pretrained=curator-demo",
                 f"input={shard}", f"output={tmp_path / 'out'}", f"store={tmp_path / 'store'}")  # fmt: skip
    assert ran.code == 0, ran.said
    assert "40 vectors (40 sent" in ran.said
    assert "mvccTs" not in ran.said


def test_equal_keys_of_one_shard_and_of_two_are_rows_of_their_own(pipeline, tmp_path):
    """An id is of shard and key; where a shard has a key twice, of the place as well."""
    make_shard(tmp_path / "in/a.tar", {"x.jpg": make_image(1), "y.jpg": make_image(2)})
    make_shard(tmp_path / "in/b.tar", {"x.jpg": make_image(3), "y.jpg": make_image(4)})
    (tmp_path / "in/c.tar").write_bytes((tmp_path / "in/a.tar").read_bytes())
    with open(tmp_path / "in/c.tar", "ab") as file:
        file.write((tmp_path / "in/b.tar").read_bytes())
    result = pipeline([*SOURCES, Tiny(), FaissWriterStage(), MilvusWriterStage()], input=tmp_path / "in")
    ids = pq.read_table(tmp_path / "out/faiss/metadata.parquet").column("id").to_pylist()
    assert len(ids) == len(set(ids)) == len(result) == 8
    assert all(len(id_) == 64 for id_ in ids)
    assert result.run["write"]["milvus"]["rows"] == 8


def test_a_database_of_another_model_is_not_written_to(pipeline, shard, tmp_path):
    """Nor one of other dimensions: the two could not be compared."""
    uri = str(tmp_path / "vectors.db")
    pipeline([*SOURCES, Tiny(), MilvusWriterStage(uri=uri)], input=shard)

    stages = [*SOURCES, Other(name="other"), MilvusWriterStage(uri=uri)]
    with pytest.raises(ConfigError, match=r"holds vectors of stages\.Tiny, and these are of .*Other: the two cannot"):
        pipeline(stages, input=shard, output=tmp_path / "other")
    with milvus.connected(uri) as client:
        milvus.MilvusShelf(client, uri, "small", "out", 3)
    with pytest.raises(ConfigError, match=r"the collection small holds vectors of 3 numbers, and these have 192"):
        pipeline([*SOURCES, Tiny(), MilvusWriterStage(uri=uri, collection="small")], input=shard)


def test_a_service_that_is_not_there_ends_the_run_in_a_sentence(pipeline, shard, tmp_path):
    """Exit 4; the output is as it was."""
    with pytest.raises(OutsideError, match=r"http://127\.0\.0\.1:9: Milvus says: .* server unavailable\.$") as caught:
        pipeline([*SOURCES, Tiny(), MilvusWriterStage(uri="http://127.0.0.1:9")], input=shard)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out/run.json").exists()


def test_pinecone_is_brought_up_to_date_and_searched_through_its_own_client(pipeline, shard, service, tmp_path):
    """Against a server of our own that answers as the service is documented to; not against the service."""
    def written(threshold):
        stages = [*SOURCES, Brightness(score_threshold=threshold), Tiny(), PineconeWriterStage(host=service.host, namespace="out")]
        facts = pipeline(stages, input=shard).run["write"]["pinecone"]
        return {name: facts[name] for name in ("rows", "sent", "there", "deleted")}

    assert written(0.0) == {"rows": 40, "sent": 40, "there": 0, "deleted": 0}
    counts = written(0.5)
    assert counts["sent"] == 0
    assert len(service.rows["out"]) == counts["rows"] == 40 - counts["deleted"] < 40
    row = next(iter(service.rows["out"].values()))
    assert np.linalg.norm(row["values"]) == pytest.approx(1, abs=1e-5)
    found = curator.search(tmp_path / "out", vector=row["values"], k=3, where="brightness >= 0.5 and key != 'x'")
    assert found.column("key")[0].as_py() == row["metadata"]["key"]
    assert found.num_rows == 3
    assert not curator.search(tmp_path / "out", vector=row["values"], where="not brightness >= 0.5").num_rows
    assert KEY not in (tmp_path / "out/run.json").read_text() + (tmp_path / "out/pinecone/index.json").read_text()


def test_what_pinecone_says_is_told_without_the_key(pipeline, shard, service, monkeypatch):
    """A wrong key, and an index of other dimensions."""
    service.dim = 3
    with pytest.raises(ConfigError, match="is an index of 3 dimensions, and these vectors have 192"):
        pipeline([*SOURCES, Tiny(), PineconeWriterStage(host=service.host)], input=shard)
    monkeypatch.setenv("PINECONE_API_KEY", "secret-and-wrong")
    with pytest.raises(OutsideError, match="Pinecone says: ") as caught:
        pipeline([*SOURCES, Tiny(), PineconeWriterStage(host=service.host)], input=shard)
    assert "run again" not in str(caught.value)  # nothing was sent
    assert "secret" not in str(caught.value)
    assert "Invalid API Key" in str(caught.value)


WRITE = """
import sys
from curator import FilePartitioningStage, ImageReaderStage, Pipeline, PineconeWriterStage
from tests.stages import Tiny
host, shard, output, store = sys.argv[1:]
stages = [FilePartitioningStage(), ImageReaderStage(), Tiny(), PineconeWriterStage(host=host, namespace="out2", batch_size=8)]
Pipeline("killed", stages).run(input=shard, output=output, store=store)
"""


def test_a_run_that_was_killed_while_it_sent_goes_on_where_it_was(pipeline, shard, service, tmp_path):
    """Killed at the third batch of five: the next run sends three of them, and ends with each row once."""
    pipeline([*SOURCES, Tiny()], input=shard)  # all is measured: what follows only writes

    def kill(path, server):
        if path == "/vectors/upsert" and len(server.upserts) == 2:
            os.kill(process.pid, signal.SIGKILL)

    service.before = kill
    command = [sys.executable, "-c", WRITE, service.host, str(shard), str(tmp_path / "out2"), str(tmp_path / "store")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        process.wait(120)
    assert process.returncode == -signal.SIGKILL
    service.before = lambda *_: None
    # the batch that was on its way when the process died may have arrived
    arrived = sum(service.upserts)
    assert arrived in (16, 24)
    facts = pipeline([*SOURCES, Tiny(), PineconeWriterStage(host=service.host, namespace="out2", batch_size=8)], input=shard,
                     output=tmp_path / "out2").run["write"]["pinecone"]  # fmt: skip
    assert (facts["rows"], facts["sent"], facts["there"]) == (40, 40 - arrived, arrived)
    assert len(service.rows["out2"]) == 40


def test_what_is_missing_is_said_before_any_work(curate):
    """A key, an address, a package: a line each, with the command that helps."""
    ran = curate("stages=[partition,read,embed,faiss,milvus,pinecone]", "embed.model=curator-demo", "milvus.uri=vectors", "milvus.collection='a b'",
                 "embed.pretrained=curator-demo", "pinecone.host=http://example.org", "input=x", "output=o",
                 env={"PINECONE_API_KEY": ""})  # fmt: skip
    assert ran.code == 2
    lines = [line.removeprefix("curate: ") for line in ran.err.splitlines()]
    assert ("milvus.collection: 'a b' cannot be used: letters without accents, digits and _ make a collection's name, "
            "and no digit begins it.") in lines  # fmt: skip
    assert "milvus.uri: vectors must end with .db, or be a server's http:// or https:// address." in lines
    assert "pinecone.host: http://example.org would send the key unencrypted; say https://." in lines
    assert "pinecone: the environment has no PINECONE_API_KEY, and the key is taken from nowhere else." in lines
    assert lacking("milvus", "milvus", ["json", "no_such_package"]) == [
        "milvus: no_such_package must be installed (in Curator's folder: pip install -e '.[milvus]')."
    ]


def test_a_sweep_leaves_services_alone(pipeline, shard, service):
    """Its jobs decide, and write nothing that is not light."""
    pipeline([*SOURCES, Tiny(), PineconeWriterStage(host=service.host)], input=shard, write_images=False)
    assert not service.rows


def test_milvus_rows_have_the_types_that_its_client_gives_back(pipeline, shard, tmp_path):
    """Numbers are numbers: a filter compares them."""
    pipeline([*SOURCES, Brightness(), Tiny(), MilvusWriterStage()], input=shard)
    path = tmp_path / "out/milvus/vectors.db"
    client = MilvusClient(str(path))
    client.load_collection("curator")
    found = client.search("curator", data=[[1.0] * DIM], limit=40, filter="brightness > 0.5", output_fields=["*"])[0]
    client.close()
    milvus._released(str(path))
    truth = pq.read_table(tmp_path / "out/ledger").to_pylist()
    assert {hit["entity"]["key"] for hit in found} == {row["key"] for row in truth if row["brightness"] > 0.5}
