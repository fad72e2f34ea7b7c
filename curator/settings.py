"""The top-level keys of a config: everything that is not a stage."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from curator import remote
from curator.cluster import ClusterSettings
from curator.custom import builtin_stage
from curator.errors import ConfigError
from curator.stage import ProcessingStage
from curator.store import Store
from curator.wording import plain

DEMO_FOLDER = ".curator/demo"

ALIASES = (("partition", "file_paths", "input"), ("write", "output_dir", "output"))
"""NeMo Curator's arguments on stages that mean a top-level key here: stage, its field, the key."""


class Settings(BaseModel):
    """One run's settings, each as `conf/config.yaml` explains it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str | tuple[str, ...] | None = None
    output: str | None = None
    store: str = ".curator/store"
    cluster: ClusterSettings = ClusterSettings()
    overwrite: bool = False
    max_failed: float = Field(1.0, ge=0, le=1)
    fingerprint: Literal["stat", "content"] = "stat"
    dry_run: bool = False
    write_images: bool = True
    demo: bool = False

    @field_validator("input", "output", "store", mode="before")
    @classmethod
    def _at_home(cls, given: Any) -> Any:
        """A leading `~` that no shell has expanded, behind `input=` say, is the user's home; `file://` is a path.

        A URL with a secret in it is refused here, before it is shown anywhere.
        """
        if isinstance(given, list | tuple):
            return tuple(cls._at_home(one) for one in given)
        if not isinstance(given, str):
            return given
        if remote.is_url(given) and not given.lower().startswith("file:") and (wrong := remote.mistake(given)):
            raise ValueError(wrong)
        given = remote.local(given)
        return os.path.expanduser(given) if given.startswith("~/") else given

    @property
    def inputs(self) -> tuple[str, ...]:
        """The input as a list, as the user wrote it."""
        given = (self.input,) if isinstance(self.input, str) else tuple(self.input or ())
        return tuple(one for one in given if one)

    @property
    def no_input(self) -> list[Path | str]:
        """Folders that are no input where they lie under one: the store, the output. URLs are texts."""
        return [place_of(p) for p in (self.store, self.output) if p is not None]

    @property
    def store_place(self) -> Path | str:
        """Where measurements lie: a folder, or a URL."""
        return place_of(self.store)

    @property
    def fetched_folder(self) -> Path:
        """Where bodies of URLs lie, for all runs over the store; of a store on a URL, beside its copies."""
        return Store(self.store).root / "fetched"

    @property
    def output_place(self) -> Path | str:
        """Where the result goes: a folder, or a URL."""
        assert self.output is not None, "checked before the run"
        return place_of(self.output)


def place_of(given: str) -> Path | str:
    """A folder without links in its path, or a URL without its last slash."""
    return given.rstrip("/") if remote.is_url(given) else Path(os.path.realpath(given))


def settled(
    stages: Sequence[ProcessingStage], given: Mapping[str, Any], say: Any
) -> tuple[list[ProcessingStage], Settings]:
    """Stages and settings as they will run: what is missing is added, and said; NeMo's names are understood."""
    given = dict(given)
    if classes := [s for s in stages if not isinstance(s, ProcessingStage)]:
        raise ConfigError([_no_stage(thing) for thing in classes])
    for stage in stages:
        for name, field, key in ALIASES:
            if type(stage).called == name and given.get(key) is None and getattr(stage, field, None) is not None:
                given[key] = getattr(stage, field)
    if isinstance(given.get("cluster"), str):
        given["cluster"] = {"kind": given["cluster"]}
    given = {key: [str(p) for p in value] if isinstance(value, list | tuple) else value for key, value in given.items()}
    given = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    for stage in stages:
        ignored = [f for f in getattr(type(stage), "ignored", ()) if getattr(stage, f) is not None]
        if ignored:
            say.say(f"{stage.name}: {', '.join(ignored)} of NeMo Curator has no meaning here and changes nothing")
    return completed(list(stages), say), checked(given)


def _no_stage(thing: Any) -> str:
    if isinstance(thing, type):
        return f"stages: {thing.__name__} is no stage; an instance is one, such as {thing.__name__}()."
    return f"stages: {thing!r} is no stage, as ImageReaderStage() is one."


def checked(given: Mapping[str, Any]) -> Settings:
    """Settings, or ConfigError with a line per mistake."""
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError(plain(error, "", Settings.model_fields)) from error


def completed(stages: list[ProcessingStage], say: Any) -> list[ProcessingStage]:
    """A pipeline without sources gets `partition` and `read` and, lacking a writer, `write`; others run as listed."""
    if any(stage.kind == "source" for stage in stages):
        return stages
    added = ["partition", "read"]
    stages = [builtin_stage("partition"), builtin_stage("read"), *stages]
    if not any(stage.kind == "writer" for stage in stages):
        added.append("write")
        stages.append(builtin_stage("write"))
    if say is not None:
        say.say(f"added the stages that were not named: {', '.join(added)}")
    return stages
