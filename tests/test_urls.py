"""Lists of URLs as input: fetched once, kept as they came, each failure a row, and then ordinary images."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator import FilePartitioningStage, ImageReaderStage, ImageWriterStage
from curator.errors import ConfigError
from tests.conftest import make_image, tar_members
from tests.servers import Site, reply, serving

QUICK = {"allow_private_addresses": True, "retries": 0, "per_host_per_s": 1e6}


@pytest.fixture(name="site")
def a_site() -> Iterator[Site]:
    """Three pictures, and things that are none."""
    with serving() as site:
        for n in range(3):
            site.answers[f"/{n}.jpg"] = reply(200, make_image(n))
        site.answers["/page"] = reply(200, b"<html>", "text/html")
        site.answers["/mine.jpg"] = reply(200, make_image(8), X_Robots_Tag="noai")
        site.answers["/down.jpg"] = reply(503, b"")
        yield site


def stages(**download):
    return [FilePartitioningStage(), ImageReaderStage(download={**QUICK, **download}), ImageWriterStage()]


def test_every_url_is_a_row_and_what_came_leaves_byte_for_byte(pipeline, site, tmp_path):
    """img2dataset's column names; captions and all other columns go along; failures say why."""
    paths = ["/0.jpg", "/gone.jpg", "/1.jpg", "/page", "/mine.jpg", "/2.jpg"]
    urls = [site.url + path for path in paths] + [None]
    table = pa.table({"URL": urls, "TEXT": [f"picture {n}" for n in range(7)], "punsafe": [n / 10 for n in range(7)]})
    pq.write_table(table, tmp_path / "urls.parquet")
    result = pipeline(stages(), input=tmp_path / "urls.parquet")
    rows = result.ledger.to_pylist()
    assert [(row["status"], row["cause"]) for row in rows] == [
        ("kept", None), ("failed", "not_found"), ("kept", None), ("failed", "not_an_image_type"),
        ("dropped", "opted_out"), ("kept", None), ("failed", "no_image"),
    ]  # fmt: skip
    assert [row["in_URL"] for row in rows] == urls
    assert rows[5]["in_punsafe"] == 0.5
    assert result.run["counts"]["by_stage"] == {"read": {"dropped": 1, "failed": 3}}
    members = tar_members(tmp_path / "out/shards/00000.tar")
    assert [members[f"00000000{n}.jpg"] for n in (0, 2, 5)] == [make_image(n) for n in range(3)]
    assert members["000000002.txt"] == b"picture 2"


def test_a_rerun_asks_for_what_may_have_passed_and_for_nothing_else(pipeline, site, tmp_path):
    """A list that grew asks for what is new; a moved list for nothing."""
    listed = ["/0.jpg", "/down.jpg", "/gone.jpg"]
    (tmp_path / "urls.txt").write_text("\n".join(site.url + path for path in listed))
    assert pipeline(stages(), input=tmp_path / "urls.txt").counts["failed"] == 2
    (tmp_path / "urls.txt").rename(tmp_path / "more.txt")
    site.asked.clear()
    site.answers["/down.jpg"] = reply(200, make_image(9))
    result = pipeline(stages(), input=tmp_path / "more.txt")
    assert (result.counts["kept"], result.counts["failed"]) == (2, 1)
    assert site.targets() == ["/down.jpg"]
    with open(tmp_path / "more.txt", "a") as file:
        file.write(f"\n{site.url}/1.jpg\n")
    site.asked.clear()
    result = pipeline(stages(), input=tmp_path / "more.txt")
    assert (result.counts["kept"], site.targets()) == (3, ["/1.jpg"])
    site.asked.clear()
    pipeline(stages(retry=["not_found"]), input=tmp_path / "more.txt")
    assert site.targets() == ["/gone.jpg"]
    site.asked.clear()
    again = pipeline(stages(), input=tmp_path / "more.txt")
    assert (site.targets(), again.unchanged) == ([], True)


def test_a_plain_list_of_urls_takes_any_line(pipeline, site, tmp_path):
    """CASES 6 (img2dataset #208): commas, an `&amp;` copied from HTML, a blank line, Windows's line ends."""
    site.answers |= {path: reply(200, make_image(n)) for n, path in enumerate(["/a,b.jpg", "/c.jpg?x=1&y=2", "/d.jpg"])}
    lines = [f"{site.url}/a,b.jpg", f"{site.url}/c.jpg?x=1&amp;y=2", "", f"{site.url}/d.jpg"]
    (tmp_path / "urls.txt").write_bytes("\r\n".join(lines).encode())
    result = pipeline(stages(), input=tmp_path / "urls.txt")
    assert (result.counts["inputs"], result.counts["kept"]) == (3, 3)


def test_urls_keep_the_spelling_that_they_were_given_in(pipeline, site, tmp_path):
    """CASES 7: letters of other scripts, a space, what is encoded already."""
    asked = ["/%C3%B1.jpg", "/%EC%82%AC%EC%A7%84.jpg", "/a%20b.jpg", "/c%20d.jpg", "/%C3%B1.jpg?2"]
    given = ["/\u00f1.jpg", "/\uc0ac\uc9c4.jpg", "/a b.jpg", "/c%20d.jpg", "/%C3%B1.jpg?2"]
    site.answers |= {path: reply(200, make_image(n)) for n, path in enumerate(asked)}
    (tmp_path / "urls.csv").write_text("url\n" + "".join(f"{site.url}{path}\n" for path in given))
    ledger = pipeline(stages(), input=tmp_path / "urls.csv").ledger
    assert ledger.column("status").to_pylist() == ["kept"] * 5
    assert ledger.column("in_url").to_pylist() == [site.url + path for path in given]


def test_private_addresses_are_refused_by_default_and_files_always(pipeline, site, tmp_path):
    """The loopback server is one; nothing is asked."""
    (tmp_path / "urls.txt").write_text(f"{site.url}/0.jpg\nfile:///etc/passwd\nftp://a/b.jpg\n")
    result = pipeline(stages(allow_private_addresses=False), input=tmp_path / "urls.txt")
    assert result.ledger.column("cause").to_pylist() == ["address_refused", "bad_scheme", "bad_scheme"]
    assert site.targets() == []


def test_wrong_settings_of_fetching_are_told_by_name():
    """As everywhere: which, what it must be, what was meant."""
    with pytest.raises(ConfigError, match=r"^read\.download: timeout: no such setting\. Did you mean timeout_s\?$"):
        ImageReaderStage(download={"timeout": 3})
    with pytest.raises(ConfigError, match=r"^read\.download: concurrency: must be at least 1, not 0"):
        ImageReaderStage(download={"concurrency": 0})


def test_the_command_fetches_and_says_so(curate, site, tmp_path):
    """With settings as they are typed."""
    (tmp_path / "urls.txt").write_text("\n".join(f"{site.url}/{n}.jpg" for n in range(3)))
    given = ("input=urls.txt", "output=out", "stages=[partition,read,write]", "read.download.allow_private_addresses=true")
    ran = curate(*given, "read.download.contact=me@example.org")
    assert ran.code == 0, ran.said
    assert "fetching: 3 of 3 images" in ran.err
    assert "3 in = 3 kept + 0 dropped + 0 failed" in ran.out
    assert "me@example.org" in site.asked[0].headers["User-Agent"]
