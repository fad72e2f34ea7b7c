"""blocklist: drops images whose content hash stands in a file. Another list decides again and measures nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from curator.errors import ConfigError
from curator.stage import Column, Columns, Mask, Need, ProcessingStage, decides, speeds
from curator.units import counted
from curator.wording import meant

USUAL = ("content_hash", "sha256", "hash")
"""How columns of hashes are called in Curator's ledger, by img2dataset, and by others."""

EMPTY_IS_NULL = pa_csv.ConvertOptions(strings_can_be_null=True)
_HASH = re.compile(r"[0-9a-fA-F]{64}")


class BlocklistFilterStage(ProcessingStage):
    """Drop images whose bytes have a SHA-256 that `file` lists, by the ledger's `content_hash`.

    A text with one hash in each line (as `sha256sum` prints them, too; `#` begins a remark), a CSV or Parquet file with
    a `column` of them, a folder of Parquet, or another run's output, whose ledger it is then. Nulls in a column are
    passed over.
    """

    called: ClassVar[str] = "blocklist"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[Need, ...]] = (Column("content_hash"),)

    file: str | None = speeds(None)  # what stands in it takes part in the decision, and not the path
    column: str | None = decides(None)

    def decided_from(self) -> tuple[Path, ...]:
        """The file, or the files of the folder."""
        path = _place(self.file or "")
        return tuple(sorted(path.glob("*.parquet"))) if path.is_dir() else (path,)

    def mistakes(self) -> Iterable[str]:
        """No file, one that cannot be read, or something in it that is no hash."""
        try:
            self._listed()
        except ConfigError as error:
            yield from error.mistakes

    def keep(self, rows: Columns) -> Mask:
        """Not listed."""
        listed = pc.is_in(pa.array(rows["content_hash"], pa.string(), from_pandas=True), self._listed())
        mask: Mask = ~listed.to_numpy(zero_copy_only=False)
        return mask

    def why(self, rows: Columns) -> list[tuple[str, str]]:
        """Which list."""
        return [("blocked", f"its content hash is listed in {self.file}")] * len(rows["content_hash"])

    def remarks(self, rows: Columns, mask: Mask) -> Iterable[str]:
        """How long the list is, and how many have one of it: an empty list looks like one that nobody is on."""
        hashes, listed = len(self._listed().unique()), int((~mask).sum())
        told = f"{hashes:,} hash{'' if hashes == 1 else 'es'}"
        yield f"{self.file} lists {told}, and {listed:,} of {counted(len(mask), 'image')} had one of them"

    def _listed(self) -> pa.Array:
        """The hashes, in small letters. Raises ConfigError."""
        if not self.file:
            raise ConfigError(f"{self.name}.file: must be given: a file of SHA-256 hashes, or a ledger of another run.")
        path = _place(self.file)
        if not path.exists():
            raise ConfigError(f"{self.name}.file: there is no {self.file}.")
        if path.is_dir() and not list(path.glob("*.parquet")):
            raise ConfigError(
                f"{self.name}.file: {self.file} is a folder without Parquet in it. Name a file of hashes, the output "
                "of a run, or a folder of Parquet."
            )
        try:
            if path.is_dir() or path.suffix == ".parquet":
                hashes = self._column(pq.read_table(path))
            elif path.suffix == ".csv":
                hashes = self._column(pa_csv.read_csv(path, convert_options=EMPTY_IS_NULL))
            else:
                hashes = pa.array(_lines(path.read_text()), pa.string())
        except UnicodeDecodeError:
            raise ConfigError(
                f"{self.name}.file: {self.file} is no text. A list is text with a hash in each line, .csv or .parquet."
            ) from None
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"{self.name}.file: {self.file} cannot be read: {error}") from error
        wrong = hashes.filter(pc.invert(pc.match_substring_regex(hashes, f"^{_HASH.pattern}$")))
        if len(wrong):
            raise ConfigError(
                f"{self.name}.file: {self.file} holds {len(wrong):,} entries that are no SHA-256 (64 hex digits), such "
                f"as {wrong[0].as_py()[:80]!r}."
            )
        return pc.utf8_lower(hashes)

    def _column(self, table: pa.Table) -> pa.Array:
        """The column of hashes. Raises ConfigError where there is none of that name, or of a usual one."""
        names = table.column_names
        name = self.column or next((usual for usual in USUAL if usual in names), None)
        if name not in names:
            near = meant(name, names) if name else f" Say which with {self.name}.column=NAME."
            raise ConfigError(
                f"{self.name}.column: {self.file} has no column {name or ' or '.join(USUAL)}. It has "
                f"{', '.join(names)}.{near}"
            )
        return table.column(name).cast(pa.string()).combine_chunks().drop_null()


def _place(given: str) -> Path:
    """Where the hashes stand: of a run's output, its ledger."""
    path = Path(given).expanduser()
    return path / "ledger" if (path / "ledger").is_dir() else path


def _lines(text: str) -> list[str]:
    """The first word of each line that has one, remarks left out."""
    words = (line.split("#")[0].split() for line in text.lstrip("\ufeff").splitlines())
    return [found[0] for found in words if found]
