"""read: which member of a sample is its image, which its caption, and what is said where there is none."""

from __future__ import annotations

import pytest

from curator import ImageReaderStage
from curator.decode import FORMATS, DecodeSettings
from curator.errors import Cause, ConfigError, Fault
from curator.formats import reader_of
from curator.formats.base import Member, Sample, Shard
from tests.conftest import make_image
from tests.tars import tar_of


def sample(*names):
    """A sample of members of these names."""
    return Sample(b"k", tuple(Member(name.encode(), 512 * n + 512, 100) for n, name in enumerate(names)))


def chosen(stage, of, contents=None):
    """The name of the member that is the image, or the cause and the sentence why there is none."""
    found = stage.image_of(of, lambda member: (contents or {}).get(member.name.decode(), b"text")[: member.size])
    return (found.cause, found.detail) if isinstance(found, Fault) else found.name.decode()


@pytest.mark.parametrize(
    ("names", "image"),
    [
        (["k.jpg"], "k.jpg"),
        (["k.JPG", "k.txt"], "k.JPG"),
        (["k.txt", "k.json", "k.webp"], "k.webp"),
        (["k.image.jpg", "k.txt"], "k.image.jpg"),
        (["k.left.jpg", "k.right.jpg"], "k.left.jpg"),
        (["k.mask.png", "k.jpg"], "k.jpg"),
        (["k.png", "k.jpg"], "k.png"),
        (["k.tar.gz", "k.heic"], "k.heic"),
    ],
)
def test_the_image_is_the_first_with_a_known_suffix_plain_suffixes_first(names, image):
    """A mask or a second view beside the image does not take its place."""
    assert chosen(ImageReaderStage(), sample(*names)) == image


def test_image_suffix_chooses_where_a_sample_has_several():
    """With or without its dot, in any case; a sample that lacks it has no image, and says what it has."""
    both = sample("k.left.jpg", "k.right.JPG")
    assert chosen(ImageReaderStage(image_suffix="right.jpg"), both) == "k.right.JPG"
    assert chosen(ImageReaderStage(image_suffix=".RIGHT.jpg"), both) == "k.right.JPG"
    cause, detail = chosen(ImageReaderStage(image_suffix="jpg"), both)
    assert cause == Cause.NO_IMAGE
    assert "k.left.jpg" in detail
    assert chosen(ImageReaderStage(image_suffix="img"), sample("k.jpg", "k.img")) == "k.img"


def test_an_image_under_an_unknown_suffix_is_told_by_its_bytes():
    """`.img`, `.bin` or none at all; words, arrays and labels are not even looked at."""
    contents = {"k.img": make_image(), "k.txt": make_image(), "k.npy": make_image(), "k": make_image()}
    assert chosen(ImageReaderStage(), sample("k.txt", "k.cap", "k.img"), contents) == "k.img"
    assert chosen(ImageReaderStage(), sample("k"), contents) == "k"
    cause, detail = chosen(ImageReaderStage(), sample("k.txt", "k.npy"), contents)
    assert (cause, detail) == (Cause.NO_IMAGE, 'No image among "k.txt", "k.npy"')


def test_no_more_of_an_unknown_member_is_read_than_tells_an_image(tmp_path):
    """A sample of 200 MB arrays without an image costs no reading of them."""
    (tmp_path / "a.tar").write_bytes(tar_of([("k.bin", b"x" * 100_000), ("k.raw", make_image())]))
    shard = Shard("a.tar", str(tmp_path / "a.tar"), "webdataset")
    stage, reads = ImageReaderStage(), []

    def peek(member):
        reads.append(next(reader_of(shard).read(shard, [member])))
        return reads[-1]

    found = stage.image_of(stage.index(shard).samples[0], peek)
    assert isinstance(found, Member)
    assert (found.name, found.size) == (b"k.raw", len(make_image()))
    assert max(map(len, reads)) <= 64


def test_a_member_that_must_not_be_read_fails_its_sample():
    """It could not leave as it came, so the image beside a link does not leave at all; the reason names the member."""
    link = Member(b"k.json", 512, 0, Cause.LINK_MEMBER, "a link; links are never followed")
    large = Member(b"k.bin", 512, 9, Cause.MEMBER_TOO_LARGE, "has 1 GiB, limit 256 MiB (`read.max_member_bytes`)")
    image = Member(b"k.jpg", 512, 9)
    for member, said in (
        (link, '"k.json" is a link; links are never followed'),
        (large, '"k.bin" has 1 GiB, limit 256 MiB (`read.max_member_bytes`)'),
    ):
        assert chosen(ImageReaderStage(), Sample(b"k", (image, member))) == (member.fault, said)


def test_several_images_are_noted_beside_what_the_index_noted():
    """The row says that a choice was made."""
    stage = ImageReaderStage()
    assert stage.notes_of(sample("k.jpg", "k.txt")) == ()
    assert stage.notes_of(sample("k.left.jpg", "k.right.jpg")) == ("several_images",)
    twice = Sample(b"k", sample("k.jpg", "k.png").members, ("duplicate_key",))
    assert stage.notes_of(twice) == ("duplicate_key", "several_images")


def test_the_caption_is_the_text_beside_the_image():
    """In any case of its suffix; none where there is none, or where it must not be read."""
    stage = ImageReaderStage()
    assert stage.caption_of(sample("k.jpg", "k.json", "k.TXT")).name == b"k.TXT"
    assert stage.caption_of(sample("k.jpg", "k.json")) is None
    assert stage.caption_of(Sample(b"k", (Member(b"k.txt", 0, 0, Cause.LINK_MEMBER, "a link"),))) is None


def test_the_limit_on_members_reaches_the_index(tmp_path):
    """As text with a unit."""
    (tmp_path / "a.tar").write_bytes(tar_of([("k.jpg", b"x" * 3000)]))
    shard = Shard("a.tar", str(tmp_path / "a.tar"), "webdataset")
    member = ImageReaderStage(max_member_bytes="2kB").index(shard).samples[0].members[0]
    assert (member.fault, "limit 2.0 KiB" in member.detail) == (Cause.MEMBER_TOO_LARGE, True)


def test_settings_reach_the_decoders():
    """Sizes in bytes; by default what the decoder itself takes for granted."""
    assert ImageReaderStage().decode_settings() == DecodeSettings()
    stage = ImageReaderStage(formats=("PNG",), max_pixels=9, exact=True, decode_timeout_s=1, decode_memory="1GiB")
    assert stage.decode_settings() == DecodeSettings(("PNG",), 9, True, 1.0, 1 << 30)


def test_only_what_changes_numbers_is_part_of_the_address():
    """A longer time for a decoder, or another of NeMo's settings, measures nothing again."""
    plain = ImageReaderStage()
    slow = ImageReaderStage(decode_timeout_s=99, decode_memory="9GiB", verbose=True, dali_batch_size=7, num_threads=3)
    assert slow.measure_fields() == plain.measure_fields()
    assert set(plain.measure_fields()) == {"exact", "formats", "max_pixels", "max_member_bytes", "image_suffix"}
    assert plain.measure_fields()["formats"] == list(FORMATS)


@pytest.mark.parametrize("wrong", [{"max_pixels": 0}, {"max_member_bytes": "lots"}, {"decode_timeout_s": 0}])
def test_a_setting_that_can_mean_nothing_is_refused(wrong):
    """When the stage is made, not when it runs."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ImageReaderStage(**wrong)


def test_a_format_that_runs_other_programs_is_refused():
    """EPS would start Ghostscript on whatever a stranger wrote."""
    with pytest.raises(ConfigError, match="EPS is never decoded"):
        ImageReaderStage(formats=("JPEG", "EPS"))


def test_names_in_reasons_are_safe_to_print():
    """An escape sequence or a direction mark in a file name does nothing to a terminal or a report."""
    name = "\x1b[2J\u202e.txt".encode()
    fault = ImageReaderStage().image_of(Sample(name[:-4], (Member(name, 0, 4),)), lambda _: b"text")
    assert isinstance(fault, Fault)
    assert fault.detail == 'No image among "\\x1b[2J\\xe2\\x80\\xae.txt"'
