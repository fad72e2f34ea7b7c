"""caption: drops pictures whose caption is missing or too short. Measures nothing: captions come with reading."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator.stage import Array, Column, Columns, Mask, Need, ProcessingStage, decides

WORD = r"[{0}]|[^\s\pZ{0}]+".format(r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}")
"""What counts as a word: letters between blanks; each sign by itself in scripts that put no blanks between words."""


class CaptionFilterStage(ProcessingStage):
    """Keep pictures whose caption has at least `min_words` words and `min_letters` signs, blanks around it left out.

    No caption, or one of blanks alone, is `no_caption` where either is above 0. The defaults are those of DataComp's
    basic filter (more than two words and more than five signs; Gadre and others, 2023).
    """

    called: ClassVar[str] = "caption"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[Need, ...]] = (Column("caption"),)

    min_words: int = decides(3, ge=0)
    min_letters: int = decides(6, ge=0)

    def keep(self, rows: Columns) -> Mask:
        """Enough words and enough signs."""
        words, letters = counts_of(rows["caption"])
        mask: Mask = (words >= self.min_words) & (letters >= self.min_letters)
        return mask

    def why(self, rows: Columns) -> list[tuple[str, str]]:
        """What is missing, or by how much."""
        return [self._told(words, letters) for words, letters in zip(*counts_of(rows["caption"]), strict=True)]

    def _told(self, words: int, letters: int) -> tuple[str, str]:
        if not letters:
            return "no_caption", "no caption"
        if words < self.min_words:
            return "short_caption", f"a caption of {words} words, {self.min_words} are wanted"
        return "short_caption", f"a caption of {letters} letters, {self.min_letters} are wanted"


def counts_of(captions: Array) -> tuple[Array, Array]:
    """Words and letters (N,) int64 of captions (N,) of str or None."""
    text = pc.utf8_trim_whitespace(pa.array(captions, pa.string(), from_pandas=True)).fill_null("")
    counts = (pc.count_substring_regex(text, WORD), pc.utf8_length(text))
    words, letters = (np.asarray(count, np.int64) for count in counts)
    return words, letters
