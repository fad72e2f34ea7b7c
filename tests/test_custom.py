"""A user's own stage: one file and one YAML, found, checked, sent to workers, and named in addresses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap

import pytest

from curator.custom import StageSpec, identity_of, stage_class
from curator.errors import ConfigError
from tests.conftest import ROOT, make_samples, make_shard, shared

EXAMPLE = ROOT / "examples/saturation"


@pytest.fixture
def my(tmp_path):
    """The saturation example, copied to where it can be changed."""
    shutil.copytree(EXAMPLE, tmp_path / "my", ignore=shutil.ignore_patterns("__pycache__"))
    make_shard(tmp_path / "a.tar", make_samples(8))
    return tmp_path / "my"


def run(curate, *more, output="out"):
    """The example's command."""
    return curate(
        "--config-dir", "my", "stages=[partition,read,saturation,write]", "input=a.tar", f"output={output}", *more
    )


def test_editing_a_stages_file_measures_it_again_and_a_threshold_does_not(curate, my, tmp_path):
    """Its file's hash is in the address; once it sets a version, only the version counts."""
    assert run(curate).code == 0
    assert run(curate, "saturation.score_threshold=0.3").code == 0
    work = [json.loads((tmp_path / "out/run.json").read_text())["work"]["decoded"]]
    file = my / "saturation.py"
    file.write_text(file.read_text().replace("/ 255", "/ 256"))
    assert run(curate).code == 0
    work.append(json.loads((tmp_path / "out/run.json").read_text())["work"]["decoded"])
    file.write_text(file.read_text().replace("    needs =", "    version = 3\n    needs ="))
    assert run(curate).code == 0
    file.write_text(file.read_text() + "# another remark\n")
    assert run(curate, "saturation.score_threshold=0.2").code == 0
    work.append(json.loads((tmp_path / "out/run.json").read_text())["work"]["decoded"])
    assert work == [0, 8, 0]


@pytest.mark.parametrize(
    ("verb", "line"),
    [("measure", 'return {"saturation_score": batch.pixels}'), ("keep", 'return rows["saturation_score"]')],
)
def test_what_a_stage_raises_is_one_line_with_its_file_and_no_traceback(curate, my, verb, line):
    """In a worker and in the runner; a bug of one's own is looked for in one's own file."""
    file = my / "saturation.py"
    assert line in file.read_text()
    file.write_text(file.read_text().replace(line, "return {}[3]  #"))
    number = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if "{}[3]" in text)
    ran = run(curate)
    assert ran.code == 4
    assert "Traceback" not in ran.said
    assert f"saturation.{verb}: KeyError: 3 ({file.name}, line {number})" in ran.err


def test_a_recipe_of_ones_own_sets_stages_and_thresholds(curate, my, tmp_path):
    """my/recipe/mine.yaml with --config-dir my."""
    (my / "recipe").mkdir()
    (my / "recipe/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /stages: [partition, read, saturation]\nname: mine\n"
        "saturation:\n  score_threshold: 0.4\naesthetic:\n  score_threshold: 0.9\n"
    )
    ran = curate("--config-dir", "my", "recipe=mine", "input=a.tar", "output=out")
    assert ran.code == 0, ran.said
    run_json = json.loads((tmp_path / "out/run.json").read_text())
    assert run_json["name"] == "mine"
    assert run_json["config"]["saturation"]["score_threshold"] == 0.4


@pytest.mark.parametrize(
    ("target", "text", "expected"),
    [
        ("os.system", None, "names os.system, which is no stage of Curator"),
        ("pathlib.Path", None, "which is no stage"),
        ("saturation.Colour", None, "has no class Colour. The stages in it: Saturation"),
        ("broken.X", "class X(:\n    pass\n", "does not run: SyntaxError"),
        ("failing.X", "import nothing_like_this\n", "line 1, does not run: ModuleNotFoundError"),
        ("json.X", "class X: pass\n", "is called like the module json that Python can import"),
        ("plain.X", "class X: pass\n", "plain.X is not a subclass of ProcessingStage"),
        ("missing.X", None, "which is no stage"),
        (5, None, "must be the name of a stage"),
    ],
)
def test_a_target_that_is_no_stage_is_refused_in_words(my, target, text, expected):
    """The place is checked before anything is imported."""
    if text is not None:
        (my / f"{str(target).split('.')[0]}.py").write_text(text)
    with pytest.raises(ConfigError, match=expected.replace(".", r"\.")):
        stage_class(target, "mine", my)


@pytest.mark.parametrize(("folder", "config_dir"), [("my", "."), (".", "saturation")], ids=["in it", "beside it"])
def test_the_working_folder_does_not_make_a_stages_file_importable(curate, my, tmp_path, folder, config_dir):
    """`python -m curator` looks for modules in the working folder too, and `curate` does not: both take the file."""
    shutil.copytree(my, tmp_path / "saturation")
    more = ("stages=[partition,read,saturation]", f"input={tmp_path}/a.tar", f"output={tmp_path}/out")
    ran = curate("--config-dir", config_dir, *more, cwd=tmp_path / folder)
    assert ran.code == 0, ran.said


def test_a_file_whose_name_no_module_may_have_is_told_so(curate, my):
    """`sat two.py` lies there, and `no stage of my/` would not say why it is none."""
    (my / "saturation.py").rename(my / "sat two.py")
    file = my / "stages/saturation.yaml"
    file.write_text(file.read_text().replace("saturation.Saturation", "sat two.Saturation"))
    ran = run(curate)
    assert ran.code == 2
    assert "letters, digits and _, such as sat_two.py" in ran.err


def test_a_stages_yaml_without_its_header_is_told_so(curate, my):
    """Hydra would put it under `stages`, where it would run by that name."""
    file = my / "stages/saturation.yaml"
    file.write_text(file.read_text().replace("# @package saturation\n", ""))
    ran = run(curate)
    assert ran.code == 2
    assert "stages/saturation.yaml: stands under its group; its first line must be `# @package saturation`" in ran.err


def test_a_nested_target_is_refused(curate, my):
    """A YAML is data, never code."""
    ran = run(curate, "+saturation.channel._target_=os.system")
    assert ran.code == 2
    assert "saturation.channel._target_: a setting cannot be called like this" in ran.err


def test_a_stage_travels_as_its_text(my):
    """Another process builds the same stage without the file being there."""
    stage = stage_class("saturation.Saturation", "x", my)(score_threshold=0.25)
    spec = StageSpec.of(stage)
    shutil.rmtree(my)
    assert spec.build().score_threshold == 0.25
    assert identity_of(type(spec.build())) == identity_of(type(stage))


def test_a_class_from_no_file_must_set_its_version(tmp_path):
    """A notebook's class: without a version, what it measures could not be told from what an earlier one measured."""
    code = textwrap.dedent(
        """
        from curator import ProcessingStage
        from curator.custom import identity_of
        class Mine(ProcessingStage):
            gives = ("x",)
        try:
            print(identity_of(Mine))
        except Exception as error:
            print(error)
        class Versioned(ProcessingStage):
            version = 2
        print(identity_of(Versioned))
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Give the class a `version" in done.stdout
    assert "__main__.Versioned:2" in done.stdout


def test_ones_own_embedding_model_deduplicates_real_photos(curate, tmp_path):
    """EfficientNet-Lite0 on 40 groups of altered copies: what is dropped at 0.75 is a copy, and most copies are."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="a test dependency: pip install -e '.[dev]'")
    source = shared("data/neardup")
    ran = curate(
        "--config-dir", str(ROOT / "examples/lite"), "stages=[partition,read,lite,dedup,write]",
        "dedup.similarity_floor=0.7", "dedup.similarity_threshold=0.75", f"input={source}/*.tar", "output=out",
    )  # fmt: skip
    assert ran.code == 0, ran.said
    import csv

    import pyarrow.parquet as pq

    with open(source / "truth.csv", newline="") as file:
        group = {row["key"]: row["group"] for row in csv.DictReader(file)}
    rows = pq.read_table(tmp_path / "out/ledger").to_pylist()
    dropped = [row for row in rows if row["status"] == "dropped"]
    right = sum(group[row["key"]] == group[row["duplicate_of_key"]] != "" for row in dropped)
    copies = sum(group[row["key"]] != "" for row in rows) - len({g for g in group.values() if g})
    assert right / len(dropped) >= 0.97
    assert right / copies >= 0.80
