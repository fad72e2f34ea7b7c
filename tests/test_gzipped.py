"""Gzip'd tars: read as the tar in them is, damage told with what was whole before it, and no bomb goes off."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pytest

from curator import FilePartitioningStage, ImageReaderStage, ImageWriterStage
from curator.errors import Cause
from curator.formats import gzipped
from curator.formats.files import opened
from curator.formats.tar import TarIndex, index_tar
from tests.conftest import make_image, make_samples, make_shard, tar_members, tree
from tests.stages import Brightness
from tests.tars import tar_of

LIMIT = 1 << 28
STAGES = (FilePartitioningStage(), ImageReaderStage(), Brightness(score_threshold=0.5), ImageWriterStage())


def members(count: int, largest: int = 60_000) -> list[tuple[str, bytes]]:
    """So many files of random bytes, which gzip cannot shrink."""
    rng = np.random.default_rng(1)
    return [(f"{n:04d}.jpg", rng.bytes(int(rng.integers(1, largest)))) for n in range(count)]


def indexed(path: Path, content: bytes, growth: float = 100) -> TarIndex:
    """What stands in a file of this content."""
    path.write_bytes(content)
    return index_tar(str(path), LIMIT, growth)


def test_a_gzipd_tar_gives_the_rows_and_the_bytes_of_the_tar_in_it(pipeline, tmp_path):
    """People have both; what is written of them is the same to the byte, and so is the ledger but for the name."""
    tar = make_shard(tmp_path / "plain/a.tar", make_samples(30))
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/a.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    plain = pipeline(STAGES, input=tmp_path / "plain", output=tmp_path / "out", store=tmp_path / "s1")
    packed = pipeline(STAGES, input=tmp_path / "packed", output=tmp_path / "out2", store=tmp_path / "s2")
    assert 0 < len(plain) < 30
    assert [*tree(tmp_path / "out", "shards")] == [*tree(tmp_path / "out2", "shards")]
    assert (tmp_path / "out/shards/00000.tar").read_bytes() == (tmp_path / "out2/shards/00000.tar").read_bytes()
    assert packed.ledger.drop_columns("shard") == plain.ledger.drop_columns("shard")
    assert set(packed.ledger["shard"].to_pylist()) == {str(tmp_path / "packed/a.tar.gz")}
    kept = tar_members(tar)
    assert all(kept[name] == content for name, content in tar_members(tmp_path / "out2/shards/00000.tar").items())


def test_a_packed_and_a_plain_copy_share_what_is_measured(pipeline, tmp_path):
    """A measurement's address is the content's, not the packing's."""
    tar = make_shard(tmp_path / "a.tar", make_samples(5))
    (tmp_path / "b.tgz").write_bytes(gzip.compress(tar.read_bytes()))
    pipeline(STAGES, input=tar)
    assert pipeline(STAGES, input=tmp_path / "b.tgz", output=tmp_path / "o2").run["work"]["decoded"] == 0


def test_bytes_come_from_any_place_in_any_order(tmp_path, monkeypatch):
    """Forward and backward, across marks, with few of them kept."""
    monkeypatch.setattr(gzipped, "EVERY", 1 << 19)
    monkeypatch.setattr(gzipped, "MARKS", 4)
    held = members(250)
    content = tar_of(held)
    assert len(content) > 12 * gzipped.EVERY
    found = indexed(tmp_path / "a.tgz", gzip.compress(content, 1))
    assert [m.name.decode() for m, _ in found.members] == [name for name, _ in held]
    order = list(range(len(held)))
    random.Random(2).shuffle(order)
    with opened(str(tmp_path / "a.tgz"), 100) as file:
        for n in [*order, *range(len(held))]:
            member = found.members[n][0]
            assert file.pread(member.offset, member.size) == held[n][1]
        assert file.pread(len(content) - 5, 100) == bytes(5)
        assert file.pread(len(content), 1) == b""


def test_several_gzip_members_are_one_file(tmp_path):
    """As pigz and `cat a.gz b.gz` leave them, also with zeros behind."""
    content = tar_of(members(20))
    cut = [gzip.compress(content[a : a + 100_000]) for a in range(0, len(content), 100_000)]
    found = indexed(tmp_path / "a.tar.gz", b"".join(cut) + bytes(3000))
    assert len(found.members) == 20
    assert not found.faults
    found = indexed(tmp_path / "a.tar.gz", b"".join(cut) + b"what is this")
    assert len(found.members) == 20
    assert [text for _, text in found.faults] == ["12 bytes behind the gzip stream are no gzip"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_stream_that_is_cut_short_gives_what_was_whole(tmp_path, share):
    """Every member whose last byte came through is a sample, and the rest is told with its place."""
    held = members(60)
    content = tar_of(held)
    packed = gzip.compress(content, 1)
    cut = packed[: int(share * (len(packed) - 30)) + 2]
    found = indexed(tmp_path / "a.tgz", cut)
    whole = [m for m, _ in index_of_plain(tmp_path, content).members if m.offset + m.size <= unpacked_bytes(cut)]
    assert [m for m, _ in found.members] == whole
    assert found.faults[0][0] is Cause.TRUNCATED
    assert f"breaks off at byte {len(cut):,} of the packed file" in found.faults[0][1]


def index_of_plain(place: Path, content: bytes) -> TarIndex:
    """The tar as it would be found unpacked."""
    return indexed(place / "plain.tar", content)


def unpacked_bytes(packed: bytes) -> int:
    """How much zlib itself gets out of a stream that is cut short."""
    import zlib

    return len(zlib.decompressobj(wbits=31).decompress(packed))


def test_a_damaged_stream_gives_what_lies_before_the_damage(tmp_path):
    """A flipped bit in the middle: the members before it are samples, also those of the step that failed."""
    held = members(60)
    content = tar_of(held)
    packed = bytearray(gzip.compress(content, 6))
    middle = len(packed) // 2
    packed[middle : middle + 64] = bytes(64)
    found = indexed(tmp_path / "a.tgz", bytes(packed))
    assert found.faults[0][0] is Cause.CORRUPT
    ends = [m.offset + m.size for m, _ in index_of_plain(tmp_path, content).members]
    certain = sum(end < 0.45 * len(content) for end in ends)
    assert len(found.members) >= certain > 10


def test_a_wrong_checksum_is_told(tmp_path):
    """All members come through, and somebody changed one of them."""
    packed = bytearray(gzip.compress(tar_of(members(5)), 0))  # stored, so that a byte can change unseen
    packed[2000] ^= 1
    found = indexed(tmp_path / "a.tgz", bytes(packed))
    assert len(found.members) == 5
    assert "incorrect data check" in found.faults[0][1]


def test_a_bomb_is_stopped_at_the_limit(pipeline, tmp_path):
    """A megabyte that would unpack to 160 MiB: a row of the shard, and what lay before it is used."""
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", 1) as file:
        file.write(tar_of([("a.jpg", make_image(1)), ("b.jpg", make_image(2))], end=False))
        for _ in range(160):
            file.write(bytes(1 << 20))
    result = pipeline(STAGES, input=tmp_path / "bomb.tar.gz")
    rows = result.ledger.to_pylist()
    assert [row["key"] for row in rows] == ["a", "b", None]
    assert rows[2]["cause"] == "expands_too_far"
    assert "`read.max_growth`" in rows[2]["reason"]
    reader = ImageReaderStage(max_growth=2000)
    again = pipeline((STAGES[0], reader, *STAGES[2:]), input=tmp_path / "bomb.tar.gz")
    assert "expands_too_far" not in again.ledger["cause"].to_pylist(), "another limit looks at the shard again"
    assert again.run["work"]["decoded"] == 0


def test_a_small_tar_may_shrink_as_it_likes(tmp_path):
    """Tars end on zeros: ten kilobytes of them pack into fifty bytes, and that is no bomb."""
    found = indexed(tmp_path / "a.tgz", gzip.compress(tar_of([("a.txt", b"x")])), growth=2)
    assert not found.faults
    assert len(found.members) == 1


@pytest.mark.parametrize(
    ("content", "cause", "said"),
    [
        (gzip.compress(b""), Cause.EMPTY_FILE, "no bytes"),
        (b"", Cause.EMPTY_FILE, "no bytes"),
        (gzip.compress(gzip.compress(tar_of([("a.jpg", b"x")]))), Cause.UNREADABLE, "compressed with gzip"),
        (b"BZh9" + bytes(600), Cause.UNREADABLE, "compressed with bzip2"),
        (b"\x1f\x8b\x08\xff" + bytes(600), Cause.CORRUPT, "unknown header flags"),
    ],
    ids=["packed nothing", "nothing", "packed twice", "bzip2", "bad header"],
)
def test_what_is_no_gzipd_tar_is_said(tmp_path, content, cause, said):
    """Nothing, twice packed, something else: never an exception."""
    found = indexed(tmp_path / "a.tar.gz", content)
    assert found.faults[0][0] is cause
    assert said in found.faults[0][1]


def test_a_tar_that_only_says_it_is_packed_is_read(tmp_path):
    """Some programs name every tar .tgz."""
    assert len(indexed(tmp_path / "a.tgz", tar_of(members(3))).members) == 3


def test_gzipd_tars_in_a_folder_are_shards_of_their_own(pipeline, tmp_path):
    """Beside plain ones and images."""
    tar = make_shard(tmp_path / "in/b.tar", make_samples(2))
    (tmp_path / "in/a.tgz").write_bytes(gzip.compress(make_shard(tmp_path / "t.tar", make_samples(2, 5)).read_bytes()))
    (tmp_path / "in/c.jpg").write_bytes(make_image(9))
    result = pipeline(STAGES, input=tmp_path / "in")
    names = dict.fromkeys(result.ledger["shard"].to_pylist())
    assert [*names] == [str(tmp_path / "in/a.tgz"), str(tar), str(tmp_path / "in")]
    assert result.counts["inputs"] == 5
