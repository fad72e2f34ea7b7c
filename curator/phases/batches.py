"""Images gathered into batches of one shape, and a stage's model run on them.

The bits of an embedding depend on the size of its batch, but not on its neighbours or its place (measured), so
every batch is padded to the one size: then any worker count and any order of arrival give the same bytes.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np

from curator import here
from curator.custom import blamed
from curator.errors import CuratorError
from curator.phases.columns import unit_float16
from curator.phases.piece import Piece
from curator.stage import Array, ImageBatch, ProcessingStage
from curator.units import counted
from curator.wiring import measured_from

ONE_AT_A_TIME = threading.Lock()  # a worker has one copy of each model, and torch uses all its threads at once


class Batcher:
    """Prepared arrays of one stage, gathered over pieces until a batch is full."""

    def __init__(self, stage: ProcessingStage, key: str) -> None:
        self.stage, self.key = stage, key
        self.size = int(getattr(stage, "model_inference_batch_size", 32))
        self.places: list[tuple[Piece, int]] = []
        self.arrays: list[Array] = []

    def add(self, piece: Piece, row: int, array: Array) -> bool:
        """Take one image; True when the batch is full."""
        self.places.append((piece, row))
        self.arrays.append(array)
        return len(self.arrays) == self.size

    def measured(self) -> tuple[list[tuple[Piece, int]], dict[str, Array]]:
        """Measure what has come, padded to the one shape; the places and their columns."""
        places, arrays = self.places, self.arrays
        self.places, self.arrays = [], []
        if not arrays:
            return [], {}
        shapes = {a.shape for a in arrays}
        if len(shapes) > 1:
            raise CuratorError(f"{self.stage.name}.prepare gave arrays of different shapes: {sorted(shapes)}.")
        pixels = np.zeros((self.size, *arrays[0].shape), arrays[0].dtype)
        pixels[: len(arrays)] = arrays
        names = measured_from(self.stage)
        padded = places + [places[-1]] * (self.size - len(places))
        columns = {n: np.array([p.read_value(r, n) for p, r in padded], object) for n in names}
        return places, run_model(self.stage, self.key, ImageBatch(pixels=pixels, columns=columns), len(places))


def run_model(stage: ProcessingStage, key: str, batch: ImageBatch, count: int) -> dict[str, Array]:
    """The columns of the first `count` images of a batch, checked."""
    with blamed(stage, "setup"):
        model = here.keep(("model", key), lambda: stage.setup(here.this_worker()))
    with ONE_AT_A_TIME, blamed(stage, "measure"):
        columns = stage.measure(replace(batch, model=model))  # type: ignore[attr-defined]
    missing = [name for name in stage.gives if name not in columns]
    if missing:
        raise CuratorError(f"{stage.name}.measure gave no column {', '.join(missing)}, which its `gives` names.")
    result = {name: np.asarray(columns[name])[:count] for name in stage.gives}
    for name, column in result.items():
        if len(column) != count:
            raise CuratorError(
                f"{stage.name}.measure gave {counted(len(column), 'row')} of {name} for {counted(count, 'image')}."
            )
    if "embedding" in result:
        result["embedding"] = unit_float16(result["embedding"])
    return result
