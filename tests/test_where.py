"""where: a condition on columns is read by hand, means the same to every index, and is never run as code."""

from __future__ import annotations

import pyarrow as pa
import pytest

from curator.errors import ConfigError
from curator.indexes import milvus, pinecone
from curator.indexes.where import checked, kinds_of, mask_of, parsed

ROWS = pa.table({
    "score": [0.1, 0.5, 0.9, None],
    "width": [64, 128, 256, 512],
    "caption": ["a cat", "it's", None, 'say "hi"'],
    "safe": [True, False, True, None],
    "in_class name": ["x", "y", "z", "x"],
})  # fmt: skip


def rows(text: str) -> list[int]:
    """The rows of the table that meet a condition."""
    condition = parsed(text)
    checked(condition, kinds_of(ROWS.schema))
    return mask_of(condition, ROWS).nonzero()[0].tolist()


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("score > 0.5", [2]),
        ("score >= .5", [1, 2]),
        ("score < 5e-1 or width = 512", [0, 3]),
        ("width <> 64 and width != 128", [2, 3]),
        ("caption = 'it\\'s'", [1]),
        ('caption == "it\'s"', [1]),
        ("caption = 'say \"hi\"'", [3]),
        ("caption in ('a cat', 'it\\'s')", [0, 1]),
        ("width not in [64, 128]", [2, 3]),
        ("safe = true", [0, 2]),
        ("NOT safe = TRUE", [1]),
        ("`in_class name` = 'x'", [0, 3]),
        ("width = 64 or width = 128 and score > 0.9", [0]),
        ("(width = 64 or width = 128) and score > 0.2", [1]),
        ("not (width = 64 or not score > 0.2)", [1, 2]),
        ("width > -1", [0, 1, 2, 3]),
    ],
)
def test_a_condition_is_met_by_the_rows_that_arithmetic_says(text, met):
    """`and` binds closer than `or`; both spellings of equal; lists in either brackets."""
    assert rows(text) == met


def test_a_row_without_the_value_meets_neither_a_condition_nor_its_opposite():
    """Nobody knows whether a caption that is not there is no cat."""
    assert rows("score > 0.2") + rows("not score > 0.2") == [1, 2, 0]
    assert rows("caption != 'a cat'") == [1, 3]
    assert rows("caption not in ('a cat', 'b')") == [1, 3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a column was expected at the end"),
        ("score >", "a number, or text in quotes, was expected at the end"),
        ("score > 0.5 width < 3", "'and', 'or' or the end was expected at 'width < 3'"),
        ("score > abc", "a number, or text in quotes, was expected at 'abc'"),
        ("(score > 1", "')' was expected at the end"),
        ("score in (1", "',' or ')' was expected at the end"),
        ("score not 3", "'in' was expected at '3'"),
        ("__import__('os').system('x')", "= != < <= > >= or in was expected at"),
        ("score > 1; drop", "'and', 'or' or the end was expected at '; drop'"),
        ("(" * 60 + "score > 1" + ")" * 60, "more than 50 brackets"),
    ],
)
def test_what_is_no_condition_is_told_with_its_place(text, said):
    """Code is no condition."""
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert said in str(caught.value)


def test_a_column_that_there_is_not_and_a_value_of_another_kind_are_told_at_once():
    """With the columns that there are."""
    with pytest.raises(ConfigError) as caught:
        rows("scoer > 1 and width = 'wide' and safe > true")
    assert caught.value.mistakes == [
        "where: there is no column scoer. Did you mean score? There are caption, in_class name, safe, score, width.",
        "where: width holds numbers, not text such as 'wide'.",
        "where: safe is true or false: = and != are all that can be asked of it.",
    ]


def test_services_are_asked_the_same_in_their_own_words():
    """Values are quoted by JSON, so that text cannot end its quotes; a missing value meets no != either."""
    condition = parsed("""not (score <= 0.5 or caption = 'a" or id != "') and safe = true""")
    assert milvus.filter_of(condition) == '((score > 0.5) and (caption != "a\\" or id != \\"")) and (safe == true)'
    assert milvus.filter_of(parsed("`in_class name` = 'x'")) == '$meta["in_class name"] == "x"'
    assert pinecone.filter_of(parsed("score > 0.5 and (width != 3 or width in (1, 2))")) == {
        "$and": [
            {"score": {"$gt": 0.5}},
            {"$or": [
                {"$and": [{"width": {"$ne": 3}}, {"width": {"$exists": True}}]},
                {"$or": [{"width": {"$eq": 1}}, {"width": {"$eq": 2}}]},
            ]},
        ]
    }  # fmt: skip
