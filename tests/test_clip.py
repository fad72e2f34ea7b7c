"""CLIP towers: the same vectors as open_clip's from every form of file, and refusals where they would differ."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from curator.errors import ConfigError, WeightsError
from curator.models import catalogue
from curator.models.checkpoints import from_transformers, tower_state
from curator.models.clip import image_tower, import_open_clip, quiet, text_tower
from curator.models.named import text_vectors
from curator.models.published import DEMO_MODEL
from curator.stage import ImageBatch, Pixels, Worker
from curator.stages.embed import ImageEmbeddingStage

SMALL = "ViT-S-32-alt"
"""open_clip's smallest model: 43 million numbers."""


@pytest.fixture(scope="session")
def small() -> Any:
    """The small model with random weights, made and run by open_clip."""
    open_clip = import_open_clip()
    torch.manual_seed(0)
    with quiet():
        return open_clip.create_model(SMALL, pretrained=None).eval()


@pytest.fixture(scope="session")
def small_file(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights as open_clip would save them."""
    path = tmp_path_factory.mktemp("models") / "open_clip_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in small.state_dict().items()}, path)
    return path


def pictures(count: int = 3, size: tuple[int, int] = (320, 240)) -> list[Image.Image]:
    """Smooth coloured pictures."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
    return [Image.fromarray(s).resize(size, Image.Resampling.BICUBIC) for s in small]


def measured(stage: ImageEmbeddingStage, images: list[Image.Image]) -> np.ndarray:
    """The stage's own way from pictures to vectors."""
    batch = ImageBatch(pixels=np.stack([stage.prepare(i) for i in images]), model=stage.setup(Worker(threads=2)))
    return stage.measure(batch)["embedding"]


def theirs(model: Any, transform: Callable[[Image.Image], Any], images: list[Image.Image]) -> np.ndarray:
    """open_clip's own way from pictures to vectors."""
    with torch.inference_mode():
        return model.encode_image(torch.stack([transform(i) for i in images])).numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row."""
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


# ---- what is known of a model without importing it


def test_the_catalogue_says_what_open_clip_says() -> None:
    """Architectures and pretrained tags, read without an import, are open_clip's own, for every model."""
    open_clip = import_open_clip()
    from open_clip import pretrained

    assert set(catalogue.known_models()) - {DEMO_MODEL} == set(open_clip.list_models()) - {DEMO_MODEL}
    for model, tags in pretrained._PRETRAINED.items():
        assert catalogue.architecture(model) == open_clip.get_model_config(model)
        assert catalogue.tags_of(model) == tuple(tags)
        for tag, row in tags.items():
            assert catalogue.published_as(model, tag) == row


@pytest.mark.parametrize(
    ("model", "tag"),
    [
        ("ViT-L-14-quickgelu", "openai"),
        ("ViT-L-14-336-quickgelu", "openai"),
        ("ViT-B-16-SigLIP-384", "webli"),  # both sides scaled, other means
        ("ViT-L-14-CLIPA", "datacomp1b"),  # both sides scaled, bilinear
        ("MobileCLIP-S1", "datacompdr"),  # bilinear, no mean
        ("PE-Core-B-16", "meta"),
    ],
)
@pytest.mark.parametrize("size", [(640, 480), (123, 457), (224, 224), (30, 20), (1, 1), (900, 90)])
def test_pictures_are_prepared_as_each_model_wants_them(model: str, tag: str, size: tuple[int, int]) -> None:
    """Resize mode, interpolation, size, mean and deviation follow open_clip's table: no difference in any bit."""
    open_clip = import_open_clip()
    row = open_clip.get_pretrained_cfg(model, tag)
    side = open_clip.get_model_config(model)["vision_cfg"]["image_size"]
    wanted = {key: row[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    transform = open_clip.image_transform(side, is_train=False, **wanted)
    from curator.models.clip import ImageTower

    stage = ImageEmbeddingStage(model=model, pretrained=tag)
    tower = ImageTower(None, "cpu", False, stage.preprocessing)
    for image in [pictures(1, size)[0], pictures(1, size)[0].convert("RGBA"), pictures(1, size)[0].convert("L")]:
        ours = tower.normalised(stage.prepare(image)[None].copy())[0]
        np.testing.assert_array_equal(ours.numpy(), transform(image).numpy())


def test_the_decoder_is_told_how_far_it_may_shrink() -> None:
    """A JPEG may be decoded small, but stays `shrink` times as large as the model's picture."""
    assert ImageEmbeddingStage().needed() == (Pixels(min_side=672),)
    assert ImageEmbeddingStage(model="ViT-L-14-336-quickgelu").needed() == (Pixels(min_side=1008),)
    assert ImageEmbeddingStage(shrink=0).needed() == (Pixels(),)


@pytest.mark.parametrize(("width", "height"), [(3, 200), (180, 2), (1, 70)])
def test_a_strip_is_prepared_like_any_other_picture(width: int, height: int) -> None:
    """Scaling only what will be seen of a strip gives open_clip's picture, to one grey level at most."""
    strip = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    transform = import_open_clip().image_transform(224, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    wanted = (transform(strip) * 255).round().numpy().transpose(1, 2, 0)
    assert np.abs(ImageEmbeddingStage().prepare(strip).astype(int) - wanted).max() <= 1


def test_a_very_long_strip_costs_no_more_memory_than_a_picture() -> None:
    """1 x 1,000,000 pixels are not blown up to 224 x 224 million before the middle is cut out."""
    strip = Image.new("RGB", (1, 1_000_000), "red")
    assert ImageEmbeddingStage().prepare(strip).tolist() == np.full((224, 224, 3), (255, 0, 0)).tolist()


# ---- mistakes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "ViT-L14-quickgelu"}, "Did you mean ViT-L-14-quickgelu"),
        ({"pretrained": "opeani"}, "It has openai"),
        ({"model": "ViT-L-14"}, "Set model=ViT-L-14-quickgelu"),
        ({"model": "ViT-B-32-quickgelu", "pretrained": "laion2b_s34b_b79k"}, "It has openai"),
        ({"pretrained": ""}, "must not be empty"),
        ({"precision": "fp16"}, "fp32"),
    ],
)
def test_a_wrong_setting_is_told_with_what_is_right(settings: dict[str, str], said: str) -> None:
    """Also the activation that nobody sees: OpenAI's weights with GELU give other vectors and no error."""
    with pytest.raises(ConfigError, match=said):
        ImageEmbeddingStage(**settings)


def test_weights_of_another_model_are_refused(small_file: Path) -> None:
    """Loading what fits and leaving the rest random would be silent nonsense."""
    stage = ImageEmbeddingStage(model="ViT-S-16", pretrained=str(small_file))
    with pytest.raises(WeightsError, match=r"does not fit ViT-S-16: .* another shape"):
        stage.setup(Worker())


def test_half_a_file_is_refused(small_file: Path, tmp_path: Path) -> None:
    """A file without the last block: refused, naming what is missing."""
    state = {f"visual.{n}": t for n, t in tower_state(small_file, "image").items() if "resblocks.11" not in n}
    save_file(state, tmp_path / "half.safetensors")
    with pytest.raises(WeightsError, match="tensors are missing"):
        ImageEmbeddingStage(model=SMALL, pretrained=str(tmp_path / "half.safetensors")).setup(Worker())


def test_a_file_cut_short_is_refused(small_file: Path, tmp_path: Path) -> None:
    """Weights of one's own have no published hash; the format itself says that bytes are missing."""
    (tmp_path / "cut.safetensors").write_bytes(small_file.read_bytes()[:-1_000_000])
    with pytest.raises(WeightsError, match=r"cut\.safetensors: is damaged"):
        ImageEmbeddingStage(model=SMALL, pretrained=str(tmp_path / "cut.safetensors")).setup(Worker())


# ---- the same vectors as open_clip's, from every form


def test_vectors_are_open_clips(small: Any, small_file: Path) -> None:
    """Prepared, normalised and embedded by the stage: what open_clip's transform and encode_image give."""
    transform = import_open_clip().image_transform(224, is_train=False)
    stage = ImageEmbeddingStage(model=SMALL, pretrained=str(small_file), precision="fp32")
    np.testing.assert_allclose(measured(stage, pictures()), theirs(small, transform, pictures()), rtol=0, atol=1e-5)


def test_bf16_stays_close_to_fp32(small: Any, small_file: Path) -> None:
    """bf16 is asked for by `auto` only where it is fast; its cosine to fp32 is above 0.9999."""
    transform = import_open_clip().image_transform(224, is_train=False)
    stage = ImageEmbeddingStage(model=SMALL, pretrained=str(small_file), precision="bf16")
    assert cosines(measured(stage, pictures()), theirs(small, transform, pictures())).min() > 0.9999


def test_texts_are_embedded_as_open_clip_does(small: Any, small_file: Path) -> None:
    """Unit vectors of texts in the same space, from the text tower alone."""
    open_clip, texts = import_open_clip(), ["a photo of a cat", "", "zwölf Boxkämpfer " * 30]
    ours = text_vectors(SMALL, str(small_file), None, texts, Worker(threads=2))
    with torch.inference_mode():
        wanted = small.encode_text(open_clip.get_tokenizer(SMALL)(texts), normalize=True).numpy()
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)
    assert ours.dtype == np.float32


def trusted(path: Path) -> dict[str, Any]:
    """Settings that name a file of one's own and vouch for it."""
    return {"model": SMALL, "pretrained": str(path), "trust_sha256": (hashlib.sha256(path.read_bytes()).hexdigest(),)}


def archive(state: dict[str, torch.Tensor]) -> torch.jit.ScriptModule:
    """A TorchScript archive of half-precision numbers, as OpenAI publishes its models."""

    def nest(state: dict[str, torch.Tensor]) -> torch.nn.Module:
        module = torch.nn.Module()
        for name in dict.fromkeys(key.partition(".")[0] for key in state):
            if name in state:
                module.register_parameter(name, torch.nn.Parameter(state[name].half()))
            else:
                below = {k.partition(".")[2]: t for k, t in state.items() if k.startswith(f"{name}.")}
                module.add_module(name, nest(below))
        return module

    return torch.jit.script(nest(state))


@pytest.mark.parametrize("form", ["state dict", "training checkpoint", "TorchScript archive"])
def test_pickles_that_are_trusted_give_the_same_vectors(small: Any, tmp_path: Path, form: str) -> None:
    """A state dict, open_clip's training checkpoint, OpenAI's kind of archive: only their numbers are taken."""
    path = tmp_path / "ViT-S.pt"
    state = dict(small.state_dict())
    if form == "state dict":
        torch.save(state, path)
    elif form == "training checkpoint":
        torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in state.items()}}, path)
    else:
        torch.jit.save(archive(state), path)
    stage = ImageEmbeddingStage(**trusted(path), precision="fp32")
    wanted = theirs(small, import_open_clip().image_transform(224, is_train=False), pictures())
    assert cosines(measured(stage, pictures()), wanted).min() > (0.999999 if "Script" not in form else 0.99999)
    with pytest.raises(WeightsError, match="pickle"):
        ImageEmbeddingStage(**{**trusted(path), "trust_sha256": ()}).weights()


# ---- transformers' names, proven by their forward pass written down here

WIDTH, HEADS, LAYERS, EMBED, PATCH, SIDE, VOCABULARY, CONTEXT = 32, 2, 2, 24, 8, 24, 50, 10


def transformers_state() -> dict[str, np.ndarray]:
    """A tiny random CLIP under transformers' names."""
    rng, state = np.random.default_rng(0), {}

    def add(name: str, *shape: int) -> None:
        state[name] = rng.standard_normal(shape) * 0.3

    patches = (SIDE // PATCH) ** 2 + 1
    add("vision_model.embeddings.class_embedding", WIDTH)
    add("vision_model.embeddings.patch_embedding.weight", WIDTH, 3, PATCH, PATCH)
    add("vision_model.embeddings.position_embedding.weight", patches, WIDTH)
    add("text_model.embeddings.token_embedding.weight", VOCABULARY, WIDTH)
    add("text_model.embeddings.position_embedding.weight", CONTEXT, WIDTH)
    norms = ["vision_model.pre_layrnorm", "vision_model.post_layernorm", "text_model.final_layer_norm"]
    for tower in ("vision_model", "text_model"):
        for n in range(LAYERS):
            layer = f"{tower}.encoder.layers.{n}"
            norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
            for part, rows, columns in [
                *((f"self_attn.{p}_proj", WIDTH, WIDTH) for p in ("q", "k", "v", "out")),
                ("mlp.fc1", 4 * WIDTH, WIDTH),
                ("mlp.fc2", WIDTH, 4 * WIDTH),
            ]:
                add(f"{layer}.{part}.weight", rows, columns)
                add(f"{layer}.{part}.bias", rows)
    for norm in norms:
        add(f"{norm}.weight", WIDTH)
        add(f"{norm}.bias", WIDTH)
    add("visual_projection.weight", EMBED, WIDTH)
    add("text_projection.weight", EMBED, WIDTH)
    state["logit_scale"] = np.array(4.6)
    return state


class Transformers:
    """transformers' CLIPModel in NumPy, from its documentation: pre-norm blocks, quick GELU, separate q, k and v."""

    def __init__(self, state: dict[str, np.ndarray]) -> None:
        self.s = state

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.s[f"{name}.weight"].T + self.s.get(f"{name}.bias", 0)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return scaled * self.s[f"{name}.weight"] + self.s[f"{name}.bias"]

    def attention(self, x: np.ndarray, name: str, causal: bool) -> np.ndarray:
        q, k, v = (self.linear(x, f"{name}.{p}_proj").reshape(len(x), HEADS, -1).swapaxes(0, 1) for p in "qkv")
        scores = q @ k.swapaxes(1, 2) / np.sqrt(WIDTH // HEADS)
        if causal:
            scores = scores + np.triu(np.full((len(x), len(x)), -np.inf), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ v
        return self.linear(mixed.swapaxes(0, 1).reshape(len(x), WIDTH), f"{name}.out_proj")

    def encode(self, x: np.ndarray, tower: str, causal: bool) -> np.ndarray:
        for n in range(LAYERS):
            layer = f"{tower}.encoder.layers.{n}"
            x = x + self.attention(self.norm(x, f"{layer}.layer_norm1"), f"{layer}.self_attn", causal)
            hidden = self.linear(self.norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
            x = x + self.linear(hidden / (1 + np.exp(-1.702 * hidden)), f"{layer}.mlp.fc2")
        return x

    def image(self, pixels: np.ndarray) -> np.ndarray:
        grid = SIDE // PATCH
        patches = pixels.reshape(3, grid, PATCH, grid, PATCH).transpose(1, 3, 0, 2, 4).reshape(grid * grid, -1)
        embedded = patches @ self.s["vision_model.embeddings.patch_embedding.weight"].reshape(WIDTH, -1).T
        x = np.concatenate([self.s["vision_model.embeddings.class_embedding"][None], embedded])
        x = self.norm(x + self.s["vision_model.embeddings.position_embedding.weight"], "vision_model.pre_layrnorm")
        x = self.encode(x, "vision_model", causal=False)
        return self.linear(self.norm(x[0], "vision_model.post_layernorm"), "visual_projection")

    def text(self, tokens: np.ndarray) -> np.ndarray:
        x = self.s["text_model.embeddings.token_embedding.weight"][tokens]
        x = self.encode(x + self.s["text_model.embeddings.position_embedding.weight"], "text_model", causal=True)
        return self.linear(self.norm(x, "text_model.final_layer_norm")[tokens.argmax()], "text_projection")


def test_transformers_names_are_mapped_to_the_same_numbers() -> None:
    """NeMo's folder holds transformers' file: through the table, open_clip computes what transformers computes."""
    open_clip = import_open_clip()
    state = transformers_state()
    vision = {"image_size": SIDE, "layers": LAYERS, "width": WIDTH, "head_width": WIDTH // HEADS, "patch_size": PATCH}
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": WIDTH, "heads": HEADS, "layers": LAYERS}
    model = open_clip.CLIP(EMBED, vision, text, quick_gelu=True).double().eval()
    model.load_state_dict(from_transformers({name: torch.tensor(array) for name, array in state.items()}), strict=True)
    rng, reference = np.random.default_rng(1), Transformers(state)
    pixels, tokens = rng.standard_normal((3, SIDE, SIDE)), rng.permutation(VOCABULARY)[:CONTEXT]
    with torch.inference_mode():
        image = model.encode_image(torch.tensor(pixels)[None])[0].numpy()
        words = model.encode_text(torch.tensor(tokens)[None])[0].numpy()
    np.testing.assert_allclose(image, reference.image(pixels), rtol=1e-6)
    np.testing.assert_allclose(words, reference.text(tokens), rtol=1e-6)


# ---- identity


def test_where_weights_lie_is_not_part_of_what_is_measured(small_file: Path, tmp_path: Path) -> None:
    """The same file in another place gives the same measure-fields and ids, and the same space."""
    copy = tmp_path / "renamed.safetensors"
    copy.write_bytes(small_file.read_bytes())
    a, b = (ImageEmbeddingStage(model=SMALL, pretrained=str(path)) for path in (small_file, copy))
    assert a.measure_fields() == b.measure_fields()
    assert a.weights()[0].id == b.weights()[0].id
    assert a.space == b.space == f"{SMALL}/{a.weights()[0].id[:16]}"


def test_the_vectors_of_a_batch_do_not_depend_on_neighbours_or_place(small_file: Path) -> None:
    """Any worker count and order give the same bytes, because batches have one shape."""
    tower = image_tower(SMALL, catalogue.preprocessing(SMALL, None), small_file, "fp32", Worker(threads=2))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
    other = np.random.default_rng(1).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
    other[5] = pixels[2]
    np.testing.assert_array_equal(tower.embed(pixels)[2], tower.embed(other)[5])


def test_the_demo_model_goes_the_same_way() -> None:
    """Its pictures and texts meet in one space, by open_clip's own code on its config."""
    stage = ImageEmbeddingStage(model=DEMO_MODEL, pretrained=DEMO_MODEL, precision="fp32")
    vectors = measured(stage, pictures())
    path = stage.weights()[0].path
    assert path is not None
    texts = text_tower(DEMO_MODEL, path, Worker()).embed(["a picture"])
    assert vectors.shape == (3, texts.shape[1])
    assert stage.space == f"{DEMO_MODEL}/{DEMO_MODEL}"


def test_texts_of_a_foreign_text_tower_are_refused(small_file: Path) -> None:
    """A model whose text tower comes from elsewhere says so, and downloads nothing."""
    with pytest.raises(ConfigError, match="no texts can be embedded"):
        text_tower("xlm-roberta-base-ViT-B-32", small_file, Worker())
    with pytest.raises(ConfigError, match="by timm/ViT-B-16-SigLIP of the hub, which Curator does not fetch"):
        text_vectors("ViT-B-16-SigLIP", str(small_file), None, ["a"], Worker())
