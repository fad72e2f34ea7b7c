"""What can be wrong with a run as a whole, found before any work: input, output, weights. One line per mistake."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from curator import machine, remote
from curator.custom import builtin_stage
from curator.errors import ConfigError, CuratorError
from curator.formats.base import Shard
from curator.formats.paths import expanded
from curator.models.weights import Fetchable
from curator.phases import against
from curator.phases.measure import survey, weights_needed
from curator.settings import Settings, place_of
from curator.stage import ProcessingStage
from curator.store import Store
from curator.uploaded import output_at
from curator.wiring import Plan, pixels_of, shards_of
from curator.wording import together


def mistakes_of(
    stages: Sequence[ProcessingStage], settings: Settings, whole: bool = True, wrong: Sequence[str] | None = None
) -> list[str]:
    """Every mistake that can be seen without reading an image, however the stages fit together.

    Not `whole`: some stages could not be built. `wrong`: what `listed` has told of the input, where it was asked.
    """
    wrong = listed(stages, settings)[1] if wrong is None else wrong
    cluster = machine.mistakes_of(settings.cluster)
    writes = not whole or (settings.write_images and any(s.copies_images for s in stages))
    store = _folder("store", settings.store_place, settings.store)
    places = [*_input(settings, wrong), *_output(settings, writes), *store]
    return [*places, *_weights(stages), *(line for stage in stages for line in stage.mistakes()), *cluster]


def listed(stages: Sequence[ProcessingStage], settings: Settings) -> tuple[list[Shard], list[str]]:
    """Every shard of the input as what it is; or none, and what is wrong with the input, one line each."""
    if not settings.inputs:
        return [], ["input: must be given: a tar, a folder, a glob such as 'shards/*.tar', or a list of these."]
    try:
        lists, reads = (
            next((s for s in stages if s.has(verb)), None) or builtin_stage(name)
            for verb, name in (("list", "partition"), ("index", "read"))
        )
        return shards_of(lists, reads, settings), []
    except CuratorError as error:
        return [], str(error).splitlines()


def _input(settings: Settings, wrong: Sequence[str]) -> Iterator[str]:
    yield from wrong
    if settings.output and not wrong:
        yield from _inside(settings)


def as_read(stages: Sequence[ProcessingStage], shards: Sequence[Shard]) -> list[ProcessingStage]:
    """The stages, `read` among them as the reader of vectors where the input's shards are vectors alone.

    Raises ConfigError where the vectors are not what they are taken for, or a stage needs images.
    """
    lists, reads = (next((s for s in stages if s.has(verb)), None) for verb in ("list", "index"))
    if lists is None or not hasattr(reads, "of_vectors") or not shards or shards[0].format != "vectors":
        return list(stages)
    needing = [s for s in stages if s.copies_images or pixels_of(s)]
    if needing:
        raise ConfigError(
            [
                f"{s.name}: {'copies' if s.copies_images else 'looks at'} images, and the input holds vectors alone. "
                f"Leave it out of stages=[...]{'; manifest lists what is kept' if s.copies_images else ''}."
                for s in needing
            ]
        )
    return [reads.of_vectors(shards) if s is reads else s for s in stages]


def _inside(settings: Settings) -> Iterator[str]:
    """An input that lies in the output would be replaced with it."""
    output = settings.output_place
    for given in settings.inputs:
        for path in map(place_of, expanded(given, {str(p) for p in settings.no_input})):
            if _lies_in(path, output):
                yield (
                    f"output: {settings.output} contains the input {given}; what is written there would replace it. "
                    "Name another folder."
                )
                return


def _lies_in(place: Path | str, folder: Path | str) -> bool:
    """Whether a place is a folder or lies below it; nothing on disk lies behind a URL."""
    if isinstance(place, Path) and isinstance(folder, Path):
        return place == folder or folder in place.parents
    return isinstance(place, str) and isinstance(folder, str) and remote.within(place, folder)


def _folder(name: str, place: Path | str, given: str) -> Iterator[str]:
    """What is wrong with a folder that will be written to, as far as it can be told by looking."""
    if isinstance(place, str):
        try:
            remote.children(place)
        except CuratorError as error:
            yield f"{name}: {error}"
        return
    nearest = next(folder for folder in (place, *place.parents) if folder.exists())
    if not nearest.is_dir():
        yield f"{name}: {given} cannot be a folder: {nearest} is a file. Name another."
    elif not os.access(nearest, os.W_OK) or nearest.is_relative_to("/proc"):
        yield f"{name}: {given} cannot be written: no permission in {nearest}. Name another."


def _output(settings: Settings, writes: bool) -> Iterator[str]:
    if not settings.output:
        if not settings.dry_run:
            yield "output: must be given: the folder that takes shards/, ledger/ and run.json."
        return
    output = output_at(settings.output_place)
    if unusable := list(_folder("output", settings.output_place, settings.output)):
        yield from unusable
        return
    if _lies_in(settings.output_place, settings.store_place):
        yield f"output: {settings.output} lies in the store, {settings.store}; name a folder outside."
        return
    if settings.overwrite:
        if output.is_foreign and (own := [p for p in ("shards", "ledger") if output.holds(p)]):
            yield (
                f"output: {settings.output} holds {' and '.join(own)} that no run of Curator made, and the result "
                "would take their place. Move them away, or name another folder."
            )
        return
    if output.is_foreign:
        yield (
            f"output: {settings.output} holds something else than a run of Curator. Name another folder, or say "
            "overwrite=true to put the result beside it."
        )
    if not writes and "shards" in (output.run or {}).get("parts", []):
        yield (
            f"output: {settings.output} holds shards, and this run would write none in their place. Name another "
            "folder, or say overwrite=true to lose them."
        )


def against_what(plan: Plan, settings: Settings) -> Iterator[str]:
    """Earlier results that a stage is to compare with, and that are none."""
    for stage in plan.collections:
        given = getattr(stage, "against", None)
        if given and stage.name in plan.feeds:
            paths = [given] if isinstance(given, str) else given
            output = settings.output_place if settings.output else None
            yield from against.mistakes_of(paths, f"{stage.name}.against", plan.space_of(stage), output)


def missing_weights(plan: Plan, settings: Settings) -> list[str]:
    """Weights that are not where the config says, of stages that have something to measure."""
    missing = {
        stage: [str(w.missing) for w in weights if w.path is None and not isinstance(w, Fetchable)]
        for stage, weights in plan.weights.items()
    }
    if not any(missing.values()):
        return []
    shards = plan.shards(settings)
    store = Store(settings.store)
    needed = weights_needed(plan, store, survey(plan, store, shards, settings.fingerprint))
    return together((stage, what) for stage in needed for what in missing[stage])


def _weights(stages: Sequence[ProcessingStage]) -> Iterator[str]:
    for stage in stages:
        try:
            stage.weights()
        except CuratorError as error:
            yield f"{stage.name}: {error}"
