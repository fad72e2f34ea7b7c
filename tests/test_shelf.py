"""What was fetched stays, whole or not at all: reruns, grown lists, kills, damage."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curator.download import DownloadSettings, Place, Shelf, download
from curator.download.fetch import Body
from curator.download.shelf import Batch, Settled, held
from curator.errors import Cause, Fault, OutsideError, StoreError
from tests.conftest import make_image
from tests.servers import Site, reply, serving

QUICK = {"allow_private_addresses": True, "back_off_s": 0.01, "per_host_per_s": 1e6, "images_per_tar": 10}
IMAGES = [make_image(n, form=("JPEG", "PNG", "WEBP")[n % 3]) for n in range(35)]


@pytest.fixture(name="site")
def a_site() -> Iterator[Site]:
    """A server with 35 images of three formats."""
    with serving() as site:
        site.answers |= {f"/{n}": reply(200, image) for n, image in enumerate(IMAGES)}
        yield site


def run(urls: list[str], folder: Path, **changes: Any) -> list[Place | Fault]:
    """Download, and what became of it."""
    download(urls, folder, DownloadSettings(**{**QUICK, **changes}), lambda **_: None)
    return Shelf(folder).look(urls)


def urls_of(site: Site, count: int = len(IMAGES)) -> list[str]:
    """The first images' URLs."""
    return [f"{site.url}/{n}" for n in range(count)]


def content(place: Place | Fault) -> bytes:
    """The bytes that lie where a place says."""
    assert isinstance(place, Place), place
    with open(place.tar, "rb") as file:
        file.seek(place.offset)
        return file.read(place.size)


def whole(folder: Path) -> int:
    """Read every tar as tarfile does and hold it against its table; gives the number of members."""
    count = 0
    for path in sorted(folder.glob("*.tar")):
        rows = [row for row in pq.read_table(path.with_suffix(".parquet")).to_pylist() if row["tar"] == path.name]
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert path.stat().st_size % 10_240 == 0
            for row, member in zip(rows, members, strict=True):
                file = tar.extractfile(member)
                assert file is not None
                assert hashlib.sha256(file.read()).hexdigest() == row["sha256"]
                assert (row["offset"], row["size"]) == (member.offset_data, member.size)
                assert member.name.startswith(hashlib.sha256(row["url"].encode()).hexdigest() + ".")
        count += len(members)
    assert not list(folder.glob(".tmp-*"))
    return count


def test_what_was_fetched_lies_in_tars_that_anything_reads(site: Site, tmp_path: Path) -> None:
    """Full tars of so many images, members named by their URL's hash and their own format, bytes as they came."""
    found = run(urls_of(site), tmp_path)
    assert [content(place) for place in found] == IMAGES
    assert whole(tmp_path) == len(IMAGES)
    assert [p.name for p in sorted(tmp_path.glob("*.tar"))] == [f"{n:05d}.tar" for n in range(4)]
    with tarfile.open(tmp_path / "00000.tar") as tar:
        assert {name.rpartition(".")[2] for name in tar.getnames()} == {"jpg", "png", "webp"}


def test_a_tar_is_not_larger_than_it_may_be(site: Site, tmp_path: Path) -> None:
    """By bytes as by count; what is alone larger than that has a tar of its own."""
    run(urls_of(site), tmp_path, bytes_per_tar=6_000)
    assert whole(tmp_path) == len(IMAGES)
    for path in tmp_path.glob("*.tar"):
        with tarfile.open(path) as tar:
            assert len(tar.getnames()) == 1 or sum(512 + -(-m.size // 512) * 512 for m in tar) <= 6_000


def test_a_large_body_waits_in_a_file(site: Site, tmp_path: Path) -> None:
    """What is larger than a megabyte is not held in memory, and arrives all the same."""
    large = IMAGES[0] + os.urandom(3_000_000)
    site.answers["/large"] = reply(200, large)
    assert content(run([f"{site.url}/large"], tmp_path)[0]) == large


def test_the_same_url_is_fetched_once(site: Site, tmp_path: Path) -> None:
    """Twice in a list, and in the next run; both rows find the same bytes."""
    urls = urls_of(site, 2) * 3
    assert len({(place.tar, place.offset) for place in run(urls, tmp_path) if isinstance(place, Place)}) == 2
    run(urls, tmp_path)
    assert sorted(site.targets()) == ["/0", "/1"]


def test_connections_are_kept(site: Site, tmp_path: Path) -> None:
    """Thirty-five images over one connection."""
    run(urls_of(site), tmp_path, concurrency=1)
    assert site.connections == 1


def test_of_a_list_that_grew_only_the_new_is_fetched(site: Site, tmp_path: Path) -> None:
    """And what was there lies where it lay."""
    before = run(urls_of(site, 12), tmp_path)
    after = run(urls_of(site), tmp_path)
    assert after[:12] == before
    assert len(site.asked) == len(IMAGES)
    assert whole(tmp_path) == len(IMAGES)


def test_a_rerun_tries_what_may_have_passed(site: Site, tmp_path: Path) -> None:
    """By default what was the server's or the line's fault; or all, or none, or the causes that are named."""
    gone, ill, good = f"{site.url}/gone", f"{site.url}/ill", f"{site.url}/0"
    site.answers["/ill"] = reply(500)
    urls = [gone, ill, good]

    def asked(**changes: Any) -> list[str]:
        site.asked.clear()
        run(urls, tmp_path, retries=0, **changes)
        return sorted(site.targets())

    assert asked() == ["/0", "/gone", "/ill"]
    assert asked() == ["/ill"]
    assert asked(retry="never") == []
    assert asked(retry="all") == ["/gone", "/ill"]
    assert asked(retry=["not_found"]) == ["/gone"]
    assert asked(retry="server_error") == ["/ill"]
    site.answers["/ill"] = site.answers["/gone"] = reply(200, IMAGES[1])
    assert asked(retry="all") == ["/gone", "/ill"]
    assert asked(retry="all") == []
    table = pq.read_table(sorted(tmp_path.glob("*.parquet"))[-1]).to_pydict()
    assert dict(zip(table["url"], table["attempts"], strict=True)) == {gone: 4, ill: 5}


def test_a_url_that_nobody_asked_for_is_told(tmp_path: Path) -> None:
    """Also where there is no folder yet."""
    [found] = Shelf(tmp_path / "none").look(["http://pictures.example/a.jpg"])
    assert isinstance(found, Fault)
    assert found.cause == Cause.NOT_FETCHED


def test_a_tar_that_went_missing_or_was_cut_is_fetched_again(site: Site, tmp_path: Path) -> None:
    """A table is not believed about bytes that are not there."""
    run(urls_of(site), tmp_path)
    (tmp_path / "00000.tar").unlink()
    os.truncate(tmp_path / "00001.tar", 5_000)
    assert sum(isinstance(found, Fault) for found in Shelf(tmp_path).look(urls_of(site))) > 10
    site.asked.clear()
    assert [content(place) for place in run(urls_of(site), tmp_path)] == IMAGES
    assert 10 < len(site.asked) <= 20


@pytest.mark.parametrize("how", ["flip", "cut", "empty"])
def test_a_damaged_table_is_set_aside(how: str, site: Site, tmp_path: Path) -> None:
    """Nothing of it is believed, nothing is thrown away, and its URLs are fetched again."""
    run(urls_of(site, 20), tmp_path)
    path = tmp_path / "00000.parquet"
    whole_table = path.read_bytes()
    at = len(whole_table) // 4
    flipped = whole_table[:at] + bytes([whole_table[at] ^ 1]) + whole_table[at + 1 :]
    path.write_bytes({"flip": flipped, "cut": whole_table[:-50], "empty": b""}[how])
    site.asked.clear()
    assert [content(place) for place in run(urls_of(site, 20), tmp_path)] == IMAGES[:20]
    assert len(site.asked) == 10
    assert sorted(p.name for p in (tmp_path / "damaged").iterdir()) == ["00000.parquet", "00000.tar"]
    assert whole(tmp_path) == 20


def test_a_tar_without_its_table_does_not_count(site: Site, tmp_path: Path) -> None:
    """A kill between the two commits: the tar goes, and its URLs are fetched again."""
    run(urls_of(site, 20), tmp_path)
    (tmp_path / "00001.parquet").unlink()
    site.asked.clear()
    assert [content(place) for place in run(urls_of(site, 20), tmp_path)] == IMAGES[:20]
    assert len(site.asked) == 10
    assert whole(tmp_path) == 20


class Killed(BaseException):
    """Stands for SIGKILL at one system call: nothing behind it happens."""


def test_sealing_killed_at_every_step_leaves_whole_tars_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever rename or sync a kill falls on, each URL has its bytes or none, and the next run clears the rest."""
    counts = []
    for step in range(100):
        folder = tmp_path / str(step)
        folder.mkdir()
        killed = _killed_at(step, folder, monkeypatch)
        with held(folder):
            found = Shelf(folder).look([str(n) for n in range(12)])
        counts.append(whole(folder))
        assert [content(f) for f in found if isinstance(f, Place)] == IMAGES[: counts[-1]]
        if not killed:
            break
    assert counts == sorted(counts)
    assert set(counts) == {0, 4, 8, 12}
    assert len(counts) > 18, "three batches of two files, each with two syncs and a rename"


def _killed_at(step: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    calls = 0

    def dying(call: Any) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > step:
                raise Killed
            return call(*args, **options)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "fsync"):
            patch.setattr(os, name, dying(getattr(os, name)))
        try:
            for number in range(3):
                batch = Batch(folder, number)
                for n in range(number * 4, number * 4 + 4):
                    body = Body(folder)
                    body.add(IMAGES[n])
                    batch.add(Settled(str(n), body))
                batch.seal()
        except Killed:
            return True
    return False


def test_two_runs_do_not_fetch_into_one_folder(site: Site, tmp_path: Path) -> None:
    """The second is told, and nothing is mixed."""
    with held(tmp_path), pytest.raises(StoreError, match="another run fetches into it"):
        run(urls_of(site, 1), tmp_path)


SCRIPT = """
import resource, sys
from pathlib import Path
from curator.download import DownloadSettings, download
folder, count, url, limit = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
settings = DownloadSettings(allow_private_addresses=True, images_per_tar=10, per_host=2, per_host_per_s=1e6)
download([f"{url}/{n}" for n in range(int(count))], Path(folder), settings, lambda **_: None)
"""


def started(site: Site, folder: Path, limit: int = 0) -> subprocess.Popen[str]:
    """The same download in a process of its own."""
    arguments = [str(folder), str(len(IMAGES)), site.url, str(limit)]
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stderr=subprocess.PIPE, text=True)


def until(site: Site, count: int) -> None:
    """Wait for so many requests."""
    ends = time.monotonic() + 60
    while len(site.asked) < count and time.monotonic() < ends:
        time.sleep(0.005)


@pytest.mark.parametrize("after", [1, 14, 23, 34])
def test_a_killed_run_goes_on(after: int, site: Site, tmp_path: Path) -> None:
    """kill -9 anywhere: what was sealed stays and is not asked for again, what was not leaves no trace."""
    site.answers |= {f"/{n}": [0.02, *reply(200, image)] for n, image in enumerate(IMAGES)}
    process = started(site, tmp_path)
    until(site, after)
    process.kill()
    process.wait()
    sealed = sum(isinstance(found, Place) for found in Shelf(tmp_path).look(urls_of(site)))
    assert sealed >= (after - 10) // 10 * 10
    assert not sealed % 10
    site.asked.clear()
    assert [content(place) for place in run(urls_of(site), tmp_path)] == IMAGES
    assert len(site.asked) == len(IMAGES) - sealed
    assert whole(tmp_path) == len(IMAGES)


def test_an_interrupted_run_keeps_what_it_has(site: Site, tmp_path: Path) -> None:
    """Ctrl-C: also the tar that was not full is sealed."""
    site.answers["/20"] = [60.0]
    process = started(site, tmp_path)
    until(site, 21)
    while sum(isinstance(found, Place) for found in Shelf(tmp_path).look(urls_of(site))) < 10:
        time.sleep(0.01)
    until(site, 30)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    assert whole(tmp_path) > 20
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_disk_that_takes_no_more_is_told(site: Site, tmp_path: Path) -> None:
    """A file that may not grow: the run ends with a sentence, nothing half is left, and the next run goes on."""
    site.answers["/20"] = reply(200, IMAGES[20] + bytes(300_000))
    process = started(site, tmp_path, limit=100_000)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "OutsideError" in said
    assert "00002.tar: cannot be written: the file would be larger than this system allows" in said
    assert whole(tmp_path) == 20
    run(urls_of(site), tmp_path)
    assert whole(tmp_path) == len(IMAGES)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """Before anything is fetched."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutsideError, match="cannot be written"):
        run([], tmp_path / "file" / "web")


def test_it_runs_where_a_loop_runs_already(site: Site, tmp_path: Path) -> None:
    """As in a notebook, whose own loop has the thread."""
    import asyncio

    async def cell() -> list[Place | Fault]:
        return run(urls_of(site, 3), tmp_path)

    assert [content(place) for place in asyncio.run(cell())] == IMAGES[:3]


def test_more_connections_than_the_system_allows_are_told_before_the_first(tmp_path: Path) -> None:
    """Else each URL beyond would fail for a reason that is not its own."""
    code = """
import resource
from pathlib import Path
from curator.download import DownloadSettings, download
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 2000))
download([], Path("web"), DownloadSettings(concurrency=1500), lambda **_: None)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
download([], Path("web"), DownloadSettings(concurrency=5000), lambda **_: None)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.stdout == "1756\n"
    assert "concurrency: 5,000 needs 5,256 open files, and this system allows 2,000 (ulimit -n). At most 1,744" in ran.stderr
