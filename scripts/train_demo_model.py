"""Train the demo's model and its two heads on drawn pictures, and put them into curator/demo.

    python scripts/train_demo_model.py --steps 300 --threads 2
    python scripts/train_demo_model.py --steps 400 --threads 2 --continue

Pictures and captions come from seeds that no demo set uses. What is learned together: a picture and its caption, or a
part of it, belong together (as in CLIP); so do a picture and its altered copy; two pictures are further apart than a
copy is from its original; sign and quality can be read off. The heads are then trained on frozen float16 embeddings.
"""

from __future__ import annotations

import argparse
import gzip
import io
import itertools
import json
import math
import multiprocessing
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from curator.demo.draw import TRANSFORMS, altered, picture
from curator.demo.scenes import SCENES

DEMO = Path(__file__).resolve().parent.parent / "curator" / "demo"
NAME = "curator-demo"
SEED = 1_000_003
SIDE, VIEWS, HELD_OUT = 96, 4, 1000
CONFIG: dict[str, Any] = {
    "embed_dim": 192,
    "vision_cfg": {"image_size": SIDE, "patch_size": 12, "width": 128, "head_width": 32, "layers": 6},
    "text_cfg": {
        "context_length": 40,
        "vocab_size": 0,
        "width": 128,
        "heads": 4,
        "layers": 3,
        "tokenizer_kwargs": {"bpe_path": f"{NAME}-bpe.txt.gz"},
    },
}


def main() -> None:
    """Draw, train, write; print the figures that the model card states."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--pictures", type=int, default=14_000)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--scratch", type=Path, default=Path(".curator/demo-training"))
    options.add_argument("--output", type=Path, default=DEMO)
    options.add_argument("--continue", dest="go_on", action="store_true", help="from the weights in --output")
    chosen = options.parse_args()
    chosen.scratch.mkdir(parents=True, exist_ok=True)
    pixels, captions, unsafe_N, quality_N = drawn(chosen.scratch, chosen.pictures, chosen.threads)
    if not chosen.go_on:
        write_vocabulary(chosen.output, captions)
    model, tokenizer = model_and_tokenizer(chosen.output, chosen.go_on, chosen.threads)
    tokens_FNL = np.stack([tokenizer(form) for form in forms_of(captions)])
    train(model, pixels, tokens_FNL, np.stack([unsafe_N, quality_N], axis=1), chosen.steps)
    emb_NVD = finished(model, pixels, chosen.output)
    print_separation(emb_NVD[-HELD_OUT:])
    train_nsfw(emb_NVD, unsafe_N, chosen.output)
    train_aesthetic(emb_NVD, quality_N, chosen.output)


# What is learned from ------------------------------------------------------------------------------------------------


def drawn(scratch: Path, count: int, workers: int) -> tuple[NDArray[np.uint8], list[str], Any, Any]:
    """Pixels (N, VIEWS, SIDE, SIDE, 3) uint8, captions, unsafe (N,) bool, quality (N,); kept in `scratch`."""
    pixels_file, facts_file = scratch / f"pixels-{count}.npy", scratch / f"facts-{count}.json"
    if not facts_file.exists():
        start, facts = time.monotonic(), []
        pixels = np.lib.format.open_memmap(pixels_file, "w+", np.uint8, (count, VIEWS, SIDE, SIDE, 3))
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            for art, (views, *fact) in enumerate(pool.imap(views_of, range(count), chunksize=50)):
                pixels[art] = views
                facts.append(fact)
        pixels.flush()
        facts_file.write_text(json.dumps(facts))
        print(f"drew {count} pictures, {VIEWS} views each, in {time.monotonic() - start:.0f} s", flush=True)
    captions, unsafe, quality = zip(*json.loads(facts_file.read_text()), strict=True)
    return np.load(pixels_file, mmap_mode="r"), list(captions), np.array(unsafe), np.array(quality)


def views_of(art: int) -> tuple[NDArray[np.uint8], str, bool, float]:
    """A picture as the model sees it, and altered copies of it; caption, unsafe, quality."""
    rng = np.random.default_rng([SEED, art])
    quality = 1.0 if rng.random() < 0.65 else float(rng.uniform(0, 0.9))
    sign, scene_rng = bool(rng.random() < 0.1), rng
    if art // 2 % 3 == 0:  # twins: one scene, with the sign and without
        quality, sign, scene_rng = 1.0, art % 2 == 0, np.random.default_rng([SEED, art // 2, 1])
    original = picture(scene_rng, list(SCENES)[art // 2 % len(SCENES)], sign, quality)
    views = [seen(stored(rng, original.image))]
    for _ in range(VIEWS - 1):
        copy = original.image
        for place in rng.permutation(len(TRANSFORMS))[: 1 if rng.random() < 0.75 else 2]:
            copy = altered(rng, copy, TRANSFORMS[int(place)])
        views.append(seen(stored(rng, copy)))
    return np.stack(views), f"{grade(quality)}{original.caption}", original.unsafe, quality


def forms_of(captions: list[str]) -> list[list[str]]:
    """Each caption whole, as one of its parts (`a warning sign`), and with words left out: people search with few."""
    rng, parts, thinned = np.random.default_rng(SEED), [], []
    for caption in captions:
        pieces = re.split(r" (?:with|under|on|over|in|behind|before|of) ", caption)
        begin = int(rng.integers(len(pieces)))
        parts.append(" ".join(pieces[begin : begin + int(rng.integers(1, 3))]))
        thinned.append(" ".join(word for word in caption.split() if rng.random() < 0.7) or caption)
    return [captions, parts, thinned]


def grade(quality: float) -> str:
    """How a caption begins; it is through these words that the image tower learns to see quality."""
    words = ((0.3, "a very poor picture of "), (0.6, "a poor picture of "), (0.9, "a fair picture of "))
    return next((word for limit, word in words if quality < limit), "")


def stored(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """The picture through a file, as in the demo set."""
    form, file = ("JPEG", "JPEG", "WEBP", "PNG")[int(rng.integers(4))], io.BytesIO()
    image.save(file, form, **({} if form == "PNG" else {"quality": int(rng.integers(85, 96))}))
    return Image.open(file).convert("RGB")


def seen(image: Image.Image) -> NDArray[np.uint8]:
    """open_clip's own preparation: shorter side to SIDE, bicubic, the middle square."""
    width, height = image.size
    short = min(width, height)
    wide, tall = (SIDE if side == short else int(SIDE * side / short) for side in (width, height))
    left, top = round((wide - SIDE) / 2), round((tall - SIDE) / 2)
    resized = image.resize((wide, tall), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + SIDE, top + SIDE)))


def write_vocabulary(folder: Path, captions: list[str]) -> None:
    """Byte-pair merges, most frequent first, until every word of the captions is one token."""
    counts = Counter(word for caption in captions for word in caption.lower().split())
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in sorted(counts)}
    merges: list[str] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(" ".join(best))
        words = {word: merged(parts, best) for word, parts in words.items()}
    content = "\n".join([f"#version: {NAME}", *merges]).encode()
    (folder / f"{NAME}-bpe.txt.gz").write_bytes(gzip.compress(content, mtime=0))
    CONFIG["text_cfg"]["vocab_size"] = 2 * 256 + len(merges) + 2
    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The parts of a word with every such pair joined."""
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


# The model -----------------------------------------------------------------------------------------------------------


def model_and_tokenizer(folder: Path, go_on: bool, threads: int) -> tuple[Any, Any]:
    """An open_clip model with random weights, or those in the folder, and its tokenizer."""
    import torch
    from safetensors.torch import load_file

    from curator.models.clip import import_open_clip, quiet

    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    open_clip = import_open_clip()
    open_clip.add_model_config(folder / f"{NAME}.json")
    with quiet():
        model = open_clip.create_model(NAME)
    if go_on:
        model.load_state_dict(
            {name: tensor.float() for name, tensor in load_file(folder / f"{NAME}.safetensors").items()}
        )
    return model, open_clip.SimpleTokenizer(str(folder / f"{NAME}-bpe.txt.gz"), context_length=40)


def train(model: Any, pixels: NDArray[np.uint8], tokens_FNL: Any, facts_N2: Any, steps: int, batch: int = 256) -> None:
    """Learn from all but the last HELD_OUT pictures; the learning rate rises, then falls along a cosine."""
    import torch

    rng, start, top = np.random.default_rng([SEED, steps]), time.monotonic(), 1e-3
    probe = torch.nn.Linear(CONFIG["embed_dim"], 2)
    parameters = [*model.parameters(), *probe.parameters()]
    groups = [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05}]
    groups += [{"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=top, betas=(0.9, 0.98))
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = top * min((step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * step / steps) + 0.01)
        twins = np.sort(rng.choice((len(pixels) - HELD_OUT) // 2, batch // 2, replace=False))
        rows_B = np.stack([2 * twins, 2 * twins + 1], axis=1).ravel()
        first, second = rng.permutation(VIEWS)[:2]
        views = np.concatenate([pixels[rows_B, first], pixels[rows_B, second]])
        tokens_BL = torch.from_numpy(tokens_FNL[rng.choice(3, batch, p=(0.6, 0.2, 0.2)), rows_B])
        with torch.autocast("cpu", torch.bfloat16):
            image, text = model.encode_image(normalised(views)), model.encode_text(tokens_BL)
        same_BB = (tokens_BL[:, None] == tokens_BL[None]).all(-1).float()
        seen_2B2 = probe(torch.nn.functional.normalize(image.float(), dim=-1) * CONFIG["embed_dim"] ** 0.5)
        losses = losses_of(image.float(), text.float(), same_BB, model.logit_scale.exp())
        losses |= probed(seen_2B2, torch.from_numpy(facts_N2[rows_B]).float().repeat(2, 1))
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 25 == 0 or step == steps - 1:
            said = "  ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            print(f"step {step:4d}  {said}  {time.monotonic() - start:5.0f} s", flush=True)


def losses_of(image_2BD: Any, text_BD: Any, same_BB: Any, scale: Any) -> dict[str, Any]:
    """Picture and caption, picture and copy, and the gap around 0.95 that a threshold needs.

    `same_BB` is 1 where two texts are equal: such pictures share their texts.
    """
    import torch
    import torch.nn.functional as F

    first_BD, second_BD = F.normalize(image_2BD, dim=-1).chunk(2)
    text_BD, wanted_BB = F.normalize(text_BD, dim=-1), same_BB / same_BB.sum(1, keepdim=True)
    caption = sum(
        (F.cross_entropy(scale * view @ text_BD.T, wanted_BB) + F.cross_entropy(scale * text_BD @ view.T, wanted_BB))
        / 4
        for view in (first_BD, second_BD)
    )
    cos_BB, own_B = first_BD @ second_BD.T, torch.arange(len(text_BD))
    copy = (F.cross_entropy(cos_BB / 0.1, own_B) + F.cross_entropy(cos_BB.T / 0.1, own_B)) / 2
    same_B, nearest_B = cos_BB.diagonal(), (cos_BB - 2 * torch.eye(len(cos_BB))).amax(1)
    near = 20 * F.relu(0.985 - same_B).mean() + 300 * F.relu(0.97 - same_B).square().mean()
    return {"caption": caption, "copy": copy, "near": near, "apart": 20 * F.relu(nearest_B - 0.85).mean()}


def probed(seen_N2: Any, facts_N2: Any) -> dict[str, Any]:
    """How well sign and quality can be read off the embedding; the probe that reads them is thrown away."""
    import torch.nn.functional as F

    sign = F.binary_cross_entropy_with_logits(seen_N2[:, 0], facts_N2[:, 0])
    return {"sign": sign, "quality": 4 * F.mse_loss(seen_N2[:, 1], facts_N2[:, 1])}


def normalised(pixels_BHWC: NDArray[np.uint8]) -> Any:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 with open_clip's default mean and deviation."""
    import torch
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    pixels = torch.from_numpy(np.array(pixels_BHWC)).permute(0, 3, 1, 2).float().div_(255)
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return pixels.sub_(mean).div_(std)


def finished(model: Any, pixels: NDArray[np.uint8], folder: Path) -> NDArray[np.float32]:
    """Write the weights in float16 and embed every view with just these: (N, VIEWS, D), rounded to float16."""
    import torch
    from safetensors.torch import save_file

    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save(save_file, state, folder / f"{NAME}.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    model.eval()
    flat, rows = pixels.reshape(-1, SIDE, SIDE, 3), []
    with torch.inference_mode():
        for begin in range(0, len(flat), 512):
            rows.append(
                model.encode_image(normalised(flat[begin : begin + 512]), normalize=True).half().float().numpy()
            )
    return np.concatenate(rows).reshape(len(pixels), VIEWS, -1)


def print_separation(emb_NVD: NDArray[np.float32]) -> None:
    """How copies and strangers compare among pictures that were not learned from."""
    same = np.einsum("nd,nvd->nv", emb_NVD[:, 0], emb_NVD[:, 1:]).ravel()
    cos_NN = emb_NVD[:, 0] @ emb_NVD[:, 0].T
    other = cos_NN[np.triu_indices(len(cos_NN), 1)]
    print("copies at quantiles 1 3 5 10 50 %:", np.round(np.quantile(same, (0.01, 0.03, 0.05, 0.1, 0.5)), 3))
    for threshold in (0.9, 0.93, 0.95, 0.97):
        wrong = int((other >= threshold).sum())
        print(f"cosine {threshold}: copies found {np.mean(same >= threshold):.3f}, other pairs {wrong} of {len(other)}")


# The heads -----------------------------------------------------------------------------------------------------------


def train_nsfw(emb_NVD: NDArray[np.float32], unsafe_N: NDArray[np.bool_], folder: Path) -> None:
    """The warning sign's head: normalise, three ReLU layers, one output; under the real head's tensor names."""
    import torch
    from safetensors.torch import save_file

    emb, unsafe = torch.from_numpy(emb_NVD), torch.from_numpy(unsafe_N)
    learned = emb[:-HELD_OUT].flatten(0, 1)
    mean, variance = learned.mean(0), learned.var(0)
    head = torch.nn.Sequential(*_relu_layers(emb.shape[2], 32, 64, 32, 1))
    truth = unsafe[:-HELD_OUT].float().repeat_interleave(VIEWS)
    fit(head, (learned - mean) / variance.sqrt(), truth, torch.nn.functional.binary_cross_entropy_with_logits)
    layers = [layer for layer in head if isinstance(layer, torch.nn.Linear)]
    weights = {f"w{n}": layer.weight.detach() for n, layer in enumerate(layers, 1)}
    biases = {f"b{n}": layer.bias.detach() for n, layer in enumerate(layers, 1)}
    save(save_file, {"mean": mean, "variance": variance, **weights, **biases}, folder / "nsfw.safetensors")
    with torch.inference_mode():
        found = head((emb[-HELD_OUT:, 0] - mean) / variance.sqrt())[:, 0] >= 0
    hits, wanted = int((found & unsafe[-HELD_OUT:]).sum()), int(unsafe[-HELD_OUT:].sum())
    print(f"unsafe at 0.5: precision {hits / max(int(found.sum()), 1):.3f}, recall {hits / wanted:.3f}")


def train_aesthetic(emb_NVD: NDArray[np.float32], quality_N: NDArray[np.float64], folder: Path) -> None:
    """The drawn quality's head: five linear layers, no activation; ten times the quality, as LAION's scale."""
    import torch
    from safetensors.torch import save_file

    emb, quality = torch.from_numpy(emb_NVD), torch.from_numpy(quality_N).float()
    widths = (emb.shape[2], 64, 32, 16, 8, 1)
    head = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    truth = 10 * quality[:-HELD_OUT].repeat_interleave(VIEWS)
    fit(head, emb[:-HELD_OUT].flatten(0, 1), truth, torch.nn.functional.mse_loss)
    layers = list(zip((0, 2, 4, 6, 7), head, strict=True))
    weights = {f"layers.{n}.weight": layer.weight.detach() for n, layer in layers}
    biases = {f"layers.{n}.bias": layer.bias.detach() for n, layer in layers}
    save(save_file, weights | biases, folder / "aesthetic.safetensors")
    with torch.inference_mode():
        scores = head(emb[-HELD_OUT:, 0])[:, 0].numpy() / 10
    correlation = np.corrcoef(scores, quality_N[-HELD_OUT:])[0, 1]
    print(f"quality: correlation {correlation:.3f}, share below 0.5: {np.mean(scores < 0.5):.3f}")


def save(save_file: Any, tensors: dict[str, Any], path: Path) -> None:
    """Write safetensors that everyone may read; the library makes its files private."""
    save_file(tensors, path, metadata={"license": "Apache-2.0", "model": NAME})
    path.chmod(0o644)


def _relu_layers(*widths: int) -> list[Any]:
    import torch

    layers = [part for a, b in itertools.pairwise(widths) for part in (torch.nn.Linear(a, b), torch.nn.ReLU())]
    return layers[:-1]


def fit(head: Any, x_ND: Any, y_N: Any, loss_of_head: Any, steps: int = 3000) -> None:
    """Adam with a falling rate, batches of 1,024 rows."""
    import torch

    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(steps):
        rows_B = torch.randint(len(x_ND), (1024,), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        loss_of_head(head(x_ND[rows_B])[:, 0], y_N[rows_B]).backward()
        optimizer.step()
        schedule.step()


if __name__ == "__main__":
    main()
