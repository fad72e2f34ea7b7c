"""Hydra: overrides in, a whole config out, its complaints in words. Looks into Curator's configs and the user's.

A user's YAML is data: what would make Hydra itself call something in a multirun is refused here.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator.errors import ConfigError
from curator.quoting import GROUPS, typed_names
from curator.wording import meant

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from curator.config import Job

CONF = Path(__file__).parent / "conf"
PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.", "optuna.samplers.")
"""Where sweepers and launchers, and the objects that they are made of, come from: installed packages' own places."""
MAX_VALUES = 100_000  # of one YAML with its aliases written out
MAX_DEPTH = 50


@contextmanager
def hydra_at(config_dir: Path | None) -> Iterator[list[str]]:
    """Hydra on Curator's configs and the user's; gives the overrides that make it look into both."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    _check_sizes(config_dir)
    with initialize_config_dir(str(CONF), version_base="1.3"), explained(config_dir):
        yield search_path(config_dir)


def search_path(config_dir: Path | None) -> list[str]:
    """The override that adds the user's folder to where Hydra looks."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if config_dir is None:
        return []
    return [f"hydra.searchpath=[{QuotedString(f'file://{config_dir}', Quote.single).with_quotes()}]"]


@contextmanager
def explained(config_dir: Path | None = None) -> Iterator[None]:
    """Hydra's and OmegaConf's complaints, in one line for a person."""
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    except MissingConfigException as error:
        raise ConfigError(_missing(error, config_dir)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_not_there(error, config_dir) or _plain(error)) from error
    except YAMLError as error:
        raise ConfigError(f"config: {' '.join(str(error).split())}") from error


def _plain(error: BaseException) -> str:
    """The lines of a complaint that help."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hidden = ("See https://hydra.cc", "Set the environment variable", "Config search path", "provider=", "To append")
    text = " ".join(line for line in lines if not line.startswith(hidden))
    cause = error.__cause__
    return f"{text} ({' '.join(str(cause).split())})" if cause is not None and str(cause) not in text else text


def _not_there(error: BaseException, config_dir: Path | None) -> str | None:
    """`~dedpu`: a stage that is to be taken out, and is not there; `stage/read=x`: a group that is none."""
    if (group := re.search(r"Could not override '([^']+)'", str(error))) is not None:
        near = meant(group[1], GROUPS)
        return f"{group[1]}: there is no such group of files.{near} Those there are: {', '.join(GROUPS)}."
    found = re.search(r"Could not delete from config\. '([^']+)' does not exist", str(error))
    if found is None:
        return None
    folders = [CONF / "stages", *([config_dir / "stages"] if config_dir is not None else [])]
    names = [path.stem for folder in folders for path in folder.glob("*.yaml")]
    return f"~{found[1]}: there is no {found[1]} to take out.{meant(found[1], names)}"


def _missing(error: Any, config_dir: Path | None) -> str:
    """A recipe, stage or cluster that no file describes, and which there are."""
    group, _, word = str(error.missing_cfg_file or "").rpartition("/")
    folders = [CONF / group, *([config_dir / group] if config_dir is not None else [])]
    names = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    if not group or not names:
        return _plain(error)
    return f"{group}/{word}: there is none.{meant(word, names)} Available options in '{group}': {', '.join(names)}."


def composed(overrides: Sequence[str], config_dir: Path | None) -> DictConfig:
    """The whole config, `hydra` included. Raises ConfigError where it would have Hydra run code."""
    from hydra import compose

    with hydra_at(config_dir) as extra:
        config = compose("config", overrides=[*overrides, *extra], return_hydra_config=True)
    if mistakes := list(_calls(config)):
        raise ConfigError(mistakes)
    return config


def show_info(what: str, overrides: Sequence[str], config_dir: Path | None) -> None:
    """Print what Hydra tells of a config's making."""
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    told = io.StringIO()  # Hydra logs line by line, and each line that nobody reads any more would be an error
    with explained(config_dir), redirect_stdout(told):
        hydra = Hydra.create_main_hydra2("curate", create_config_search_path(f"file://{CONF}"))
        hydra.show_info(what, "config", [*overrides, *search_path(config_dir)])
        GlobalHydra.instance().clear()
    print(told.getvalue(), end="")


def _calls(config: DictConfig) -> Iterator[str]:
    """What in a config would have Hydra call something: it does in a multirun, with a blocklist that lets much pass."""
    from omegaconf import OmegaConf

    hydra = OmegaConf.to_container(config.hydra, resolve=False)
    assert isinstance(hydra, dict)
    quiet = {"version": 1, "root": None, "disable_existing_loggers": False}
    fixed = {
        "callbacks": (hydra["callbacks"], {}),
        "hydra_logging": (hydra["hydra_logging"], quiet),
        "job_logging": (hydra["job_logging"], quiet),
        "job.env_set": (hydra["job"]["env_set"], {}),
    }
    for name, (value, allowed) in fixed.items():
        if value != allowed:
            yield f"hydra.{name}: is not taken: it could run code, and a config is data."
    for name in ("sweeper", "launcher"):
        for target in _targets(hydra[name]):
            if not str(target).startswith(PLUGINS):
                yield f"hydra.{name}: names {target}, which is no sweeper or launcher of an installed Hydra plug-in."


def _targets(value: Any) -> Iterator[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict) and "_target_" in value:
        yield value["_target_"]
    for one in inner:
        yield from _targets(one)


def _check_sizes(config_dir: Path | None) -> None:
    """Raise ConfigError for a file of the user's that aliases blow up, or that is nested beyond reason."""
    import yaml

    for path in sorted(config_dir.glob("*/*.yaml")) if config_dir is not None else ():
        try:
            values = _values(yaml.compose(path.read_text(), Loader=yaml.SafeLoader), {}, 0)
        except RecursionError:
            values = MAX_VALUES + 1
        except (yaml.YAMLError, UnicodeDecodeError):
            continue  # told in Hydra's own words where the file is used
        if values > MAX_VALUES:
            raise ConfigError(f"{path}: comes to more than {MAX_VALUES:,} values or {MAX_DEPTH} levels; not read.")


def _values(node: Any, known: dict[int, int], depth: int) -> int:
    """How many values a YAML node comes to with its aliases written out; too deep counts as too many."""
    if depth > MAX_DEPTH:
        return MAX_VALUES + 1
    if id(node) not in known and node is not None:
        known[id(node)] = 1  # an alias of what it stands in ends here
        parts = node.value if isinstance(node.value, list) else []
        children = [c for part in parts for c in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_values(child, known, depth + 1) for child in children)
    return known.get(id(node), 0)


def job_from(config: DictConfig, overrides: Sequence[str], config_dir: Path | None) -> Job:
    """The run that a composed config describes. Raises ConfigError, each mistake with the file that it stands in."""
    from curator.config import job_of

    typed = list(typed_names(overrides))
    try:
        return job_of(without_hydra(config), typed, config_dir)
    except ConfigError as error:
        raise ConfigError([_with_file(line, typed, config_dir) for line in error.mistakes]) from error


def _with_file(mistake: str, typed: Sequence[str], config_dir: Path | None) -> str:
    """A mistake with the user's file that sets what it is about, where that is one file and not the command line."""
    place = mistake.partition(":")[0]
    if config_dir is None or place in typed:
        return mistake
    files = [path for path in sorted(config_dir.glob("*/*.yaml")) if _sets(path, place.split("."))]
    return f"{files[0].relative_to(config_dir)}: {mistake}" if len(files) == 1 else mistake


def _sets(path: Path, place: Sequence[str]) -> bool:
    """Whether a YAML sets a key, by its first line's package."""
    import yaml

    try:
        text = path.read_text()
        found: Any = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return False
    package = re.match(r"# @package ([\w.]+)", text)
    if package is not None and package[1] != "_global_":
        if place[0] != package[1]:
            return False
        place = place[1:]
    for part in place:
        if not isinstance(found, dict) or part not in found:
            return False
        found = found[part]
    return bool(place)


def without_hydra(config: DictConfig) -> DictConfig:
    """Curator's own part of a composed config, unresolved."""
    from omegaconf import DictConfig, OmegaConf

    whole = OmegaConf.to_container(config, resolve=False)
    assert isinstance(whole, dict)
    return DictConfig({k: v for k, v in whole.items() if k != "hydra"})


def hydra_files(config: DictConfig, overrides: Sequence[str]) -> dict[str, str]:
    """The three files that Hydra leaves with a run, by name."""
    from omegaconf import OmegaConf

    typed = [o for o in overrides if not o.startswith("hydra.")]
    return {
        "config.yaml": OmegaConf.to_yaml(without_hydra(config)),
        "overrides.yaml": OmegaConf.to_yaml(OmegaConf.create(typed)),
        "hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"job": {"override": typed}})),
    }
