"""Lists of images in tables: every row is a sample, every other column goes along, and a wrong name is answered."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator import FilePartitioningStage, ImageReaderStage, ImageWriterStage
from curator.errors import ConfigError
from tests.conftest import make_image, make_samples, make_shard, shared, tar_members

CAPTIONS = ["two\nlines, and a comma", 'she said ""hi""', "caf\u00e9 \U0001f600"]


def stages(**read):
    return [FilePartitioningStage(), ImageReaderStage(**read), ImageWriterStage()]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures in a folder, where no list lies."""
    for n in range(3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / f"photos/{n}.jpg").write_bytes(make_image(n))
    return tmp_path / "photos"


def written(folder: Path) -> dict[str, bytes]:
    return tar_members(*sorted((folder / "shards").glob("*.tar")))


def test_quoted_captions_with_line_breaks_and_a_byte_order_mark_come_through_byte_for_byte(pipeline, photos, tmp_path):
    """CASES 8 (img2dataset PR #283)."""
    rows = "".join(f'photos/{n}.jpg,"{text}"\r\n' for n, text in enumerate(CAPTIONS))
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbffile,caption\r\n" + rows.encode())
    ledger = pipeline(stages(), input=tmp_path / "list.csv").ledger
    wanted = [text.replace('""', '"') for text in CAPTIONS]
    assert ledger.column("caption").to_pylist() == wanted
    assert ledger.column("in_file").to_pylist() == ["photos/0.jpg", "photos/1.jpg", "photos/2.jpg"]
    members = written(tmp_path / "out")
    assert [members[f"00000000{n}.txt"].decode() for n in range(3)] == wanted
    assert [members[f"00000000{n}.jpg"] for n in range(3)] == [make_image(n) for n in range(3)]


@pytest.mark.parametrize("form", ["parquet", "csv", "tsv", "jsonl", "json"])
def test_every_kind_of_table_gives_the_same_ledger(pipeline, photos, tmp_path, form):
    """Numbers stay numbers, nothing stays nothing, and a caption that looks like a number stays a text."""
    table = pa.table({
        "image_path": [f"photos/{n}.jpg" for n in range(3)], "TEXT": ["007", "b", "c"], "score": [0.5, None, 2.5],
        "width": [1, 2, 3],
    })  # fmt: skip
    path = tmp_path / f"list.{form}"
    if form == "parquet":
        pq.write_table(table, path)
    elif form in ("csv", "tsv"):
        sign = "," if form == "csv" else "\t"
        lines = [table.column_names, *(row.values() for row in table.to_pylist())]
        path.write_text("\n".join(sign.join("" if v is None else str(v) for v in line) for line in lines))
    elif form == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    else:
        path.write_text(json.dumps(table.to_pylist()))
    ledger = pipeline(stages(), input=path).ledger
    assert ledger.column("caption").to_pylist() == ["007", "b", "c"]
    assert ledger.column("in_score").to_pylist() == [0.5, None, 2.5]
    assert ledger.column("in_width").to_pylist() == [1, 2, 3]
    assert json.loads(written(tmp_path / "out")["000000001.json"]) == {
        "image_path": "photos/1.jpg", "score": None, "width": 2,
    }  # fmt: skip


def test_a_plain_list_of_paths_has_one_row_for_each_line_that_holds_something(pipeline, photos, tmp_path):
    """Blank lines and Windows's line ends are none."""
    (tmp_path / "list.txt").write_bytes(b"photos/0.jpg\r\n\r\nphotos/1.jpg\r\n")
    result = pipeline(stages(), input=tmp_path / "list.txt")
    assert (result.counts["inputs"], result.counts["kept"]) == (2, 2)


def test_paths_that_lead_nowhere_are_rows_that_say_so(pipeline, photos, tmp_path):
    """Half of a list is missing: the other half is kept, and the path is told as it was given."""
    table = pa.table({"path": ["photos/0.jpg", "photos/gone.jpg", None, "photos/1.jpg", "", "photos"]})
    pq.write_table(table, tmp_path / "list.parquet")
    rows = pipeline(stages(), input=tmp_path / "list.parquet").ledger.to_pylist()
    assert [row["cause"] for row in rows] == [None, "missing_file", "no_image", None, "no_image", "unreadable"]
    assert rows[1]["reason"].endswith("cannot be read: photos/gone.jpg: No such file or directory")
    assert str(tmp_path) not in rows[1]["reason"]


def test_a_picture_that_comes_later_is_measured_then(pipeline, photos, tmp_path):
    """What is remembered of the list holds only while the files that it names are as they were."""
    (tmp_path / "list.csv").write_text("path\nphotos/0.jpg\nphotos/late.jpg\n")
    assert pipeline(stages(), input=tmp_path / "list.csv").counts["failed"] == 1
    (photos / "late.jpg").write_bytes(make_image(9))
    result = pipeline(stages(), input=tmp_path / "list.csv")
    assert (result.counts["failed"], result.counts["kept"]) == (0, 2)


def test_a_column_that_is_not_there_is_answered_with_those_that_are(pipeline, photos, tmp_path):
    """And with the one that was probably meant; before any work."""
    (tmp_path / "list.csv").write_text("picture,words\nphotos/0.jpg,x\n")
    with pytest.raises(ConfigError, match=r"no column pictur\. Did you mean picture\? It has picture, words\."):
        pipeline(stages(image_column="pictur"), input=tmp_path / "list.csv")
    with pytest.raises(ConfigError, match=r"none of its columns is known .*read\.image_column.* It has picture, words"):
        pipeline(stages(), input=tmp_path / "list.csv")
    result = pipeline(stages(image_column="picture", caption_column="words"), input=tmp_path / "list.csv")
    assert result.ledger.column("caption").to_pylist() == ["x"]


def test_relative_paths_begin_where_the_list_lies_or_where_root_says(pipeline, photos, tmp_path):
    """Never at the working folder of whoever runs it."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/list.csv").write_text("path\nphotos/0.jpg\n")
    assert pipeline(stages(), input=tmp_path / "lists").counts["failed"] == 1
    assert pipeline(stages(root=str(tmp_path)), input=tmp_path / "lists").counts["kept"] == 1


def test_a_folder_of_parquet_with_a_jobs_leavings_is_read_and_what_is_none_of_it_is_told(curate, photos, tmp_path):
    """CASES 9 (aws-sdk-pandas #1043): `_SUCCESS`, checksums, a part without rows, and one that is broken by name."""
    folder = tmp_path / "list"
    folder.mkdir()
    paths = pa.table({"path": [str(photos / "0.jpg"), str(photos / "1.jpg")]})
    pq.write_table(paths, folder / "part-0.parquet")
    pq.write_table(paths.slice(0, 0), folder / "part-1.parquet")
    (folder / "part-2.parquet").write_bytes(b"PAR1 and no more")
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.parquet.crc").write_bytes(b"crc")
    ran = curate("input=list", "output=out", "stages=[partition,read,write]")
    assert ran.code == 0, ran.said
    assert "3 in = 2 kept + 0 dropped + 1 failed (1 of them for a damaged shard as a whole)" in ran.out
    assert "list/part-2.parquet: cannot be read as parquet" in " ".join(ran.out.split())
    assert "passed over: 2" in ran.out


def hugging_face(count: int) -> pa.Table:
    """As `datasets` writes images: `{bytes, path}`, here also a row without and one that is none."""
    rows = [{"bytes": make_image(n, form="PNG"), "path": f"{n}.png"} for n in range(count)]
    return pa.table({"image": [*rows, {"bytes": None, "path": None}, {"bytes": b"text", "path": None}],
                     "label": [*range(count), 8, 9]})  # fmt: skip


def test_images_inside_parquet_leave_byte_for_byte(pipeline, tmp_path):
    """Over row groups; with another column beside them."""
    pq.write_table(hugging_face(5), tmp_path / "train.parquet", row_group_size=2)
    rows = pipeline(stages(), input=tmp_path / "train.parquet").ledger.to_pylist()
    assert [row["cause"] for row in rows] == [None] * 5 + ["no_image", "not_an_image"]
    assert [row["in_label"] for row in rows] == [0, 1, 2, 3, 4, 8, 9]
    members = written(tmp_path / "out")
    assert [members[f"00000000{n}.png"] for n in range(5)] == [make_image(n, form="PNG") for n in range(5)]


def test_a_column_of_bytes_is_images_as_well(pipeline, tmp_path):
    """Named as DataComp's and webdataset's users name it."""
    pq.write_table(pa.table({"jpg": [make_image(0), make_image(1)], "uid": ["a", "b"]}), tmp_path / "x.parquet")
    ledger = pipeline(stages(), input=tmp_path / "x.parquet").ledger
    assert ledger.column("key").to_pylist() == ["a", "b"]
    assert ledger.column("in_uid").to_pylist() == ["a", "b"]


def test_tars_a_folder_and_a_list_are_one_input(pipeline, photos, tmp_path):
    """Counts add up over all of them, in the order given."""
    make_shard(tmp_path / "a.tar", make_samples(2))
    (tmp_path / "list.csv").write_text(f"path\n{photos / '0.jpg'}\n{photos / 'none.jpg'}\n")
    result = pipeline(stages(), input=[tmp_path / "a.tar", photos, tmp_path / "list.csv"])
    assert result.counts["inputs"] == 2 + 3 + 2
    assert (result.counts["kept"], result.counts["failed"]) == (6, 1)
    assert list(dict.fromkeys(result.ledger.column("shard").to_pylist())) == [
        str(tmp_path / "a.tar"), str(photos), str(tmp_path / "list.csv"),
    ]  # fmt: skip


def test_values_that_json_cannot_hold_are_carried_as_what_comes_nearest(pipeline, photos, tmp_path):
    """Times as ISO 8601, what is no number as nothing, lists as JSON."""
    import datetime

    table = pa.table({
        "path": ["photos/0.jpg", "photos/1.jpg"], "taken": [datetime.datetime(2024, 2, 29, 12), None],
        "ratio": [math.nan, 1.0], "tags": [["a", "b"], []],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "list.parquet")
    rows = pipeline(stages(), input=tmp_path / "list.parquet").ledger.to_pylist()
    assert [row["in_taken"] for row in rows] == ["2024-02-29T12:00:00", None]
    assert [row["in_ratio"] for row in rows] == [None, 1.0]
    assert [row["in_tags"] for row in rows] == ['["a", "b"]', "[]"]


def test_real_photos_named_by_a_list_keep_every_byte(pipeline, tmp_path):
    """The 480 photos as files, listed by the index that comes with them."""
    members = {}
    for tar in sorted(shared("data/photos").glob("*.tar")):
        members |= {n: c for n, c in tar_members(tar).items() if n.endswith(("jpg", "png"))}
    for name, content in members.items():
        (tmp_path / name).write_bytes(content)
    pq.write_table(pa.table({"file_name": sorted(members)}), tmp_path / "list.parquet")
    result = pipeline(stages(), input=tmp_path / "list.parquet")
    assert result.counts == {"inputs": 480, "kept": 480, "dropped": 0, "failed": 0, "by_stage": {}}
    images = {name: c for name, c in written(tmp_path / "out").items() if not name.endswith("json")}
    assert sorted(images.values()) == sorted(members.values())


def test_what_img2dataset_wrote_beside_a_tar_goes_along_by_key(pipeline, tmp_path):
    """In whatever order it stands there; rows that failed are in no tar and in no ledger."""
    make_shard(tmp_path / "00000.tar", make_samples(3))
    table = pa.table({
        "url": ["http://a/2", "http://a/x", "http://a/0", "http://a/1"], "key": ["000002", "000009", "000000", "000001"],
        "status": ["success", "failed_to_download", "success", "success"], "punsafe": [0.2, None, 0.0, 0.1],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "00000.parquet")
    rows = pipeline(stages(), input=tmp_path / "00000.tar").ledger.to_pylist()
    assert [(row["key"], row["in_url"], row["in_punsafe"]) for row in rows] == [
        (f"00000{n}", f"http://a/{n}", n / 10) for n in range(3)
    ]  # fmt: skip
    assert written(tmp_path / "out")["000001.txt"] == b"picture 1"
    pq.write_table(table.set_column(3, "punsafe", pa.array([0.9] * 4)), tmp_path / "00000.parquet")
    rows = pipeline(stages(), input=tmp_path / "00000.tar").ledger.to_pylist()
    assert [row["in_punsafe"] for row in rows] == [0.9] * 3
    assert "in_url" not in pipeline(stages(join_tables=False), input=tmp_path / "00000.tar").ledger.column_names


def test_a_broken_table_beside_a_tar_costs_one_row_and_no_image(pipeline, tmp_path):
    """Its schema can be read, its pages cannot."""
    make_shard(tmp_path / "00000.tar", make_samples(3))
    path = tmp_path / "00000.parquet"
    pq.write_table(pa.table({"key": [f"00000{n}" for n in range(3)]}), path)
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)
    path.write_bytes(content)
    result = pipeline(stages(), input=tmp_path / "00000.tar")
    assert (result.counts["kept"], result.counts["failed"]) == (3, 1)
    assert "00000.parquet beside it cannot be read" in result.ledger.column("reason").to_pylist()[-1]
