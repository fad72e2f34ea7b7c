"""Input behind URLs: the same results as from disk, in few requests and few bytes."""

from __future__ import annotations

import gzip
import os

import pyarrow.parquet as pq
import pytest

from curator import ImageWriterStage
from curator.errors import InputChanged
from curator.formats.tar import index_tar
from tests.conftest import make_image, make_samples, make_shard, tar_members, tree
from tests.remote.conftest import stages, tars, without_names


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


def test_a_list_names_objects_in_a_bucket(pipeline, bucket, tmp_path):
    """Beside paths on disk; one that is not there, or lies where nothing is read, is a row that says so."""
    pictures = {f"pictures/{n}.jpg": make_image(n) for n in range(5)}
    for name, content in pictures.items():
        bucket.put(name, content)
    (tmp_path / "near.jpg").write_bytes(make_image(9))
    paths = [*(f"{bucket.url}/{name}" for name in pictures), "near.jpg", f"{bucket.url}/gone.jpg", "ftp://host/a.jpg"]
    (tmp_path / "list.csv").write_text("\n".join(["image_path", *paths]))
    result = pipeline(stages(0), input=tmp_path / "list.csv")
    assert result.ledger["status"].to_pylist() == ["kept"] * 6 + ["failed"] * 2
    assert result.ledger["cause"].to_pylist()[6:] == ["missing_file"] * 2
    assert "ftp:// is not read here" in result.ledger["reason"].to_pylist()[7]
    written = tar_members(tmp_path / "out/shards/00000.tar")
    assert [c for name, c in written.items() if name.endswith(".jpg")] == [*pictures.values(), make_image(9)]


def test_a_bucket_that_is_not_there_costs_its_rows_and_no_others(pipeline, bucket, tmp_path):
    """Also where the column is called url: objects in buckets are read, not fetched."""
    bucket.put("a.jpg", make_image(1))
    (tmp_path / "list.csv").write_text(f"url\n{bucket.url}/a.jpg\ns3://no-such-bucket-here/b.jpg\n")
    result = pipeline(stages(0), input=tmp_path / "list.csv")
    assert result.ledger["cause"].to_pylist() == [None, "missing_file"]


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
