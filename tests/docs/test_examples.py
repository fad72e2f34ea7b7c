"""Every command that the README shows, and every example of the design's command line, is run as it is written.

Where a command needs weights, the demo model's settings are put behind it, since nothing can be fetched here.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curator.custom import BUILT_IN, stage_class
from curator.wiring import READ_GIVES
from tests.conftest import DEMO, ROOT, SHARED, make_image, run_command, tar_members

README = (ROOT / "README.md").read_text()
FILTERS = (ROOT / "docs/filters.md").read_text()
DESIGN = """\
curate recipe=demo
curate input='shards/{00000..00099}.tar' output=out
curate input=photos/ output=out aesthetic.score_threshold=0.6 nsfw.score_threshold=0.3
curate recipe=content_moderation input=photos/ output=out
curate 'stages=[partition,read,embed,aesthetic,write]' input=photos/ output=out
curate '~dedup' input=photos/ output=out
curate -m input=photos/ aesthetic.score_threshold=0.4,0.5,0.6 dedup.similarity_threshold=0.90,0.95,0.99
curate --config-dir my recipe=mine input=photos/ output=out
curate input=photos/ output=out dry_run=true
curate input=photos/ output=out cluster=auto
curate input=photos/ output=out cluster=local cluster.n_workers=4"""
SCORED = {"nsfw": "nsfw.head=demo", "aesthetic": "aesthetic.head=demo"}
STAGES = {
    "image_search": (), "quality_filtering": ("aesthetic",), "content_moderation": ("nsfw",), "deduplication": (),
    "training_dataset": ("nsfw", "aesthetic"),
}  # fmt: skip


def commands() -> list[str]:
    """The commands of the README and of the page on filters, from blocks and tables, and the design's examples."""
    pages = README + FILTERS
    blocks = [line for block in re.findall(r"```\n(.*?)```", pages, re.DOTALL) for line in block.splitlines()]
    cells = re.findall(r"`(curate [^`]*(?:input|recipe)=[^`]*)`", README)
    found = [*blocks, *cells, *DESIGN.splitlines()]
    plain = [re.sub(r"\s+#.*", "", line).strip() for line in found if line.startswith("curate ")]
    return [c for c in dict.fromkeys(plain) if "--" not in c or "--config-dir" in c]


def with_demo(words: list[str]) -> list[str]:
    """The settings that make a command use the demo model, for the stages that it has."""
    text = " ".join(words)
    if "recipe=demo" in text or "--config-dir" in text:
        return []
    recipe = next((w.partition("=")[2] for w in words if w.startswith("recipe=")), "training_dataset")
    listed = re.search(r"stages=\[(.*?)\]", text)
    stages = tuple(s for s in SCORED if s in listed[1].split(",")) if listed else STAGES[recipe]
    embeds = DEMO[:2] if not listed or "embed" in listed[1].split(",") else ()
    return [*embeds, *(SCORED[stage] for stage in stages)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder as the examples take it for granted: photos, shards, a stage and a recipe of one's own."""
    from curator.demo.draw import draw_demo

    place = tmp_path_factory.mktemp("examples")
    draw_demo(place / "drawn", seed=11, count=40)
    members = tar_members(*sorted((place / "drawn").glob("*.tar")))
    (place / "photos").mkdir()
    for name, content in members.items():
        (place / "photos" / name).write_bytes(content)
    shutil.rmtree(place / "drawn")
    (place / "shards").mkdir()
    for n in range(100):
        from tests.conftest import make_shard

        make_shard(place / f"shards/{n:05d}.tar", {"x.jpg": make_image(n)})
    code = re.search(r"```python\n(import numpy as np\n.*?class Saturation.*?)```", README, re.DOTALL)
    sheet = re.search(r"```yaml\n(# @package saturation.*?)```", README, re.DOTALL)
    assert code
    assert sheet
    for name, text in (("saturation.py", code[1]), ("stages/saturation.yaml", sheet[1])):
        (place / "my" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "my" / name).write_text(text)
    (place / "my/recipe").mkdir()
    (place / "my/recipe/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /stages: [partition, read, saturation, write]\nname: mine\n"
    )
    (place / "bad.txt").write_text(f"{'0' * 64}\n")
    (place / "examples").symlink_to(ROOT / "examples")
    return place


@pytest.mark.xdist_group("examples")
@pytest.mark.parametrize("command", commands())
def test_an_example_runs_as_it_is_written(place, command):
    """Exit 0, and where an output is named, a result in it."""
    if "../shared" in command:
        if not SHARED.exists():
            pytest.skip("needs the shared data, which lies beside the project's folder")
        command = command.replace("../shared", str(SHARED))
    words = shlex.split(command)[1:]
    shutil.rmtree(place / "out", ignore_errors=True)
    ran = run_command(*words, *with_demo(words), cwd=place)
    assert ran.code == 0, ran.said
    assert "Traceback" not in ran.err
    if "output=out" in words and "dry_run=true" not in words:
        assert (place / "out/run.json").exists()


@pytest.mark.xdist_group("examples")
def test_the_page_on_search_runs_as_it_is_written(place):
    """Its commands in order, in one folder; what `curate-search` is told, its own command line takes."""
    page = (ROOT / "docs/search.md").read_text()
    commands = [shlex.split(line) for line in re.findall(r"^curate.*$", page, re.MULTILINE)]
    assert [words[0] for words in commands].count("curate-search") == 5
    (place / "photo.jpg").write_bytes(make_image(1))
    for command, *words in commands:
        if command == "curate":
            ran = run_command(*words, *DEMO[:2], "overwrite=true", cwd=place)
        else:
            ran = run_command(*words, cwd=place, module="curator.query.command")
        assert (ran.code, "Traceback" in ran.err) == (0, False), ran.said


@pytest.mark.xdist_group("examples")
def test_the_page_on_duplicates_runs_as_it_is_written(place):
    """New images against an earlier run: all of them were kept there, so none stays."""
    shutil.copytree(place / "photos", place / "new")
    assert run_command("input=photos/", "output=out_old", *DEMO, cwd=place).code == 0
    page = (ROOT / "docs/dedup.md").read_text()
    (command,) = re.findall(r"^curate .*$", page, re.MULTILINE)
    ran = run_command(*shlex.split(command)[1:], *DEMO, "overwrite=true", cwd=place)
    assert ran.code == 0, ran.said
    assert " 0 kept" in ran.out
    assert "kept before" in ran.err


@pytest.mark.xdist_group("examples")
def test_the_page_on_filters_shows_stages_that_run(place):
    """A concept under a name of its own, and a filter that measures nothing; the table names the columns there are."""
    (code,) = re.findall(r"```python\n(.*?)```", FILTERS, re.DOTALL)
    (sheet,) = re.findall(r"```yaml\n(.*?)```", FILTERS, re.DOTALL)
    (place / "my/landscape.py").write_text(code)
    (place / "my/stages/landscape.yaml").write_text("# @package landscape\n_target_: landscape.Landscape\n")
    (place / "my/stages/screenshots.yaml").write_text(sheet)
    stages = "stages=[partition,read,landscape,embed,screenshots]"
    ran = run_command("--config-dir", "my", stages, "input=photos/", "output=own", *DEMO[:2], cwd=place)
    assert ran.code == 0, ran.said
    assert {"screenshots_score", "screenshots_nearest"} <= set(pq.read_table(place / "own/ledger").column_names)
    table = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|", FILTERS, re.MULTILINE)
    assert len(table) == 9
    for stage, columns in table:
        named = set(re.findall(r"`(\w+)`", columns))
        assert named
        assert named <= {*stage_class(BUILT_IN[stage], stage, None)().gives, *READ_GIVES}


def test_the_trees_captions_match_the_disk():
    """What the tree names is there, and every module is named in it."""
    tree = re.search(r"```\ncurator/\n(.*?)\nconf ->", (ROOT / "ARCHITECTURE.md").read_text(), re.DOTALL)
    assert tree
    named = set(re.findall(r"\b[a-z_]+\.py\b", tree[1])) | set(re.findall(r"^  ([a-z]+)/", tree[1], re.MULTILINE))
    package = ROOT / "curator"
    there = {p.name for p in package.glob("*.py")} | {p.name for p in package.iterdir() if (p / "__init__.py").exists()}
    assert there - named <= {"__main__.py", "conf"}
    assert {n for n in named if n.endswith(".py")} <= {p.name for p in package.rglob("*.py")}
    assert all(
        (ROOT / name).exists() for name in ("conf/config.yaml", "examples", "scripts", "tests", "ARCHITECTURE.md")
    )


def test_the_two_commands_of_the_readme_are_in_the_makefile():
    """make demo, make test."""
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE)


def test_no_file_speaks_of_a_machine():
    """No path of a machine; the repository speaks of Curator alone."""
    for path in [*ROOT.glob("*.md"), *(ROOT / "curator").rglob("*.py"), *(ROOT / "curator").rglob("*.yaml")]:
        assert not re.search(r"(?<![\w.])/(work|root|home/\w+)/", path.read_text()), path
    assert Path(ROOT / ".ci/run").exists()
