"""Decoders: child processes with a time and a memory limit, so that one hostile image costs one row.

Each holds one image at a time, so its death names the culprit. They are started with `subprocess` (Dask's workers
are daemons, which may not start children by `multiprocessing`), each by a thread that lives as long as the pool,
since a child is killed when the thread that started it ends.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import queue
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import IO, Any, TypeVar

from curator.decode import Decoded, DecodeFault, DecodeSettings
from curator.errors import Cause, CuratorError, Fault, OutsideError
from curator.stage import Pixels

Token = TypeVar("Token")

TRIES = 2
START_TIMEOUT_S = 120.0
PIPE_BYTES = 1 << 20
AHEAD = 3  # images per decoder that wait for it or are with it


class Gone(Exception):
    """The child died; the text says how."""


class TooSlow(Exception):
    """The child did not answer in time."""


class Decoders:
    """A pool of decoders; several threads may use it at once. `close` when done."""

    def __init__(self, count: int, settings: DecodeSettings, stages: Sequence[tuple[str, Pixels, bytes]]) -> None:
        """`stages`: name, need, and the pickle of a callable that builds the stage in the child."""
        self.count, self.settings = count, settings
        self._hello = pickle.dumps((settings, list(stages)), protocol=5)
        self._waiting: queue.SimpleQueue[tuple[Any, bytes, queue.SimpleQueue[Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._users = 0
        self._closing = False
        self._serving = False
        self._start()

    def _start(self) -> None:
        self._serving = True
        for _ in range(self.count):
            threading.Thread(target=self._serve, daemon=True).start()

    def decode_all(self, images: Iterable[tuple[Token, bytes]]) -> Iterator[tuple[Token, Decoded | Fault]]:
        """Each image with what came of it, in order of completion; pulls from `images` only as it goes."""
        with self._lock:
            self._users += 1
            if not self._serving:
                self._start()
        try:
            yield from self._decoded(images)
        finally:
            with self._lock:
                self._users -= 1
                self._end_if_unused()

    def _decoded(self, images: Iterable[tuple[Token, bytes]]) -> Iterator[tuple[Token, Decoded | Fault]]:
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        source = iter(images)
        running = 0
        exhausted = False
        while True:
            while not exhausted and running < AHEAD * self.count:
                item = next(source, None)
                if item is None:
                    exhausted = True
                    break
                self._waiting.put((*item, answers))
                running += 1
            if not running:
                return
            token, answer = answers.get()
            running -= 1
            if isinstance(answer, CuratorError):
                raise answer
            yield token, answer

    def close(self) -> None:
        """Let the children go, as soon as nobody uses them."""
        with self._lock:
            self._closing = True
            self._end_if_unused()

    def _end_if_unused(self) -> None:
        if self._closing and self._serving and not self._users:
            self._serving = False
            for _ in range(self.count):
                self._waiting.put(None)

    def _serve(self) -> None:
        child: Child | None = None
        while (request := self._waiting.get()) is not None:
            token, content, answers = request
            answer: Any
            try:
                child, answer = self._answer(child, content)
            except CuratorError as error:
                child, answer = None, error
            except Exception as error:  # no room for another process, say: whoever waits must hear of it
                child, answer = None, OutsideError(f"a decoder process could not be used: {error}")
            answers.put((token, answer))
        if child is not None:
            child.kill()

    def _answer(self, child: Child | None, content: bytes) -> tuple[Child | None, Any]:
        """What comes of one image; the child that is ready for the next, if one is left.

        A death and a lack of memory are tried again in a fresh child: what the old one held beside this image may
        have been too much. A hang is not, since it would cost its whole time once more.
        """
        answer: Any = None
        for _ in range(TRIES):
            child = child or Child(self._hello)
            try:
                answer = child.ask(content, self.settings.timeout_s)
                if not (isinstance(answer, DecodeFault) and answer.cause is Cause.DECODER_OUT_OF_MEMORY):
                    return child, answer
            except TooSlow:
                child.kill()
                limit = f"{self.settings.timeout_s:g} s (`read.decode_timeout_s`)"
                detail = f"Not decoded in {limit}; tried again by the next run."
                return None, DecodeFault(Cause.DECODER_TIMEOUT, detail)
            except Gone as gone:
                detail = f"The decoder process died ({gone}) on this image alone; {TRIES} tries."
                answer = DecodeFault(Cause.DECODER_CRASHED, detail)
            child.kill()
            child = None
        return None, answer


class Child:
    """One decoder process."""

    def __init__(self, hello: bytes) -> None:
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the child
        self.process = subprocess.Popen(
            # -P: not from the working folder, where a user may have a numpy.py or a queue.py
            [sys.executable, "-P", "-m", "curator.decoder_child", str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.inward, self.outward = self.process.stdin.fileno(), self.process.stdout.fileno()
        for pipe in (self.inward, self.outward):
            with suppress(OSError):  # a system that allows no larger pipes is only slower
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            os.set_blocking(pipe, False)
        try:
            self.ask(hello, START_TIMEOUT_S)
        except (Gone, TooSlow) as error:
            self.kill()
            raise CuratorError(f"a decoder process could not start: {self._last_words() or error}") from error

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read()[-4000:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def ask(self, content: bytes, timeout_s: float) -> Any:
        """Send one frame and wait for its answer. Raises Gone or TooSlow."""
        deadline = time.monotonic() + timeout_s
        try:
            self._write(struct.pack("<Q", len(content)), deadline)
            self._write(content, deadline)
            (size,) = struct.unpack("<Q", self._read(8, deadline))
            return pickle.loads(self._read(size, deadline))
        except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
            raise Gone(self._how()) from error

    def _write(self, content: bytes, deadline: float) -> None:
        view = memoryview(content)
        while view:
            try:
                view = view[os.write(self.inward, view) :]
            except BlockingIOError:
                self._wait([], [self.inward], deadline)

    def _read(self, count: int, deadline: float) -> bytearray:
        answer = bytearray(count)
        view, at = memoryview(answer), 0
        while at < count:
            try:
                got = os.readv(self.outward, [view[at:]])
            except BlockingIOError:
                self._wait([self.outward], [], deadline)
                continue
            if not got:
                raise EOFError
            at += got
        return answer

    def _wait(self, readable: list[int], writable: list[int], deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TooSlow
        poll = select.poll()
        for descriptor in readable:
            poll.register(descriptor, select.POLLIN)
        for descriptor in writable:
            poll.register(descriptor, select.POLLOUT)
        if not poll.poll(left * 1000):
            raise TooSlow

    def _how(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(5)
            return f"signal {-code}" if code < 0 else f"exit {code}"
        return "closed its pipes"

    def kill(self) -> None:
        """End the process, however deep it is in C code."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
