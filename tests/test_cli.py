"""The front door: what is typed, what is answered, and the exit code."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from curator.cli import main
from tests.conftest import DEMO, ROOT, make_image, make_samples, make_shard

READ_ONLY = "stages=[partition,read]"


@pytest.fixture
def said(capsys, tmp_path, monkeypatch):
    """`said(*arguments)`: exit code and all that was printed, from a call in this process in a temporary folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_all_mistakes_show_at_once_with_what_was_probably_meant(said):
    """A person mends a config in one go; no traceback."""
    code, text = said(
        *DEMO, "input=/nowhere/x.tar", "output=out", "aesthetic.score_treshold=0.4", "nsfw.score_threshold=2",
        "stor=x", "aesthetik.score_threshold=0.3", "embed.model_inference_batch_size=many",
        "dedup.similarity_threshold=0.8",
    )  # fmt: skip
    assert code == 2
    for line in (
        "aesthetic.score_treshold: no such setting. Did you mean score_threshold?",
        "nsfw.score_threshold: must be at most 1.0, not 2",
        "stor: no such setting. Did you mean store?",
        "aesthetik.score_threshold: no such stage or setting. Did you mean aesthetic?",
        "embed.model_inference_batch_size: must be a whole number, not 'many'",
        "add dedup.similarity_floor=0.8",
    ):
        assert line in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["stages=[partition,read,nsfw,write]", "nsfw.head=demo"], "nsfw: needs an embedding, and no stage gives one: add embed"),
        (["stages=[partition,read,nsfw,embed]", *DEMO[:3]], "embed stands behind it: list it before nsfw"),
        ([READ_ONLY, "aesthetic.score_threshold=0.2"], "aesthetic.score_threshold: set, but aesthetic is not in stages"),
        ([READ_ONLY, "input=nowhere.tar"], "nowhere.tar: there is no such file or folder"),
        ([READ_ONLY, "input=in/{0..3}.tar"], "in/1.tar, in/2.tar, in/3.tar: nothing is there (3 of 4)"),
        ([READ_ONLY, "input=https://example.com/a.tar"], "https:// is not read here. Of URLs, s3://"),
        ([READ_ONLY, "output=in"], "output: in contains the input"),
        (["stages=[partition,read,wat]"], "stages/wat"),
        (["recipe=nope"], "Available options in 'recipe'"),
        (["stages=[partition,read,embed,nsfw]", "embed.model=curator-demo", "embed.pretrained=curator-demo"], "In another space its scores mean nothing"),
        (["stages=partition,read"], "'stages=[partition,read]'"),
        (["input=a.tar,b.tar"], "'input=[a.tar,b.tar]'"),
        (["read.max_pixels=1,2", READ_ONLY], "needs -m"),
        (["~nothing"], "nothing"),
        (["--nonsense"], "--nonsense"),
        (["loose"], "loose: is no setting"),
        (["stages=[[read]]"], "stages=[[read]]: a list of names, and no lists in it"),
        (["stages=[]"], "stages=[]: names no stage"),
        (["stages=[ ]"], "names no stage"),
        (["stages=[partition,read,embed,clip_score,'clip_score']"], "clip_score stands in it more than once, and each runs once"),
        (["-m", "stages=[partition,read],[partition,read,write,manifest,write]"], "write stands in it more than once"),
        (["include_dropped=true", "stages=[partition,read,write]"], "include_dropped: no such setting. Did you mean write.include_dropped?"),
        (["include_dropped=true", "stages=[partition,read,manifest,write]"], "mean manifest.include_dropped or write.include_dropped?"),
        (["~read=5", READ_ONLY], "~read=5: a stage is taken out by its name alone"),
        (["stage/read=x", READ_ONLY], "stage/read: there is no such group of files. Did you mean stages?"),
        (["output=${oc.env:NOT_SET_AT_ALL}", READ_ONLY], "curate: output: Environment variable 'NOT_SET_AT_ALL' not found"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder"),
        (["cluster=scheduler", READ_ONLY], "cluster.address: must be given"),
        (["cluster=cuda", READ_ONLY], "cuda was asked for, but"),
        (["cluster.n_worker=2", READ_ONLY], "cluster.n_worker: no such setting. Did you mean n_workers?"),
        (["max_failed=1.5", READ_ONLY], "max_failed: must be at most 1.0, not 1.5"),
        (["read.formats=[EPS]", READ_ONLY], "vector formats run other programs"),
        (["read.formats=[JPG]", READ_ONLY], "read.formats: JPG: no such format. Did you mean JPEG?"),
        (["read.formats=[]", READ_ONLY], "read.formats: must name one at least"),
        (["embed.model=ViT-L-15"], "open_clip knows no model ViT-L-15. Did you mean"),
        (["read._target_=os.system", READ_ONLY], "names os.system, which is no stage of Curator"),
        (["stages=null"], "stages is chosen by name"),
        (["recipe=null"], "recipe is chosen by name"),
        (["cluster=5"], "cluster is chosen by name"),
        (["stages=[partition,reed]"], "stages/reed: there is none. Did you mean read?"),
        (["nsfw=5", READ_ONLY], "nsfw: is a stage, and has its settings below it"),
        (["sweep.writ=true", READ_ONLY], "sweep.writ: no such setting. Did you mean write?"),
        (["sweep.write=maybe", READ_ONLY], "sweep.write: must be true or false, not 'maybe'"),
        (["write.min_shards=2", "~write", *DEMO], "write.min_shards: set, but write is taken out"),
        (["input=in/0.tar", "input=in/1.tar", READ_ONLY], "input: given 2 times, and only one can count"),
        (["input=${oc.env:HOME}/no (1)/{0..3}.tar", READ_ONLY], "nothing is there (4 of 4)"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_words_with_exit_2(said, tmp_path, arguments, expected):
    """What, where, and what to do."""
    make_shard(tmp_path / "in/0.tar", make_samples(1))
    given = {a.partition("=")[0] for a in arguments}
    usual = [o for o in ("input=in/0.tar", "output=out") if o.partition("=")[0] not in given]
    code, text = said(*usual, *arguments)
    assert expected in text
    assert code == 2
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("typed", ["max_failed='1", "max_failed=(1", "read.formats=[JPEG", "read.image_suffix=a'b"])
def test_what_hydras_grammar_does_not_take_is_answered_in_the_words_that_were_typed(said, typed):
    """No name of a parser's class, no `++` that nobody typed."""
    code, text = said(READ_ONLY, "input=in", "output=out", typed)
    assert code == 2
    assert f"curate: {typed}: cannot be read" in text
    assert "++" not in text
    assert not re.search(r"[A-Z]\w+Exception|input '|expecting", text)


@pytest.mark.parametrize("name", ["a,b", "st ore,{}'x", 'a,"b', "a,b\\"])
def test_the_advice_for_a_comma_in_a_name_works_when_it_is_typed(said, tmp_path, name):
    """It is pasted into a shell as it stands."""
    make_shard(tmp_path / "in/a.tar", make_samples(1))
    code, text = said(READ_ONLY, "input=in", "output=out", f"store={name}")
    assert code == 2
    advice = text.partition("is written ")[2].partition("; with commas")[0]
    assert said(READ_ONLY, "input=in", "output=out", *shlex.split(advice))[0] == 0
    assert (tmp_path / name / "FORMAT").exists()


def test_paths_are_looked_at_although_a_setting_is_wrong(said, tmp_path):
    """All mistakes at once: a stage that cannot be built hides neither a missing input nor a foreign output."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/one.doc").write_text("mine")
    text = said(READ_ONLY, "read.max_pixels=many", "max_failed=3", "input=nowhere", "output=thesis")[1]
    for line in (
        "read.max_pixels: must be",
        "max_failed: must be",
        "nowhere: there is no such",
        "holds something else",
    ):
        assert line in text


def test_who_reads_only_the_first_lines_sees_no_traceback(tmp_path):
    """`curate --info defaults | head`."""
    command = f"{sys.executable} -m curator --info defaults | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == ""


def test_lists_may_have_blanks_and_quotes(said, tmp_path):
    """CASES 19 (hydra #836): both spellings are the same list."""
    make_shard(tmp_path / "a.tar", make_samples(1))
    for number, stages in enumerate(["stages=[partition, read]", "stages=[partition,read]"]):
        assert said(stages, "input=a.tar", f"output=o{number}")[0] == 0


def test_paths_that_break_hydras_grammar_are_taken_as_typed(said, tmp_path):
    """Braces, blanks, brackets, equals signs, letters of any language, and numbers that are names."""
    for name in ("a (1)", "b=c", "[d]", "ü~ñ", "it's", "2024"):
        make_shard(tmp_path / name / "0.tar", make_samples(1))
        code, text = said(READ_ONLY, f"input={name}/0.tar", f"output=out of {name}")
        assert code == 0, text
        assert (tmp_path / f"out of {name}/run.json").exists()
    assert said(READ_ONLY, "input=[a (1)/0.tar,b=c/0.tar]", "output=2025")[0] == 0
    assert json.loads((tmp_path / "2025/run.json").read_text())["counts"]["inputs"] == 2


def test_options_and_settings_mix_in_any_order(said, tmp_path):
    """--config-dir may stand between settings."""
    make_shard(tmp_path / "a.tar", make_samples(2))
    examples = str(ROOT / "examples/saturation")
    code, text = said("input=a.tar", "--config-dir", examples, "stages=[partition,read,saturation]", "output=out")
    assert code == 0, text


def test_help_and_errors_import_neither_torch_nor_dask(curate):
    """They are answered at once."""
    code = (
        "import sys; from curator.cli import main; main(['--help']); main(['stages=[partition,read]', 'x.y=1']); "
        "print([m for m in ('torch', 'distributed', 'open_clip') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    for recipe in (
        "training_dataset",
        "image_search",
        "quality_filtering",
        "content_moderation",
        "deduplication",
        "demo",
    ):
        assert re.search(rf"^  {recipe} +\S", done.stdout, re.MULTILINE)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(said, tmp_path):
    """Before: all is to be looked at. After a run: all is stored."""
    make_shard(tmp_path / "a.tar", make_samples(3))
    code, text = said(READ_ONLY, "input=a.tar", "output=out", "dry_run=true")
    assert code == 0
    assert "0 known from before" in text
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".curator").exists()
    said(READ_ONLY, "input=a.tar", "output=out")
    assert "1 known from before (3 samples), 0 to be looked at" in said(READ_ONLY, "input=a.tar", "dry_run=true")[1]


def test_the_command_and_the_module_are_the_same(curate, tmp_path):
    """`curate` and `python -m curator`; a relative input, a table at the end, the files that were promised."""
    make_shard(tmp_path / "in/a.tar", {**make_samples(3), "bad.jpg": make_image(3)[:200]})
    ran = curate("stages=[partition,read,write]", "input=in/*.tar", "output=out")
    assert ran.code == 0, ran.said
    assert "4 in = 3 kept + 0 dropped + 1 failed" in ran.out
    assert "measuring: 4 of 4 images" in ran.err
    assert sorted(os.listdir(tmp_path / "out")) == [".hydra", "curator.log", "ledger", "run.json", "shards"]
    assert sorted(os.listdir(tmp_path / "out/.hydra")) == ["config.yaml", "hydra.yaml", "overrides.yaml"]


def test_secrets_from_the_environment_are_not_saved(curate, tmp_path):
    """`${oc.env:...}` stays as it was typed in everything that is written."""
    make_shard(tmp_path / "in/a.tar", make_samples(1))
    ran = curate(READ_ONLY, "input=in", "output=out", "cluster.tls_key='${oc.env:SECRET}'", env={"SECRET": "hunter2"})
    assert ran.code == 0, ran.said
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert b"hunter2" not in written


def test_a_secret_is_not_saved_where_another_setting_repeats_it(curate, tmp_path):
    """What comes from the environment by way of another setting stays unresolved as well."""
    make_shard(tmp_path / "in/a.tar", make_samples(1))
    secret = ("cluster.tls_key=${oc.env:SECRET}", "cluster.tls_ca=${cluster.tls_key}", "name=of-${cluster.tls_ca}")
    ran = curate(READ_ONLY, "input=in", "output=out", *secret, env={"SECRET": "hunter2"})
    assert ran.code == 0, ran.said
    assert "hunter2" not in (tmp_path / "out/run.json").read_text()
    assert json.loads((tmp_path / "out/run.json").read_text())["config"]["cluster"]["tls_ca"] == "${cluster.tls_key}"


def test_help_lists_a_users_own_recipes_and_info_says_what_makes_a_config_up(said, tmp_path):
    """--config-dir counts for both."""
    (tmp_path / "my/recipe").mkdir(parents=True)
    (tmp_path / "my/recipe/mine.yaml").write_text("# @package _global_\n# What I want.\nname: mine\n")
    assert re.search(r"^  mine +What I want\.$", said("--config-dir", "my", "--help")[1], re.MULTILINE)
    code, text = said("--info", "defaults", "--config-dir", "my", "recipe=mine")
    assert code == 0
    assert "recipe/mine" in text


RECIPES = {
    "callbacks: {x: {_target_: pathlib.Path.write_text, self: {_target_: pathlib.Path, _args_: [ran]}, data: x}}":
        "hydra.callbacks: is not taken",
    "hydra_logging: {handlers: {f: {class: logging.FileHandler, filename: ran}}, root: {handlers: [f]}}":
        "hydra.hydra_logging: is not taken",
    "job_logging: {handlers: {f: {class: logging.FileHandler, filename: ran}}, root: {handlers: [f]}}":
        "hydra.job_logging: is not taken",
    "job: {env_set: {LD_PRELOAD: ran}}": "hydra.job.env_set: is not taken",
    "sweeper: {_target_: os.system}": "hydra.sweeper: names os.system",
    "launcher: {_target_: subprocess.Popen}": "hydra.launcher: names subprocess.Popen",
    "sweeper: {params: {name: {_target_: os.system}}}": "hydra.sweeper: names os.system",
}  # fmt: skip


@pytest.mark.parametrize("multirun", [(), ("-m",)], ids=["one run", "multirun"])
@pytest.mark.parametrize("text", RECIPES)
def test_a_recipe_cannot_make_hydra_run_code(said, tmp_path, text, multirun):
    """A YAML is data: Hydra would call these in a multirun before any check of a stage."""
    make_shard(tmp_path / "a.tar", make_samples(1))
    (tmp_path / "my/recipe").mkdir(parents=True)
    (tmp_path / "my/recipe/mine.yaml").write_text(f"# @package _global_\nhydra:\n  {text}\n")
    options = ("--config-dir", "my", "recipe=mine", "input=a.tar", "output=out", READ_ONLY)
    code, said_text = said(*multirun, *options, *(("max_failed=0.5,1",) if multirun else ()))
    assert RECIPES[text] in said_text
    assert code == 2
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["aliases", "depth"])
def test_a_yaml_that_blows_up_is_refused_at_once(said, tmp_path, kind):
    """Nine aliases of nine aliases ... come to 3.5 thousand million values, and Hydra would write them all out."""
    lines = ["x0: &x0 [" + ",".join(["lol"] * 9) + "]"]
    lines += [f"x{n}: &x{n} [" + ",".join([f"*x{n - 1}"] * 9) + "]" for n in range(1, 10)]
    text = "\n".join(lines) if kind == "aliases" else "read: " + "{a: " * 2000 + "1" + "}" * 2000
    (tmp_path / "my/recipe").mkdir(parents=True)
    (tmp_path / "my/recipe/mine.yaml").write_text(f"# @package _global_\n{text}\n")
    code, said_text = said("--config-dir", "my", "recipe=mine", "input=a.tar", "output=out")
    assert code == 2
    assert "mine.yaml: comes to more than 100,000 values or 50 levels" in said_text


def test_a_mistake_in_a_users_yaml_names_the_file(said, tmp_path):
    """RELIABILITY 22: where it stands, what was meant; a mistake that was typed names none."""
    make_shard(tmp_path / "a.tar", make_samples(1))
    (tmp_path / "my/recipe").mkdir(parents=True)
    (tmp_path / "my/recipe/mine.yaml").write_text("# @package _global_\nread:\n  max_pixel: 5\n")
    given = ("--config-dir", "my", "recipe=mine", "input=a.tar", "output=out", READ_ONLY)
    text = said(*given, "read.formatss=[PNG]")[1]
    assert "curate: recipe/mine.yaml: read.max_pixel: no such setting. Did you mean max_pixels?" in text
    assert "curate: read.formatss: no such setting. Did you mean formats?" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["input=links", "output=o"], "links holds no tar and no image. Links to folders in it are not followed"),
        (["input=in", "output=afile/sub"], "output: afile/sub cannot be a folder: "),
        (["input=in", "output=o", "store=afile"], "store: afile cannot be a folder: "),
        (["input=in", "output=st/x", "store=st"], "output: st/x lies in the store, st"),
        (["input=", "output="], "input: must be given"),
        (["-m", "input=in", "output=a,b"], "a sweep has one output"),
        (["~dedpu", "input=in", "output=o"], "there is no dedpu to take out. Did you mean dedup?"),
        (["recipe=image_search,demo", "input=in", "output=o"], "values with commas between them are a sweep"),
    ],
)
def test_a_place_or_name_that_cannot_be_meant_is_told_before_any_work(curate, tmp_path, words, told):
    """Exit 2 in words, where it was a failure outside, a success of nothing, or another program's sentence."""
    make_shard(tmp_path / "in/a.tar", make_samples(1))
    (tmp_path / "links").mkdir()
    (tmp_path / "links/in").symlink_to(tmp_path / "in")
    (tmp_path / "afile").touch()
    ran = curate("stages=[partition,read,write]" if "recipe" not in words[0] else "sweep.write=false", *words)
    assert ran.code == 2, ran.said
    assert told in ran.err
    assert "Traceback" not in ran.err
