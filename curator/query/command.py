"""curate-search: ask a finished run for the images nearest to words or to an image.

Exit codes as those of `curate`: 0 done; 2 the command is wrong; 4 something outside failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from curator.errors import ConfigError, CuratorError
from curator.output import PAGE
from curator.progress import Progress
from curator.query.pictures import Pictures, Thumbnail, thumbnail
from curator.query.places import Opened
from curator.query.search import Question, asked, found
from curator.query.shown import check_gallery, ending, table, write_gallery
from curator.wording import meant

USAGE = """\
Usage: curate-search index=OUTPUT query='WORDS' [setting=value ...]

The images of a finished run that are nearest to words, or to an image.

  curate-search index=out query='a red car'
  curate-search index=out query='a red car' k=24 where="aesthetic_score > 0.6 and format in ('PNG', 'WEBP')"
  curate-search index=out image=photo.jpg
  curate-search index=http://localhost:19530 query='a red car'

Settings:
  index        an output of curate, a folder in it such as out/milvus, or a Milvus database: path/vectors.db, http://...
  query        words
  image        or the path of an image
  k            how many images, 12
  where        a condition on columns: = != < <= > >=, in (...), and, or, not, brackets; text in quotes
  fold         a result whose cosine to a better one is at least this is folded into it, 0.98; 1: equal ones only
  gallery      the page of thumbnails: a path; null: none; by default search.html in the output
  model_dir    where the weights lie, if not where the run had them
  embedding    which stage's vectors, where a run without an index embeds with several
  collection   of a Milvus database that is named itself, curator
  namespace    likewise; needed where it holds several
Options:
  --config-dir DIR   the folder with your own stages, where one of them made the index
  --version          print the version and stop
  -h, --help         this page
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit code."""
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except CuratorError as error:
        for line in str(error).splitlines():
            Progress.say(f"curate-search: {line}")
        return error.exit_code


def _run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("curate-search", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--config-dir", "-cd", metavar="DIR")
    parser.add_argument("settings", nargs="*")
    parser.error = _refuse  # type: ignore[method-assign, assignment]
    given = parser.parse_intermixed_args(arguments)
    if given.help or not arguments:
        print(USAGE, end="")
        return 0 if given.help else 2
    if given.version:
        print(f"curator {version('curator')}")
        return 0
    settings, gallery = _settings(given.settings, given.config_dir)
    question = asked(settings)
    with question.opened() as at:
        return _answer(question, at, gallery)


def _refuse(message: str) -> None:
    raise ConfigError(f"{message}. `curate-search --help` shows what there is.")


def _settings(given: Sequence[str], config_dir: str | None) -> tuple[dict[str, Any], str | None]:
    """`name=value` words as settings, and the gallery. Raises ConfigError with a line for each that is none."""
    names = [name for name in Question.model_fields if name != "config_dir"] + ["gallery"]
    settings: dict[str, str] = {}
    mistakes = []
    for word in given:
        name, sign, value = word.partition("=")
        if not sign:
            mistakes.append(f"{word}: settings are given as name=value, such as index=out or query='a red car'.")
        elif name not in names:
            mistakes.append(f"{name}: no such setting.{meant(name, names)}")
        elif name in settings:
            mistakes.append(f"{name}: is given twice.")
        else:
            settings[name] = value
    if config_dir is not None and not Path(config_dir).is_dir():
        mistakes.append(f"--config-dir {config_dir}: there is no such folder.")
    gallery = os.path.expanduser(settings.pop("gallery", ""))
    taken: dict[str, Any] = {name: value for name, value in settings.items() if value != "null"}
    for name in ("index", "image", "model_dir"):
        if taken.get(name, "").startswith("~/"):
            taken[name] = os.path.expanduser(taken[name])
    if "index" not in taken:
        mistakes.append("index: must be given: an output of curate, such as index=out.")
        taken["index"] = "?"
    if mistakes:
        try:
            asked(taken)
        except ConfigError as error:  # what is missing may be what was misspelt
            mistakes += [line for line in error.mistakes if ": must be given" not in line]
        raise ConfigError(mistakes)
    if config_dir is not None:
        taken["config_dir"] = str(Path(config_dir).absolute())
    return taken, None if gallery == "null" else gallery


def _answer(question: Question, at: Opened, gallery: str | None) -> int:
    place = Path(gallery) if gallery else at.folder / PAGE if at.folder and gallery is not None else None
    if place is not None:
        check_gallery(place)
    if at.remark:
        print(f"curate-search: {at.remark}", file=sys.stderr)
    results = found(question, at)
    if not at.index.about.count:
        print(f"{at.name} holds no vectors: there is nothing to be found.")
        return 0
    if not results.num_rows:
        print(f"no image of {at.name} meets {question.where}")
        return 0
    told = ending(results, question.k)
    print(table(results, at.image_columns))
    print(told)
    if place is not None:
        what = f"“{question.query}”" if question.query else f"like {Path(str(question.image)).name}"
        where = f", where {question.where}" if question.where else ""
        pictures = Pictures(at)
        asked_with = _asked_with(question, pictures)
        missing = write_gallery(place, results, pictures, what, f"{told}, in {at.name}{where}", asked_with)
        print(f"the gallery is in {place}{f'; {missing:,} pictures are missing from it' if missing else ''}")
    return 0


def _asked_with(question: Question, pictures: Pictures) -> Thumbnail:
    if question.image is None:
        return Thumbnail()
    return thumbnail(Path(question.image).read_bytes(), pictures.read)


if __name__ == "__main__":
    sys.exit(main())
