"""The one table of published weights: which files a model comes in, their hashes, and where they are to be had.

All files of one model hold the same numbers and so share its id: vectors measured with one form serve the others.
Hashes as their authors state them; `bytes` where the file was seen. Imports nothing heavy, touches no file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

DEMO = Path(__file__).parent.parent / "demo"
"""Where the demo model and its heads lie; they ship with Curator."""

DEMO_MODEL = "curator-demo"


@dataclass(frozen=True)
class File:
    """One form of a published model: its name, its SHA-256, where it is to be had ("" where only people have it)."""

    name: str
    sha256: str
    url: str = ""
    bytes: int | None = None


@dataclass(frozen=True)
class Published:
    """A model that its authors published. The first of `files` is the one to fetch.

    `folders`: where hubs and other tools put it below a model folder. `numbers`: the SHA-256 over its tensors
    (`weights.digest_of_tensors`), for small heads, so that a safetensors copy of anybody's making is known as well.
    """

    id: str
    title: str
    files: tuple[File, ...]
    folders: tuple[str, ...] = ()
    numbers: str | None = None

    def only(self, fits: Callable[[File], bool]) -> Published:
        """The same model, in some of its forms."""
        return replace(self, files=tuple(file for file in self.files if fits(file)), numbers=None)


_HUB = "https://huggingface.co"
_RAW = "https://raw.githubusercontent.com"
_OPENAI = "https://openaipublic.azureedge.net/clip/models"
_VIT_L_14_PT = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"

CLIP_VIT_L_14 = Published(
    "clip-vit-l-14-openai",
    "CLIP ViT-L/14 by OpenAI",
    (
        File(
            "open_clip_model.safetensors",
            "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
            f"{_HUB}/timm/vit_large_patch14_clip_224.openai/resolve/main/open_clip_model.safetensors",
        ),
        File("ViT-L-14.pt", _VIT_L_14_PT, f"{_OPENAI}/{_VIT_L_14_PT}/ViT-L-14.pt"),
        File(
            "model.safetensors",
            "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
            f"{_HUB}/openai/clip-vit-large-patch14/resolve/main/model.safetensors",
        ),
    ),
    folders=(
        "timm/vit_large_patch14_clip_224.openai",
        "vit_large_patch14_clip_224.openai",
        "openai/clip-vit-large-patch14",
        "clip-vit-large-patch14",
        "models--timm--vit_large_patch14_clip_224.openai/snapshots/*",
        "models--openai--clip-vit-large-patch14/snapshots/*",
    ),
)

NSFW_L_14 = Published(
    "laion-nsfw-l14",
    "LAION's NSFW head for CLIP ViT-L/14",
    (
        File(
            "clip_autokeras_binary_nsfw.zip",
            "905520bb0336accc73ee282c605d926aef90cf14248889d44b9cee50eef71f8a",
            f"{_RAW}/LAION-AI/CLIP-based-NSFW-Detector/main/clip_autokeras_binary_nsfw.zip",
            1_094_585,
        ),
        File(
            "clip_autokeras_binary_nsfw.pth",  # as NeMo Curator names it; the same ten tensors, no vocabularies
            "fc4d70d2eea4e948d13bc27bf7114f5e8d3bd317eb01a4b49b35dcf1a3d672c6",
            bytes=866_223,
        ),
        File(
            "nsfw_l14.safetensors",
            "d8c4817ce98e38029e53e57ae067d77913e6b88e03090cb282305b490a36cbae",
            bytes=941_544,
        ),
    ),
    folders=("laion/clip-autokeras-binary-nsfw",),
)

AESTHETIC_L_14 = Published(
    "laion-aesthetic-v2-l14",
    "LAION's aesthetic predictor V2 for CLIP ViT-L/14",
    (
        File(
            "sac+logos+ava1-l14-linearMSE.pth",
            "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
            f"{_RAW}/christophschuhmann/improved-aesthetic-predictor/main/sac%2Blogos%2Bava1-l14-linearMSE.pth",
            3_714_759,
        ),
        File(
            "aesthetic_l14.safetensors",
            "00c6529260a40246313b0761a2e1892bc6b9eb01e34ece57699bd91bdb9c9fa7",
            bytes=3_712_932,
        ),
    ),
    folders=(  # Hugging Face's copy, a safetensors file of the same numbers
        "ttj/sac-logos-ava1-l14-linearMSE",
        "models--ttj--sac-logos-ava1-l14-linearMSE/snapshots/*",
    ),
    numbers="d88c2deffc647eca5ea4984ee1eaac17a56ba4ab65cc6dca13ae49de6780ab43",
)

PUBLISHED = {model.id: model for model in (CLIP_VIT_L_14, NSFW_L_14, AESTHETIC_L_14)}
"""By id."""
