"""What a stage says of settings that it does not take: in words, all at once, from Python as from YAML."""

from __future__ import annotations

import pickle

import pytest

from curator import ImageNSFWFilterStage, ImageReaderStage, Pipeline
from curator.errors import ConfigError
from curator.stage import ProcessingStage
from tests.stages import Brightness


def test_a_stages_mistakes_are_told_in_words_all_at_once():
    """Not as pydantic's report: which setting, what it must be, what was probably meant."""
    with pytest.raises(ConfigError) as caught:
        ImageNSFWFilterStage(score_treshold=0.3, action="keep", model_inference_batch_size="many")
    assert sorted(caught.value.mistakes) == [
        "nsfw.action: must be 'drop' or 'flag', not 'keep'",
        "nsfw.model_inference_batch_size: must be a whole number, not 'many'",
        "nsfw.score_treshold: no such setting. Did you mean score_threshold?",
    ]


def test_settings_are_given_by_name():
    """A bare number says nothing about what it is."""
    with pytest.raises(ConfigError, match=r"ImageNSFWFilterStage: settings are given by name, as in Image"):
        ImageNSFWFilterStage(0.5)


def test_a_stage_of_ones_own_is_called_by_its_name():
    """The given one, or that of its class."""

    class MyFilter(ProcessingStage):
        size: int = 1

    for name, settings in (("my_filter", {}), ("other", {"name": "other"})):
        with pytest.raises(ConfigError, match=f"^{name}.size: must be a whole number, not 'x'$"):
            MyFilter(size="x", **settings)


def test_a_checked_stage_pickles_and_copies():
    """Workers are sent it."""
    stage = Brightness(score_threshold=0.25)
    assert pickle.loads(pickle.dumps(stage)) == stage.model_copy() == stage


@pytest.mark.parametrize(
    ("thing", "told"),
    [(3, "stages: 3 is no stage"), (ImageReaderStage, r"ImageReaderStage is no stage; an instance is one, such as")],
)
def test_what_is_no_stage_is_refused_by_a_pipeline(tmp_path, thing, told):
    """And a misspelt setting of the run says what was meant."""
    with pytest.raises(ConfigError, match=told):
        Pipeline("x", [thing]).run(input=tmp_path, output=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"outptu: no such setting\. Did you mean output\?"):
        Pipeline("x", [ImageReaderStage()]).run(input=tmp_path, outptu=tmp_path / "out")
