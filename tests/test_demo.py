"""The demo's pictures and its model: what was planted comes out, on pictures that the model has never seen.

The model is asked through open_clip itself, so that nothing of Curator's own towers can vouch for it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curator.demo.draw import draw_demo
from curator.models.clip import import_open_clip, quiet
from curator.models.heads import AestheticHead, NSFWHead, tensors_of

DEMO = Path(draw_demo.__code__.co_filename).parent
WEIGHTS = DEMO / "curator-demo.safetensors"
UNSEEN_SEED, COUNT = 11, 400
THRESHOLD = 0.95


@dataclass(frozen=True)
class Drawn:
    """The readable pictures of a demo set: one row each in `truth`, `captions` and `emb_ND` (float16, unit length)."""

    truth: list[dict[str, str]]
    captions: list[str]
    emb_ND: np.ndarray


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    draw_demo(folder, UNSEEN_SEED, COUNT)
    return folder


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    """The demo model and its preprocessing, as open_clip makes them from the files that ship."""
    open_clip = import_open_clip()
    open_clip.add_model_config(DEMO / "curator-demo.json")
    with quiet():
        made, _, preprocess = open_clip.create_model_and_transforms("curator-demo", pretrained=str(WEIGHTS))
    return made.eval(), preprocess


@pytest.fixture(scope="module")
def drawn(folder: Path, model: tuple[Any, Any]) -> Drawn:
    import torch

    tower, preprocess = model
    truth = {row["key"]: row for row in truth_of(folder) if not row["broken"]}
    captions, pixels, rows = {}, [], []
    for name, content in members(folder):
        key, _, suffix = name.partition(".")
        if suffix == "txt":
            captions[key] = content.decode()
        elif key in truth and suffix != "json":
            pixels.append(preprocess(Image.open(io.BytesIO(content))))
            rows.append(key)
    with torch.inference_mode():
        batches = torch.stack(pixels).split(32)
        emb_ND = torch.cat([tower.encode_image(batch, normalize=True) for batch in batches]).numpy()
    return Drawn([truth[key] for key in rows], [captions[key] for key in rows], emb_ND.astype(np.float16))


def members(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every member of the set's tars, in order."""
    for path in sorted(folder.glob("demo-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                yield member.name, file.read()


def truth_of(folder: Path) -> list[dict[str, str]]:
    lines = (folder / "truth.csv").read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def representatives(emb_ND: np.ndarray, threshold: float) -> np.ndarray:
    """(N,): -1 for a kept row, else the kept row it is a duplicate of; in input order, each against those kept."""
    x_ND = emb_ND.astype(np.float64)
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    dropped_by_N, kept = np.full(len(x_ND), -1), [0]
    for row in range(1, len(x_ND)):
        cos_K = x_ND[kept] @ x_ND[row]
        if cos_K.max() >= threshold:
            dropped_by_N[row] = kept[int(cos_K.argmax())]
        else:
            kept.append(row)
    return dropped_by_N


def test_drawing_a_set_twice_gives_the_same_bytes_and_another_seed_gives_others(folder, tmp_path):
    """A demo that differed from day to day could not be compared with the README's output."""
    draw_demo(tmp_path / "again", UNSEEN_SEED, COUNT)
    draw_demo(tmp_path / "other", UNSEEN_SEED + 1, COUNT)
    assert hashes(tmp_path / "again") == hashes(folder)
    assert not set(hashes(tmp_path / "other").values()) & set(hashes(folder).values())


def test_a_drawn_folder_is_left_alone_and_one_without_its_truth_is_drawn_again(tmp_path):
    """An interrupted draw leaves no truth.csv, so the same command makes it whole; a whole one costs nothing."""
    draw_demo(tmp_path, 3, 40)
    before, tar = hashes(tmp_path), tmp_path / "demo-00000.tar"
    made = tar.stat().st_mtime_ns
    draw_demo(tmp_path, 3, 40)
    assert tar.stat().st_mtime_ns == made
    (tmp_path / "truth.csv").unlink()
    tar.write_bytes(b"half a tar")
    draw_demo(tmp_path, 3, 40)
    assert hashes(tmp_path) == before


def test_every_broken_file_fails_to_decode_and_every_other_one_decodes(folder):
    """The truth about broken files is what Pillow finds."""
    broken = {row["key"] for row in truth_of(folder) if row["broken"]}
    for name, content in members(folder):
        key, _, suffix = name.partition(".")
        if suffix in ("txt", "json"):
            continue
        try:
            Image.open(io.BytesIO(content)).load()
        except (OSError, SyntaxError):
            assert key in broken, name
        else:
            assert key not in broken, name
    assert len(broken) >= 4


def test_the_model_is_at_most_eight_megabytes():
    """It ships in the package, and everyone who installs Curator downloads it."""
    assert WEIGHTS.stat().st_size <= 8_000_000


def test_open_clip_loads_every_number_of_the_file_and_nothing_else(model):
    """open_clip only logs when weights are left random; here each tensor is the file's, bit for bit."""
    from safetensors.torch import load_file

    stored, loaded = load_file(WEIGHTS), model[0].state_dict()
    assert stored.keys() == loaded.keys()
    assert all(stored[name].float().equal(loaded[name]) for name in stored)


def test_planted_duplicates_come_out_at_the_default_threshold(drawn):
    """At cosine 0.95: of what is dropped at least 95 % are planted copies, of the planted copies at least 90 % drop."""
    groups = np.array([row["group"] for row in drawn.truth])
    dropped_by_N = representatives(drawn.emb_ND, THRESHOLD)
    dropped = dropped_by_N >= 0
    right = dropped & (groups != "") & (groups == groups[dropped_by_N])
    planted = sum(row["transform"] not in ("", "original") for row in drawn.truth)
    assert planted > 25
    assert right.sum() >= 0.95 * dropped.sum()
    assert right.sum() >= 0.9 * planted


def test_warning_signs_come_out_at_the_default_threshold(drawn):
    """At nsfw_score 0.5: at least 95 % of what is dropped has a sign, at least 90 % of the signs are dropped."""
    unsafe = np.array([row["unsafe"] == "1" for row in drawn.truth])
    found = NSFWHead(tensors_of(DEMO / "nsfw.safetensors")).score(drawn.emb_ND) >= 0.5
    assert unsafe.sum() > 15
    assert (found & unsafe).sum() >= 0.95 * found.sum()
    assert (found & unsafe).sum() >= 0.9 * unsafe.sum()


def test_the_aesthetic_score_follows_the_drawn_quality(drawn):
    """Threshold 0.5 drops a sensible minority, and it is the spoiled pictures that go."""
    quality = np.array([float(row["quality"]) for row in drawn.truth])
    score = AestheticHead(tensors_of(DEMO / "aesthetic.safetensors")).raw(drawn.emb_ND) / 10
    assert np.corrcoef(score, quality)[0, 1] > 0.8
    assert 0.1 <= np.mean(score < 0.5) <= 0.4
    assert np.mean(quality[score < 0.5] < 0.8) >= 0.95


QUERIES = (
    "a house with a roof", "a forest of pines", "fish in a sea", "a mosaic of tiles", "a city with windows",
    "a picture with a warning sign",
)  # fmt: skip


def test_a_text_finds_the_pictures_that_it_names(drawn, model):
    """Search by text works: most of the ten nearest pictures show the thing, where chance would give one at most."""
    import torch

    tokenizer = import_open_clip().SimpleTokenizer(str(DEMO / "curator-demo-bpe.txt.gz"), context_length=40)
    found = {}
    for query in QUERIES:
        with torch.inference_mode():
            text_D = model[0].encode_text(tokenizer([query]), normalize=True)[0].numpy()
        nearest = np.argsort(-(drawn.emb_ND.astype(np.float32) @ text_D))[:10]
        words = [word for word in query.split() if word not in ("a", "with", "of", "in", "picture")]
        named = np.array([all(word in caption for word in words) for caption in drawn.captions])
        assert named.mean() < 0.15
        found[query] = int(named[nearest].sum())
    assert min(found.values()) >= 4, found
    assert np.mean(list(found.values())) >= 7, found
