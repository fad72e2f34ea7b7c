"""Fetching weights: whole or not at all, from where it broke off, and in words where it cannot be."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from curator.errors import WeightsError
from curator.models.fetch import fetch
from curator.models.published import NSFW_L_14
from curator.models.weights import Fetchable, ensure, find
from tests.conftest import shared
from tests.mirror import ZIP, Server, a_mirror, an_empty_home, served  # noqa: F401  # two of them are fixtures

pytestmark = pytest.mark.usefixtures("home")


def test_a_file_is_fetched_checked_and_named(server: Server, tmp_path: Path) -> None:
    """What is fetched has the published hash, and no `.part` is left beside it."""
    file = served(server)
    path = fetch(file, tmp_path / "models")
    assert path.read_bytes() == server.files["/a.safetensors"]
    assert sorted(p.name for p in path.parent.iterdir() if not p.name.startswith(".")) == ["a.safetensors"]
    assert fetch(file, tmp_path / "models") == path
    assert len(server.asked) == 1, "a file that is there is not fetched again"


def test_a_download_that_broke_off_goes_on_where_it_ended(server: Server, tmp_path: Path) -> None:
    """Of 1.7 GB nobody wants to fetch the first one twice."""
    file = served(server)
    server.cuts = [1_000_000, 500_000]
    fetch(file, tmp_path)
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_download_goes_on_in_the_next_run(server: Server, tmp_path: Path) -> None:
    """A killed run leaves a `.part`, and the next one asks for the rest."""
    file = served(server)
    (tmp_path / "a.safetensors.part").write_bytes(server.files["/a.safetensors"][:2_000_000])
    assert fetch(file, tmp_path).read_bytes() == server.files["/a.safetensors"]
    assert server.asked == [("/a.safetensors", "bytes=2000000-")]


def test_a_part_of_something_else_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    """What another run began may be another file: its end is not glued to ours."""
    file = served(server)
    (tmp_path / "a.safetensors.part").write_bytes(b"something else")
    assert fetch(file, tmp_path).read_bytes() == server.files["/a.safetensors"]


def test_a_whole_part_needs_no_byte_more(server: Server, tmp_path: Path) -> None:
    """A run killed between the last byte and the rename fetches nothing again."""
    file = served(server)
    (tmp_path / "a.safetensors.part").write_bytes(server.files["/a.safetensors"])
    assert fetch(file, tmp_path).read_bytes() == server.files["/a.safetensors"]


def test_a_server_without_ranges_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    """A server that ignores the range answers 200: the file begins anew and is right."""
    file, server.ranges, server.cuts = served(server), False, [1_000_000]
    assert fetch(file, tmp_path).read_bytes() == server.files["/a.safetensors"]


def test_the_wrong_bytes_never_get_the_name(server: Server, tmp_path: Path) -> None:
    """Another hash: refused, thrown away, with both hashes and what to do."""
    file = served(server)
    server.files["/a.safetensors"] = b"a page that asks to log in"
    with pytest.raises(WeightsError, match=f"{file.sha256} is expected.* Put it there."):
        fetch(file, tmp_path, "Put it there.")
    assert not list(tmp_path.glob("a.safetensors*"))


def test_a_body_that_stays_short_is_an_error(server: Server, tmp_path: Path) -> None:
    """A connection that ends early four times in a row is told as such, and nothing gets the name."""
    file, server.cuts = served(server), [10, 10, 10, 10]
    with pytest.raises(WeightsError, match="could not be fetched"):
        fetch(file, tmp_path)
    assert not (tmp_path / "a.safetensors").exists()
    assert (tmp_path / "a.safetensors.part").stat().st_size == 40, "the next run goes on from there"


def test_a_missing_page_is_told_at_once(server: Server, tmp_path: Path) -> None:
    """404 does not get better by asking again."""
    file = served(server)
    server.files.clear()
    with pytest.raises(WeightsError, match=r"answered 404\. Put it there\."):
        fetch(file, tmp_path, "Put it there.")
    assert len(server.asked) == 1


def test_offline_the_error_says_file_source_and_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path
) -> None:
    """No server: which file, from where, where to put it."""
    monkeypatch.setenv("CURATOR_WEIGHTS_URL", "http://127.0.0.1:1")
    with pytest.raises(WeightsError) as caught:
        ensure(find(NSFW_L_14, None))
    for part in (NSFW_L_14.files[0].name, NSFW_L_14.files[0].sha256, NSFW_L_14.files[0].url, str(tmp_path / "cache")):
        assert part in str(caught.value)


def test_a_folder_that_cannot_be_written_is_explained(server: Server, tmp_path: Path) -> None:
    """The disk's refusals are told in words, as everywhere."""
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match="cannot be written"):
        fetch(served(server), tmp_path / "models")


def test_two_processes_fetch_a_file_once(server: Server, tmp_path: Path) -> None:
    """Two workers that start together do not write into each other's download."""
    file = served(server)
    threads = [threading.Thread(target=fetch, args=(file, tmp_path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1


def test_missing_weights_are_fetched_into_the_cache(server: Server, tmp_path: Path) -> None:
    """Without a `model_dir` a published file is fetched, and found there from then on."""
    official = shared("heads/official/nsfw_clip_autokeras_binary_nsfw.zip")
    server.files[f"/{ZIP}"] = official.read_bytes()
    missing = find(NSFW_L_14, None)
    assert isinstance(missing, Fetchable)
    assert ensure(missing) == tmp_path / "cache" / "models" / NSFW_L_14.id / ZIP
    assert find(NSFW_L_14, None).path == ensure(missing)
