"""A Hydra multirun: every job composed and checked before the first starts, all over one store and one cluster, and
gathered into one table at the end. A job that fails does not lose the others."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shlex
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from curator.commit import commit_bytes
from curator.compose import CONF, composed, explained, hydra_files, job_from, search_path
from curator.config import Job
from curator.errors import ConfigError
from curator.output import RUN
from curator.progress import Progress, table
from curator.quoting import typed_names
from curator.remote import is_url, redacted

FOLDER_LETTERS = 120


InWords = Callable[[BaseException], "tuple[int, str] | None"]
"""Exit code and text of an error that a person can do something about; None for a bug."""


@dataclass
class Row:
    """What came of one job."""

    overrides: dict[str, str]
    folder: str = ""
    counts: dict[str, Any] = field(default_factory=dict)
    flagged: dict[str, int] = field(default_factory=dict)  # by stage, of those that flagged some
    error: str = ""
    exit_code: int = 0


@dataclass
class Sweep:
    """The jobs of one multirun as they come in."""

    config_dir: Path | None
    parent: Path
    swept: tuple[str, ...]
    shared: ExitStack
    in_words: InWords
    rows: list[Row] = field(default_factory=list)
    cluster: Any = None
    skipped: bool = False
    rehearsed: bool = False

    def job(self, overrides: Sequence[str], config: DictConfig) -> None:
        """Run one job; what it fails of is noted and, but for a bug and Ctrl-C, not raised."""
        chosen = {n: v for n, v in pairs(overrides).items() if n in self.swept}
        row = Row(chosen, folder_name(chosen))
        self.rows.append(row)
        settings = " ".join(f"{n}={v}" for n, v in chosen.items())
        Progress.say(f"job {len(self.rows)}{': ' if settings else ''}{settings}")
        try:
            self._run(row, job_from(config, overrides, self.config_dir), hydra_files(config, overrides))
        except BaseException as error:
            told = self.in_words(error)
            row.exit_code, row.error = told or (1, f"{type(error).__name__}: {error}")
            if told is None or isinstance(error, KeyboardInterrupt):
                raise
            for line in row.error.splitlines():
                Progress.say(f"curate: {row.folder}: {line}")

    def _run(self, row: Row, job: Job, files: dict[str, str]) -> None:
        from curator.pipeline import Pipeline
        from curator.voice import Voice

        settings = for_a_job(job, self.parent / row.folder)
        self.rehearsed = bool(settings["dry_run"])
        self.skipped |= not settings["write_images"] and any(s.kind == "writer" and not s.light for s in job.stages)
        record = {
            "hydra": files,
            "config": job.shown,
            "job": {"number": len(self.rows), "overrides": row.overrides},
        }
        result = Pipeline(job.name, job.stages).run(
            record=record, started=self._started, voice=Voice(brief=True), **settings
        )
        row.counts = result.counts
        for line in result.run.get("remarks", ()):
            Progress.say(line)
        row.flagged = {name: seen["flagged"] for name, seen in result.run.get("stages", {}).items() if seen["flagged"]}

    def _started(self, start: Any) -> Any:
        """The one cluster of all jobs, started by the first that needs it."""
        if self.cluster is None:
            self.cluster = self.shared.enter_context(start())
        return self.cluster


def for_a_job(job: Job, output: Path) -> dict[str, Any]:
    """A job's settings: its own folder, and no image copied unless sweep.write says so."""
    writes = bool(job.shown.get("sweep", {}).get("write"))
    return {**job.settings, "output": str(output), "write_images": writes}


def sweep(overrides: Sequence[str], config_dir: Path | None, in_words: InWords) -> int:
    """Run every combination; gives the highest exit code of all jobs."""
    whole, swept = parted(overrides)
    common = composed(whole, config_dir)
    params = OmegaConf.to_container(common.hydra.sweeper, resolve=False).get("params") or {}  # type: ignore[union-attr]
    swept = tuple(dict.fromkeys([*map(str, params), *swept]))
    if _is_basic(common):
        jobs = expanded([*(f"{name}={values}" for name, values in params.items()), *overrides])
        first = composed(jobs[0], config_dir)
        parent = _parent(first)
        _check_parent(parent, bool(first.overwrite))
        _check_all(jobs, config_dir, parent, swept)
        folder = folder_name({n: v for n, v in pairs(jobs[0]).items() if n in swept})
        _fetch_once(job_from(first, jobs[0], config_dir), parent / folder)
    else:
        parent = _parent(common)
    with ExitStack() as shared:
        state = Sweep(config_dir, parent, swept, shared, in_words)
        try:
            _launch(state, overrides)
        finally:
            _tell(state, overrides)
    return max((row.exit_code for row in state.rows), default=0)


def _parent(config: DictConfig) -> Path:
    if config.get("output") is not None and is_url(str(config.output)):
        raise ConfigError(
            f"output: {redacted(str(config.output))} is a URL, and a sweep's folders and table lie on this machine. "
            "Name a folder; the setting you like is then written to the URL, with nothing measured again."
        )
    return Path(config.output) if config.get("output") is not None else Path("multirun") / str(config.name)


def parted(overrides: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The overrides that are the same in all jobs, and the names of the settings that differ."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with explained():
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    same = [text for text, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
    return same, tuple(typed_names([o for o in overrides if o not in same]))


def expanded(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination, as Hydra's basic sweeper makes them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with explained():
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def _is_basic(config: DictConfig) -> bool:
    return str(config.hydra.sweeper._target_).endswith("BasicSweeper")


def _check_all(jobs: Sequence[Sequence[str]], config_dir: Path | None, parent: Path, swept: Sequence[str]) -> None:
    """Raise ConfigError with the mistakes of all jobs, each once, before any starts."""
    from curator.pipeline import check
    from curator.settings import checked

    mistakes: dict[str, None] = {}
    for overrides in jobs:
        chosen = {n: v for n, v in pairs(overrides).items() if n in swept}
        try:
            job = job_from(composed(overrides, config_dir), overrides, config_dir)
            settings = checked(for_a_job(job, parent / folder_name(chosen)))
            mistakes |= dict.fromkeys(check(job.stages, settings))
        except ConfigError as error:
            mistakes |= dict.fromkeys(error.mistakes)
    if mistakes:
        raise ConfigError(list(mistakes))


def _check_parent(parent: Path, overwrite: bool) -> None:
    """Raise ConfigError where the sweep's folders would come to lie among something else."""
    names = {path.name: path for path in parent.iterdir()} if parent.is_dir() else {}
    if overwrite or not names or "sweep.csv" in names:
        return
    if RUN in names:
        raise ConfigError(
            f"output: {parent} holds a finished run, and a sweep's folders would lie in it. Name another."
        )
    if any(not ((path / RUN).exists() or (path / ".next").exists()) for path in names.values()):
        raise ConfigError(
            f"output: {parent} holds something else than a sweep. Name another folder, or say overwrite=true to put "
            "the sweep beside it."
        )


def _fetch_once(job: Job, output: Path) -> None:
    """What must be fetched is fetched, or found to be out of reach, once and before the first job."""
    from curator.pipeline import fetched
    from curator.settings import checked
    from curator.voice import Voice

    settings = checked(for_a_job(job, output))
    if not settings.dry_run and not settings.demo:
        fetched(job.stages, settings, Voice())


def _launch(state: Sweep, overrides: Sequence[str]) -> None:
    """Hydra's own sweeper and launcher, whichever the config names."""
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    def one(config: DictConfig) -> float:
        hydra = HydraConfig.get()
        mine = [o for o in hydra.overrides.task if not o.startswith("hydra.")]
        whole = composed(mine, state.config_dir)
        del config
        state.job(mine, whole)
        return float(state.rows[-1].counts.get("kept", 0))

    GlobalHydra.instance().clear()
    with tempfile.TemporaryDirectory(prefix="curator-sweep-") as scratch, explained():
        hydra = Hydra.create_main_hydra2("curate", create_config_search_path(f"file://{CONF}"))
        places = [f"hydra.sweep.dir={scratch}", f"hydra.run.dir={scratch}", "hydra.sweep.subdir=${hydra.job.num}"]
        places += ["hydra.output_subdir=null", "hydra.job.chdir=false", *search_path(state.config_dir)]
        hydra.multirun("config", one, [*overrides, *places])
        GlobalHydra.instance().clear()


def pairs(overrides: Sequence[str]) -> dict[str, str]:
    """Setting -> value, as typed."""
    values = [o.partition("=")[2] for o in overrides if not o.startswith("~") and "=" in o]
    return dict(zip(typed_names(overrides), values, strict=True))


def folder_name(chosen: dict[str, str]) -> str:
    """A plain, readable folder for a job: `aesthetic.score_threshold=0.4__dedup.similarity_threshold=0.9`."""
    text = "__".join(f"{name}={value}" for name, value in chosen.items()) or "job"
    plain = re.sub(r"[^A-Za-z0-9._=-]+", "-", text).strip("-.")
    if len(plain) > FOLDER_LETTERS or plain != text:
        plain = f"{plain[:FOLDER_LETTERS]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return plain


def _tell(state: Sweep, overrides: Sequence[str]) -> None:
    """The table of survivors, on the terminal and as sweep.csv."""
    if not state.rows or state.rehearsed:
        return
    names = [name for name in state.swept if len({row.overrides.get(name) for row in state.rows}) > 1]
    by_stage = [item for row in state.rows for item in row.counts.get("by_stage", {}).items()]
    stages = list(dict.fromkeys(stage for stage, counts in by_stage if counts["dropped"]))
    flagging = list(dict.fromkeys(stage for row in state.rows for stage in row.flagged))
    did = [*(f"dropped by {s}" for s in stages), *(f"flagged by {s}" for s in flagging)]
    header = [*names, "inputs", "kept", *did, "failed", "exit"]
    lines = [_cells(row, names, stages, flagging) for row in state.rows]
    shown = len(header) - (not any(row.exit_code for row in state.rows))  # exit codes where one is not 0
    wrapped = [re.sub(r"([._])", r"\1\n", name).replace(" ", "\n") for name in header[:shown]]
    print(table("", ["job", *wrapped], [[str(n), *line[:shown]] for n, line in enumerate(lines, 1)]))
    text = io.StringIO()
    csv.writer(text).writerows([["folder", *header, "error"]])
    csv.writer(text).writerows([row.folder, *line, row.error] for row, line in zip(state.rows, lines, strict=True))
    state.parent.mkdir(parents=True, exist_ok=True)
    commit_bytes(state.parent / "sweep.csv", text.getvalue().encode())
    print(f"the table is in {state.parent / 'sweep.csv'}")
    done = [row for row in state.rows if row.exit_code == 0]
    if state.skipped and done:
        command = _command(state, done[-1], overrides)
        print(f"no image was copied. To write the setting you like, such as the last: {command}")


def _cells(row: Row, names: Sequence[str], stages: Sequence[str], flagging: Sequence[str]) -> list[str]:
    counts = row.counts
    by = counts.get("by_stage", {})
    dropped = [str(by.get(s, {}).get("dropped", 0)) if counts else "" for s in stages]
    told = [str(counts.get(n, "")) for n in ("inputs", "kept")]
    return [
        *(row.overrides.get(n, "") for n in names),
        *told,
        *dropped,
        *(str(row.flagged.get(s, 0)) if counts else "" for s in flagging),
        str(counts.get("failed", "")),
        str(row.exit_code),
    ]


def _command(state: Sweep, row: Row, overrides: Sequence[str]) -> str:
    """The single run that writes one row's setting."""
    same = [
        _as_typed(o) for o in overrides
        if o.partition("=")[0].lstrip("+") not in {*row.overrides, "output"} and not o.startswith("hydra.")
    ]  # fmt: skip
    chosen = [_as_typed(f"{name}={value}") for name, value in row.overrides.items()]
    output = "out" if state.parent.name != "out" else "curated"  # the sweep's own folder holds its table
    own = ["--config-dir", str(state.config_dir)] if state.config_dir is not None else []
    return " ".join(["curate", *(shlex.quote(o) for o in [*own, *same, *chosen]), f"output={output}"])


def _as_typed(override: str) -> str:
    """An override without the signs and quotes that were added for Hydra's grammar."""
    name, equals, value = override.lstrip("+").partition("=")
    quoted = len(value) > 1 and value[0] == value[-1] == "'"
    plain = value[1:-1].replace("\\'", "'") if quoted else value
    return f"{name}{equals}{plain}"
