"""A composed config -> stage objects and settings, with every mistake at once; a YAML is data and never code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from curator.custom import BUILT_IN, stage_class
from curator.errors import ConfigError, CuratorError
from curator.settings import Settings, checked
from curator.stage import ProcessingStage, fields_of
from curator.wording import meant, unknown

NOT_SETTINGS = ("hydra", "sweep", "name")
GROUPS = ("stages", "recipe", "experiment")  # of files that say by their first line where their settings stand


@dataclass(frozen=True)
class Job:
    """One run, ready to start."""

    name: str
    stages: tuple[ProcessingStage, ...]
    settings: dict[str, Any]
    shown: dict[str, Any] = field(default_factory=dict)  # the config as it may be saved: what came from env unresolved


def job_of(config: DictConfig, typed: Sequence[str], config_dir: Path | None) -> Job:
    """The run that a composed config describes; `typed`: the settings of the command line.

    Raises ConfigError with a line for each mistake.
    """
    try:
        whole = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        text = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0])
        raise ConfigError(f"{error.full_key or 'config'}: {text.strip(chr(34))}") from error
    assert isinstance(whole, dict)
    nodes: dict[str, Any] = {str(k): v for k, v in whole.items() if k not in NOT_SETTINGS}
    stages: list[ProcessingStage] = []
    mistakes: list[str] = []
    settings: dict[str, Any] = {}
    for name, value in nodes.items():
        if name in GROUPS:
            mistakes.append(_without_header(name, config_dir))
        elif isinstance(value, dict) and "_target_" in value:
            _take(stages, mistakes, name, value, config_dir)
        elif name in Settings.model_fields:
            settings[name] = value
        else:
            mistakes += _stray(name, value, typed, nodes, config_dir)
    mistakes += [*_skipped(typed, nodes, config_dir), *_sweep_mistakes(whole.get("sweep"))]
    mistakes += _settings_mistakes(settings)
    if mistakes:
        raise ConfigError([*mistakes, *_further(stages, nodes, settings)])
    raw = OmegaConf.to_container(config, resolve=False)
    assert isinstance(raw, dict)
    shown = {str(name): _without_env(value, raw.get(name), raw) for name, value in whole.items()}
    return Job(str(shown.pop("name", None) or "curator"), tuple(stages), settings, shown)


def _take(stages: list[ProcessingStage], mistakes: list[str], name: str, node: Any, config_dir: Path | None) -> None:
    """Build one stage, or say why not."""
    try:
        stages.append(built(name, node, config_dir))
    except ConfigError as error:
        mistakes += error.mistakes


def built(name: str, node: Mapping[str, Any], config_dir: Path | None) -> ProcessingStage:
    """The stage that a node describes. Raises ConfigError with every mistake in it."""
    kind = stage_class(node["_target_"], name, config_dir)
    mistakes = list(_nested(name, {k: v for k, v in node.items() if k != "_target_"}))
    fields = {str(k): v for k, v in node.items() if k != "_target_"}
    strange = [key for key in fields if key not in fields_of(kind)]
    mistakes += [f"{name}.{key}: {unknown(key, fields_of(kind), kind.elsewhere)}" for key in strange]
    try:
        stage = kind(name=name, **{k: v for k, v in fields.items() if k not in strange})
    except CuratorError as error:
        lines = str(error).splitlines()
        mistakes += [line if line.startswith((f"{name}.", f"{name}:")) else f"{name}: {line}" for line in lines]
    if mistakes:
        raise ConfigError(mistakes)
    return stage


def _nested(place: str, value: Any) -> Iterator[str]:
    """A `_target_` anywhere below a stage would ask for something to be called."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if str(key).startswith("_") and str(key).endswith("_"):
                yield f"{place}.{key}: a setting cannot be called like this; only a stage has a _target_."
            yield from _nested(f"{place}.{key}", inner)
    elif isinstance(value, list):
        for n, inner in enumerate(value):
            yield from _nested(f"{place}[{n}]", inner)


def _stray(name: str, value: Any, typed: Sequence[str], nodes: Mapping[str, Any], config_dir: Path | None) -> list[str]:
    """A key that is neither a stage of this run nor a setting: left over by a recipe, or a mistake."""
    chosen = [n for n, v in nodes.items() if isinstance(v, dict) and "_target_" in v]
    if isinstance(value, dict) and name in known_stages(config_dir):
        set_here = [t for t in typed if t.split(".")[0] == name]
        return [f"{t}: set, but {name} is not in stages=[{','.join(chosen)}]." for t in set_here]
    if name in known_stages(config_dir):
        return [f"{name}: is a stage, and has its settings below it, as in {name}.action=flag."]
    near = _inside_stages(name, nodes, config_dir) or meant(name, [*Settings.model_fields, *known_stages(config_dir)])
    inside = [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
    return [
        f"{place}: no such {'stage or setting' if isinstance(value, dict) else 'setting'}.{near}" for place in inside
    ]


def _inside_stages(name: str, nodes: Mapping[str, Any], config_dir: Path | None) -> str:
    """What was probably meant by a setting that a stage of this run has, and nothing outside of stages."""
    having = []
    for stage, node in nodes.items():
        if isinstance(node, dict) and "_target_" in node:
            with suppress(ConfigError):  # a class that is none is told where the stage is built
                having += [stage] if name in fields_of(stage_class(node["_target_"], stage, config_dir)) else []
    return f" Did you mean {' or '.join(f'{stage}.{name}' for stage in having)}?" if having else ""


def _skipped(typed: Sequence[str], nodes: Mapping[str, Any], config_dir: Path | None) -> list[str]:
    """Settings typed for a stage that the same command takes out, as in `dedup.keep=null '~dedup'`."""
    known = known_stages(config_dir)
    stages = [(t, t.split(".")[0]) for t in typed if "." in t]
    return [f"{t}: set, but {name} is taken out." for t, name in stages if name in known and name not in nodes]


def _sweep_mistakes(sweep: Any) -> list[str]:
    if not isinstance(sweep, dict):
        return ["sweep: has its setting below it, as in sweep.write=true."]
    mistakes = [f"sweep.{key}: no such setting.{meant(str(key), ['write'])}" for key in sweep if key != "write"]
    if not isinstance(sweep.get("write"), bool):
        mistakes.append(f"sweep.write: must be true or false, not {sweep.get('write')!r}")
    return mistakes


def _without_header(group: str, config_dir: Path | None) -> str:
    """A file without its first line is composed under the name of its folder: which one, and what the line is."""
    files = sorted((config_dir / group).glob("*.yaml")) if config_dir is not None else []
    lacking = [f for f in files if not re.match(r"\s*#\s*@package\b", f.read_text(errors="replace"))]
    named = " or ".join(f"{group}/{file.name}" for file in lacking) or f"a file in {group}/"
    header = "_global_" if group != "stages" else lacking[0].stem if len(lacking) == 1 else "<its name>"
    return f"{named}: stands under its group; its first line must be `# @package {header}`."


def known_stages(config_dir: Path | None) -> list[str]:
    """The names of all stages that a YAML describes, Curator's and the user's."""
    own = (config_dir / "stages").glob("*.yaml") if config_dir is not None else ()
    return [*BUILT_IN, *sorted(path.stem for path in own)]


def _settings_mistakes(settings: Mapping[str, Any]) -> list[str]:
    cluster = settings.get("cluster")
    mistakes = []
    if isinstance(cluster, dict):
        from curator.cluster import ClusterSettings

        for key in [k for k in cluster if k not in ClusterSettings.model_fields]:
            mistakes.append(f"cluster.{key}: no such setting.{meant(key, ClusterSettings.model_fields)}")
        settings = {**settings, "cluster": {k: v for k, v in cluster.items() if k in ClusterSettings.model_fields}}
    try:
        checked(settings)
    except ConfigError as error:
        mistakes += error.mistakes
    return mistakes


def _further(stages: Sequence[ProcessingStage], nodes: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Mistakes of the whole that show although some settings are wrong: how stages fit where all could be built."""
    from curator.checks import mistakes_of
    from curator.pipeline import check

    sound = {key: value for key, value in settings.items() if not _settings_mistakes({key: value})}
    whole = len(stages) == sum(isinstance(v, dict) and "_target_" in v for v in nodes.values())
    lines = check(stages, checked(sound)) if whole else mistakes_of(stages, checked(sound), whole=False)
    wrong = set(settings) - set(sound)
    return [line for line in lines if line.partition(":")[0] not in wrong]


def _without_env(value: Any, raw: Any, config: Mapping[Any, Any]) -> Any:
    """A value as it may be saved: resolved, but for what comes from the environment, where secrets live."""
    if isinstance(value, dict) and isinstance(raw, dict):
        return {key: _without_env(inner, raw.get(key), config) for key, inner in value.items()}
    if isinstance(value, list) and isinstance(raw, list):
        return [_without_env(*pair, config) for pair in zip(value, raw, strict=True)]
    return raw if isinstance(raw, str) and _is_from_env(raw, config) else value


def _is_from_env(raw: str, config: Mapping[Any, Any]) -> bool:
    """Whether an interpolation reads the environment, itself or by way of other settings; in doubt, it does."""
    if "${" not in raw:
        return False
    if "oc.env" in raw:
        return True
    for place in re.findall(r"\$\{([^{}:]+)\}", raw):
        found: Any = config
        for part in re.split(r"[.\[\]]+", place.strip().rstrip("]")):
            found = found.get(part) if isinstance(found, dict) else None
        if found is None or _is_from_env(str(found), config):
            return True
    return False
