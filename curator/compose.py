"""Hydra: overrides in, a whole config out, its complaints in words. Looks into Curator's configs and the user's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from curator.errors import ConfigError
from curator.quoting import typed_names

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from curator.config import Job

CONF = Path(__file__).parent / "conf"


@contextmanager
def hydra_at(config_dir: Path | None) -> Iterator[list[str]]:
    """Hydra on Curator's configs and the user's; gives the overrides that make it look into both."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"), explained():
        yield search_path(config_dir)


def search_path(config_dir: Path | None) -> list[str]:
    """The override that adds the user's folder to where Hydra looks."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if config_dir is None:
        return []
    return [f"hydra.searchpath=[{QuotedString(f'file://{config_dir}', Quote.single).with_quotes()}]"]


@contextmanager
def explained() -> Iterator[None]:
    """Hydra's and OmegaConf's complaints, in one line for a person."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_plain(error)) from error
    except YAMLError as error:
        raise ConfigError(f"config: {' '.join(str(error).split())}") from error


def _plain(error: BaseException) -> str:
    """The lines of a complaint that help, and how to write a value that the grammar does not take."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hidden = ("See https://hydra.cc", "Set the environment variable", "Config search path", "provider=", "To append")
    text = " ".join(line for line in lines if not line.startswith(hidden))
    if "LexerNoViableAlt" in text or "mismatched input" in text or "extraneous input" in text or "no viable" in text:
        text = f"{text.split(' See ')[0]} Put the value in quotes of its own: 'name=\"value\"'."
    cause = error.__cause__
    return f"{text} ({' '.join(str(cause).split())})" if cause is not None and str(cause) not in text else text


def composed(overrides: Sequence[str], config_dir: Path | None) -> DictConfig:
    """The whole config, `hydra` included."""
    from hydra import compose

    with hydra_at(config_dir) as extra:
        return compose("config", overrides=[*overrides, *extra], return_hydra_config=True)


def job_from(config: DictConfig, overrides: Sequence[str], config_dir: Path | None) -> Job:
    """The run that a composed config describes."""
    from curator.config import job_of

    return job_of(without_hydra(config), list(typed_names(overrides)), config_dir)


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
