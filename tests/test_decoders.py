"""Decoder processes: a hostile image costs one row, and its neighbours nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pytest
from PIL import Image

from curator.decode import Decoded, DecodeSettings
from curator.decoders import Decoders
from curator.errors import CuratorError
from curator.stage import Pixels
from tests.odd_files import encoded, odd_images
from tests.stages import Poison

COLOURS = {"segv": (255, 0, 0), "stop": (0, 255, 0), "memory": (0, 0, 255), "exit": (255, 255, 0)}
CAUSES = {
    "segv": "decoder_crashed",
    "stop": "decoder_timeout",
    "memory": "decoder_out_of_memory",
    "exit": "decoder_crashed",
}
FAST = {"WEBP": {"lossless": True, "quality": 0, "method": 0}, "AVIF": {"speed": 10}}


@pytest.fixture
def poisoned():
    """Two decoders with a stage that breaks them on certain colours."""
    decoders = Decoders(2, DecodeSettings(timeout_s=1.5), [("poison", Pixels(), cloudpickle.dumps(Poison))])
    yield decoders
    decoders.close()


def solid(colour: tuple[int, int, int]) -> bytes:
    """A picture of one colour."""
    return encoded(Image.new("RGB", (20, 20), colour), "PNG")


def test_each_poison_costs_exactly_one_row(poisoned):
    """Crash, stop, memory, exit among two hundred sound pictures."""
    images = [(n, solid((n, 60, 70))) for n in range(200)]
    for place, (name, colour) in enumerate(COLOURS.items()):
        images.insert(20 + 40 * place, (name, solid(colour)))
    begin = time.monotonic()
    results = dict(poisoned.decode_all(images))
    assert {k: v.cause.value for k, v in results.items() if not isinstance(v, Decoded)} == CAUSES
    assert len(results) == 204
    assert time.monotonic() - begin < 30


def test_images_are_pulled_as_they_are_needed(poisoned):
    """Memory is bounded by the window, not by the shard."""
    pulled = 0

    def images():
        nonlocal pulled
        for n in range(500):
            pulled += 1
            yield n, solid((n % 200, 60, 70))

    next(iter(poisoned.decode_all(images())))
    assert pulled < 20


def test_hundreds_of_odd_files_end_by_themselves_in_bounded_memory():
    """Every file is accounted for, and no decoder holds more than it may."""
    odd = odd_images()
    decoders = Decoders(2, DecodeSettings(), [])
    peak = 0
    results = {}
    for name, result in decoders.decode_all(odd.items()):
        results[name] = result
        peak = max([peak, *(child.memory_info().rss for child in psutil.Process().children() if child.is_running())])
    decoders.close()
    assert set(results) == set(odd)
    assert peak < 1 << 30
    assert not [r for r in results.values() if not isinstance(r, Decoded) and r.cause.value.startswith("decoder")]


def test_a_stage_that_cannot_be_built_in_a_decoder_is_said():
    """Rather than tried for ever."""

    def broken():
        raise ImportError("no module named lost")

    decoders = Decoders(1, DecodeSettings(), [("x", Pixels(), cloudpickle.dumps(broken))])
    with pytest.raises(CuratorError, match="could not start: ImportError: no module named lost"):
        list(decoders.decode_all([(0, solid((1, 2, 3)))]))
    decoders.close()


def test_children_die_with_their_parent(tmp_path):
    """SIGKILL of the process that owns them."""
    script = textwrap.dedent(
        """
        import sys, time
        from curator.decode import DecodeSettings
        from curator.decoders import Decoders
        from tests.test_decoders import solid
        decoders = Decoders(2, DecodeSettings(), [])
        list(decoders.decode_all((n, solid((n, 5, 5))) for n in range(9)))
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"ready\n"
    children = psutil.Process(parent.pid).children()
    assert len(children) == 2
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_a_lack_of_memory_is_never_taken_for_damage():
    """Damage is stored for good, a lack of memory is not: libwebp and libavif say the same of both."""
    for form, memory in (("WEBP", 64 << 20), ("AVIF", 64 << 20), ("PNG", 32 << 20), ("JPEG", 32 << 20)):
        picture = encoded(Image.new("RGB", (5000, 4000), (9, 9, 9)), form, **FAST.get(form, {}))
        causes = []
        for allowed in (memory, 1 << 30):
            decoders = Decoders(1, DecodeSettings(memory_bytes=allowed), [("s", Pixels(), cloudpickle.dumps(Small))])
            ((_, result),) = decoders.decode_all([(0, picture)])
            causes.append("" if isinstance(result, Decoded) else result.cause.value)
            decoders.close()
        assert causes == ["decoder_out_of_memory", ""], form


def test_cut_or_broken_files_stay_so_however_little_memory_there_is():
    """The other way about: a small broken WebP or AVIF is damage under any limit that a run may have."""
    odd = {name: content for name, content in odd_images().items() if name.endswith(("webp", "avif"))}
    decoders = Decoders(1, DecodeSettings(memory_bytes=256 << 20), [])
    results = dict(decoders.decode_all(odd.items()))
    decoders.close()
    assert not [r for r in results.values() if not isinstance(r, Decoded) and r.cause.value.startswith("decoder")]


def test_a_lack_of_memory_is_tried_again_in_a_fresh_decoder(tmp_path):
    """What an old decoder holds beside the image may have been what was too much."""
    calls = tmp_path / "calls"

    class Hoarder:
        """Lacks memory on the first try, and never again."""

        def prepare(self, image):
            if not calls.exists():
                calls.touch()
                raise MemoryError
            return np.asarray(image)

    decoders = Decoders(1, DecodeSettings(), [("s", Pixels(), cloudpickle.dumps(Hoarder))])
    results = dict(decoders.decode_all((n, solid((n, 5, 5))) for n in range(3)))
    decoders.close()
    assert all(isinstance(result, Decoded) for result in results.values())


def test_the_working_folder_gives_a_decoder_no_code(tmp_path):
    """A user's `numpy.py` beside the photos is the user's: `curate` started there must neither run it nor fail."""
    for name in ("numpy", "queue", "curator"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the user wrote this')")
    script = """
        from curator.decode import DecodeSettings
        from curator.decoders import Decoders
        print([type(result).__name__ for _, result in Decoders(1, DecodeSettings(), []).decode_all([(0, b"")])])
        """
    command = [sys.executable, "-P", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "['DecodeFault']\n", done.stderr


def test_what_a_stage_prints_goes_nowhere():
    """Not into the frames, and not into a file that grows with every image."""

    class Talkative:
        """Prints, in Python and from below it."""

        def prepare(self, image):
            print("words " * 1000, flush=True)
            os.write(1, b"more words")
            os.write(2, b"and errors")
            return np.asarray(image)

    others = set(psutil.Process().children())
    decoders = Decoders(1, DecodeSettings(), [("s", Pixels(), cloudpickle.dumps(Talkative))])
    results = dict(decoders.decode_all((n, solid((n, 5, 5))) for n in range(50)))
    (child,) = set(psutil.Process().children()) - others
    sizes = [path.stat().st_size for path in Path(f"/proc/{child.pid}/fd").iterdir() if path.is_file()]
    decoders.close()
    assert all(isinstance(result, Decoded) for result in results.values())
    assert max(sizes, default=0) < 1000


def test_several_tasks_share_a_pool():
    """Each gets its own answers, all of them, whatever the others do, even stop half-way."""
    decoders = Decoders(2, DecodeSettings(), [("s", Pixels(), cloudpickle.dumps(Small))])
    found: dict[int, dict[int, int]] = {}

    def task(number: int) -> None:
        images = ((n, solid((number, n, 0))) for n in range(60))
        results = decoders.decode_all(images)
        if number == 0:
            next(results)  # and no more: as a task that fails does
            return
        found[number] = {n: int(result.arrays["s"][0, 0, 0]) * 1000 + n for n, result in results}

    threads = [threading.Thread(target=task, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    decoders.close()
    assert found == {number: {n: number * 1000 + n for n in range(60)} for number in (1, 2, 3)}


def test_what_comes_back_is_what_prepare_made():
    """Arrays of any kind pass unchanged."""
    decoders = Decoders(1, DecodeSettings(), [("s", Pixels(), cloudpickle.dumps(lambda: Whole()))])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8))
    ((_, result),) = decoders.decode_all([(0, encoded(picture, "PNG"))])
    decoders.close()
    assert np.array_equal(result.arrays["s"], np.asarray(picture))
    assert (result.facts.format, result.facts.width, result.facts.height) == ("PNG", 40, 30)


class Small:
    """A stage whose `prepare` gives four by four pixels."""

    def prepare(self, image):
        """(4, 4, 3) uint8."""
        return np.asarray(image.resize((4, 4)))


class Whole:
    """A stage whose `prepare` gives the whole picture."""

    def prepare(self, image):
        """(H, W, 3) uint8."""
        return np.asarray(image)
