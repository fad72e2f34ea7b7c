"""Folders: every image is a row, what stands beside it under its stem is a member, nothing is read twice or followed out."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile

import pytest
from PIL import Image

from curator.errors import Cause
from curator.formats import reader_of
from curator.formats.base import Shard
from curator.formats.pieces import PIECE
from tests.conftest import make_image, shared
from tests.odd_files import encoded

LIMIT = 1 << 20


def lay(root, *names):
    """Files below a folder, images but for those whose suffix says words; the folder as a shard."""
    for name in names:
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix.lower()
        path.write_bytes(b"words" if suffix in (".txt", ".json", ".csv", ".log") else make_image(len(name)))
    return Shard(str(root), str(root), "folder")


def index(shard, limit=LIMIT):
    """The index of a folder."""
    return reader_of(shard).index(shard, limit)


def keys(shard):
    """Its keys with the names of their members."""
    return {s.key.decode(): [m.name.decode() for m in s.members] for s in index(shard).samples}


def test_images_are_rows_by_relative_path_to_the_bottom(tmp_path):
    """In lexicographic order of the paths, so that the order does not depend on the disk."""
    shard = lay(tmp_path, "z.jpg", "a/2.png", "a/b/1.JPG", "a.jpg", "a-b.webp")
    assert list(keys(shard)) == ["a-b", "a", "a/2", "a/b/1", "z"]
    assert [s.members[0].name for s in index(shard).samples] == [
        b"a-b.webp",
        b"a.jpg",
        b"a/2.png",
        b"a/b/1.JPG",
        b"z.jpg",
    ]


def test_all_that_bears_an_images_stem_goes_along_whatever_it_is(tmp_path):
    """Captions, labels, boxes: a sample leaves as it came. What belongs to no image is counted."""
    shard = lay(tmp_path, "a.jpg", "a.txt", "a.json", "a.csv", "b.JPG", "b.TXT", "alone.txt", "deep/a.txt")
    assert keys(shard) == {"a": ["a.jpg", "a.csv", "a.json", "a.txt"], "b": ["b.JPG", "b.TXT"]}
    assert index(shard).passed_over == 2


def test_two_images_of_one_stem_keep_their_suffix_and_share_what_stands_beside(tmp_path):
    """Each is a row of its own; another stem is not touched by it."""
    shard = lay(tmp_path, "a.jpg", "a.png", "a.txt", "b.png")
    assert keys(shard) == {"a.jpg": ["a.jpg", "a.txt"], "a.png": ["a.png", "a.txt"], "b": ["b.png"]}


def test_an_image_under_an_unknown_suffix_or_none_is_told_by_its_bytes(tmp_path):
    """And a known suffix makes a row of whatever is in it, which then fails with a reason."""
    lay(tmp_path, "a.img", "plain", "b.dat", "note.log")
    (tmp_path / "b.dat").write_bytes(b"no image")
    (tmp_path / "broken.jpg").write_bytes(b"")
    shard = lay(tmp_path)
    assert list(keys(shard)) == ["a", "broken", "plain"]
    assert index(shard).passed_over == 2


def test_dots_in_names_are_no_ends_of_keys(tmp_path):
    """Only the last suffix goes: `photo.2024.jpg` and `photo.2025.jpg` are two."""
    assert list(keys(lay(tmp_path, "v1.0/photo.2024.jpg", "v1.0/photo.2025.jpg"))) == [
        "v1.0/photo.2024",
        "v1.0/photo.2025",
    ]


def test_dot_names_are_passed_over_and_counted_with_all_that_is_below_them(tmp_path):
    """Thumbnails and rubbish of other programs are no images of the collection."""
    shard = lay(tmp_path, "a.jpg", ".a.jpg", ".thumbs/a.jpg", ".thumbs/b.jpg")
    assert list(keys(shard)) == ["a"]
    assert index(shard).passed_over == 2


def test_tars_and_folders_that_are_no_input_are_left_out(tmp_path):
    """A tar in a folder is a shard of its own; output and store may lie under an input."""
    lay(tmp_path, "a.jpg", "out/b.jpg", "link/c.jpg")
    (tmp_path / "d.TAR").write_bytes(make_image(1))
    shard = Shard(str(tmp_path), str(tmp_path), "folder", skip=(os.path.realpath(tmp_path / "out"),))
    assert list(keys(shard)) == ["a", "link/c"]


def test_links_to_folders_are_not_followed_and_links_to_files_are(tmp_path):
    """A folder that links to its own parent would never end; caches of downloads link to their files."""
    (tmp_path / "in").mkdir()
    lay(tmp_path, "store/x.jpg")
    shard = lay(tmp_path / "in", "a.jpg")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/b.jpg").symlink_to(tmp_path / "store/x.jpg")
    (tmp_path / "in/nothing.jpg").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "in/pipe.jpg")
    assert list(keys(shard)) == ["a", "b", "nothing"]


def test_names_that_are_not_utf8_are_read_as_they_are(tmp_path):
    """The bytes of the name are the key."""
    shard = lay(tmp_path, b"caf\xe9.jpg", b"caf\xe9.txt")
    sample = index(shard).samples[0]
    assert sample.key == b"caf\xe9"
    assert [m.name for m in sample.members] == [b"caf\xe9.jpg", b"caf\xe9.txt"]
    assert list(reader_of(shard).read(shard, sample.members))[1] == b"words"


def test_a_file_above_the_limit_is_a_fault_of_its_row(tmp_path):
    """It is never read."""
    shard = lay(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").write_bytes(bytes(LIMIT + 1))
    members = [s.members[0] for s in index(shard).samples]
    assert [m.fault for m in members] == [None, Cause.MEMBER_TOO_LARGE]
    assert "limit 1.0 MiB (`read.max_member_bytes`)" in members[1].detail


def test_a_piece_ends_where_the_hash_of_a_key_says(tmp_path):
    """So one file more among thousands moves the borders of the piece that it falls into and of no other."""
    image = encoded(Image.new("RGB", (2, 2)), "BMP")
    for n in range(3000):
        (tmp_path / f"{n:06d}.bmp").write_bytes(image)
    before = index(lay(tmp_path))
    first = [before.samples[n].key for n in before.pieces]
    hashed = {s.key for s in before.samples if hashlib.sha256(s.key).digest()[0] == 0}
    assert hashed <= set(first)
    assert max(b - a for a, b in zip(before.pieces, [*before.pieces[1:], 3000], strict=True)) <= PIECE
    (tmp_path / "001500a.bmp").write_bytes(image)
    after = index(lay(tmp_path))
    pieces = [{s.key for s in found.samples[a:b]} for found in (before, after) for a, b in bounds(found)]
    assert sum(pieces.count(piece) == 2 for piece in pieces) >= len(pieces) - 4


def bounds(found):
    """First and behind-last sample of each piece."""
    return zip(found.pieces, [*found.pieces[1:], len(found.samples)], strict=True)


@pytest.mark.parametrize("change", ["touch", "grow", "add", "remove", "rename"])
def test_the_stamp_feels_every_change_below(tmp_path, change):
    """Size, time and name of every file, however deep; of chosen members only theirs."""
    shard = lay(tmp_path, "a.jpg", "deep/b.jpg", "deep/c.jpg")
    reader = reader_of(shard)
    first = index(shard).samples[0].members
    before, of_first = reader.stamp(shard), reader.stamp(shard, first)
    path = tmp_path / "deep/b.jpg"
    match change:
        case "touch":
            os.utime(path, ns=(1, 1))
        case "grow":
            path.write_bytes(path.read_bytes() + b"x")
        case "add":
            lay(tmp_path, "deep/d.jpg")
        case "remove":
            path.unlink()
        case "rename":
            path.rename(tmp_path / "deep/e.jpg")
    assert reader.stamp(shard) != before
    assert reader.stamp(shard, first) == of_first


def test_a_file_that_changed_its_size_or_went_is_an_error_that_names_it(tmp_path):
    """Never bytes of another length than the index says."""
    shard = lay(tmp_path, "a.jpg", "b.jpg")
    members = [s.members[0] for s in index(shard).samples]
    (tmp_path / "a.jpg").write_bytes(b"other")
    with pytest.raises(OSError, match=r"a\.jpg has another size"):
        list(reader_of(shard).read(shard, members))
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        list(reader_of(shard).read(shard, members[1:]))
    with pytest.raises(FileNotFoundError):
        reader_of(shard).stamp(shard, members[1:])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_told(tmp_path):
    """A file is a failed row, a folder is damage of the shard; the rest is read."""
    shard = lay(tmp_path, "a.jpg", "b.jpg", "closed/c.jpg")
    (tmp_path / "b.jpg").chmod(0)
    (tmp_path / "closed").chmod(0)
    found = index(shard)
    (tmp_path / "closed").chmod(0o755)
    assert [s.members[0].fault for s in found.samples] == [None, Cause.UNREADABLE]
    assert found.damage is not None
    assert "closed" in found.damage.detail


def test_a_real_folder_has_a_row_for_each_of_its_files(tmp_path):
    """Photos, each with the caption and the json of its name."""
    source = shared("data/neardup/neardup-00000.tar")
    subprocess.run(["tar", "-xf", source, "-C", tmp_path], check=True)
    with tarfile.open(source) as tar:
        names = tar.getnames()
    shard = Shard(str(tmp_path), str(tmp_path), "folder")
    found = index(shard)
    assert sorted(m.name.decode() for s in found.samples for m in s.members) == sorted(names)
    assert found.passed_over == 0


def test_a_link_to_nothing_is_a_failed_row_and_a_link_in_a_circle_is_one(tmp_path):
    """Sets kept with git-annex are links, some to files that are not there: those must not vanish without a word."""
    shard = lay(tmp_path, "good.jpg")
    os.symlink("/nowhere/b.jpg", tmp_path / "gone.jpg")
    os.symlink("circle.jpg", tmp_path / "circle.jpg")
    os.symlink("/nowhere", tmp_path / "no_image")
    found = index(shard)
    assert [(s.key, s.members[0].fault) for s in found.samples] == [
        (b"circle", Cause.UNREADABLE),
        (b"gone", Cause.UNREADABLE),
        (b"good", None),
    ]
    assert '"/nowhere/b.jpg", which is not there' in found.samples[1].members[0].detail
    stamp = reader_of(shard).stamp(shard)
    (tmp_path / "gone.jpg").unlink()
    assert reader_of(shard).stamp(shard) != stamp


def test_a_pipe_is_never_opened(tmp_path):
    """It would never end."""
    shard = lay(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert list(keys(shard)) == ["a"]
