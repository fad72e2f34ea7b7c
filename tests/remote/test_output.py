"""An output on a URL: that on disk, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import webdataset

from curator.errors import ConfigError
from tests.conftest import ROOT, make_image, tar_members, tree
from tests.remote.conftest import stages, tars


def test_an_output_on_a_url_is_that_on_disk(pipeline, bucket, shards, tmp_path):
    """All parts to the byte; run again, it is finished; with another threshold it is replaced, and nothing stays over."""
    pipeline(stages(), input=shards, output=tmp_path / "near")
    url = f"{bucket.url}/out"
    far = pipeline(stages(), input=shards, output=url)
    assert far.output == url
    there = bucket.tree("out/")
    assert {n: c for n, c in there.items() if n.startswith(("shards/", "ledger/"))} == tree(
        tmp_path / "near", "shards", "ledger"
    )
    assert {"run.json", "curator.log"} < set(there)
    assert pipeline(stages(), input=shards, output=url).unchanged
    fewer = pipeline(stages(0.55), input=shards, output=url)
    assert 0 < len(fewer) < len(far)
    left = [name for name in bucket.tree("out/") if name.endswith(".tar")]
    assert len(left) == -(-len(fewer) // 10) < len(tars(there))
    assert not list((tmp_path / "cache/outputs").glob("*/*")), "nothing stays on this machine"


def test_webdataset_reads_the_output_from_the_bucket(pipeline, bucket, shards, tmp_path):
    """The same samples, by another program and over the network."""
    far = pipeline(stages(), input=shards, output=f"{bucket.url}/out")
    pre = bucket.server.client().generate_presigned_url
    names = [f"out/shards/{n:05d}.tar" for n in range(-(-len(far) // 10))]
    urls = [f"pipe:curl -s '{pre('get_object', Params={'Bucket': bucket.name, 'Key': name})}'" for name in names]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    expected = tar_members(*sorted(shards.glob("*.tar")))
    assert len(samples) == len(far)
    assert all(expected[f"{s['__key__']}.jpg"] == s["jpg"] for s in samples)


def test_an_output_that_lost_a_part_is_made_again(pipeline, bucket, shards):
    """`finished already` looks at every file."""
    url = f"{bucket.url}/out"
    pipeline(stages(), input=shards, output=url)
    bucket.delete("out/shards/00000.tar")
    again = pipeline(stages(), input=shards, output=url)
    assert not again.unchanged
    assert again.run["work"]["decoded"] == 0
    assert "shards/00000.tar" in bucket.tree("out/")


def test_something_else_is_not_overwritten(pipeline, bucket, shards):
    """A prefix that holds other objects needs overwrite=true; an input inside the output, or a store, is refused."""
    bucket.put("out/precious.txt", b"mine")
    with pytest.raises(ConfigError, match="holds something else than a run of Curator"):
        pipeline(stages(), input=shards, output=f"{bucket.url}/out")
    pipeline(stages(), input=shards, output=f"{bucket.url}/out", overwrite=True)
    assert bucket.tree("out/")["precious.txt"] == b"mine"
    with pytest.raises(ConfigError, match="contains the input"):
        pipeline(stages(), input=f"{bucket.url}/in", output=bucket.url, overwrite=True)
    with pytest.raises(ConfigError, match="lies in the store"):
        pipeline(stages(), input=shards, output=f"{bucket.url}/st/out", store=f"{bucket.url}/st")


def test_output_and_store_under_the_input_are_no_input(pipeline, bucket):
    """People name the bucket, and have it all in there."""
    for n in range(4):
        bucket.put(f"{n}.jpg", make_image(n))
    place = {"input": bucket.url, "store": f"{bucket.url}/st"}
    with pytest.raises(ConfigError, match="contains the input"):
        pipeline(stages(0), output=bucket.url, **place)
    assert pipeline(stages(0), output=f"{bucket.url}/out", **place).counts["inputs"] == 4
    assert pipeline(stages(0.1), output=f"{bucket.url}/out", **place).counts["inputs"] == 4


SCRIPT = f"""\
import sys
sys.path.insert(0, {str(ROOT)!r})
from curator import Pipeline
from tests.remote.conftest import stages
Pipeline("kill", stages(0.4)).run(input=sys.argv[1], output=sys.argv[2], store="store")
"""


def test_a_killed_upload_leaves_no_run_and_the_same_command_makes_it_whole(pipeline, bucket, shards, tmp_path):
    """Killed while new parts lie among old ones: no run.json says that it is whole, and nothing is taken for foreign."""
    (tmp_path / "script.py").write_text(SCRIPT)
    url = f"{bucket.url}/out"
    pipeline(stages(0.5), input=shards, output=url)
    process = None

    def stop(method: str, path: str) -> bool:
        if method == "PUT" and path.endswith("/out/shards/00000.tar"):
            os.killpg(process.pid, signal.SIGKILL)
        return False

    bucket.server.refuse = stop
    process = subprocess.Popen([sys.executable, "script.py", str(shards), url], cwd=tmp_path, start_new_session=True)
    assert process.wait(120) == -signal.SIGKILL
    bucket.server.refuse = None
    torn = bucket.tree("out/")
    assert "run.json" not in torn
    assert ".old" in torn
    near = pipeline(stages(0.4), input=shards, output=tmp_path / "near")
    assert near.run["work"]["decoded"] == 0
    pipeline(stages(0.4), input=shards, output=url)
    whole = bucket.tree("out/")
    assert {"run.json"} == {name for name in whole if name in ("run.json", ".old")}
    parts = {n: c for n, c in whole.items() if n.startswith(("shards/", "ledger/"))}
    assert parts == tree(tmp_path / "near", "shards", "ledger")
