"""The main of a decoder process: one image in, one answer out, until its parent goes.

Frames on stdin and stdout: 8 bytes of length, then a pickle. The first frame in is (settings, stages), the first
out is None when all is ready. Imports no torch: a stage file that does costs its memory in every decoder.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

from PIL import AvifImagePlugin

from curator.decode import DecodeFault, DecodeSettings, Prepare, decode
from curator.errors import Cause

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask Linux for SIGKILL when the thread that started us ends; leave where it ended before we asked."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


def limit_memory(extra_bytes: int) -> None:
    """Allow so much address space above what is held now."""
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + extra_bytes, held + extra_bytes))


def read_exactly(descriptor: int, count: int) -> bytes:
    """So many bytes of a pipe; EOFError where it ends before."""
    parts = []
    while count:
        part = os.read(descriptor, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def answer_to(content: bytes, settings: DecodeSettings, prepares: list[Prepare]) -> Any:
    """What came of one image: Decoded or DecodeFault."""
    try:
        return decode(content, settings, prepares)
    except DecodeFault as fault:
        fault.__cause__ = fault.__context__ = fault.__traceback__ = None
        return fault
    except MemoryError:
        detail = f"Needed more than {settings.memory_bytes / (1 << 30):.3g} GiB."
        return DecodeFault(Cause.DECODER_OUT_OF_MEMORY, detail)


def send(descriptor: int, answer: Any) -> None:
    """One frame out."""
    frame = pickle.dumps(answer, protocol=5)
    view = memoryview(struct.pack("<Q", len(frame)) + frame)
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int) -> bytes:
    """One frame in, as it is."""
    return read_exactly(descriptor, struct.unpack("<Q", read_exactly(descriptor, 8))[0])


def main() -> None:
    """Get ready, then answer until stdin ends."""
    die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ours = os.dup(1)
    os.dup2(2, 1)  # a stage that prints must not speak into the frames
    settings, stages = pickle.loads(receive(0))
    prepares: list[Prepare] = []
    for name, need, pickled in stages:
        build: Callable[[], Any] = pickle.loads(pickled)
        prepares.append((name, need, build().prepare))
    send(ours, None)
    for descriptor in (1, 2):  # libtiff writes a line for each oddity of each file, a stage perhaps for each image
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a decoder for each core already
    limit_memory(settings.memory_bytes)
    while True:
        try:
            content = receive(0)
        except EOFError:
            return
        send(ours, answer_to(content, settings, prepares))


if __name__ == "__main__":
    main()
