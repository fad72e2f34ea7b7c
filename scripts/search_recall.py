"""How well words find what was drawn: recall of text queries on the demo's pictures, through the whole of
`recipe=image_search` and `curator.search`.

    python scripts/search_recall.py

A picture is right when its caption holds what was asked for: `planet`, `yellow flower`, or all of it. recall@k is the
share of those pictures, or of k where there are more, that are among the first k.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import curator
from curator.demo.canvas import COLOURS
from curator.demo.draw import draw_demo
from curator.models.named import text_vectors
from curator.models.published import DEMO_MODEL
from curator.stage import Worker

SCENES = {
    "balloon": "balloons in the sky", "beside": "a shape beside a shape", "boat": "boats on a sea", "city": "a city",
    "cloth": "a cloth", "fish": "fish in a sea", "flower": "flowers on a meadow", "forest": "a forest", "hill": "hills",
    "house": "a house with a roof", "line": "lines and fields", "mosaic": "a mosaic of tiles", "mountain": "mountains",
    "night": "a night sky with stars", "planet": "planets in space", "table": "a vase on a table",
}  # fmt: skip
"""What is drawn, by a word that its captions hold, and how somebody may ask for it."""
AT = (1, 5, 10)


def words(text: str) -> list[str]:
    """The words of a text, in the singular."""
    return [word.rstrip("s") for word in text.split()]


def queries(captions: Sequence[str]) -> dict[str, dict[str, str]]:
    """Queries by kind: what a caption must hold, and what is asked for it, in words that captions use."""
    coloured = {}
    for caption in captions:
        for article, colour, thing in re.findall(r"\b(a |one )?([a-z]+) (?=([a-z]+)\b)", caption):
            if colour in COLOURS and (one := "".join(words(thing))) in SCENES:
                coloured[f"{colour} {one}"] = f"{article}{colour} {thing}"
    return {"what is drawn": SCENES, "its colour and it": coloured, "the whole caption": {c: c for c in captions}}


def meets(caption: str, wanted: str) -> bool:
    """Whether a caption is the wanted one, or holds its words side by side."""
    plain = " ".join(re.sub(r"(?<!s)s\b", "", caption.lower()).split())
    return caption == wanted or re.search(rf"\b{wanted}\b", plain) is not None


def recalls(folder: Path, held: list[str], texts: dict[str, str]) -> tuple[np.ndarray, int]:
    """(len(AT),) mean recall of the queries of one kind, and how many there are."""
    vectors = text_vectors(DEMO_MODEL, DEMO_MODEL, None, list(texts.values()), Worker())
    rows = []
    for wanted, vector in zip(texts, vectors, strict=True):
        right = sum(meets(caption, wanted) for caption in held)
        found = curator.search(folder, vector=vector, k=max(AT), fold=1).column("caption").to_pylist()
        rows.append([sum(meets(caption, wanted) for caption in found[:k]) / min(k, right) for k in AT])
    return np.mean(rows, axis=0), len(rows)


def main() -> None:
    """Draw, embed, ask, print the table."""
    with tempfile.TemporaryDirectory() as place:
        draw_demo(Path(place) / "in")
        stages = [curator.ImageEmbeddingStage(model=DEMO_MODEL, pretrained=DEMO_MODEL, precision="fp32"),
                  curator.FaissWriterStage()]  # fmt: skip
        sources = [curator.FilePartitioningStage(), curator.ImageReaderStage()]
        curator.Pipeline("recall", [*sources, *stages]).run(
            input=f"{place}/in", output=f"{place}/out", store=f"{place}/store"
        )
        held = pq.read_table(f"{place}/out/faiss/metadata.parquet").column("caption").to_pylist()
        print(f"| {len(held)} pictures, queries of | queries | {' | '.join(f'recall@{k}' for k in AT)} |")
        print(f"|---|---|{'---|' * len(AT)}")
        for kind, texts in queries(held).items():
            mean, count = recalls(Path(place) / "out", held, texts)
            print(f"| {kind} | {count} | {' | '.join(f'{r:.3f}' for r in mean)} |")


if __name__ == "__main__":
    main()
