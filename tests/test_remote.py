"""Input, store and output on a real S3-compatible server: the same results as on disk, and faults in a sentence."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset

from curator import FilePartitioningStage, ImageReaderStage, ImageWriterStage, SemanticDeduplicationStage, remote
from curator.errors import ConfigError, InputChanged, OutsideError, RemoteError
from curator.settings import checked
from curator.store import Store
from tests.conftest import ROOT, make_image, make_samples, make_shard, tar_members, tree
from tests.s3 import KEYS, Bucket, a_bucket, a_cluster, a_pipeline, a_server  # noqa: F401  # four are fixtures
from tests.stages import Brightness, Tiny

READ_ONLY = "stages=[partition,read,write]"


def stages(threshold: float = 0.5, **write: object) -> tuple[object, ...]:
    """Read, measure brightness, keep about half, write."""
    write = {"samples_per_shard": 10, **write}
    return FilePartitioningStage(), ImageReaderStage(), Brightness(score_threshold=threshold), ImageWriterStage(**write)


@pytest.fixture
def shards(tmp_path: Path, bucket: Bucket) -> Path:
    """Three tars on disk and the same in the bucket, below `in/`."""
    for n in range(3):
        bucket.put(f"in/{n:05d}.tar", make_shard(tmp_path / f"in/{n:05d}.tar", make_samples(12, 12 * n)))
    bucket.server.asked.clear()
    return tmp_path / "in"


def without_names(ledger):
    """A ledger less the columns that name the shards of the input."""
    return ledger.drop_columns(["shard", "duplicate_of_shard", "reason"])


def tars(files: dict[str, bytes]) -> dict[str, bytes]:
    """The tars among some files."""
    return {name: content for name, content in files.items() if name.endswith(".tar")}


# --- input ---


@pytest.mark.parametrize("given", ["{url}/in", "{url}/in/*.tar", "{url}/in/0000{{0..2}}.tar", "{url}/in/{{00000,00001,00002}}.tar"])
def test_tars_in_a_bucket_give_what_the_same_tars_on_disk_give(pipeline, bucket, shards, tmp_path, given):
    """Shards to the byte, the ledger but for the names, which are the URLs."""
    near = pipeline(stages(), input=shards, output=tmp_path / "near", store=tmp_path / "s1")
    far = pipeline(stages(), input=given.format(url=bucket.url), output=tmp_path / "far", store=tmp_path / "s2")
    assert 0 < len(far) < 36
    assert tars(tree(tmp_path / "far/shards")) == tars(tree(tmp_path / "near/shards"))
    assert without_names(far.ledger) == without_names(near.ledger)
    assert list(dict.fromkeys(far.ledger["shard"].to_pylist())) == [f"{bucket.url}/in/{n:05d}.tar" for n in range(3)]


def test_a_folder_of_images_in_a_bucket_is_a_shard(pipeline, bucket, tmp_path):
    """With captions, sub-folders, images of unknown suffix; dot-names and what is no image are passed over."""
    files = {
        "a.jpg": make_image(1), "a.txt": b"one", "sub/b.png": make_image(2, form="PNG"), "sub/c": make_image(3),
        ".hidden/d.jpg": make_image(4), "notes.md": b"no image", "sub/e.jpg": b"",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
        bucket.put(f"in/{name}", content)
    near = pipeline(stages(0), input=tmp_path / "in", output=tmp_path / "near", store=tmp_path / "s1")
    far = pipeline(stages(0), input=f"{bucket.url}/in/", output=tmp_path / "far", store=tmp_path / "s2")
    assert far.ledger["key"].to_pylist() == ["a", "sub/b", "sub/c", "sub/e"]
    assert far.ledger["cause"].to_pylist() == [None, None, None, "empty_file"]
    assert tars(tree(tmp_path / "far/shards")) == tars(tree(tmp_path / "near/shards"))
    assert without_names(far.ledger) == without_names(near.ledger)


def test_a_bucket_may_hold_everything_mixed(pipeline, bucket, shards, tmp_path):
    """A folder with tars, a packed one and images in it; and a path on disk beside it."""
    bucket.put("in/x/packed.tar.gz", gzip.compress((shards / "00000.tar").read_bytes()))
    bucket.put("in/x/y.jpg", make_image(99))
    far = pipeline(stages(0), input=[f"{bucket.url}/in", shards / "00001.tar"])
    names = list(dict.fromkeys(far.ledger["shard"].to_pylist()))
    tail = [f"{bucket.url}/in/x/packed.tar.gz", f"{bucket.url}/in", str(shards / "00001.tar")]
    assert names == [*(f"{bucket.url}/in/{n:05d}.tar" for n in range(3)), *tail]
    assert far.counts["kept"] == 5 * 12 + 1


def test_a_second_run_asks_for_no_byte_of_the_input(pipeline, bucket, shards, tmp_path):
    """What the service says of an object (its etag) tells that it is unchanged; a listing says it of all."""
    pipeline(stages(), input=f"{bucket.url}/in", output=tmp_path / "o1")
    bucket.server.asked.clear()
    again = pipeline((*stages(0.55)[:3],), input=f"{bucket.url}/in", output=tmp_path / "o2")
    assert again.run["work"]["decoded"] == 0
    assert {method for method, _, _ in bucket.server.asked} == {"GET"}
    assert all("list-type" in path for _, path, _ in bucket.server.asked)


def test_writing_a_few_fetches_little_more_than_these(pipeline, bucket, tmp_path):
    """Of 60 pictures of 200 KB three are kept: ranges are read, not the shard."""
    members = {f"{n:03d}.jpg": make_image(n, (64, 48)) + os.urandom(200_000) for n in range(60)}
    bucket.put("a.tar", make_shard(tmp_path / "a.tar", members))
    pipeline(stages(1), input=f"{bucket.url}/a.tar", output=tmp_path / "o1")
    scores = pq.read_table(tmp_path / "o1/ledger")["brightness"].to_pylist()
    bucket.server.asked.clear()
    few = pipeline(stages(sorted(scores)[-3]), input=f"{bucket.url}/a.tar", output=tmp_path / "o2")
    assert len(few) == 3
    kept = sum(few.ledger.filter(few.ledger["output_key"].is_valid())["bytes"].to_pylist())
    fetched = sum(size for method, path, size in bucket.server.asked if method == "GET" and "list-type" not in path)
    assert fetched < 1.2 * kept


def test_the_index_of_a_tar_of_small_members_takes_few_requests(bucket, tmp_path):
    """A window of some MiB while headers lie close, and a jump where they do not."""
    from curator.formats.tar import index_tar

    small = make_shard(tmp_path / "a.tar", {f"{n:05d}.txt": b"x" * 700 for n in range(3000)})
    url = bucket.put("a.tar", small)
    bucket.server.asked.clear()
    assert index_tar(url, 1 << 28).members == index_tar(str(small), 1 << 28).members
    assert len(bucket.server.asked) <= 4
    large = make_shard(tmp_path / "b.tar", {f"{n}.jpg": bytes(5 << 20) for n in range(6)})
    url = bucket.put("b.tar", large)
    bucket.server.asked.clear()
    assert index_tar(url, 1 << 28).members == index_tar(str(large), 1 << 28).members
    assert sum(size for _, _, size in bucket.server.asked) < 5 << 20


def test_a_piece_is_fetched_once_though_it_is_read_twice(pipeline, bucket, tmp_path):
    """Hashed first, decoded then: the second time its bytes are still at hand."""
    members = {f"{n:03d}.jpg": make_image(n, (64, 48)) + os.urandom(100_000) for n in range(40)}
    tar = make_shard(tmp_path / "a.tar", members)
    bucket.put("a.tar", tar)
    bucket.server.asked.clear()
    pipeline(stages()[:3], input=f"{bucket.url}/a.tar")
    fetched = sum(size for method, path, size in bucket.server.asked if method == "GET" and "list-type" not in path)
    assert fetched < 2.1 * tar.stat().st_size, "once for the index, at most, and once for the pictures"


def test_an_object_that_changes_between_measuring_and_writing_ends_the_run(pipeline, bucket, shards, tmp_path):
    """Exit 4 and nothing replaced, as on disk; the next run measures it again."""
    pipeline(stages()[:3], input=f"{bucket.url}/in", output=tmp_path / "o1")

    class Changing(ImageWriterStage):
        version = 1
        called = "write"

        def write(self, kept, source, folder, each):
            bucket.put("in/00001.tar", make_shard(tmp_path / "new.tar", make_samples(12, 500)))
            return super().write(kept, source, folder, each)

    with pytest.raises(InputChanged, match=r"00001\.tar"):
        pipeline((*stages()[:3], Changing()), input=f"{bucket.url}/in", output=tmp_path / "o1", overwrite=True)
    again = pipeline(stages(), input=f"{bucket.url}/in", output=tmp_path / "o1", overwrite=True)
    assert again.run["work"]["decoded"] == 12


# --- store ---


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
    import pyarrow as pa

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


# --- output ---


def test_an_output_on_a_url_is_that_on_disk(pipeline, bucket, shards, tmp_path):
    """All parts to the byte; run again, it is finished; with another threshold it is replaced, and nothing stays over."""
    pipeline(stages(), input=shards, output=tmp_path / "near")
    url = f"{bucket.url}/out"
    far = pipeline(stages(), input=shards, output=url)
    assert far.output == url
    there = bucket.tree("out/")
    assert {n: c for n, c in there.items() if n.startswith(("shards/", "ledger/"))} == tree(
        tmp_path / "near", "shards", "ledger"
    )
    assert {"run.json", "curator.log"} < set(there)
    assert pipeline(stages(), input=shards, output=url).unchanged
    fewer = pipeline(stages(0.55), input=shards, output=url)
    assert 0 < len(fewer) < len(far)
    left = [name for name in bucket.tree("out/") if name.endswith(".tar")]
    assert len(left) == -(-len(fewer) // 10) < len(tars(there))
    assert not list((tmp_path / "cache/outputs").glob("*/*")), "nothing stays on this machine"


def test_webdataset_reads_the_output_from_the_bucket(pipeline, bucket, shards, tmp_path):
    """The same samples, by another program and over the network."""
    far = pipeline(stages(), input=shards, output=f"{bucket.url}/out")
    pre = bucket.server.client().generate_presigned_url
    names = [f"out/shards/{n:05d}.tar" for n in range(-(-len(far) // 10))]
    urls = [f"pipe:curl -s '{pre('get_object', Params={'Bucket': bucket.name, 'Key': name})}'" for name in names]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    expected = tar_members(*sorted(shards.glob("*.tar")))
    assert len(samples) == len(far)
    assert all(expected[f"{s['__key__']}.jpg"] == s["jpg"] for s in samples)


def test_an_output_that_lost_a_part_is_made_again(pipeline, bucket, shards):
    """`finished already` looks at every file."""
    url = f"{bucket.url}/out"
    pipeline(stages(), input=shards, output=url)
    bucket.delete("out/shards/00000.tar")
    again = pipeline(stages(), input=shards, output=url)
    assert not again.unchanged
    assert again.run["work"]["decoded"] == 0
    assert "shards/00000.tar" in bucket.tree("out/")


def test_something_else_is_not_overwritten(pipeline, bucket, shards):
    """A prefix that holds other objects needs overwrite=true; an input inside the output, or a store, is refused."""
    bucket.put("out/precious.txt", b"mine")
    with pytest.raises(ConfigError, match="holds something else than a run of Curator"):
        pipeline(stages(), input=shards, output=f"{bucket.url}/out")
    pipeline(stages(), input=shards, output=f"{bucket.url}/out", overwrite=True)
    assert bucket.tree("out/")["precious.txt"] == b"mine"
    with pytest.raises(ConfigError, match="contains the input"):
        pipeline(stages(), input=f"{bucket.url}/in", output=bucket.url, overwrite=True)
    with pytest.raises(ConfigError, match="lies in the store"):
        pipeline(stages(), input=shards, output=f"{bucket.url}/st/out", store=f"{bucket.url}/st")


def test_output_and_store_under_the_input_are_no_input(pipeline, bucket):
    """People name the bucket, and have it all in there."""
    for n in range(4):
        bucket.put(f"{n}.jpg", make_image(n))
    place = {"input": bucket.url, "store": f"{bucket.url}/st"}
    with pytest.raises(ConfigError, match="contains the input"):
        pipeline(stages(0), output=bucket.url, **place)
    assert pipeline(stages(0), output=f"{bucket.url}/out", **place).counts["inputs"] == 4
    assert pipeline(stages(0.1), output=f"{bucket.url}/out", **place).counts["inputs"] == 4


SCRIPT = f"""\
import sys
sys.path.insert(0, {str(ROOT)!r})
from curator import Pipeline
from tests.test_remote import stages
Pipeline("kill", stages(0.4)).run(input=sys.argv[1], output=sys.argv[2], store="store")
"""


def test_a_killed_upload_leaves_no_run_and_the_same_command_makes_it_whole(pipeline, bucket, shards, tmp_path):
    """Killed while new parts lie among old ones: no run.json says that it is whole, and nothing is taken for foreign."""
    (tmp_path / "script.py").write_text(SCRIPT)
    url = f"{bucket.url}/out"
    pipeline(stages(0.5), input=shards, output=url)
    process = None

    def stop(method: str, path: str) -> bool:
        if method == "PUT" and path.endswith("/out/shards/00000.tar"):
            os.killpg(process.pid, signal.SIGKILL)
        return False

    bucket.server.refuse = stop
    process = subprocess.Popen([sys.executable, "script.py", str(shards), url], cwd=tmp_path, start_new_session=True)
    assert process.wait(120) == -signal.SIGKILL
    bucket.server.refuse = None
    torn = bucket.tree("out/")
    assert "run.json" not in torn
    assert ".old" in torn
    near = pipeline(stages(0.4), input=shards, output=tmp_path / "near")
    assert near.run["work"]["decoded"] == 0
    pipeline(stages(0.4), input=shards, output=url)
    whole = bucket.tree("out/")
    assert {"run.json"} == {name for name in whole if name in ("run.json", ".old")}
    parts = {n: c for n, c in whole.items() if n.startswith(("shards/", "ledger/"))}
    assert parts == tree(tmp_path / "near", "shards", "ledger")


# --- what goes wrong out there ---


def test_a_bucket_that_is_not_there_is_said(pipeline, bucket, shards, tmp_path):
    """Input, output and store: each in one line, all at once, before any work."""
    nowhere = "s3://no-such-bucket-anywhere"
    with pytest.raises(ConfigError) as caught:
        pipeline(stages(), input=f"{nowhere}/in", output=f"{nowhere}/out", store=f"{nowhere}/st")
    assert len(caught.value.mistakes) == 3
    assert all(f"there is no bucket {nowhere}" in line for line in caught.value.mistakes)
    with pytest.raises(ConfigError, match="nothing is there"):
        pipeline(stages(), input=f"{bucket.url}/nothing/*.tar")
    with pytest.raises(ConfigError, match="nothing is there"):
        pipeline(stages(), input=f"{bucket.url}/nothing")


def test_a_server_that_does_not_answer_is_said_soon(bucket, shards, monkeypatch, curate, tmp_path):
    """One line that names it, and not minutes of trying."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    began = time.monotonic()
    ran = curate(READ_ONLY, f"input={bucket.url}/in", "output=out")
    assert ran.code == 2
    assert f"{bucket.url}/in: cannot be reached at 127.0.0.1:1" in ran.err
    assert "Traceback" not in ran.err
    assert time.monotonic() - began < 60


def test_a_bucket_that_may_not_be_read_or_written_is_said(pipeline, bucket, shards, tmp_path):
    """403 on reading is a mistake before any work; on writing it is found before anything is measured."""
    bucket.server.refuse = lambda _, path: "/in" in path or "in%2F" in path
    with pytest.raises(ConfigError, match=r"access is refused at .* Access Denied. Are the credentials"):
        pipeline(stages(), input=f"{bucket.url}/in")
    bucket.server.refuse = lambda method, _: method == "PUT"
    for place in ({"output": f"{bucket.url}/out"}, {"store": f"{bucket.url}/st"}):
        with pytest.raises(RemoteError, match="access is refused"):
            pipeline(stages(), input=shards, **place)
    assert not (tmp_path / "store/read").exists(), "nothing was measured"


def test_without_credentials_it_is_said_where_they_are_looked_for(pipeline, bucket, shards, monkeypatch):
    """The usual places, and how an open bucket is read."""
    for name in KEYS:
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=r"no credentials.*AWS_ACCESS_KEY_ID.*FSSPEC_S3_ANON=true"):
        pipeline(stages(), input=f"{bucket.url}/in")


def test_wrong_credentials_are_refused_by_the_server_and_said(monkeypatch, tmp_path, pipeline, bucket):
    """Against a server that checks signatures."""
    from moto import settings

    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    with pytest.raises(ConfigError, match="access is refused"):
        pipeline(stages(), input=f"{bucket.url}/in")


def test_the_missing_package_is_named(bucket, curate, tmp_path):
    """With the command that installs it."""
    (tmp_path / "site/s3fs").mkdir(parents=True)
    (tmp_path / "site/s3fs/__init__.py").write_text("raise ImportError('No module named s3fs')")
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = curate(READ_ONLY, f"input={bucket.url}/in", "output=out", env={"PYTHONPATH": path})
    assert ran.code == 2
    assert "s3:// needs the package s3fs" in ran.err
    assert "pip install s3fs" in ran.err


def test_no_secret_is_taken_in_a_url_and_none_is_shown_or_saved(bucket, shards, curate, tmp_path):
    """A URL with a password or a signature is refused without being repeated; a run saves where, and not who."""
    for url in ("s3://user:hunter2@bucket/in", f"{bucket.url}/a.tar?X-Amz-Signature=hunter2"):
        with pytest.raises(ConfigError) as caught:
            checked({"input": url, "output": url, "store": url})
        assert [line.partition(":")[0] for line in caught.value.mistakes] == ["input", "output", "store"]
        assert all("holds a secret" in line and "hunter2" not in line for line in caught.value.mistakes)
    ran = curate(READ_ONLY, f"input={url}", "output=out")
    assert (ran.code, "hunter2" in ran.said) == (2, False)
    assert curate(READ_ONLY, f"input={bucket.url}/in", f"output={bucket.url}/out", "store=st").code == 0
    saved = {**bucket.tree("out/"), **tree(tmp_path / "st")}
    assert {"run.json", "curator.log", ".hydra/config.yaml"} <= set(saved)
    assert not any(KEYS["AWS_SECRET_ACCESS_KEY"].encode() in content for content in saved.values())


def test_a_url_of_this_machine_is_a_path(pipeline, shards, tmp_path):
    """`file://` is what some tools print."""
    far = pipeline(stages(0), input=f"file://{shards}/00000.tar", output=f"file://{tmp_path}/o", store=f"file://{tmp_path}/s")
    assert far.output == tmp_path / "o"
    assert far.counts["kept"] == 12


def test_workers_at_a_scheduler_are_asked_whether_they_reach_the_urls(bucket):
    """`cluster.probe` looks at objects and folders alike."""
    bucket.put("in/a.tar", b"x")
    assert remote.is_there(f"{bucket.url}/in")
    assert remote.is_there(f"{bucket.url}/in/a.tar")
    assert not remote.is_there(f"{bucket.url}/else")
    assert not remote.is_there("s3://no-such-bucket-anywhere/in")
