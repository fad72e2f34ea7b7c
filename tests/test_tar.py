"""Tars: every member is found, every damage is told with its offset, nothing is followed and nothing ends silently."""

from __future__ import annotations

import gzip
import tarfile
import time
from pathlib import Path

import pytest

from curator.errors import Cause
from curator.formats.tar import TarIndex, index_tar
from tests.conftest import SHARED, shared
from tests.tars import BLOCK, offset_of, sparse, special, tar_of

MEMBERS = [(f"{n:03d}.jpg", bytes([n]) * (400 + 300 * n)) for n in range(20)]
LIMIT = 1 << 20


def index(tmp_path: Path, content: bytes, limit: int = LIMIT) -> TarIndex:
    """The index of a tar with this content."""
    path = tmp_path / "t.tar"
    path.write_bytes(content)
    return index_tar(str(path), limit)


def names(found: TarIndex) -> list[str]:
    """The names of members that may be read."""
    return [m.name.decode() for m, _ in found.members if m.fault is None]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_lie_where_tarfile_says(tmp_path, form):
    """Names, offsets and sizes agree with Python's own reader in all three formats, long names and all."""
    members = [*MEMBERS, ("a" * 90 + "/" + "b" * 140 + ".jpg", b"x" * 700), ("größe.png", b"y")]
    content = tar_of(members, form=form if form != tarfile.USTAR_FORMAT else tarfile.GNU_FORMAT)
    found = index(tmp_path, content)
    with tarfile.open(tmp_path / "t.tar") as tar:
        truth = [(m.name.encode(), m.offset_data, m.size) for m in tar]
    assert [(m.name, m.offset, m.size) for m, _ in found.members] == truth
    assert found.faults == []


@pytest.mark.parametrize("path", sorted(SHARED.glob("data/*/*.tar")), ids=lambda p: p.stem)
def test_real_tars_read_as_tarfile_reads_them(path):
    """The same members in every ready-made tar of the shared data."""
    found = index_tar(str(path), 1 << 28)
    with tarfile.open(path) as tar:
        truth = [(m.name.encode(), m.offset_data, m.size) for m in tar if m.isreg()]
    assert [(m.name, m.offset, m.size) for m, _ in found.members] == truth
    assert not found.faults


@pytest.mark.parametrize("victim", range(1, 19))
def test_a_damaged_header_costs_its_member_and_is_told(tmp_path, victim):
    """Python's tarfile ends there without a word; here the members behind it are read and the offset is named."""
    content = bytearray(tar_of(MEMBERS))
    at = offset_of(bytes(content), MEMBERS[victim][0])
    content[at + 5] ^= 0x41
    found = index(tmp_path, bytes(content))
    assert names(found) == [name for n, (name, _) in enumerate(MEMBERS) if n != victim]
    assert [cause for cause, _ in found.faults] == [Cause.DAMAGED_AT_OFFSET]
    assert f"byte {at:,}" in found.faults[0][1]


@pytest.mark.parametrize("victim", range(1, 19, 3))
def test_a_zeroed_header_is_not_taken_for_the_end(tmp_path, victim):
    """A block of zeros between members ends other readers silently."""
    content = bytearray(tar_of(MEMBERS))
    at = offset_of(bytes(content), MEMBERS[victim][0])
    content[at : at + BLOCK] = bytes(BLOCK)
    found = index(tmp_path, bytes(content))
    assert names(found) == [name for n, (name, _) in enumerate(MEMBERS) if n != victim]
    assert found.faults


def test_archives_joined_end_to_end_are_read_to_the_end(tmp_path):
    """`cat a.tar b.tar` loses b in most readers; the members of b carry a note."""
    found = index(tmp_path, tar_of(MEMBERS[:3]) + tar_of(MEMBERS[3:]))
    assert names(found) == [name for name, _ in MEMBERS]
    assert found.faults == []
    assert [notes for _, notes in found.members] == [()] * 3 + [("joined_archive",)] * 17


def test_every_cut_of_a_tar_is_told(tmp_path):
    """Cut at each block: what was whole is read, and unless nothing is missing, something is said."""
    content = tar_of(MEMBERS[:6])
    with_end = len(tar_of(MEMBERS[:6], end=False)) + BLOCK
    for cut in range(0, len(content), BLOCK):
        found = index(tmp_path, content[:cut])
        whole = [name for name, data in MEMBERS[:6] if offset_of(content, name) + BLOCK + len(data) <= cut]
        assert names(found) == whole, cut
        assert bool(found.faults) == (cut < with_end), cut


def test_links_devices_and_pipes_are_never_followed(tmp_path):
    """They are members that must not be read, whatever they point at."""
    kinds = [
        (tarfile.SYMTYPE, "../../etc/passwd"),
        (tarfile.LNKTYPE, "a.jpg"),
        (tarfile.CHRTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ]
    content = b"".join(special(f"{n}.jpg", kind, target) for n, (kind, target) in enumerate(kinds)) + tar_of(
        MEMBERS[:1]
    )
    found = index(tmp_path, content)
    assert [m.fault for m, _ in found.members] == [Cause.LINK_MEMBER] * 2 + [Cause.SPECIAL_MEMBER] * 2 + [None]


def test_a_sparse_member_that_claims_seven_gigabytes_is_not_read(tmp_path):
    """2 KB of tar; tarfile calls it a regular file and runs out of memory."""
    found = index(tmp_path, sparse("big.jpg", 7 << 30) + tar_of(MEMBERS[:1]))
    member = found.members[0][0]
    assert member.fault == Cause.MEMBER_TOO_LARGE
    assert "7.0 GiB" in member.detail
    assert names(found) == ["000.jpg"]


def test_a_member_above_the_limit_is_marked_and_the_next_is_read(tmp_path):
    """The limit is `read.max_member_bytes`."""
    found = index(tmp_path, tar_of([("a.jpg", b"x" * 3000), ("b.jpg", b"y" * 10)]), limit=1000)
    assert found.members[0][0].fault == Cause.MEMBER_TOO_LARGE
    assert "max_member_bytes" in found.members[0][0].detail
    assert names(found) == ["b.jpg"]


def test_a_negative_size_ends_in_bounded_time(tmp_path):
    """The pattern of CVE-2025-8194: an offset that moves backwards must not loop."""
    content = bytearray(tar_of(MEMBERS[:3]))
    at = offset_of(bytes(content), "001.jpg")
    content[at + 124 : at + 136] = (-512).to_bytes(12, "big", signed=True)
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + BLOCK])
    found = index(tmp_path, bytes(content))
    assert names(found) == ["000.jpg", "002.jpg"]
    assert found.faults


@pytest.mark.parametrize("content", [b"", b"not a tar" * 500, bytes(4096), gzip.compress(tar_of(MEMBERS[:2]))])
def test_what_is_no_tar_is_said(tmp_path, content):
    """Nothing, garbage, zeros, a compressed tar: never an exception."""
    found = index(tmp_path, content)
    assert found.members == []
    assert bool(found.faults) == (content != bytes(4096))


def test_a_hundred_thousand_empty_members_take_seconds(tmp_path):
    """Other readers sleep half a second at each."""
    content = b"".join(special(f"{n}.jpg", tarfile.REGTYPE) for n in range(100_000)) + bytes(1024)
    begin = time.monotonic()
    assert len(index(tmp_path, content).members) == 100_000
    assert time.monotonic() - begin < 60


def test_the_golden_tar_has_its_members():
    """A tar of another maker, with images of every mode."""
    assert len(index_tar(str(shared("golden/preprocess.tar")), 1 << 28).members) == 25
