"""folder: images as files with one table beside them, as Hugging Face's imagefolder reads them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator import (
    ExactDeduplicationStage,
    FilePartitioningStage,
    ImageFolderWriterStage,
    ImageReaderStage,
    ImageWriterStage,
)
from curator.errors import InputChanged
from curator.formats.imagefolder import safe_key
from tests.conftest import make_image, make_samples, make_shard, shared, tar_members, tree
from tests.stages import Brightness
from tests.tars import tar_of

SOURCES = (FilePartitioningStage(), ImageReaderStage())


def rows_of(folder):
    """The table beside the images, by file name."""
    return {row["file_name"]: row for row in pq.read_table(folder / "metadata.parquet").to_pylist()}


def images_of(folder):
    """Every file of a folder but the table."""
    return {name: content for name, content in tree(folder).items() if name != "metadata.parquet"}


def load(folder, cache, **how):
    """As Hugging Face's loader gives it, images as the bytes that lie there."""
    import datasets

    loaded = datasets.load_dataset("imagefolder", split="train", cache_dir=str(cache), **how)
    return loaded.cast_column("image", datasets.Image(decode=False))


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_equal_names_in_sub_folders_and_in_tars_stay_apart(pipeline, tmp_path):
    """CASES 15 [Duplicate-Image-Finder #33]: of a/x, b/x, c/x only the copy goes, and it names a/x; in tars as well."""
    for folder, seed in (("a", 1), ("b", 2), ("c", 1)):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "x.jpg").write_bytes(make_image(seed))
        make_shard(tmp_path / f"tars/{folder}.tar", {"x.jpg": make_image(seed)})
    stages = [*SOURCES, ExactDeduplicationStage(), ImageFolderWriterStage()]
    result = pipeline(stages, input=tmp_path / "in")
    (dropped,) = [row for row in result.ledger.to_pylist() if row["status"] == "dropped"]
    assert (dropped["key"], dropped["duplicate_of_key"]) == ("c/x", "a/x")
    assert images_of(tmp_path / "out/folder") == {"a/x.jpg": make_image(1), "b/x.jpg": make_image(2)}
    result = pipeline([*SOURCES, ImageFolderWriterStage()], input=tmp_path / "tars", output=tmp_path / "other")
    images = images_of(tmp_path / "other/folder")
    assert images == {"x.jpg": make_image(1), "x-1.jpg": make_image(2), "x-2.jpg": make_image(1)}
    for name, row in rows_of(tmp_path / "other/folder").items():
        assert images[name] == tar_members(Path(row["in_shard"]))["x.jpg"]
    places = [(row["output_shard"], row["output_key"]) for row in result.ledger.to_pylist()]
    assert places == [("folder", name) for name in ("x.jpg", "x-1.jpg", "x-2.jpg")]


def test_hugging_faces_loader_gives_every_photo_with_its_caption_and_its_scores(pipeline, tmp_path):
    """Real ones, jpg and png: original bytes, the json as text, the way back to the input."""
    source = shared("data/photos/00003.tar")
    result = pipeline([*SOURCES, Brightness(), ImageFolderWriterStage()], input=source)
    truth = tar_members(source)
    loaded = load(tmp_path, tmp_path / "hf", data_dir=str(tmp_path / "out/folder"))
    assert loaded.column_names == [
        "image", "caption", "json", "in_shard", "in_key", "in_index", "brightness",
    ]  # fmt: skip
    rows = result.ledger.to_pylist()
    assert len(loaded) == len(rows) == 100
    for row, ledger_row in zip(loaded, rows, strict=True):
        path = row["image"]["path"]
        assert Path(path).read_bytes() == truth[ledger_row["image"]]
        assert (row["in_key"], row["caption"]) == (ledger_row["key"], ledger_row["caption"])
        assert row["brightness"] == ledger_row["brightness"]
        assert row["json"].encode() == truth[f"{row['in_key']}.json"]
    assert "members other than image, caption and json have no place here (cls 92)" in " ".join(
        result.run["write"]["folder"]["remarks"]
    )


def test_words_that_the_loader_takes_for_splits_are_said_and_the_way_that_is_said_loads(pipeline, tmp_path):
    """Of `validation/a.jpg` it would make a split without a table. Suffixes that it does not know get one that it does."""
    (tmp_path / "in/validation").mkdir(parents=True)
    (tmp_path / "in/validation/a.jpg").write_bytes(make_image(1))
    (tmp_path / "in/b.img").write_bytes(make_image(2))
    result = pipeline([*SOURCES, ImageFolderWriterStage()], input=tmp_path / "in")
    (remark,) = result.run["write"]["folder"]["remarks"]
    assert "paths hold validation" in remark
    assert "data_files='folder/metadata.parquet'" in remark
    loaded = load(tmp_path, tmp_path / "hf", data_files=str(tmp_path / "out/folder/metadata.parquet"))
    found = {Path(row["image"]["path"]).name: Path(row["image"]["path"]).read_bytes() for row in loaded}
    assert found == {"b.img.jpg": make_image(2), "a.jpg": make_image(1)}


def test_columns_of_a_list_come_along_and_none_is_taken_for_another_image(pipeline, tmp_path):
    """`in_file_name` would be read as a path of an image; the list's own `key` stands behind the way back."""
    for n in range(2):
        (tmp_path / f"{n}.jpg").write_bytes(make_image(n))
    table = {"path": ["0.jpg", "1.jpg"], "file_name": ["x", "y"], "shard": ["s", "t"], "rank": [1, None]}
    pq.write_table(pa.table(table), tmp_path / "list.parquet")
    read = ImageReaderStage(image_column="path")
    pipeline([SOURCES[0], read, ImageFolderWriterStage()], input=tmp_path / "list.parquet")
    rows = list(rows_of(tmp_path / "out/folder").values())
    assert [(r["in_file_name_"], r["in_in_shard"], r["in_rank"]) for r in rows] == [("x", "s", 1), ("y", "t", None)]
    assert {r["in_shard"] for r in rows} == {str(tmp_path / "list.parquet")}
    loaded = load(tmp_path, tmp_path / "hf", data_dir=str(tmp_path / "out/folder"))
    assert loaded["in_file_name_"][:] == ["x", "y"]


EVIL = [
    "../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "..", "con.jpg", "NUL/aux.jpg", "a\nb.jpg", "c:\\x.jpg", "a//b.jpg",
    "metadata.parquet.jpg", "d" * 250 + ".jpg", "long/" * 300 + "x.jpg", "Y.jpg", "y.jpg", "ü" * 120 + ".jpg",
    "e\u0301.jpg", "\u00e9.jpg", "t" * 240 + ".jpg", " .jpg", "z.JPG", "z.jpg/w.jpg", "k." + "s" * 90, "noname",
]  # fmt: skip


def test_no_key_leaves_the_folder_or_takes_anothers_place(pipeline, tmp_path):
    """Ways up and out, reserved and overlong names, names that differ in case or in how a letter is put together."""
    contents = {name: make_image(n, form="PNG") for n, name in enumerate(EVIL)}
    (tmp_path / "a.tar").write_bytes(tar_of(list(contents.items()), form=0x1))
    result = pipeline([*SOURCES, ImageFolderWriterStage()], input=tmp_path / "a.tar")
    images = images_of(tmp_path / "out/folder")
    assert sorted(images.values()) == sorted(contents.values())
    assert len(result) == len(images) == len({name.casefold() for name in images}) == len(EVIL)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"folder", "ledger", "run.json"}
    assert not [p for p in tmp_path.rglob("x*.jpg") if "out/folder" not in str(p)]
    rows = rows_of(tmp_path / "out/folder")
    by_index = {row["in_index"]: name for name, row in rows.items()}
    assert [images[by_index[n]] for n in range(len(EVIL))] == list(contents.values())
    assert all(len(part.encode()) <= 255 for name in images for part in name.split("/"))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600) | st.text(alphabet="./\\: aA\0\n\u202eé", max_size=60).map(str.encode))
def test_whatever_a_key_is_its_path_stays_below_the_folder(key):
    """And is one that file systems take."""
    path = safe_key(key)
    full = os.path.normpath(os.path.join("/folder", path))
    assert full.startswith("/folder/")
    assert full == f"/folder/{path}"
    assert not set(path) & set('.\\:*?"<>|\0\n\r\u202e')
    assert len(path.encode()) < 1000


def test_an_image_that_is_another_by_now_is_never_copied(pipeline, tmp_path):
    """Under the same size and time: its hash tells, and nothing is replaced."""
    path = make_shard(tmp_path / "a.tar", make_samples(3))
    pipeline(SOURCES, input=path)
    status, content = path.stat(), bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(InputChanged, match=r"000000\.jpg is not the image that was measured"):
        pipeline([*SOURCES, ImageFolderWriterStage()], input=path)
    assert not (tmp_path / "out/folder").exists()


def test_dropped_images_come_as_well_where_wished_with_their_status(pipeline, tmp_path):
    """Beside shards of what is kept alone; the ledger names the first place of each."""
    make_shard(tmp_path / "a.tar", make_samples(9))
    stages = [*SOURCES, Brightness(score_threshold=0.5), ImageWriterStage(), ImageFolderWriterStage(include_dropped=True)]
    result = pipeline(stages, input=tmp_path / "a.tar")
    rows = result.ledger.to_pylist()
    assert 0 < len(result) < 9
    table = pq.read_table(tmp_path / "out/folder/metadata.parquet").to_pylist()
    assert [(r["in_key"], r["status"], r["reason"]) for r in table] == [(r["key"], r["status"], r["reason"]) for r in rows]
    assert [r["output_shard"] for r in rows] == ["00000.tar" if r["status"] == "kept" else "folder" for r in rows]
    assert len(images_of(tmp_path / "out/folder")) == 9
    assert json.loads((tmp_path / "out/run.json").read_text())["write"]["folder"]["images"] == 9


def test_more_than_one_job_gives_the_rows_in_input_order_and_the_same_bytes_again(pipeline, tmp_path):
    """Jobs end in any order; nothing kept gives no folder."""
    small = {f"{n:04d}.png": make_image(n, (4, 4), "PNG") for n in range(1100)}
    make_shard(tmp_path / "a.tar", small)
    pipeline([*SOURCES, ImageFolderWriterStage()], input=tmp_path / "a.tar")
    assert list(rows_of(tmp_path / "out/folder")) == list(small) == list(images_of(tmp_path / "out/folder"))
    again = pipeline([*SOURCES, ImageFolderWriterStage()], input=tmp_path / "a.tar", output=tmp_path / "again")
    assert len(again) == 1100
    assert tree(tmp_path / "again", "folder") == tree(tmp_path / "out", "folder")
    pipeline([*SOURCES, Brightness(score_threshold=2), ImageFolderWriterStage()], input=tmp_path / "a.tar", output=tmp_path / "none")
    assert not (tmp_path / "none/folder").exists()
