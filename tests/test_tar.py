"""Tars: every member is found, every damage is told with its offset, nothing is followed and nothing ends silently."""

from __future__ import annotations

import gzip
import random
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from curator.errors import Cause
from curator.formats.tar import TarIndex, index_tar
from tests.conftest import SHARED, shared
from tests.tars import BLOCK, offset_of, pax, sparse, special, tar_of, with_checksum

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
    content[at : at + BLOCK] = with_checksum(bytes(content[at : at + BLOCK]))
    found = index(tmp_path, bytes(content))
    assert names(found) == ["000.jpg", "002.jpg"]
    assert found.faults


@pytest.mark.parametrize("digits", [b"9" * 30, b"9" * 4_000, b"9" * 5_000, b"-512", b"", b"1e9"])
def test_a_size_in_a_pax_record_that_no_file_has_is_damage(tmp_path, digits):
    """Python reads no number of more than 4,300 digits and shows none of more than 308: neither may end a run."""
    head = special("a.jpg", tarfile.REGTYPE)
    found = index(tmp_path, pax(size=digits) + head + tar_of(MEMBERS[:2]))
    assert names(found) == ["000.jpg", "001.jpg"]
    assert [cause for cause, _ in found.faults] == [Cause.DAMAGED_AT_OFFSET]
    found = index(tmp_path, pax(GNU__sparse__realsize=digits) + head + tar_of(MEMBERS[:2]))
    assert names(found) == ["000.jpg", "001.jpg"]
    assert found.members[0][0].fault == Cause.MEMBER_TOO_LARGE


@pytest.mark.parametrize(
    "options", [["--format=gnu"], *(["--format=posix", f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0"))]
)
def test_a_sparse_file_of_gnu_tar_is_one_fault_and_no_damage(tmp_path, options):
    """Sixty pieces of data between holes fill several blocks of maps; the member behind them is read."""
    with open(tmp_path / "holes.jpg", "wb") as file:
        for piece in range(60):
            file.seek(piece << 20)
            file.write(b"x" * 4096)
    (tmp_path / "z.jpg").write_bytes(b"z" * 900)
    command = ["tar", "--sparse", *options, "-cf", "t.tar", "holes.jpg", "z.jpg"]
    subprocess.run(command, cwd=tmp_path, check=True)
    found = index_tar(str(tmp_path / "t.tar"), 1 << 30)
    assert [(m.name, m.fault) for m, _ in found.members] == [
        (b"holes.jpg", Cause.MEMBER_TOO_LARGE),
        (b"z.jpg", None),
    ]
    assert "59.0 MiB" in found.members[0][0].detail
    assert found.faults == []


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_behind_a_damaged_header_gnu_tars_members_are_found_in_each_format(tmp_path, form):
    """Archives of the seventh edition have no magic to search for."""
    for name, content in MEMBERS:
        (tmp_path / name).write_bytes(content)
    command = ["tar", f"--format={form}", "-cf", "t.tar", *(name for name, _ in MEMBERS)]
    subprocess.run(command, cwd=tmp_path, check=True)
    content = bytearray((tmp_path / "t.tar").read_bytes())
    with tarfile.open(tmp_path / "t.tar") as tar:
        content[tar.getmember("007.jpg").offset_data - BLOCK + 5] ^= 0x41
    found = index(tmp_path, bytes(content))
    assert names(found) == [name for name, _ in MEMBERS if name != "007.jpg"]
    assert [cause for cause, _ in found.faults] == [Cause.DAMAGED_AT_OFFSET]


def test_old_checksums_over_signed_bytes_are_right(tmp_path):
    """tarfile reads both sums."""
    info = tarfile.TarInfo("größe.jpg")
    head = with_checksum(info.tobuf(tarfile.USTAR_FORMAT, encoding="latin-1"), signed=True)
    found = index(tmp_path, head + tar_of(MEMBERS[:1]))
    with tarfile.open(tmp_path / "t.tar", encoding="latin-1") as tar:
        assert tar.getnames() == ["größe.jpg", "000.jpg"]
    assert [m.name.decode("latin-1") for m, _ in found.members] == ["größe.jpg", "000.jpg"]
    assert found.faults == []


@pytest.mark.parametrize("kind", [b"Q", b"M"])
def test_a_kind_that_nobody_knows_is_passed_over_with_its_data(tmp_path, kind):
    """Its bytes are no header, and no damage."""
    info = tarfile.TarInfo("a.bin")
    info.type, info.size = kind, 700
    found = index(tmp_path, info.tobuf(tarfile.USTAR_FORMAT) + b"d" * 1024 + tar_of(MEMBERS[:1]))
    assert [m.fault for m, _ in found.members] == [Cause.SPECIAL_MEMBER, None]
    assert found.faults == []


def test_a_label_and_lists_of_directories_are_passed_over(tmp_path):
    """What `tar --label --listed-incremental` adds is no member."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"a" * 700)
    command = ["tar", "--label=backup", "--listed-incremental=state", "-cf", "t.tar", "photos"]
    subprocess.run(command, cwd=tmp_path, check=True)
    found = index_tar(str(tmp_path / "t.tar"), LIMIT)
    assert names(found) == ["photos/a.jpg"]
    assert (len(found.members), found.directories, found.faults) == (1, 2, [])


def test_a_long_name_belongs_to_the_next_member_only(tmp_path):
    """An archive that ends behind one, joined to another, must not rename the other's first member."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 6
    head = info.tobuf(tarfile.GNU_FORMAT) + b"wrong\0".ljust(BLOCK, b"\0")
    assert names(index(tmp_path, head + bytes(2 * BLOCK) + tar_of(MEMBERS[:1]))) == ["000.jpg"]


def test_a_name_ends_at_its_first_zero_byte(tmp_path):
    """As for every program written in C; else a name could show as one thing and be written as another."""
    found = index(tmp_path, pax(path=b"a.jpg\0/../b.png") + tar_of(MEMBERS[:1]))
    assert names(found) == ["a.jpg"]


def test_holes_of_a_file_are_not_read(tmp_path):
    """4 TB of nothing behind a tar, or behind garbage, cost no time."""
    begin = time.monotonic()
    for content, members in ((tar_of(MEMBERS[:2]), 2), (b"garbage " * 64, 0)):
        (tmp_path / "t.tar").write_bytes(content)
        with open(tmp_path / "t.tar", "r+b") as file:
            file.truncate(4 << 40)
        assert len(index_tar(str(tmp_path / "t.tar"), LIMIT).members) == members
    assert time.monotonic() - begin < 60


def test_damage_at_every_second_header_takes_seconds(tmp_path):
    """A search that reads on far at each would take hours."""
    good, bad = special("a.jpg", tarfile.REGTYPE), bytearray(special("b.jpg", tarfile.REGTYPE))
    bad[5] ^= 0x41
    begin = time.monotonic()
    found = index(tmp_path, (bytes(bad) + good) * 10_000 + bytes(2 * BLOCK))
    assert len(found.members) == len(found.faults) == 10_000
    assert "and 9,992 more" in found.damage("a.tar").detail
    assert time.monotonic() - begin < 60


def test_whatever_is_broken_members_lie_in_the_file_and_do_not_overlap(tmp_path):
    """500 tars with bytes flipped, blocks zeroed, parts cut out or repeated: never an exception, never an endless walk."""
    rng = random.Random(0)
    whole = tar_of([*MEMBERS[:8], ("n" * 150 + ".jpg", b"long")], form=tarfile.GNU_FORMAT)
    whole += pax(path="größe.jpg".encode()) + sparse("s.jpg", 1 << 40) + tar_of(MEMBERS[8:12], form=tarfile.PAX_FORMAT)
    for _ in range(500):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at, blocks = rng.randrange(len(content)), rng.randint(1, 4) * BLOCK
            match rng.randrange(4):
                case 0:
                    content[at] ^= 1 << rng.randrange(8)
                case 1:
                    content[at : at + blocks] = bytes(min(blocks, len(content) - at))
                case 2:
                    del content[at : at + blocks]
                case 3:
                    content[at:at] = content[at - at % BLOCK : at - at % BLOCK + blocks]
            content = content or bytearray(1)
        found = index(tmp_path, bytes(content))
        end = 0
        for member in (m for m, _ in found.members if m.fault is None):
            assert end <= member.offset
            end = member.offset + member.size
        assert end <= len(content)


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
