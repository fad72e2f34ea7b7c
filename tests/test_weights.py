"""Weights files: found where people keep them, and never taken for what they are not."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from curator.errors import WeightsError
from curator.models.command import main as curate_models
from curator.models.published import AESTHETIC_L_14, CLIP_VIT_L_14, NSFW_L_14
from curator.models.weights import Fetchable, ensure, find, fingerprint, own, refreshed
from curator.stages.embed import ImageEmbeddingStage
from curator.stages.nsfw import ImageNSFWFilterStage
from tests.conftest import shared
from tests.mirror import ZIP, Server, a_mirror, an_empty_home  # noqa: F401  # two of them are fixtures

pytestmark = pytest.mark.usefixtures("home")

LONG_AGO = 1_700_000_000


def old(path: Path) -> Path:
    """The same file, last changed long ago: its hash may be remembered."""
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


# ---- finding, and CASES 10 and 11


def test_a_folder_with_the_file_works_without_any_connection(server: Server, tmp_path: Path) -> None:
    """open_clip #1068: a local folder was refused and a download tried anyway."""
    shutil.copy(shared("heads/official/nsfw_clip_autokeras_binary_nsfw.zip"), tmp_path / ZIP)
    found = ImageNSFWFilterStage(model_dir=str(tmp_path)).weights()[0]
    assert ensure(found) == tmp_path / ZIP
    assert found.id == NSFW_L_14.id
    assert not server.asked


def test_an_empty_folder_is_told_with_names_and_hashes(server: Server, tmp_path: Path) -> None:
    """Whoever names a folder wants no download: what is missing, and a line for each file that would do."""
    (tmp_path / "empty").mkdir()
    found = ImageEmbeddingStage(model_dir=str(tmp_path / "empty")).weights()[0]
    assert found.id == CLIP_VIT_L_14.id, "a re-decide needs no file"
    with pytest.raises(WeightsError) as caught:
        ensure(found)
    first, *lines = str(caught.value).splitlines()
    assert first.endswith(f"is not in {tmp_path}/empty.")
    for file in CLIP_VIT_L_14.files:
        assert any(file.name in line and file.sha256 in line for line in lines)
    assert not server.asked


@pytest.mark.parametrize("harm", ["another file", "cut", "one bit"])
def test_a_wrong_file_is_refused_with_both_hashes_and_the_remedy(server: Server, tmp_path: Path, harm: str) -> None:
    """openai/CLIP #338: an interrupted download failed on every later start with a zip error."""
    content = bytearray(shared("heads/official/aesthetic_sac_logos_ava1_l14_linearmse.pth").read_bytes())
    if harm == "another file":
        content = bytearray(b"not weights at all")
    elif harm == "cut":
        del content[-1_000_000:]
    else:
        content[1_234_567] ^= 1
    path = tmp_path / AESTHETIC_L_14.files[0].name
    path.write_bytes(content)
    for _ in range(2):  # and is no more trusted the next time
        with pytest.raises(WeightsError) as caught:
            find(AESTHETIC_L_14, str(tmp_path))
        hashes = (hashlib.sha256(content).hexdigest(), AESTHETIC_L_14.files[0].sha256)
        for part in (str(path), *hashes, "curate-models fetch"):
            assert part in str(caught.value)
    assert not server.asked


def test_a_wrong_file_in_a_cache_is_passed_over(tmp_path: Path) -> None:
    """Nobody named the cache: what is wrong there is fetched anew, not a reason to stop."""
    place = tmp_path / "cache" / "models" / NSFW_L_14.id
    place.mkdir(parents=True)
    (place / ZIP).write_bytes(b"cut short")
    assert isinstance(find(NSFW_L_14, None), Fetchable)


@pytest.mark.parametrize(
    "place",
    [
        "{}",
        "openai/clip-vit-large-patch14/{}",
        "models--openai--clip-vit-large-patch14/snapshots/0123abcd/{}",
        "hub/models--timm--vit_large_patch14_clip_224.openai/snapshots/0123abcd/{}",
        "clip-vit-l-14-openai/{}",
    ],
)
def test_weights_are_looked_for_where_hubs_and_tools_put_them(tmp_path: Path, place: str) -> None:
    """NeMo's folder, the hub's snapshots, and a plain folder: a file of that name there is looked at."""
    path = tmp_path / place.format("open_clip_model.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"stand-in")
    (path.parent / "SHA256SUMS").write_text(f"{fingerprint(path)}  {path.name}\n")
    assert ImageEmbeddingStage(model_dir=str(tmp_path)).weights()[0].path == path


def test_nobody_elses_file_is_called_wrong(tmp_path: Path) -> None:
    """One folder for all models: the NSFW file there is no broken aesthetic file."""
    shutil.copy(shared("heads/official/nsfw_clip_autokeras_binary_nsfw.zip"), tmp_path / ZIP)
    assert find(AESTHETIC_L_14, str(tmp_path)).path is None


def test_a_safetensors_copy_of_the_same_numbers_is_known(tmp_path: Path) -> None:
    """Hugging Face's copy of the aesthetic head has other bytes and the same tensors: the same id."""
    tensors = load_file(shared("heads/aesthetic_l14.safetensors"))
    place = tmp_path / "ttj" / "sac-logos-ava1-l14-linearMSE"
    place.mkdir(parents=True)
    save_file(dict(reversed(tensors.items())), place / "model.safetensors", {"format": "pt"})
    assert find(AESTHETIC_L_14, str(tmp_path)).id == AESTHETIC_L_14.id
    tensors["layers.7.bias"] = tensors["layers.7.bias"] + 1
    save_file(tensors, place / "model.safetensors")
    with pytest.raises(WeightsError, match="is not LAION's aesthetic predictor"):
        find(AESTHETIC_L_14, str(tmp_path))


def test_all_forms_of_one_model_have_one_id(tmp_path: Path) -> None:
    """Vectors measured with one form serve the others; a known id needs no file."""
    ids = set()
    for name in ("heads/official/nsfw_clip_autokeras_binary_nsfw.zip", "heads/nsfw_l14.safetensors"):
        ids.add(ImageNSFWFilterStage(model_dir=str(shared(name))).weights()[0].id)
    ids.add(ImageNSFWFilterStage(model_dir=str(shared("heads/official"))).weights()[0].id)
    ids.add(ImageNSFWFilterStage(model_dir=str(tmp_path)).weights()[0].id)
    assert ids == {NSFW_L_14.id}


# ---- hashes that are remembered


def test_a_remembered_hash_is_not_believed_of_a_changed_file(tmp_path: Path) -> None:
    """Same path, same size, same time of change: one flipped byte is seen all the same."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(bytes(1000))
    before = fingerprint(old(path))
    time.sleep(2.1)  # older than what a coarse clock could hide: remembered from here on
    assert fingerprint(path) == before
    path.write_bytes(bytes(999) + b"x")
    assert fingerprint(old(path)) == hashlib.sha256(bytes(999) + b"x").hexdigest()


def test_a_hash_is_remembered_between_processes(tmp_path: Path) -> None:
    """A re-decide does not read gigabytes to learn which weights they are; `check` reads them all the same."""
    path = old(tmp_path / "w.safetensors") if (tmp_path / "w.safetensors").write_bytes(bytes(9)) else tmp_path
    time.sleep(2.1)
    found = fingerprint(path)
    (memory,) = (tmp_path / "cache" / "fingerprints").iterdir()
    assert memory.read_text() == found
    memory.write_text("0" * 64)
    ask = f"from curator.models.weights import *; p = Path({str(path)!r}); print(fingerprint(p), refreshed(p))"
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    assert said == ["0" * 64, found]
    assert refreshed(path) == memory.read_text() == found


# ---- weights of one's own


def test_a_file_of_ones_own_is_told_apart_by_its_hash(tmp_path: Path) -> None:
    """Its SHA-256 is its id; a published file under another name keeps the published id."""
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"mine")
    assert own(path).id == hashlib.sha256(b"mine").hexdigest()
    assert own(shared("heads/official/nsfw_port_clip_vit_l_14_openai_head.pth")).id == NSFW_L_14.id


def test_a_listed_hash_holds(tmp_path: Path) -> None:
    """A SHA256SUMS beside a file is believed: a file cut short is refused before it is loaded."""
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"mine")
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(b'mine').hexdigest()}  mine.safetensors\n")
    assert own(path).path == path
    path.write_bytes(b"min")
    with pytest.raises(WeightsError, match=f"{hashlib.sha256(b'mine').hexdigest()} expected"):
        own(path)


def test_a_pickle_is_opened_only_where_its_hash_is_named(tmp_path: Path) -> None:
    """A pickle can run code; the refusal names the command that converts it."""
    path = tmp_path / "mine.pt"
    path.write_bytes(b"mine")
    stage = ImageEmbeddingStage(pretrained=str(path))
    with pytest.raises(WeightsError, match=r"save_file\(torch.load\(.*weights_only=True.*trust_sha256="):
        stage.weights()
    found = hashlib.sha256(b"mine").hexdigest()
    assert ImageEmbeddingStage(pretrained=str(path), trust_sha256=(found,)).weights()[0].id == found


# ---- the command


def test_the_command_lists_fetches_and_checks(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it fetched it finds and calls right; a file that changed since is refused with exit code 4."""
    server.files[f"/{ZIP}"] = shared("heads/official/nsfw_clip_autokeras_binary_nsfw.zip").read_bytes()
    folder = str(tmp_path / "models")
    assert curate_models(["list", "--model-dir", folder]) == 0
    assert "LAION's NSFW head for CLIP ViT-L/14, not here" in capsys.readouterr().out
    assert curate_models(["fetch", "--model-dir", folder, NSFW_L_14.id]) == 0
    assert curate_models(["check", NSFW_L_14.id, "--model-dir", folder]) == 0
    assert ": right" in capsys.readouterr().out
    path = tmp_path / "models" / NSFW_L_14.id / ZIP
    path.write_bytes(path.read_bytes()[:-1])
    assert curate_models(["check", "--model-dir", folder, NSFW_L_14.id]) == 4
    assert NSFW_L_14.files[0].sha256 in capsys.readouterr().err


def test_a_name_that_is_unknown_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, with the names there are."""
    assert curate_models(["check", "clip"]) == 2
    assert CLIP_VIT_L_14.id in capsys.readouterr().err
