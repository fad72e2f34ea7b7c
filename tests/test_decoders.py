"""Decoder processes: a hostile image costs one row, and its neighbours nothing."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

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


def test_what_comes_back_is_what_prepare_made():
    """Arrays of any kind pass unchanged."""
    decoders = Decoders(1, DecodeSettings(), [("s", Pixels(), cloudpickle.dumps(lambda: Whole()))])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8))
    ((_, result),) = decoders.decode_all([(0, encoded(picture, "PNG"))])
    decoders.close()
    assert np.array_equal(result.arrays["s"], np.asarray(picture))
    assert (result.facts.format, result.facts.width, result.facts.height) == ("PNG", 40, 30)


class Whole:
    """A stage whose `prepare` gives the whole picture."""

    def prepare(self, image):
        """(H, W, 3) uint8."""
        return np.asarray(image)
