"""curate-models: which published weights there are, where they lie, and whether they are what they should be.

Exit codes: 0 done; 2 the command is wrong; 4 a file is missing, wrong or cannot be fetched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from curator.cache import cache_folder
from curator.errors import ConfigError, CuratorError, WeightsError
from curator.models.published import PUBLISHED, Published
from curator.models.weights import by_hand, candidates, fingerprint, refreshed, usual_folders, whose
from curator.progress import Progress

DESCRIPTION = """\
The published weights that Curator knows: list them, fetch them, check them.

  curate-models list                                    what there is, and where it lies here
  curate-models fetch                                   all of it, into the user's cache
  curate-models fetch --model-dir models laion-nsfw-l14 one of them, into a folder for embed.model_dir and the like
  curate-models check --model-dir models                hash every file again, whatever is remembered of it

A download that broke off goes on where it ended. CURATOR_WEIGHTS_URL names a mirror that has all files side by side.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    try:
        if arguments.verb is None:
            raise ConfigError("say what to do: list, fetch or check. `curate-models --help` explains them.")
        chosen = _chosen(arguments.names)
        folder = Path(arguments.model_dir) if arguments.model_dir else None
        verb = {"list": _list, "fetch": _fetch, "check": _check}[arguments.verb]
        return verb(chosen, folder)
    except CuratorError as error:
        for line in str(error).splitlines():
            Progress.say(f"curate-models: {line}")
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "curate-models", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", nargs="?", choices=["list", "fetch", "check"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PUBLISHED)}; all where none is given")
    parser.add_argument("--model-dir", metavar="DIR", help="the folder to look in or fetch into")
    return parser


def _chosen(names: Sequence[str]) -> list[Published]:
    if unknown := [name for name in names if name not in PUBLISHED]:
        raise ConfigError(f"{', '.join(unknown)}: no such weights. There are {', '.join(PUBLISHED)}.")
    return [PUBLISHED[name] for name in names] or list(PUBLISHED.values())


def _folders(folder: Path | None) -> list[Path]:
    return [folder] if folder is not None else usual_folders()


def _list(chosen: Sequence[Published], folder: Path | None) -> int:
    """Every published file; where one lies here, where."""
    for model in chosen:
        here = {fingerprint(path): path for path in candidates(model, _folders(folder))}
        copies = [path for found, path in here.items() if whose(path) == model]
        print(f"{model.id}: {model.title}{'' if copies else ', not here'}")
        for file in model.files:
            size = f", {file.bytes:,} bytes" if file.bytes else ""
            print(f"    {file.name}{size}\n        sha256 {file.sha256}")
            if file.url:
                print(f"        {file.url}")
        for path in copies:
            print(f"    here: {path}")
    return 0


def _fetch(chosen: Sequence[Published], folder: Path | None) -> int:
    """Fetch what is not here yet; what fails does not keep the others from being tried."""
    from curator.models.fetch import fetch

    place = folder if folder is not None else cache_folder() / "models"
    problems = []
    for model in chosen:
        here = next((path for path in candidates(model, _folders(folder)) if whose(path) == model), None)
        try:
            print(f"{model.id}: {here or fetch(model.files[0], place / model.id, by_hand(model, place))}")
        except WeightsError as error:
            problems.append(f"{model.id}: {error}")
    if problems:
        raise WeightsError("\n".join(problems))
    return 0


def _check(chosen: Sequence[Published], folder: Path | None) -> int:
    """Hash again what is here; each model must be here once at least, and nothing may be under its name but itself."""
    problems = [problem for model in chosen for problem in _problems(model, _folders(folder))]
    if problems:
        raise WeightsError("\n".join(problems))
    return 0


def _problems(model: Published, folders: Sequence[Path]) -> Iterator[str]:
    right = wrong = 0
    for path in candidates(model, folders):
        found = refreshed(path)
        if (published := whose(path)) == model:
            right += 1
            print(f"{model.id}: {path}: right")
        elif published is None:
            wrong += 1
            named = next((f.sha256 for f in model.files if f.name == path.name), model.files[0].sha256)
            yield f"{model.id}: {path}: SHA-256 {found} found, {named} expected."
    if not right and not wrong:
        places = [f"{folder}{'' if folder.exists() else ' (there is no such folder)'}" for folder in folders]
        option = f" --model-dir {folders[0]}" if len(folders) == 1 else ""
        yield f"{model.id}: not in {' or '.join(places)}. `curate-models fetch{option} {model.id}` fetches it."


if __name__ == "__main__":
    sys.exit(main())
