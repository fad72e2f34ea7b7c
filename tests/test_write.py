"""write: kept samples leave as they came, in tars that other programs read, in the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from curator import FilePartitioningStage, ImageReaderStage, ImageWriterStage
from curator.errors import Fault, InputChanged
from curator.formats.shards import output_keys
from curator.phases import inputs
from curator.phases.write import StoredSource
from curator.store import Store
from curator.wiring import Plan
from tests.conftest import make_image, make_samples, make_shard, tar_members, tree
from tests.tars import tar_of


class Run:
    """Inputs as a run has indexed them, and all their samples as rows of a ledger."""

    def __init__(self, folder: Path, *given: Path) -> None:
        read, store = ImageReaderStage(), Store(folder / "store")
        shards = FilePartitioningStage().list([str(path) for path in given])
        self.known = [inputs.look(store, read, shard, "reader") for shard in shards]
        self.source = StoredSource(store, self.known, Plan(()))
        rows = [self._row(read, shard, n) for shard in shards for n in range(len(read.index(shard).samples))]
        self.kept = pa.Table.from_pylist(rows)

    def _row(self, read, shard, index):
        sample = self.source.sample(shard.given, index)
        image = read.image_of(sample, lambda m: next(self.source.read(shard.given, [m])))
        assert not isinstance(image, Fault)
        content = next(self.source.read(shard.given, [image]))
        return {
            "shard": shard.given, "key": sample.key.decode("utf-8", "backslashreplace"), "index": index,
            "content_hash": hashlib.sha256(content).hexdigest(), "image": image.name.decode("utf-8", "backslashreplace"),
            "format": "JPEG", "width": 64, "height": 48, "caption": None, "bytes": len(content), "nsfw_score": index / 7,
        }  # fmt: skip

    def write(self, out: Path, rows: Sequence[int] | None = None, each=map, **settings):
        """Write some rows, or all; what the stage gives, and the paths of the tars."""
        out.mkdir()
        kept = self.kept if rows is None else self.kept.take(pa.array(rows, pa.int64()))
        columns, facts = ImageWriterStage(**settings).write(kept, self.source, out, each)
        return columns, facts, sorted(out.glob("shards/*.tar"))


def in_threads(fn, items):
    """Four at once, the last one first."""
    with ThreadPoolExecutor(4) as pool:
        yield from reversed([future.result() for future in [pool.submit(fn, item) for item in items]])


@pytest.fixture
def three(tmp_path):
    """Three tars of 4, 1 and 5 samples, with captions."""
    for n, (count, start) in enumerate(((4, 0), (1, 10), (5, 20))):
        make_shard(tmp_path / f"in/{n}.tar", make_samples(count, start))
    return Run(tmp_path, tmp_path / "in")


def test_all_members_of_the_kept_leave_with_their_bytes_in_input_order(three, tmp_path):
    """Across input shards, without gaps; what is dropped leaves none of its members."""
    columns, facts, tars = three.write(tmp_path / "out", [0, 2, 3, 4, 6, 9], samples_per_shard=4)
    truth = tar_members(*sorted((tmp_path / "in").glob("*.tar")))
    names = [f"{n:06d}" for n in (0, 2, 3, 10, 21, 24)]
    assert tar_members(*tars) == {f"{n}.{s}": truth[f"{n}.{s}"] for n in names for s in ("jpg", "txt")}
    assert columns == {"output_shard": ["00000.tar"] * 4 + ["00001.tar"] * 2, "output_key": names}
    assert (facts["shards"], facts["samples"], facts["uniform"]) == (2, 6, True)
    assert facts["bytes"] == sum(tar.stat().st_size for tar in tars)


def test_the_same_rows_give_the_same_bytes_however_they_are_written(three, tmp_path):
    """One after the other, or in threads that end in another order."""
    three.write(tmp_path / "one", samples_per_shard=3)
    three.write(tmp_path / "two", each=in_threads, samples_per_shard=3)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_no_header_tells_of_a_time_an_owner_or_a_machine(three, tmp_path):
    """As tarfile reads them; the end is two blocks of zeros, filled up to a record as other programs do."""
    _, _, tars = three.write(tmp_path / "out")
    with tarfile.open(tars[0]) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in tar} == {
            (0, 0, 0, "", "", 0o644, tarfile.REGTYPE)
        }
        assert not tar.pax_headers
    content = tars[0].read_bytes()
    assert len(content) % 10240 == 0
    with tarfile.open(tars[0]) as tar:
        assert content == tar_of([(m.name, tar.extractfile(m).read()) for m in tar])


def test_gnu_tar_webdataset_and_this_reader_see_the_same(tmp_path):
    """Names at and above a hundred bytes, deep folders, names that are not UTF-8, empty members."""
    names = ["n" * 96 + ".jpg", "n" * 97 + ".jpg", "deep/" * 40 + "x.jpg", "m" * 250 + ".jpg", "größe.jpg"]
    members = [(name, make_image(n)) for n, name in enumerate(names)]
    (tmp_path / "a.tar").write_bytes(tar_of([*members, ("größe.cls", b"")], form=tarfile.GNU_FORMAT))
    _, _, (tar,) = Run(tmp_path, tmp_path / "a.tar").write(tmp_path / "out")
    (tmp_path / "unpacked").mkdir()
    done = subprocess.run(["tar", "-xf", tar], cwd=tmp_path / "unpacked", capture_output=True, check=True)
    assert done.stderr == b""
    truth = {**dict(members), "größe.cls": b""}
    assert tree(tmp_path / "unpacked") == truth
    assert tar_members(tar) == truth
    loaded = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert {f"{s['__key__']}.jpg": s["jpg"] for s in loaded} == dict(members)
    again = Run(tmp_path / "again", tar)
    assert again.kept.column("content_hash").to_pylist() == [hashlib.sha256(c).hexdigest() for _, c in members]
    assert again.known[0].damage is None


def test_an_output_written_again_is_the_same_output(three, tmp_path):
    """Curator's own tars in, all kept: the very bytes out."""
    _, _, tars = three.write(tmp_path / "one", samples_per_shard=4)
    _, _, again = Run(tmp_path / "second", tmp_path / "one/shards").write(tmp_path / "two", samples_per_shard=4)
    assert [t.read_bytes() for t in again] == [t.read_bytes() for t in tars]


@pytest.mark.parametrize(
    ("keys", "leave"),
    [
        (["a", "b"], ["a", "b"]),
        (["v1.0/cat", "../../x"], ["v1_0/cat", "__/__/x"]),
        (["./a", "a", "a-1", "a"], ["a", "a-1", "a-1-1", "a-2"]),
        (["a.b", "a_b"], ["a_b", "a_b-1"]),
    ],
)
def test_keys_leave_without_dots_and_each_once_in_a_shard(keys, leave):
    """Readers cut a key at its first dot, and take two members of one key for one sample."""
    assert output_keys([k.encode() for k in keys]) == [k.encode() for k in leave]


def test_many_equal_keys_cost_no_more_than_others():
    """Every tar of a set may call its only sample `000`."""
    begin = time.monotonic()
    keys = output_keys([b"000"] * 50_000)
    assert len(set(keys)) == 50_000
    assert time.monotonic() - begin < 60


def test_an_image_without_a_suffix_leaves_with_that_of_its_format(tmp_path):
    """Readers of WebDataset pass over a name without one. Also below a folder with a dot in its name."""
    make_shard(tmp_path / "a.tar", {"v1.0/cat": make_image(1), "v1.0/dog.jpg": make_image(2)})
    _, facts, (tar,) = Run(tmp_path, tmp_path / "a.tar").write(tmp_path / "out")
    assert tar_members(tar) == {"v1_0/cat.jpg": make_image(1), "v1_0/dog.jpg": make_image(2)}
    assert facts["uniform"]
    assert any(remark.startswith("1 image came without a suffix") for remark in facts["remarks"])


def test_a_member_that_is_no_image_keeps_having_no_suffix(tmp_path):
    """Nobody knows what it is; the end of the run says so."""
    make_shard(tmp_path / "a.tar", {"cat": b"a note", "cat.jpg": make_image(1)})
    _, facts, (tar,) = Run(tmp_path, tmp_path / "a.tar").write(tmp_path / "out")
    assert list(tar_members(tar)) == ["cat", "cat.jpg"]
    assert not facts["uniform"]


def test_a_folder_leaves_as_tars_with_what_stands_beside_its_images(tmp_path):
    """Two images of one stem both take the caption along."""
    files = {"a.jpg": make_image(1), "a.png": make_image(2, form="PNG"), "a.txt": b"both", "v1.0/b.jpg": make_image(3)}
    for name, content in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    _, facts, (tar,) = Run(tmp_path, tmp_path / "in").write(tmp_path / "out")
    assert tar_members(tar) == {
        "a_jpg.jpg": files["a.jpg"], "a_jpg.txt": b"both", "a_png.png": files["a.png"], "a_png.txt": b"both",
        "v1_0/b.jpg": files["v1.0/b.jpg"],
    }  # fmt: skip
    assert not facts["uniform"]


def test_a_folder_is_looked_through_twice_however_many_tars_it_fills(tmp_path):
    """Before and behind them all: once for each would make the time grow with the square of the images."""

    class Counted(StoredSource):
        looks = 0

        def check(self, shard):
            Counted.looks += 1
            super().check(shard)

    (tmp_path / "in").mkdir()
    for n in range(30):
        (tmp_path / f"in/{n:05d}.jpg").write_bytes(make_image(n))
    run = Run(tmp_path, tmp_path / "in")
    run.source = Counted(run.source.store, run.known, Plan(()))
    assert run.write(tmp_path / "out", samples_per_shard=2)[1]["shards"] == 15
    assert Counted.looks == 2


@pytest.mark.parametrize("count", [1, 8, 9, 40, 41, 63])
def test_so_many_shards_as_wished_for_none_a_sample_larger(tmp_path, count):
    """Training readers take a shard each: 8 where there are 8 samples, never 7; without a wish, full ones."""
    make_shard(tmp_path / "a.tar", {f"{n:03d}.jpg": b"%d" % n for n in range(count)})
    run = Run(tmp_path, tmp_path / "a.tar")
    _, facts, tars = run.write(tmp_path / "out", min_shards=8)
    sizes = [len(tar_members(t)) for t in tars]
    assert ("write.min_shards=8 is more than the 1 image: 1 shard, an image in each" in facts["remarks"]) == (count == 1)
    assert any("min_shards=8" in remark for remark in facts["remarks"]) == (count < 8)
    assert len(sizes) == min(8, count)
    assert (sum(sizes), max(sizes) - min(sizes) <= 1) == (count, True)
    full = [len(tar_members(t)) for t in run.write(tmp_path / "full", samples_per_shard=4, min_shards=2)[2]]
    assert full == [4] * (count // 4) + [count % 4] * bool(count % 4) or count < 8


def test_a_limit_on_bytes_holds_for_what_the_samples_take(tmp_path):
    """Headers and padding included; a sample that is larger has a tar of its own; both limits hold at once."""
    sizes = [100, 3000, 100, 100, 9000, 100, 100, 100, 100]
    make_shard(tmp_path / "a.tar", {f"{n}.jpg": b"x" * size for n, size in enumerate(sizes)})
    run = Run(tmp_path, tmp_path / "a.tar")
    _, _, tars = run.write(tmp_path / "out", max_shard_bytes=5000, samples_per_shard=3)
    taken = [[512 + -(-len(c) // 512) * 512 for c in tar_members(tar).values()] for tar in tars]
    assert [len(t) for t in taken] == [2, 2, 1, 3, 1]
    assert all(sum(t) <= 5000 or len(t) == 1 for t in taken)
    _, _, tars = run.write(tmp_path / "wish", max_shard_bytes=5000, min_shards=9)
    assert len(tars) == 9


def test_no_rows_give_no_file(three, tmp_path):
    """And the same facts as ever, of nothing."""
    columns, facts, tars = three.write(tmp_path / "out", [])
    assert columns == {"output_shard": [], "output_key": []}
    assert tars == list((tmp_path / "out").iterdir()) == []
    assert facts == {"shards": 0, "samples": 0, "bytes": 0, "uniform": True, "remarks": []}


def test_beside_each_tar_lie_its_rows_and_its_counts(three, tmp_path):
    """As img2dataset lays them, with the way back to the ledger; `00000_stats.json` is the only JSON there is."""
    columns, _, tars = three.write(tmp_path / "out", samples_per_shard=6)
    rows = pq.read_table(tars[0].with_suffix(".parquet")).to_pylist()
    assert [row["key"] for row in rows] == columns["output_key"][:6]
    assert {row["status"] for row in rows} == {"success"}
    images = tar_members(tars[0])
    assert [hashlib.sha256(images[f"{row['key']}.jpg"]).hexdigest() for row in rows] == [r["sha256"] for r in rows]
    assert [(row["in_shard"], row["in_key"]) for row in rows] == [
        (row["shard"], row["key"]) for row in three.kept.slice(0, 6).to_pylist()
    ]
    assert [row["nsfw_score"] for row in rows] == three.kept.column("nsfw_score").to_pylist()[:6]
    names = sorted(p.name for p in tars[0].parent.iterdir())
    assert names == [f"0000{n}{end}" for n in (0, 1) for end in (".parquet", ".tar", "_stats.json")]
    stats = json.loads((tars[1].parent / "00001_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["status_dict"]) == (4, 4, {"success": 4})


def test_an_image_that_is_another_by_now_is_never_written(three, tmp_path):
    """Under the same size and time: its hash tells. The shard is named, so that it is looked at anew; no tar is left."""
    path = tmp_path / "in/1.tar"
    status, content = path.stat(), bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(InputChanged, match=r"in/1\.tar: 000010\.jpg is not the image that was measured") as caught:
        three.write(tmp_path / "out")
    assert caught.value.shard == str(path)
    assert list((tmp_path / "out/shards").iterdir()) == []


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_an_input_that_was_touched_or_went_is_said(tmp_path, kind):
    """Before anything is written."""
    path = tmp_path / ("in/0.tar" if kind == "tar" else "in/000003.txt")
    if kind == "tar":
        make_shard(path, make_samples(4))
    else:
        path.parent.mkdir()
        for name, content in make_samples(4).items():
            (path.parent / name).write_bytes(content)
    run = Run(tmp_path, tmp_path / "in")
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputChanged, match="changed since it was measured"):
        run.write(tmp_path / "touched")
    path.unlink()
    with pytest.raises(InputChanged):
        run.write(tmp_path / "gone")
    assert not list(tmp_path.glob("*/shards/*"))


def test_an_input_that_changes_while_it_is_written_is_said(tmp_path):
    """A caption has no hash of its own: the look behind the last tar notices."""
    (tmp_path / "in").mkdir()
    for name, content in make_samples(4).items():
        (tmp_path / "in" / name).write_bytes(content)
    run = Run(tmp_path, tmp_path / "in")

    def each(fn, items):
        for item in items:
            yield fn(item)
            (tmp_path / "in/000000.txt").write_bytes(b"other")

    with pytest.raises(InputChanged, match="changed since it was measured"):
        run.write(tmp_path / "out", each=each)


def test_different_members_and_few_shards_are_remarked(tmp_path):
    """In sentences for the end of the run."""
    members = {**{f"{n:02d}.jpg": make_image(n) for n in range(9)}, "03.txt": b"caption"}
    make_shard(tmp_path / "a.tar", dict(sorted(members.items())))
    _, facts, _ = Run(tmp_path, tmp_path / "a.tar").write(tmp_path / "out")
    assert facts["remarks"] == [
        "samples have different members (jpg; jpg txt): webdataset reads them, Hugging Face's loader wants the same "
        "members in all; write.split_by_suffix=true gives each kind its own shards",
        "1 shard: no more readers than that can share the work; write.min_shards=N makes more",
    ]


def test_no_key_leaves_as_a_path_from_the_root():
    """As `/abs`, which tar would strip with a warning."""
    assert output_keys([b"/abs/x", b"./y", b"//z"]) == [b"abs/x", b"y", b"z"]
