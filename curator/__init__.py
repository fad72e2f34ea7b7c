"""Curator: large image collections in, curated datasets out.

Everything a script or a stage of one's own needs, imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {
    "Pipeline": "curator.pipeline",
    "Result": "curator.pipeline",
    "FilePartitioningStage": "curator.stages.partition",
    "ImageReaderStage": "curator.stages.read",
    "ImageEmbeddingStage": "curator.stages.embed",
    "ImageNSFWFilterStage": "curator.stages.nsfw",
    "ImageAestheticFilterStage": "curator.stages.aesthetic",
    "ImageResolutionFilterStage": "curator.stages.resolution",
    "ImageBlurFilterStage": "curator.stages.blur",
    "ImageExposureFilterStage": "curator.stages.exposure",
    "CaptionFilterStage": "curator.stages.caption",
    "ImageCaptionAgreementFilterStage": "curator.stages.clip_score",
    "ImageConceptFilterStage": "curator.stages.concept",
    "BlocklistFilterStage": "curator.stages.blocklist",
    "ExactDeduplicationStage": "curator.stages.exact",
    "SemanticDeduplicationStage": "curator.stages.dedup",
    "ImageWriterStage": "curator.stages.write",
    "ImageFolderWriterStage": "curator.stages.folder",
    "ManifestWriterStage": "curator.stages.manifest",
    "EmbeddingWriterStage": "curator.stages.embeddings",
    "GroupWriterStage": "curator.stages.groups",
    "FaissWriterStage": "curator.stages.faiss",
    "MilvusWriterStage": "curator.stages.milvus",
    "PineconeWriterStage": "curator.stages.pinecone",
    **dict.fromkeys(
        (
            "Array", "Choice", "Column", "Columns", "Embedding", "ImageBatch", "Mask", "Pixels", "ProcessingStage",
            "Weights", "Worker", "decides", "measures", "speeds",
        ),
        "curator.stage",
    ),
    "open": "curator.training",
    "search": "curator.query.search",
    "CuratorError": "curator.errors",
    "ConfigError": "curator.errors",
}  # fmt: skip
__all__ = sorted(_WHERE.keys() - {"open"})  # what a star brings must not hide Python's own open


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'curator' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(_WHERE)


if TYPE_CHECKING:
    from curator.errors import ConfigError as ConfigError
    from curator.errors import CuratorError as CuratorError
    from curator.pipeline import Pipeline as Pipeline
    from curator.pipeline import Result as Result
    from curator.query.search import search as search
    from curator.stage import Array as Array
    from curator.stage import Choice as Choice
    from curator.stage import Column as Column
    from curator.stage import Columns as Columns
    from curator.stage import Embedding as Embedding
    from curator.stage import ImageBatch as ImageBatch
    from curator.stage import Mask as Mask
    from curator.stage import Pixels as Pixels
    from curator.stage import ProcessingStage as ProcessingStage
    from curator.stage import Weights as Weights
    from curator.stage import Worker as Worker
    from curator.stage import decides as decides
    from curator.stage import measures as measures
    from curator.stage import speeds as speeds
    from curator.stages.aesthetic import ImageAestheticFilterStage as ImageAestheticFilterStage
    from curator.stages.blocklist import BlocklistFilterStage as BlocklistFilterStage
    from curator.stages.blur import ImageBlurFilterStage as ImageBlurFilterStage
    from curator.stages.caption import CaptionFilterStage as CaptionFilterStage
    from curator.stages.clip_score import ImageCaptionAgreementFilterStage as ImageCaptionAgreementFilterStage
    from curator.stages.concept import ImageConceptFilterStage as ImageConceptFilterStage
    from curator.stages.dedup import SemanticDeduplicationStage as SemanticDeduplicationStage
    from curator.stages.embed import ImageEmbeddingStage as ImageEmbeddingStage
    from curator.stages.embeddings import EmbeddingWriterStage as EmbeddingWriterStage
    from curator.stages.exact import ExactDeduplicationStage as ExactDeduplicationStage
    from curator.stages.exposure import ImageExposureFilterStage as ImageExposureFilterStage
    from curator.stages.faiss import FaissWriterStage as FaissWriterStage
    from curator.stages.folder import ImageFolderWriterStage as ImageFolderWriterStage
    from curator.stages.groups import GroupWriterStage as GroupWriterStage
    from curator.stages.manifest import ManifestWriterStage as ManifestWriterStage
    from curator.stages.milvus import MilvusWriterStage as MilvusWriterStage
    from curator.stages.nsfw import ImageNSFWFilterStage as ImageNSFWFilterStage
    from curator.stages.partition import FilePartitioningStage as FilePartitioningStage
    from curator.stages.pinecone import PineconeWriterStage as PineconeWriterStage
    from curator.stages.read import ImageReaderStage as ImageReaderStage
    from curator.stages.resolution import ImageResolutionFilterStage as ImageResolutionFilterStage
    from curator.stages.write import ImageWriterStage as ImageWriterStage
    from curator.training import open as open
