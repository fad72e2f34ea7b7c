"""A filter of one's own: how colourful a picture is."""

import numpy as np

from curator import Array, Columns, ImageBatch, Mask, Pixels, ProcessingStage, decides, measures, speeds


class Saturation(ProcessingStage):
    """Drop images whose mean saturation is below a threshold."""

    needs = (Pixels(max_side=256),)  # what it is given
    gives = ("saturation_score",)  # the columns it adds

    channel: str = measures("hsv")  # changes the numbers: part of the address
    score_threshold: float = decides(0.1, ge=0, le=1)  # changes decisions only
    model_inference_batch_size: int = speeds(32, gt=0)  # changes neither

    def prepare(self, image) -> Array:
        """One decoded image in, one small array out; runs in the decoder's process."""
        saturation = np.asarray(image.convert("HSV"))[..., 1]
        return np.float32(saturation.mean() / 255)

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """The prepared arrays, stacked, in; columns out."""
        return {"saturation_score": batch.pixels}

    def keep(self, rows: Columns) -> Mask:
        """Sees numbers, never an image."""
        return rows["saturation_score"] >= self.score_threshold
