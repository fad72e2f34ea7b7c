"""Images per second of the embed stage beside a plain open_clip loop, both with the same file of random weights.

    python scripts/bench_embed.py                          # ViT-L/14 at full size, 64 photos, bf16 where it is fast
    python scripts/bench_embed.py --model ViT-B-32-quickgelu --images 128

Ours: photos through the decoder processes, then the stage's `measure`. Theirs: open_clip's model and transform in a
DataLoader with as many workers, under autocast where it is bf16. Prints one table. The weights (1.7 GB for ViT-L/14)
are made once, in the layout that `embed.model_dir` documents.
"""

from __future__ import annotations

import argparse
import io
import pickle
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from curator.decode import Decoded, DecodeSettings
from curator.decoders import Decoders
from curator.machine import cores, good_at_bf16
from curator.models.clip import import_open_clip, quiet
from curator.models.weights import SUMS, fingerprint
from curator.progress import table
from curator.stage import Array, ImageBatch, Worker
from curator.stages.embed import ImageEmbeddingStage
from curator.wiring import pixels_of

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "photos"


def photos(folder: Path) -> Iterator[bytes]:
    """The photos of every shard in a folder, in order."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name.endswith((".jpg", ".png")) else None
                if file is not None:
                    yield file.read()


def random_weights(model: str, folder: Path) -> Path:
    """A model folder with a file of random weights, and the SHA256SUMS that vouches for it."""
    file = folder / "open_clip_model.safetensors"
    if not file.exists():
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        with quiet():
            made = import_open_clip().create_model(model, pretrained=None)
        save_file({name: tensor.contiguous() for name, tensor in made.state_dict().items()}, file)
        (folder / SUMS).write_text(f"{fingerprint(file)}  {file.name}\n")
    return file


def batches(rows: Iterator[Array], count: int) -> Iterator[Array]:
    """Rows stacked, so many at a time."""
    while some := list(islice(rows, count)):
        yield np.stack(some)


def ours(stage: ImageEmbeddingStage, images: list[bytes], device: str) -> Callable[[], Array]:
    """The stage's way: decoder processes, then `measure` on full batches."""
    need, model = pixels_of(stage), stage.setup(Worker(device, cores()))
    assert need is not None
    build = pickle.dumps(partial(type(stage), **stage.model_dump()))
    decoders = Decoders(cores(), DecodeSettings(), [(stage.name, need, build)])
    list(decoders.decode_all(enumerate(images[:4])))  # the decoders are up, as in a run

    def run() -> Array:
        order: list[int] = []

        def prepared() -> Iterator[Array]:
            for place, decoded in decoders.decode_all(enumerate(images)):
                assert isinstance(decoded, Decoded)
                order.append(place)
                yield decoded.arrays[stage.name]

        found = [
            stage.measure(ImageBatch(pixels=pixels, model=model))["embedding"]
            for pixels in batches(prepared(), stage.model_inference_batch_size)
        ]
        return np.concatenate(found)[np.argsort(order)]

    return run


class Photos(Dataset[torch.Tensor]):
    """Encoded photos through open_clip's transform."""

    def __init__(self, images: list[bytes], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> torch.Tensor:
        return self.transform(Image.open(io.BytesIO(self.images[place])))


def theirs(model: str, file: Path, images: list[bytes], device: str, batch: int, bf16: bool) -> Callable[[], Array]:
    """A plain open_clip loop."""
    with quiet():
        whole, _, transform = import_open_clip().create_model_and_transforms(model, pretrained=str(file), device=device)
    whole.eval()
    loader = DataLoader(Photos(images, transform), batch, num_workers=cores())

    def run() -> Array:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            return np.concatenate([whole.encode_image(pixels.to(device)).float().cpu().numpy() for pixels in loader])

    return run


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-L-14-quickgelu")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2, help="of each; the fastest counts")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="a folder of tars")
    parser.add_argument("--model-dir", type=Path, default=Path(tempfile.gettempdir()) / "curator-bench")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = given.precision == "bf16" or (given.precision == "auto" and good_at_bf16(device))
    images = list(islice(photos(given.photos), given.images))
    file = random_weights(given.model, given.model_dir / given.model)
    stage = ImageEmbeddingStage(
        model=given.model, pretrained="openai", model_dir=str(file.parent),
        precision=given.precision, model_inference_batch_size=given.batch,
    )  # fmt: skip
    runs = {
        "open_clip loop": lambda: theirs(given.model, file, images, device, given.batch, bf16),
        "embed stage": lambda: ours(stage, images, device),
    }
    rates, vectors = {}, {}
    for name, build in runs.items():
        run = build()
        seconds = []
        for _ in range(given.repeats):
            begin = time.monotonic()
            found = run()
            seconds.append(time.monotonic() - begin)
        rates[name] = len(images) / min(seconds)
        vectors[name] = found / np.linalg.norm(found, axis=1, keepdims=True)
    cosine = (vectors["embed stage"] * vectors["open_clip loop"]).sum(1).min()
    title = f"{given.model}, {'bf16' if bf16 else 'fp32'}, {device}, {len(images)} photos, batch {given.batch}"
    base = rates["open_clip loop"]
    rows = [[name, f"{rate:.2f}", f"{rate / base:.2f}"] for name, rate in rates.items()]
    print(table(title, ["", "images/s", "ratio"], rows))
    print(f"smallest cosine between the two: {cosine:.6f}")


if __name__ == "__main__":
    main()
