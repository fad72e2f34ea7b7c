"""Stages, in the order they were listed, joined into one plan: who is given what, by whom, under which address.

Finds every mistake of the whole before any work begins. Knows nothing about YAML, Dask or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from curator import address
from curator.custom import identity_of, target_of
from curator.errors import ConfigError
from curator.pairs.ranking import TEXTS
from curator.stage import Column, Embedding, Pixels, ProcessingStage, Weights
from curator.wording import meant

READ_GIVES = (
    "image", "format", "width", "height", "frames", "bytes", "content_hash", "caption", "notes",
)  # fmt: skip
"""The columns that reading gives for every image."""
VERBS = ("list", "index", "measure", "keep", "choose", "write")
"""Each is a part to take in a run; the others serve one of these."""


@dataclass(frozen=True)
class Plan:
    """The stages of one run by kind, and what joins them."""

    stages: tuple[ProcessingStage, ...]
    feeds: dict[str, str] = field(default_factory=dict)  # stage name -> the stage whose embedding it is given
    givers: dict[str, str] = field(default_factory=dict)  # column -> the stage that gives it

    def _with(self, verb: str) -> tuple[ProcessingStage, ...]:
        return tuple(s for s in self.stages if s.has(verb))

    @cached_property
    def partition(self) -> Any:
        """The source that lists the shards."""
        return next(s for s in self.stages if s.has("list"))

    @cached_property
    def read(self) -> Any:
        """The source that finds a shard's samples."""
        return next(s for s in self.stages if s.has("index"))

    def shards(self, settings: Any) -> list[Any]:
        """Every shard of a run's input as what it is. Raises ConfigError with every mistake about it."""
        return shards_of(self.partition, self.read, settings)

    @cached_property
    def images(self) -> tuple[ProcessingStage, ...]:
        """The stages that measure images, in listed order."""
        return self._with("measure")

    @cached_property
    def collections(self) -> tuple[ProcessingStage, ...]:
        """The stages that choose among all images together, in listed order; those that measure are images as well."""
        return self._with("choose")

    @cached_property
    def writers(self) -> tuple[ProcessingStage, ...]:
        """The stages that carry kept samples out, in listed order."""
        return self._with("write")

    @cached_property
    def weights(self) -> dict[str, tuple[Weights, ...]]:
        """The weights of every stage by its name; the files are looked up once."""
        return {s.name: s.weights() for s in self.stages}

    @cached_property
    def keys(self) -> dict[str, str]:
        """What each stage's addresses hold besides the piece, by stage name."""
        keys: dict[str, str] = {}
        for stage in (self.read, *self.images, *self.collections):
            inputs = [keys[giver] for giver in self.inputs_of(stage)]
            ids = [w.id for w in self.weights[stage.name]]
            keys[stage.name] = address.stage_key(identity_of(type(stage)), stage.measure_fields(), ids, inputs)
        return keys

    def space_of(self, stage: ProcessingStage) -> str:
        """The space of the vectors that a stage is fed."""
        return next(s.space for s in self.embedders if s.name == self.feeds[stage.name])

    @property
    def embedders(self) -> tuple[ProcessingStage, ...]:
        """The stages that give vectors: those that embed, and reading where the input is vectors."""
        return tuple(s for s in (self.read, *self.images) if "embedding" in s.gives)

    def embedding(self, name: str) -> dict[str, Any]:
        """What a stage's embeddings are, for who meets them later: plain JSON.

        Its name, class and the settings that measure, space, ids of its weights, key, and how images are read for it.
        """
        stage = next(s for s in self.stages if s.name == name)
        return {
            "stage": name,
            "target": target_of(type(stage)),
            "settings": stage.model_dump(mode="json", include=set(stage.measure_fields())),
            "space": stage.space,
            "weights": [w.id for w in self.weights[name]],
            "key": self.keys[name],
            "read": self.read.measure_fields(),
        }

    def inputs_of(self, stage: ProcessingStage) -> list[str]:
        """The names of the stages whose measurements this one is computed from."""
        if stage is self.read:
            return []
        givers = {self.read.name} if pixels_of(stage) else set()
        givers |= {self.givers[name] for name in measured_from(stage)}
        if stage.name in self.feeds:
            givers.add(self.feeds[stage.name])
        return sorted(givers)


def shards_of(partition: Any, read: Any, settings: Any) -> list[Any]:
    """What `partition` lists of a run's input, tables among it recognised by `read`, where that knows how."""
    listed: list[Any] = partition.list(settings.inputs, settings.no_input)
    return read.recognise(listed, settings.fetched_folder) if hasattr(read, "recognise") else listed


def pixels_of(stage: ProcessingStage) -> Pixels | None:
    """The stage's need for pixels, if it has one."""
    return next((need for need in stage.needed() if isinstance(need, Pixels)), None)


def columns_of(stage: ProcessingStage) -> list[str]:
    """The columns of other stages that this one is given."""
    return [need.name for need in stage.needed() if isinstance(need, Column)]


def measured_from(stage: ProcessingStage) -> list[str]:
    """The columns that its `measure` is given. What a collection ranks by changes its choice, never what it finds."""
    return [] if stage.has("choose") else columns_of(stage)


def kept_from(stage: ProcessingStage) -> list[str]:
    """The columns that its `keep` is given: those it measures, and in a stage that does not, those it needs."""
    return given_by(stage) if stage.has("measure") else columns_of(stage)


def given_by(stage: ProcessingStage) -> list[str]:
    """The columns that the stage adds to every row; none where it measures nothing. Vectors are no column."""
    return [name for name in stage.gives if name != "embedding"] if stage.has("measure") else []


def wire(stages: Sequence[ProcessingStage]) -> Plan:
    """Join stages into a plan. Raises ConfigError with every mistake of the whole."""
    mistakes = list(_of_the_list(stages))
    plan = Plan(tuple(stages))
    plan.givers.update({column: "read" for column in READ_GIVES})
    for stage in stages:
        if stage.has("index"):
            plan.givers.update({column: stage.name for column in READ_GIVES})
    for position, stage in enumerate(stages):
        mistakes += _needs(plan, stage, stages[:position], stages[position + 1 :])
        for column in given_by(stage):
            if column in plan.givers:
                mistakes.append(
                    f"{stage.name}: gives the column {column}, which {plan.givers[column]} gives already. "
                    "One of the two has to go."
                )
            plan.givers[column] = stage.name
    told = list(_with_models(plan, mistakes))
    if mistakes:
        raise ConfigError(mistakes)
    return replace(plan, stages=tuple(told))


def _with_models(plan: Plan, mistakes: list[str]) -> Iterable[ProcessingStage]:
    """The stages, those that embed texts told the model of the vectors that they are fed; what cannot be is noted."""
    named = {stage.name: stage for stage in plan.stages}
    for stage in plan.stages:
        try:
            yield stage.fed_by(named[plan.feeds[stage.name]]) if stage.name in plan.feeds else stage
        except ConfigError as error:
            mistakes += error.mistakes


def order_told(plan: Plan) -> list[str]:
    """What a person may not expect of the order: filters decide first, wherever they are listed."""
    lines = []
    for position, stage in enumerate(plan.stages):
        late = [s.name for s in plan.stages[position:] if s.has("keep")] if stage.has("choose") else []
        if late:
            which = f"{' and '.join(late)}, listed behind {stage.name}, {'decide' if len(late) > 1 else 'decides'}"
            lines.append(f"{which} before it: no image is dropped for one that a filter drops")
    return lines


def _of_the_list(stages: Sequence[ProcessingStage]) -> Iterable[str]:
    names = [s.name for s in stages]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"stages: {name} is listed {names.count(name)} times; give each its own name."
    for verb, name in (("list", "partition"), ("index", "read")):
        those = [s.name for s in stages if s.has(verb)]
        if not those:
            yield f"stages: nothing {'lists the input files' if verb == 'list' else 'reads samples'}. Add {name}."
        elif len(those) > 1:
            yield f"stages: {' and '.join(those)} do the same; one {name} stage is enough."
    for stage in stages:
        if not any(stage.has(verb) for verb in VERBS):
            yield f"stages: {stage.name} can do nothing: it has none of the verbs {', '.join(VERBS)}."
        elif stage.has("keep") and not stage.has("measure") and not columns_of(stage):
            yield f"stages: {stage.name} has nothing to keep from: it has no measure, and needs no column of another."
    first_other = next((i for i, s in enumerate(stages) if s.kind != "source"), len(stages))
    for stage in stages[first_other:]:
        if stage.kind == "source":
            yield f"stages: {stage.name} stands behind {stages[first_other].name}; sources come first."


def _needs(
    plan: Plan, stage: ProcessingStage, before: Sequence[ProcessingStage], behind: Sequence[ProcessingStage]
) -> Iterable[str]:
    for need in stage.needed():
        if isinstance(need, Embedding):
            yield from _embedding(plan, stage, need, before, behind)
        elif isinstance(need, Column) and need.name not in plan.givers:
            later = next((s.name for s in behind if need.name in given_by(s)), None)
            if later and stage.has("choose"):
                continue  # it chooses after all filters, wherever they are listed
            known = sorted(name for name in plan.givers if not need.number or name not in TEXTS)
            told = f"the stages listed give {', '.join(known)}.{meant(need.name, [*need.words, *known])}"
            yield f"{stage.name}: needs the column {need.name}; " + (
                f"{later}, which gives it, stands behind it." if later else told
            )


def _embedding(
    plan: Plan,
    stage: ProcessingStage,
    need: Embedding,
    before: Sequence[ProcessingStage],
    behind: Sequence[ProcessingStage],
) -> Iterable[str]:
    givers = {s.name: s for s in before if "embedding" in s.gives}
    wanted = getattr(stage, "embedding", None)
    if wanted is not None and wanted not in givers:
        offered = ", ".join(givers) or "none"
        yield f"{stage.name}.embedding: no stage before it is called {wanted}. Those that embed: {offered}."
    elif not givers:
        later = next((s.name for s in behind if "embedding" in s.gives), None)
        advice = f"{later} stands behind it: list it before" if later else "no stage gives one: add embed before"
        yield f"{stage.name}: needs an embedding, and {advice} {stage.name} in stages=[...]."
    elif wanted is None and len(givers) > 1:
        yield f"{stage.name}: {' and '.join(givers)} both embed. Say which with {stage.name}.embedding=NAME."
    else:
        giver = givers[wanted or next(iter(givers))]
        plan.feeds[stage.name] = giver.name
        if need.spaces is not None and giver.space not in need.spaces:
            own = "head" if hasattr(stage, "head") else "model"
            change = (
                f"{giver.name}.embedding_space says whose they are"
                if giver.has("index")
                else f"change {giver.name}.model and {giver.name}.pretrained, or {stage.name}.{own}"
            )
            yield (
                f"{stage.name}: works on embeddings of {' or '.join(need.spaces)}, but {giver.name} gives "
                f"{giver.space}. In another space its scores mean nothing: {change}."
            )
