"""Tars as samples: members belong together by key wherever they lie, pieces are cut by the shard alone, bytes by place."""

from __future__ import annotations

import os
import tarfile

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.errors import Cause
from curator.formats import reader_of
from curator.formats.base import Member, Sample, Shard
from curator.formats.pieces import PIECE, cut, grouped, piece_content, split_key
from curator.formats.webdataset import AT_ONCE, GAP, runs
from tests.conftest import SHARED
from tests.tars import offset_of, special, tar_of


def shard_of(tmp_path, content, name="a.tar"):
    """A tar on disk."""
    (tmp_path / name).write_bytes(content)
    return Shard(name, str(tmp_path / name), "webdataset", len(content))


def indexed(tmp_path, members, **options):
    """The index of a tar of these members."""
    shard = shard_of(tmp_path, tar_of(members, **options))
    return reader_of(shard).index(shard, 1 << 28)


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        (b"a.jpg", b"a", b"jpg"),
        (b"a.left.JPG", b"a", b"left.JPG"),
        (b"v1.0/cat.jpg", b"v1.0/cat", b"jpg"),
        (b"a", b"a", b""),
        (b".hidden.png", b".hidden", b"png"),
        (b"v1.0/README", b"v1.0/README", b""),
        (b"caf\xe9.jpg", b"caf\xe9", b"jpg"),
    ],
)
def test_the_key_ends_at_the_first_dot_of_the_base_name(name, key, suffix):
    """Folders are part of it, dots in their names are not its end, and a name that is not UTF-8 is one all the same."""
    assert split_key(name) == (key, suffix)
    assert Sample(key, ()).suffix_of(Member(name, 0, 0)) == suffix


def test_a_dot_that_begins_a_name_ends_no_key():
    """webdataset drops such members without a word."""
    assert split_key(b"a/.hidden") == (b"a/.hidden", b"")


@pytest.mark.parametrize("path", sorted(SHARED.glob("data/*/*.tar")), ids=lambda p: p.stem)
def test_keys_and_suffixes_are_those_of_webdataset(path):
    """Wherever webdataset gives a sample at all, it has the same key, members and bytes here."""
    shard = Shard(path.name, str(path), "webdataset")
    reader = reader_of(shard)
    mine = {}
    for sample in reader.index(shard, 1 << 28).samples:
        contents = reader.read(shard, sample.members)
        for member, content in zip(sample.members, contents, strict=True):
            mine.setdefault(sample.key.decode(), {})[sample.suffix_of(member).decode().lower()] = content
    for theirs in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False):
        members = {name: content for name, content in theirs.items() if not name.startswith("__")}
        assert {name: mine[theirs["__key__"]][name] for name in members} == members


def test_members_join_their_key_wherever_they_lie(tmp_path):
    """webdataset makes two samples of a key whose members do not stand together; the place is the first member's."""
    index = indexed(tmp_path, [("b.jpg", b"1"), ("a.jpg", b"2"), ("a.txt", b"3"), ("b.txt", b"4"), ("b.json", b"5")])
    assert [(s.key, [m.name for m in s.members]) for s in index.samples] == [
        (b"b", [b"b.jpg", b"b.txt", b"b.json"]),
        (b"a", [b"a.jpg", b"a.txt"]),
    ]


def test_a_suffix_that_the_sample_has_already_begins_another_of_the_same_key(tmp_path):
    """Both are told; later members join the later one; `JPG` and `jpg` are two suffixes."""
    names = ["x.jpg", "x.txt", "y.jpg", "x.jpg", "x.json", "y.JPG"]
    index = indexed(tmp_path, [(name, b"") for name in names])
    assert [(s.key, [m.name for m in s.members], s.notes) for s in index.samples] == [
        (b"x", [b"x.jpg", b"x.txt"], ("duplicate_key",)),
        (b"y", [b"y.jpg", b"y.JPG"], ()),
        (b"x", [b"x.jpg", b"x.json"], ("duplicate_key",)),
    ]


def test_samples_of_an_archive_that_was_joined_on_carry_a_note(tmp_path):
    """One sample may reach over the seam: then it carries the note as well."""
    parts = [[("a.jpg", b"1"), ("b.jpg", b"2")], [("b.txt", b"3"), ("c.jpg", b"4")]]
    shard = shard_of(tmp_path, b"".join(tar_of(part) for part in parts))
    found = reader_of(shard).index(shard, 1 << 28)
    assert {s.key: s.notes for s in found.samples} == {b"a": (), b"b": ("joined_archive",), b"c": ("joined_archive",)}
    assert found.damage is None


def test_all_damage_of_a_shard_is_one_sentence_with_every_place(tmp_path):
    """It becomes one failed row of the whole shard."""
    content = bytearray(tar_of([(f"{n}.jpg", b"x" * 600) for n in range(6)], end=False))
    places = [offset_of(bytes(content), name) for name in ("1.jpg", "4.jpg")]
    for place in places:
        content[place + 5] ^= 0x41
    shard = shard_of(tmp_path, bytes(content), "00012.tar")
    damage = reader_of(shard).index(shard, 1 << 28).damage
    assert damage is not None
    assert damage.cause == Cause.DAMAGED_AT_OFFSET
    assert damage.detail == (
        f"00012.tar: bad header at byte {places[0]:,}: 1,536 bytes skipped, reading goes on at byte 3,072; "
        f"bad header at byte {places[1]:,}: 1,536 bytes skipped, reading goes on at byte 7,680; "
        "ends at byte 9,216 with no end-of-archive blocks; it may be cut short. 4 members read"
    )


def test_a_shard_that_is_not_there_is_an_error_of_the_system_and_not_damage(tmp_path):
    """The caller says whose shard it was."""
    shard = Shard("gone.tar", str(tmp_path / "gone.tar"), "webdataset")
    with pytest.raises(FileNotFoundError):
        reader_of(shard).index(shard, 1)


def test_members_are_read_by_place_in_any_order_and_choice(tmp_path):
    """As tarfile extracts them: empty ones, large ones, neighbours, backwards, twice."""
    sizes = [0, 1, 511, 512, 513, GAP + 1, AT_ONCE + 700, 3]
    members = [(f"{n}.jpg", os.urandom(size)) for n, size in enumerate(sizes)]
    shard = shard_of(tmp_path, tar_of(members))
    found = [m for s in reader_of(shard).index(shard, 1 << 28).samples for m in s.members]
    with tarfile.open(shard.path) as tar:
        truth = {name: tar.extractfile(name).read() for name in tar.getnames()}
    for chosen in (found, found[::-1], found[::3], [found[2]] * 3, []):
        assert list(reader_of(shard).read(shard, chosen)) == [truth[m.name.decode()] for m in chosen]


def test_neighbours_come_in_one_read_and_no_read_is_large(tmp_path):
    """A thousand small members are a handful of reads; one between two chosen ones is read along."""
    index = indexed(tmp_path, [(f"{n:04d}.jpg", b"x" * 20_000) for n in range(1000)])
    members = [m for s in index.samples for m in s.members]
    together = list(runs(members))
    assert [m for run in together for m in run] == members
    assert len(together) == 3
    assert all(run[-1].offset + run[-1].size - run[0].offset <= AT_ONCE for run in together)
    assert len(list(runs(members[::2]))) == 3
    assert len(list(runs([members[0], members[999]]))) == 2


def test_a_tar_that_was_cut_since_is_an_error_that_names_it(tmp_path):
    """Never bytes of another length than the index says."""
    shard = shard_of(tmp_path, tar_of([("a.jpg", b"x" * 5000), ("b.jpg", b"y" * 5000)]))
    members = [m for s in reader_of(shard).index(shard, 1 << 28).samples for m in s.members]
    os.truncate(shard.path, 7000)
    with pytest.raises(OSError, match=r"a\.tar: ends before byte"):
        list(reader_of(shard).read(shard, members))


def test_the_stamp_changes_with_size_and_time(tmp_path):
    """And with nothing else: it is taken at every run."""
    shard = shard_of(tmp_path, tar_of([("a.jpg", b"x")]))
    reader = reader_of(shard)
    before = reader.stamp(shard)
    assert reader.stamp(shard) == before
    os.utime(shard.path, ns=(1, 1))
    assert reader.stamp(shard) != before


@pytest.mark.parametrize("count", [0, 1, PIECE, PIECE + 1, 3 * PIECE])
def test_a_tar_is_cut_after_every_full_piece(count):
    """Appending leaves the earlier pieces as they were."""
    assert cut([Sample(b"%d" % n, ()) for n in range(count)]) == list(range(0, count, PIECE))


def test_what_a_piece_holds_is_its_members_and_nothing_of_their_headers(tmp_path):
    """Times, owners and formats of a tar change nothing; a name, a byte, an order or a fault does."""

    def content(members, **options):
        shard = shard_of(tmp_path, tar_of(members, **options))
        found = reader_of(shard).index(shard, 600).samples
        readable = [m for s in found for m in s.members if m.fault is None]
        return piece_content(found, reader_of(shard).read(shard, readable))

    plain = [("a.jpg", b"one"), ("b.jpg", b"two")]
    same = content(plain)
    assert content(plain, form=tarfile.PAX_FORMAT, end=False) == same
    others = [
        [("c.jpg", b"one"), ("b.jpg", b"two")],
        [("a.jpg", b"onf"), ("b.jpg", b"two")],
        plain[::-1],
        plain[:1],
        [("a.jpg", b"onet"), ("b.jpg", b"wo")],
        [("a.jpg", b"o" * 601), ("b.jpg", b"two")],
        [("a.jpg", b"p" * 601), ("b.jpg", b"two")],
    ]
    assert same not in {content(members) for members in others}
    assert content(others[-1]) == content(others[-2])  # what is too large to be read is known by its size only


def test_a_link_is_known_by_its_kind(tmp_path):
    """A file that takes the place of a link of its name is another content."""
    link = shard_of(tmp_path, special("a.jpg", tarfile.SYMTYPE, "b.jpg") + tar_of([]))
    sample = reader_of(link).index(link, 1 << 28).samples[0]
    file = Sample(sample.key, (Member(b"a.jpg", 512, 0),))
    assert piece_content([sample], iter(())) != piece_content([file], iter((b"",)))


NAMES = st.lists(st.sampled_from([f"{k}.{s}" for k in "abcd" for s in ("jpg", "txt", "json")]), max_size=30)


@settings(max_examples=200, deadline=None)
@given(NAMES)
def test_grouping_loses_no_member_and_no_sample_has_a_suffix_twice(names):
    """Whatever the order: each member is in one sample of its key, and samples stand in order of their first members."""
    members = [Member(name.encode(), n, 1) for n, name in enumerate(names)]
    samples = grouped((m, ()) for m in members)
    assert sorted((m for s in samples for m in s.members), key=lambda m: m.offset) == members
    assert [s.members[0].offset for s in samples] == sorted(s.members[0].offset for s in samples)
    for sample in samples:
        assert {split_key(m.name)[0] for m in sample.members} == {sample.key}
        assert len({split_key(m.name)[1] for m in sample.members}) == len(sample.members)
        repeated = sum(other.key == sample.key for other in samples) > 1
        assert ("duplicate_key" in sample.notes) == repeated
