"""The front door: quote, compose, check, run, exit code. The only place that turns an error into text.

Exit codes: 0 done; 2 the config or the command is wrong; 3 too many inputs failed; 4 something outside failed, what
was measured is kept; 130 interrupted, likewise. Any other failure is a bug of Curator and shows its traceback.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator.commit import explained
from curator.compose import CONF, composed, hydra_files, job_from, show_info, without_hydra
from curator.errors import ConfigError, CuratorError
from curator.progress import Progress
from curator.quoting import prepared

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from curator.config import Job

OUTSIDE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EMFILE, errno.ENFILE)
"""Faults of the system that are told in a sentence, wherever they come up."""

USAGE = """\
Usage: curate [options] [setting=value ...]

Turns image collections into curated datasets: measures once, decides in seconds, writes original bytes.

  curate recipe=demo                                   everything made on the spot, nothing to download
  curate input='shards/{00000..00099}.tar' output=out  the default recipe, training_dataset
  curate input=photos/ output=out aesthetic.score_threshold=0.6 nsfw.score_threshold=0.3
  curate 'stages=[partition,read,embed,aesthetic,write]' input=photos/ output=out
  curate '~dedup' input=photos/ output=out             without a stage
  curate -m input=photos/ aesthetic.score_threshold=0.4,0.5,0.6   compare settings; measures once
  curate input=photos/ output=out dry_run=true         what would run, what is stored, what is missing
"""
OPTIONS = """\
Options, before, between or behind settings:
  -m, --multirun     commas separate values: run every combination
  --config-dir DIR   a folder with your own stages/*.yaml, recipe/*.yaml and stage files
  --cfg job          print the composed config and stop
  --info defaults    print which files make the config up, and stop; also defaults-tree, searchpath, plugins
  --version          print the version and stop
  -h, --help         this page
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tells of it at its end
        return 0
    except (CuratorError, KeyboardInterrupt, OSError) as error:
        told = in_words(error)
        if told is None:
            raise
        for line in told[1].splitlines():
            Progress.say(f"curate: {line}")
        return told[0]


def in_words(error: BaseException) -> tuple[int, str] | None:
    """Exit code and text of what a person can do something about; None for a bug of Curator."""
    if isinstance(error, CuratorError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted; what was stored is kept, piece by piece. Run the same command again to go on."
    if isinstance(error, OSError) and error.errno in OUTSIDE:
        return 4, str(explained(error, Path(str(error.filename or "a file"))))
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="curate", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--config-dir", "-cd", metavar="DIR")
    parser.add_argument("--cfg", choices=["job", "hydra", "all"])
    parser.add_argument("--info", choices=["defaults", "defaults-tree", "searchpath", "plugins"])
    parser.add_argument("overrides", nargs="*")
    parser.error = _refuse  # type: ignore[method-assign, assignment]
    return parser


def _refuse(message: str) -> None:
    raise ConfigError(f"{message}. `curate --help` shows what there is.")


def _run(arguments: Sequence[str]) -> int:
    given = _parser().parse_intermixed_args(arguments)
    if given.help:
        print(help_page(_config_dir(given.config_dir)))
        return 0
    if given.version:
        print(f"curator {version('curator')}")
        return 0
    os.environ["HYDRA_FULL_ERROR"] = "1"
    config_dir = _config_dir(given.config_dir)
    overrides = prepared(given.overrides, given.multirun)
    if given.info:
        show_info(given.info, overrides, config_dir)
        return 0
    if given.multirun:
        from curator.sweep import sweep

        return sweep(overrides, config_dir, in_words)
    config = composed(overrides, config_dir)
    if given.cfg:
        print(_printed(config, given.cfg), end="")
        return 0
    job = job_from(config, overrides, config_dir)
    return start(job, hydra_files(config, overrides))


def _config_dir(given: str | None) -> Path | None:
    if given is None:
        return None
    if not Path(given).is_dir():
        raise ConfigError(f"--config-dir {given}: there is no such folder.")
    return Path(given).absolute()


def start(job: Job, files: dict[str, str], **shared: Any) -> int:
    """Run one job."""
    from curator.pipeline import Pipeline

    Pipeline(job.name, job.stages).run(record={"hydra": files, "config": job.shown}, **shared, **job.settings)
    return 0


def _printed(config: DictConfig, what: str) -> str:
    from omegaconf import OmegaConf

    if what == "job":
        return OmegaConf.to_yaml(without_hydra(config))
    return OmegaConf.to_yaml(config if what == "all" else OmegaConf.masked_copy(config, ["hydra"]))


def help_page(config_dir: Path | None = None) -> str:
    """Usage, recipes, stages and options, from the first lines of Curator's YAMLs and the user's."""
    parts = [USAGE]
    for title, folder in (
        ("Recipes (recipe=NAME)", "recipe"),
        ("Stages", "stages"),
        ("Clusters (cluster=NAME)", "cluster"),
        ("Experiments (experiment=NAME)", "experiment"),
    ):
        files = [path for base in (CONF, config_dir) if base for path in sorted((base / folder).glob("*.yaml"))]
        rows = [(path.stem, _caption(path)) for path in files]
        parts.append(f"{title}:\n" + "\n".join(f"  {name:<20} {caption}" for name, caption in rows) + "\n")
    parts.append(OPTIONS)
    parts.append(f"Every setting: `curate --cfg job`; what each means: the comments in {CONF}")
    return "\n".join(parts)


def _caption(path: Path) -> str:
    """The first comment of a YAML that is a sentence."""
    comments = (line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    return next((c for c in comments if not c.startswith(("@package", "curate "))), "")
