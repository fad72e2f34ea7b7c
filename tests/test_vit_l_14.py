"""CLIP ViT-L/14 at full size, its weights drawn at random and laid where its users have theirs."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from curator.store import Store, vectors_of
from tests.conftest import SHARED, make_image, make_shard, run_command, shared

SCRIPT = """\
from curator import ImageAestheticFilterStage, ImageEmbeddingStage, ImageNSFWFilterStage, Pipeline


def main():
    pipeline = Pipeline(
        name="image_curation",
        stages=[
            ImageEmbeddingStage(
                model_dir="models", model_inference_batch_size=8, num_gpus_per_worker=0.25, remove_image_data=False, verbose=True
            ),
            ImageNSFWFilterStage(model_dir="models", score_threshold=0.9, model_inference_batch_size=32),
        ],
    )
    pipeline.add_stage(ImageAestheticFilterStage(model_dir="models", score_threshold=0.0, model_inference_batch_size=32))
    print("kept", len(pipeline.run(input="photos.tar", output="out")))


if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `models/` (the tower, the heads as their authors publish them) and a tar of eight photos."""
    import torch
    from safetensors.torch import save_file

    from curator.models.clip import import_open_clip, quiet

    official = shared("heads/official")
    place = tmp_path_factory.mktemp("vit")
    (place / "models").mkdir()
    torch.manual_seed(0)
    open_clip = import_open_clip()
    with quiet():
        model = open_clip.create_model("ViT-L-14-quickgelu", pretrained=None)
    tower = {f"visual.{name}": tensor.half() for name, tensor in model.visual.state_dict().items()}
    del model
    file = place / "models/open_clip_model.safetensors"
    save_file(tower, file)
    (place / "models/SHA256SUMS").write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n")
    for name in ("nsfw_port_clip_vit_l_14_openai_head.pth", "aesthetic_sac_logos_ava1_l14_linearmse.pth"):
        shutil.copy(official / name, place / "models")
    make_shard(place / "photos.tar", {f"{n}.jpg": make_image(n, (300, 240)) for n in range(8)})
    return place


@pytest.mark.xdist_group("vit")
def test_a_script_as_nemo_curators_users_write_it_works_with_its_imports_changed(place):
    """Only input and output are new; the vectors are 768-d and of unit length, and both heads have scored them."""
    (place / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "kept 8" in done.stdout
    assert "added the stages that were not named: partition, read, write" in done.stderr
    run = json.loads((place / "out/run.json").read_text())
    assert run["work"]["embedded"] == 8
    assert set(run["weights"]) == {"embed", "nsfw", "aesthetic"}
    (stored,) = (place / ".curator/store/embed").glob("*/*")
    found = Store(place / ".curator/store").get("embed", stored.name)
    emb_ND, has = vectors_of(found.table)
    assert emb_ND.shape == (8, 768)
    assert has.all()
    assert np.abs(np.linalg.norm(emb_ND.astype(float), axis=1) - 1).max() < 1e-3


@pytest.mark.xdist_group("vit")
@pytest.mark.parametrize("damage", ["cut", "flip", "missing"])
def test_weights_that_are_wrong_are_refused_before_the_first_image(place, damage):
    """CASES 11 [CLIP #338]: which file, what was expected, the remedy; nothing enters the store."""
    file = place / "models/open_clip_model.safetensors"
    whole = place / "whole.safetensors"
    file.rename(whole)
    try:
        if damage == "cut":
            file.write_bytes(whole.read_bytes()[:-1_000_000])
        elif damage == "flip":
            content = bytearray(whole.read_bytes())
            content[-1000] ^= 1
            file.write_bytes(content)
        ran = run_command(
            "recipe=image_search", "input=photos.tar", "output=o2", "store=st2", "embed.model_dir=models", cwd=place
        )
    finally:
        whole.rename(file)
    assert ran.code == 2, ran.said
    assert "embed: " in ran.err
    assert "ViT-L/14" in ran.err
    assert "sha256" in ran.err.lower()
    assert not (place / "st2").exists()
    assert SHARED.exists()
