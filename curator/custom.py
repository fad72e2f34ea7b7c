"""Stages as descriptions: found by the name in a YAML, sent to other processes, and named in an address.

A user's stage is one file, loaded by its path (never through sys.path, where a `my/numpy.py` would shadow NumPy);
workers and decoders are sent its text. A YAML is data: what `_target_` names is looked up and checked here before
anything is imported, and Curator builds the stage itself.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import cloudpickle

from curator.errors import ConfigError, CuratorError
from curator.stage import ProcessingStage

PRIVATE = "curator_user_"  # how the module of a user's file is called, in every process
PLUGINS = "curator.stages"  # the entry point group of installed packages that bring stages
BUILT_IN = {
    "partition": "curator.stages.partition.FilePartitioningStage",
    "read": "curator.stages.read.ImageReaderStage",
    "embed": "curator.stages.embed.ImageEmbeddingStage",
    "nsfw": "curator.stages.nsfw.ImageNSFWFilterStage",
    "aesthetic": "curator.stages.aesthetic.ImageAestheticFilterStage",
    "resolution": "curator.stages.resolution.ImageResolutionFilterStage",
    "blur": "curator.stages.blur.ImageBlurFilterStage",
    "exposure": "curator.stages.exposure.ImageExposureFilterStage",
    "caption": "curator.stages.caption.CaptionFilterStage",
    "clip_score": "curator.stages.clip_score.ImageCaptionAgreementFilterStage",
    "concept": "curator.stages.concept.ImageConceptFilterStage",
    "blocklist": "curator.stages.blocklist.BlocklistFilterStage",
    "exact": "curator.stages.exact.ExactDeduplicationStage",
    "dedup": "curator.stages.dedup.SemanticDeduplicationStage",
    "write": "curator.stages.write.ImageWriterStage",
    "folder": "curator.stages.folder.ImageFolderWriterStage",
    "manifest": "curator.stages.manifest.ManifestWriterStage",
    "embeddings": "curator.stages.embeddings.EmbeddingWriterStage",
    "groups": "curator.stages.groups.GroupWriterStage",
    "faiss": "curator.stages.faiss.FaissWriterStage",
    "milvus": "curator.stages.milvus.MilvusWriterStage",
    "pinecone": "curator.stages.pinecone.PineconeWriterStage",
}
StageClass = type[ProcessingStage]


@dataclass(frozen=True)
class StageSpec:
    """A stage as it travels: where its class comes from, and its settings."""

    name: str
    class_name: str
    fields: dict[str, Any]
    module: str | None = None  # of an installed class
    text: str | None = None  # of a user's file
    stem: str | None = None  # that file's name
    pickled: bytes | None = None  # of a notebook's class

    @classmethod
    def of(cls, stage: ProcessingStage) -> StageSpec:
        """The description of a stage."""
        kind = type(stage)
        fields = {name: getattr(stage, name) for name in type(stage).model_fields}
        source = source_of(kind)
        if source is not None:
            return cls(stage.name, kind.__name__, fields, text=source[1], stem=source[0])
        if kind.__module__ == "__main__":
            return cls(stage.name, kind.__name__, fields, pickled=cloudpickle.dumps(kind))
        return cls(stage.name, kind.__qualname__, fields, module=kind.__module__)

    def build(self) -> ProcessingStage:
        """The stage again, in whichever process this is."""
        if self.pickled is not None:
            kind = cloudpickle.loads(self.pickled)
        elif self.text is not None:
            assert self.stem is not None
            kind = getattr(module_from_text(self.stem, self.text), self.class_name)
        else:
            assert self.module is not None
            kind = getattr(importlib.import_module(self.module), self.class_name)
        stage: ProcessingStage = kind(**self.fields)
        return stage


def source_of(kind: StageClass) -> tuple[str, str] | None:
    """Stem and text of the user's file that a class comes from; None for installed classes and notebooks."""
    module = sys.modules.get(kind.__module__)
    text = getattr(module, "__curator_text__", None)
    if text is not None:
        return kind.__module__.removeprefix(PRIVATE), text
    file = getattr(module, "__file__", None)
    if kind.__module__ == "__main__" and file is not None and Path(file).is_file():
        return Path(file).stem, Path(file).read_text()
    return None


def module_from_text(stem: str, text: str) -> types.ModuleType:
    """The module that a user's file makes, under a private name; run once per process."""
    return _module(stem, text, hashlib.sha256(text.encode()).hexdigest())


@cache
def _module(stem: str, text: str, _: str) -> types.ModuleType:
    name = PRIVATE + stem
    module = types.ModuleType(name)
    module.__dict__["__curator_text__"] = text
    module.__file__ = f"{stem}.py"
    sys.modules[name] = module  # pydantic looks annotations up here
    exec(compile(text, f"{stem}.py", "exec"), module.__dict__)  # the user's own file, named by the user's own config
    return module


def identity_of(kind: StageClass) -> str:
    """What an address says of a stage's class: its name, and its version or the hash of its file."""
    if kind.__module__.split(".")[0] == "curator":
        assert kind.version is not None, f"{kind.__name__} must set its version"
        return f"curator.{kind.__name__}:{kind.version}"
    module = kind.__module__.removeprefix(PRIVATE)
    if "version" in vars(kind) and kind.version is not None:
        return f"{module}.{kind.__name__}:{kind.version}"
    source = source_of(kind)
    text = source[1] if source is not None else _text_of(kind)
    return f"{module}.{kind.__name__}:sha256-{hashlib.sha256(text.encode()).hexdigest()}"


def target_of(kind: StageClass) -> str:
    """What a YAML's `_target_` says to mean this class."""
    source = source_of(kind)
    return f"{source[0] if source is not None else kind.__module__}.{kind.__qualname__}"


def _text_of(kind: StageClass) -> str:
    try:
        file = inspect.getsourcefile(kind)
    except (TypeError, OSError):
        file = None
    if file is None or not Path(file).is_file():
        raise ConfigError(
            f"{kind.__name__}: comes from no file, so what it measures cannot be told from what an earlier version "
            "measured. Give the class a `version: ClassVar[int] = 1`, and raise it when its numbers change."
        )
    return Path(file).read_text()


def builtin_stage(name: str, **fields: Any) -> ProcessingStage:
    """One of Curator's own stages by its name."""
    return _installed(BUILT_IN[name])(**fields)


def _installed(target: str) -> StageClass:
    module, _, class_name = target.rpartition(".")
    found: StageClass = getattr(importlib.import_module(module), class_name)
    return found


def plugins() -> dict[str, str]:
    """The stages that installed packages registered: `package.module.Class` by its entry point's name."""
    return {p.name: p.value.replace(":", ".") for p in importlib.metadata.entry_points(group=PLUGINS)}


def stage_class(target: Any, where: str, config_dir: Path | None) -> StageClass:
    """The class that a `_target_` names. Raises ConfigError, with `where`, for anything that is no stage."""
    if not isinstance(target, str):
        raise ConfigError(f"{where}._target_: must be the name of a stage, not {target!r}.")
    if target in BUILT_IN.values() or target in plugins().values():
        return _checked(_installed(target), target, where)
    stem, _, class_name = target.rpartition(".")
    file = config_dir / f"{stem}.py" if config_dir is not None and stem.isidentifier() else None
    if file is None or not file.is_file():
        raise ConfigError(_no_stage(target, where, config_dir))
    if _importable(stem):
        raise ConfigError(
            f"{where}._target_: {file} is called like the module {stem} that Python can import. Give it another name."
        )
    return _checked(_from_file(file, class_name, where), target, where)


def _importable(stem: str) -> bool:
    """Whether Python would find something by this name, the working folder left out: `python -m` looks there too, and
    would take a user's own file, or the folder around it, for something else.
    """
    here = os.path.realpath(os.curdir)
    paths = [p for p in sys.path if os.path.realpath(p or os.curdir) != here]
    finders = [f for f in sys.meta_path if f is not PathFinder]
    return any(f.find_spec(stem, None) is not None for f in finders) or PathFinder.find_spec(stem, paths) is not None


def _from_file(file: Path, class_name: str, where: str) -> Any:
    try:
        module = module_from_text(file.stem, file.read_text())
    except Exception as error:  # the user's own code: say where, and what Python said
        line = _line_of(error, f"{file.stem}.py")
        raise ConfigError(f"{where}._target_: {file}{line} does not run: {type(error).__name__}: {error}") from error
    if not hasattr(module, class_name):
        offered = [n for n, v in vars(module).items() if _is_stage(v) and v.__module__ == module.__name__]
        raise ConfigError(
            f"{where}._target_: {file} has no class {class_name}. The stages in it: {', '.join(offered) or 'none'}."
        )
    return getattr(module, class_name)


def _line_of(error: BaseException, name: str) -> str:
    if isinstance(error, SyntaxError):
        return f", line {error.lineno},"
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == name:
            line = f", line {trace.tb_lineno},"
        trace = trace.tb_next
    return line


def _is_stage(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, ProcessingStage)


def _checked(thing: Any, target: str, where: str) -> StageClass:
    if not _is_stage(thing) or thing is ProcessingStage:
        raise ConfigError(f"{where}._target_: {target} is not a subclass of ProcessingStage.")
    found: StageClass = thing
    return found


def _no_stage(target: str, where: str, config_dir: Path | None) -> str:
    stem = target.rpartition(".")[0]
    if config_dir is not None and not stem.isidentifier() and (config_dir / f"{stem}.py").is_file():
        plain = re.sub(r"\W", "_", stem)
        return (
            f"{where}._target_: {config_dir / stem}.py must be called as Python modules are: letters, digits and _, "
            f"such as {plain if plain.isidentifier() else f'stage_{plain}'}.py."
        )
    place = f" of {config_dir}" if config_dir is not None else " of --config-dir (none was given)"
    return (
        f"{where}._target_ names {target}, which is no stage of Curator,{place} or of an installed plug-in. "
        "A stage of your own is FILE.CLASS for a file FILE.py directly under --config-dir."
    )


@contextmanager
def blamed(stage: ProcessingStage, verb: str) -> Iterator[None]:
    """What a user's own stage raises becomes one line that says where; Curator's own stages raise as they do."""
    try:
        yield
    except CuratorError:
        raise
    except Exception as error:
        if type(stage).__module__.startswith("curator."):
            raise
        code = getattr(inspect.unwrap(getattr(type(stage), verb)), "__code__", None)
        frames = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        raise CuratorError(
            f"{stage.name}.{verb}: {type(error).__name__}: {error}{where}. What was measured is kept."
        ) from error
