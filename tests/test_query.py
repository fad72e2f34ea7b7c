"""curate-search: words and images find what they should, in the index's own space; what cannot be is a sentence."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pyarrow.parquet as pq
import pytest

import curator
from curator import (
    FaissWriterStage,
    FilePartitioningStage,
    ImageAestheticFilterStage,
    ImageEmbeddingStage,
    ImageReaderStage,
    MilvusWriterStage,
    Pipeline,
)
from curator.demo.draw import draw_demo
from curator.errors import ConfigError
from curator.query.command import main
from curator.query.search import fold
from curator.voice import Voice
from tests.conftest import make_image, make_samples, make_shard
from tests.stages import Brightness, Tiny

DEMO = {"model": "curator-demo", "pretrained": "curator-demo"}


@pytest.fixture(scope="module")
def place(cluster, tmp_path_factory):
    """A folder with a hundred demo pictures in `in/`, and in `out/` their vectors for FAISS and for Milvus."""
    folder = tmp_path_factory.mktemp("query")
    draw_demo(folder / "in", count=100)
    stages = [
        FilePartitioningStage(), ImageReaderStage(), ImageEmbeddingStage(precision="fp32", **DEMO),
        ImageAestheticFilterStage(head="demo", score_threshold=0.0), FaissWriterStage(), MilvusWriterStage(),
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Pipeline("search", stages).run(
            input="in", output="out", store="store", started=lambda _: cluster, voice=Voice(quiet=True)
        )
    return folder


@pytest.fixture
def here(place, monkeypatch):
    """The same, as the working folder."""
    monkeypatch.chdir(place)
    return place


def search(capsys, *arguments):
    """Exit code and what the command says."""
    code = main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_shows_what_the_words_name_and_writes_a_page_that_needs_nothing_else(here, capsys):
    """A table of 80 columns, a gallery of thumbnails; the pictures are decoded anew, and stand in the page."""
    code, out, err = search(capsys, "index=out", "query=four yellow flowers", "k=5")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert re.match(r"rank  cosine  image +aesthetic  caption$", lines[0])
    assert all(len(line) <= 80 for line in lines)
    assert any("yellow flower" in line for line in lines[1:6])
    assert lines[-2].startswith("5 images")
    assert lines[-1] == "the gallery is in out/search.html"
    page = (here / "out/search.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 5
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:|//|/)""", page)
    assert "<script" not in page


def test_a_picture_of_the_index_is_nearest_to_itself_in_every_kind_of_index(here):
    """FAISS, Milvus and the store's own vectors give the same answer, at a cosine of 1.

    A database alone does not know at which precision its model ran: there the third digit may differ.
    """
    row = pq.read_table("out/faiss/metadata.parquet").slice(7, 1).to_pylist()[0]
    subprocess.run(["tar", "-xf", row["shard"], row["image"]], check=True)
    found = [curator.search(index, image=row["image"], k=5) for index in ("out", "out/milvus", "out/milvus/vectors.db")]
    shutil.copytree("out", "plain", dirs_exist_ok=True)
    shutil.rmtree("plain/faiss")
    shutil.rmtree("plain/milvus")
    found.append(curator.search("plain", image=row["image"], k=5))
    for table, close in zip(found, (1e-5, 1e-5, 2e-3, 1e-5), strict=True):
        assert table.column("key")[0].as_py() == row["key"]
        assert table.column("similarity")[0].as_py() == pytest.approx(1, abs=2e-3)
        assert table.column("key").to_pylist() == found[0].column("key").to_pylist()
        assert np.allclose(table.column("similarity").to_numpy(), found[0].column("similarity").to_numpy(), atol=close)


def test_words_find_the_pictures_that_were_drawn_of_them(here):
    """Each whole caption finds a picture that has it among the first ten, nearly always; chance would find a tenth."""
    captions = pq.read_table("out/faiss/metadata.parquet").column("caption").to_pylist()
    asked = sorted(set(captions))[::6]
    right = [caption in curator.search("out", caption, k=10).column("caption").to_pylist() for caption in asked]
    assert len(asked) >= 12
    assert np.mean(right) >= 0.9


def test_a_condition_holds_for_every_result_whichever_index_is_asked(here):
    """And the three agree on which they are."""
    where = "aesthetic_score > 0.6 and not (format = 'PNG' or width > 300)"
    answers = [curator.search(index, "a house", k=100, where=where, fold=1) for index in ("out", "out/milvus", "plain")
               if (here / index).exists()]  # fmt: skip
    for table in answers:
        rows = table.to_pylist()
        assert rows
        assert all(r["aesthetic_score"] > 0.6 and r["format"] != "PNG" and r["width"] <= 300 for r in rows)
        assert {r["key"] for r in rows} == {r["key"] for r in answers[0].to_pylist()}
    ledger = pq.read_table("out/ledger").to_pylist()
    met = [r for r in ledger if r["status"] == "kept" and r["aesthetic_score"] > 0.6 and r["format"] != "PNG" and r["width"] <= 300]
    assert answers[0].num_rows == len(met)


def test_near_identical_results_are_folded_into_the_best_and_counted():
    """Of five rows in the plane: two within fold of the first, one of them also near the second, one apart."""
    angles = np.radians([0, 4, 30, 8, 60])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    kept, folded = fold(vectors, float(np.cos(np.radians(10))), 5)
    assert (kept.tolist(), folded.tolist()) == ([0, 2, 4], [2, 0, 0])
    kept, folded = fold(vectors, float(np.cos(np.radians(10))), 2)
    assert (kept.tolist(), folded.tolist()) == ([0, 2], [2, 0])
    kept, folded = fold(np.stack([vectors[0]] * 3 + [vectors[1]]), 1.0, 9)
    assert (kept.tolist(), folded.tolist()) == ([0, 3], [2, 0])


def test_copies_of_a_picture_stand_behind_it(pipeline, tmp_path, capsys):
    """However many there are: k others are found all the same, and the page says how many are folded."""
    members = {f"copy{n:02d}.jpg": make_image(1) for n in range(60)}
    make_shard(tmp_path / "in/a.tar", {**members, **make_samples(6, 100)})
    pipeline([FilePartitioningStage(), ImageReaderStage(), Tiny(), FaissWriterStage()], input=tmp_path / "in")
    index = tmp_path / "out"
    vector = curator.search(index, vector=np.ones(192), k=1)
    assert vector.num_rows == 1
    import faiss

    copy = faiss.read_index(str(index / "faiss/image.index")).reconstruct(0)
    found = curator.search(index, vector=copy, k=4)
    assert (found.num_rows, found.column("folded")[0].as_py()) == (4, 59)
    assert found.column("key")[0].as_py().startswith("copy")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["query=x"], ["index: must be given: an output of curate, such as index=out."]),
        (["index=out"], ["query: must be given: words such as query='a red car', or image=PATH."]),
        (["index=out", "query=x", "image=y"], ["query: query and image are both given; ask one thing."]),
        (["index=out", "queri=x", "k=0", "fold=2"], [
            "queri: no such setting. Did you mean query?", "k: must be at least 1, not '0'", "fold: must be at most 1.0, not '2'",
        ]),
        (["index=out", "query=x", "k=many"], ["k: must be a whole number, not 'many'"]),
        (["out", "index=out", "query=x"], ["out: settings are given as name=value, such as index=out or query='a red car'."]),
        (["index=outt", "query=x"], ["index: there is no outt. Did you mean out?"]),
        (["index=in", "query=x"], ["index: in holds neither a run of Curator nor an index of one. Name an output, a folder in "
                                   "it such as out/faiss, or a Milvus database."]),
        (["index=out", "query=x", "where=aestetic_score > 1"], [
            "where: there is no column aestetic_score. Did you mean aesthetic_score? There are aesthetic_laion, aesthetic_score, "
            "caption, content_hash, format, height, id, image, index, key, shard, width."]),
        (["index=out", "image=none.jpg"], ["image: none.jpg cannot be read: No such file or directory."]),
        (["index=out", "image=out/run.json"], [
            'image: out/run.json cannot be used: Starts with "{"; none of JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF fits.']),
        (["index=", "query=x"], ["index: must not be empty"]),
        (["index=out/run.json", "query=x"], ["index: out/run.json is a file; name the output of a run."]),
        (["index=out", "query=x", "namespace=a", "collection=b"], [
            "collection: is of a Milvus database that index= names itself; out is none. Leave it out.",
            "namespace: is of a Milvus database that index= names itself; out is none. Leave it out."]),
        (["index=out", "query=x", "embedding=foo"], [
            "embedding: says which vectors of the store are compared; out/faiss is an index, of embed. Leave it out."]),
        (["index=nowhere.db", "query=x"], ["index: there is no nowhere.db."]),
        (["--config-dir", "nowhere", "index=out", "query=x"], ["--config-dir nowhere: there is no such folder."]),
        (["--frob", "index=out"], ["unrecognized arguments: --frob. `curate-search --help` shows what there is."]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_question_is_told_line_by_line(here, capsys, arguments, said):
    """Exit 2, no traceback, all at once."""
    code, out, err = search(capsys, *arguments)
    assert (code, out) == (2, "")
    lines = [line.removeprefix("curate-search: ") for line in err.splitlines()]
    assert [re.sub(r'with "\{.*?";', 'with "{";', line) for line in lines] == said


def test_a_gallery_replaces_only_a_gallery(here, tmp_path, capsys):
    """Any other file stays as it is; a folder, and a path in none, are refused before anything is looked for."""
    mine = tmp_path / "mine.html"
    mine.write_text("<html>my own</html>")
    for path, said in ((mine, "was not made by curate-search"), (tmp_path, "is a folder; name a file in it"),
                       (tmp_path / "no/x.html", f"there is no folder {tmp_path / 'no'}.")):  # fmt: skip
        code, out, err = search(capsys, "index=out", "query=a house", "k=1", f"gallery={path}")
        assert (code, out) == (2, "")
        assert said in err
    assert mine.read_text() == "<html>my own</html>"
    assert not (tmp_path / "no").exists()
    page = f"gallery={tmp_path / 'page.html'}"
    assert search(capsys, "index=out", "query=a house", "k=1", page)[0] == 0
    assert search(capsys, "index=out", "query=yellow flowers", "k=1", page)[0] == 0
    assert "yellow flowers" in (tmp_path / "page.html").read_text()


def test_an_index_that_another_model_made_is_refused(here, capsys, tmp_path):
    """By its weights, and by the run that it lies in: what is near in one space says nothing about another."""
    for name, change in (("weights", ["0" * 64]), ("key", "0" * 64)):
        shutil.copytree("out", tmp_path / name)
        path = tmp_path / name / "faiss/index.json"
        about = json.loads(path.read_text())
        about["model"][name] = change
        path.write_text(json.dumps(about))
        code, _, err = search(capsys, f"index={tmp_path / name}", "query=a house", "gallery=null")
        assert code == 2
        assert "was made with curator-demo/curator-demo (weights " in err
        assert ("vectors of the two cannot be compared" in err) == (name == "weights")
        assert ("the run that it lies in" in err) == (name == "key")


def test_an_index_of_another_run_of_the_same_model_is_refused(pipeline, tmp_path):
    """It would answer with that run's images."""
    for name, start in (("one", 0), ("two", 50)):
        shard = make_shard(tmp_path / f"{name}.tar", make_samples(3, start))
        pipeline([FilePartitioningStage(), ImageReaderStage(), Tiny(), FaissWriterStage()], input=shard,
                 output=tmp_path / name)  # fmt: skip
    shutil.rmtree(tmp_path / "one/faiss")
    shutil.copytree(tmp_path / "two/faiss", tmp_path / "one/faiss")
    with pytest.raises(ConfigError, match="was written by another run than the one that it lies in"):
        curator.search(tmp_path / "one", vector=np.ones(192))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"image": b"\xff\xd8" * 50}, "image: must be text, not 100 bytes"),
        ({"vector": "abc"}, "vector: must be a list of numbers, not 'abc'."),
        ({"vector": ["a"] * 500}, "vector: must be a list of numbers, not a list."),
    ],
)
def test_what_cannot_be_asked_with_is_a_sentence(here, asked, said):
    """Without the library's words, and without a picture's bytes."""
    with pytest.raises(ConfigError) as caught:
        curator.search("out", **asked)
    assert said in str(caught.value).splitlines()


def test_a_model_that_embeds_no_text_says_so(pipeline, tmp_path):
    """An image or a vector can still be asked with."""
    make_shard(tmp_path / "in/a.tar", make_samples(3))
    pipeline([FilePartitioningStage(), ImageReaderStage(), Brightness(), Tiny()], input=tmp_path / "in")
    assert curator.search(tmp_path / "out", vector=np.ones(192)).num_rows == 3
    with pytest.raises(ConfigError, match=r"names tests\.stages\.Tiny, which is no stage of Curator"):
        curator.search(tmp_path / "out", "words")
    pipeline([FilePartitioningStage(), ImageReaderStage(), Tiny(), FaissWriterStage()], input=tmp_path / "in")
    with pytest.raises(ConfigError, match="vector: has 5 numbers"):
        curator.search(tmp_path / "out", vector=np.ones(5))


def test_no_vectors_are_a_sentence_and_so_is_a_condition_that_nothing_meets(pipeline, here, tmp_path, capsys):
    """Exit 0: nothing is wrong with either."""
    make_shard(tmp_path / "in/a.tar", {"a.jpg": b"nothing"})
    pipeline([FilePartitioningStage(), ImageReaderStage(), Tiny(), FaissWriterStage(), MilvusWriterStage()],
             input=tmp_path / "in")  # fmt: skip
    for index in (tmp_path / "out", tmp_path / "out/milvus"):
        assert search(capsys, f"index={index}", "query=x", "k=50") == (
            0, f"{index} holds no vectors: there is nothing to be found.\n", ""
        )  # fmt: skip
    code, out, _ = search(capsys, "index=out", "query=a house", "where=width > 100000")
    assert (code, out) == (0, "no image of out meets width > 100000\n")


def test_what_stands_in_a_caption_or_a_key_is_text_on_the_page(pipeline, tmp_path, capsys, monkeypatch):
    """Nobody's caption becomes markup; a picture whose file has changed since is not shown."""
    monkeypatch.chdir(tmp_path)
    make_shard(tmp_path / "in/a.tar", {"y.jpg": make_image(2), "<b>x.jpg": make_image(1),
                                       "<b>x.txt": b"<script>alert(1)</script>"})  # fmt: skip
    pipeline([FilePartitioningStage(), ImageReaderStage(), Tiny(), FaissWriterStage()], input="in", output="out")
    from curator.query.pictures import Pictures, Thumbnail
    from curator.query.places import opened
    from curator.query.shown import write_gallery

    results = curator.search("out", vector=np.ones(192))

    def page():
        with opened("out", None, None, None) as at:
            missing = write_gallery(tmp_path / "page.html", results, Pictures(at), "<i>", "<u>", Thumbnail())
        return missing, (tmp_path / "page.html").read_text()

    missing, text = page()
    assert missing == 0
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert not re.search(r"<(script|b|i|u)>", text)
    make_shard(tmp_path / "in/a.tar", {"y.jpg": make_image(2), "<b>x.jpg": make_image(3)})
    missing, text = page()
    assert missing == 1
    assert "no picture: " in text
    (tmp_path / "in/a.tar").unlink()
    missing, text = page()
    assert (missing, "in/a.tar is gone" in text) == (2, True)
    shutil.rmtree(tmp_path / "in")
    missing, text = page()
    assert missing == 2
    assert "is not found from here" in text


def test_the_recipe_image_search_ends_with_an_index_that_is_asked_by_its_own_command(place, curate):
    """`curate recipe=image_search`, then `curate-search`, as typed; the store has it all already."""
    ran = curate("recipe=image_search", "input=in", "output=found", "store=store", "embed.model=curator-demo",
                 "embed.pretrained=curator-demo", "embed.precision=fp32", cwd=place)  # fmt: skip
    assert ran.code == 0, ran.said
    assert "embedded 0" in ran.out
    asked = curate("index=found", "query=a house", "k=3", cwd=place, module="curator.query.command")
    assert (asked.code, asked.err) == (0, "")
    assert "the gallery is in found/search.html" in asked.out


def test_images_of_a_list_are_shown_by_the_path_that_it_gave(curate, tmp_path):
    """A line's number says nothing to a person."""
    (tmp_path / "p").mkdir()
    for name in ("red", "blue"):
        (tmp_path / f"p/{name}.jpg").write_bytes(make_image(len(name)))
    (tmp_path / "list.csv").write_text("path,caption\np/red.jpg,one\np/blue.jpg,two\n")
    ran = curate("stages=[partition,read,embed,faiss]", "input=list.csv", "output=out", "embed.model=curator-demo",
                 "embed.pretrained=curator-demo", cwd=tmp_path)  # fmt: skip
    assert ran.code == 0, ran.said
    asked = curate("index=out", "query=a house", "fold=1", cwd=tmp_path, module="curator.query.command")
    assert {line.split()[2] for line in asked.out.splitlines()[1:3]} == {"p/red.jpg", "p/blue.jpg"}
    page = (tmp_path / "out/search.html").read_text()
    assert "p/red.jpg" in page
    assert "000000000" not in page
    again = curate("stages=[partition,read,embed,faiss]", "input=list.csv", "output=out", "embed.model=curator-demo",
                   "embed.pretrained=curator-demo", "faiss.index=flat", cwd=tmp_path)  # fmt: skip
    assert again.code == 0, again.said
    assert not (tmp_path / "out/search.html").exists()


def test_pictures_are_found_from_any_folder_and_without_the_run(here, tmp_path, monkeypatch, capsys):
    """By the place that run.json knows, and of a database alone by the shard's name, from where the run was made."""
    code, out, _ = search(capsys, "index=out/milvus/vectors.db", "query=a house", "k=2", f"gallery={tmp_path / 'db.html'}")
    assert (code, "missing" in out) == (0, False)
    monkeypatch.chdir(tmp_path)
    code, out, _ = search(capsys, f"index={here / 'out'}", "query=a house", "k=2", "gallery=far.html")
    assert (code, "missing" in out) == (0, False)
    assert (tmp_path / "far.html").read_text().count('src="data:image/jpeg') == 2
