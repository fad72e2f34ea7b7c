"""What goes wrong out there is one sentence, soon; and no secret is shown or saved."""

from __future__ import annotations

import os
import re
import shlex
import time

import pytest

from curator import remote
from curator.errors import ConfigError, RemoteError
from curator.settings import checked
from tests.conftest import ROOT
from tests.remote.conftest import KEYS, stages


def test_a_bucket_that_is_not_there_is_said(pipeline, bucket, shards, tmp_path):
    """Input, output and store: each in one line, all at once, before any work."""
    nowhere = "s3://no-such-bucket-anywhere"
    with pytest.raises(ConfigError) as caught:
        pipeline(stages(), input=f"{nowhere}/in", output=f"{nowhere}/out", store=f"{nowhere}/st")
    assert len(caught.value.mistakes) == 3
    assert all(f"there is no bucket {nowhere}" in line for line in caught.value.mistakes)
    with pytest.raises(ConfigError, match="names nothing that is there"):
        pipeline(stages(), input=f"{bucket.url}/nothing/*.tar")
    with pytest.raises(ConfigError, match="names nothing that is there"):
        pipeline(stages(), input=f"{bucket.url}/nothing")
    with pytest.raises(ConfigError, match=r"is a table or holds vectors\. Copy it to this machine"):
        pipeline(stages(), input=bucket.put("list.parquet", b"PAR1"))


def test_a_server_that_does_not_answer_is_said_soon(pipeline, bucket, monkeypatch):
    """One line that names it, and not minutes of trying."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"{bucket.url}/in: cannot be reached at 127.0.0.1:1"):
        pipeline(stages(), input=f"{bucket.url}/in")
    assert time.monotonic() - began < 60


def test_a_bucket_that_may_not_be_read_or_written_is_said(pipeline, bucket, shards, tmp_path):
    """403 on reading is a mistake before any work; on writing it is found before anything is measured."""
    bucket.server.refuse = lambda _, path: "/in" in path or "in%2F" in path
    with pytest.raises(ConfigError, match=r"access is refused at .* Access Denied. Are the credentials"):
        pipeline(stages(), input=f"{bucket.url}/in")
    bucket.server.refuse = lambda method, _: method == "PUT"
    for place in ({"output": f"{bucket.url}/out"}, {"store": f"{bucket.url}/st"}):
        with pytest.raises(RemoteError, match="access is refused"):
            pipeline(stages(), input=shards, **place)
    assert not (tmp_path / "store/read").exists(), "nothing was measured"


def test_without_credentials_it_is_said_where_they_are_looked_for(pipeline, bucket, shards, monkeypatch):
    """The usual places, and how an open bucket is read."""
    for name in KEYS:
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=r"no credentials.*AWS_ACCESS_KEY_ID.*FSSPEC_S3_ANON=true"):
        pipeline(stages(), input=f"{bucket.url}/in")


def test_wrong_credentials_are_refused_by_the_server_and_said(monkeypatch, tmp_path, pipeline, bucket):
    """Against a server that checks signatures."""
    from moto import settings

    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    with pytest.raises(ConfigError, match="access is refused"):
        pipeline(stages(), input=f"{bucket.url}/in")


def test_the_missing_package_is_named(bucket, curate, tmp_path):
    """With the command that installs it."""
    (tmp_path / "site/s3fs").mkdir(parents=True)
    (tmp_path / "site/s3fs/__init__.py").write_text("raise ImportError('No module named s3fs')")
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = curate("stages=[partition,read,write]", f"input={bucket.url}/in", "output=out", env={"PYTHONPATH": path})
    assert ran.code == 2
    assert "s3:// needs the package s3fs" in ran.err
    assert "pip install s3fs" in ran.err


def test_no_secret_is_taken_in_a_url_or_shown(bucket):
    """A URL with a password or a signature is refused without being repeated."""
    for url in ("s3://user:hunter2@bucket/in", f"{bucket.url}/a.tar?X-Amz-Signature=hunter2"):
        with pytest.raises(ConfigError) as caught:
            checked({"input": url, "output": url, "store": url})
        assert [line.partition(":")[0] for line in caught.value.mistakes] == ["input", "output", "store"]
        assert all("holds a secret" in line and "hunter2" not in line for line in caught.value.mistakes)


def test_the_page_on_buckets_runs_as_it_is_written(bucket, shards, curate):
    """Its commands, with another bucket's name in them; what they save says where, and holds no secret."""
    for name in ("00000", "00001"):
        bucket.put(f"shards/{name}.tar", shards / f"{name}.tar")
    page = (ROOT / "docs/remote.md").read_text()
    commands = re.findall(r"^curate .*$", page, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        ran = curate(*shlex.split(command.replace("s3://my-bucket", bucket.url))[1:])
        assert ran.code == 0, ran.said
        assert "24 in = 24 kept" in ran.out
    assert "FORMAT" in bucket.tree("store/")
    saved = bucket.tree()
    assert {"curated/run.json", "curated/curator.log", "curated/.hydra/config.yaml"} <= set(saved)
    assert not any(KEYS["AWS_SECRET_ACCESS_KEY"].encode() in content for content in saved.values())


def test_a_sweep_stays_on_this_machine(bucket, shards, curate):
    """Its table and folders do; the setting one likes is written to the URL."""
    ran = curate("-m", "stages=[partition,read,write]", "input=in", f"output={bucket.url}/out", "write.samples_per_shard=5,10")
    assert ran.code == 2
    assert "is a URL, and a sweep's folders" in ran.err


def test_a_url_of_this_machine_is_a_path(pipeline, shards, tmp_path):
    """`file://` is what some tools print."""
    far = pipeline(stages(0), input=f"file://{shards}/00000.tar", output=f"file://{tmp_path}/o", store=f"file://{tmp_path}/s")
    assert far.output == tmp_path / "o"
    assert far.counts["kept"] == 12


def test_workers_at_a_scheduler_are_asked_whether_they_reach_the_urls(bucket):
    """`cluster.probe` looks at objects and folders alike."""
    bucket.put("in/a.tar", b"x")
    assert remote.is_there(f"{bucket.url}/in")
    assert remote.is_there(f"{bucket.url}/in/a.tar")
    assert not remote.is_there(f"{bucket.url}/else")
    assert not remote.is_there("s3://no-such-bucket-anywhere/in")
