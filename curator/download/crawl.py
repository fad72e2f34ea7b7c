"""Many URLs at once: fetched, tried again, followed where they moved to, and laid on the shelf as they come in.

One thread runs everything that waits for the network, another one writes. A kill loses what is not sealed: the
bodies of one tar at most, or of `SEAL_S` seconds.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Protocol

from curator.download.client import Client, Dial, Resolve, dial, resolve
from curator.download.fetch import Fetcher, Got, Moved, Trouble
from curator.download.settings import DownloadSettings
from curator.download.shelf import Batch, Place, Settled, Shelf, held, next_number, url_digest
from curator.download.turns import Errand, Host, Turns
from curator.download.urls import redirected, shown, target_of
from curator.errors import TRANSIENT_FETCHES, Cause, ConfigError, Fault, OutsideError

LOOK_AHEAD = 250_000
"""URLs that wait for their turn at most, at some 700 bytes each; hosts are treated alike among these."""
LOOKED_UP = 10_000
"""URLs that are looked for on the shelf at once."""
ROWS = 100_000
"""Rows of one table, where it is only failures that come in."""
SEAL_S = 300.0
REPORT_S = 0.2
SPARE_FILES = 256
"""Open files beside the connections: lookups, large bodies, what else the process has."""
LEAST_S = 0.1
"""What must be left of a URL's seconds for another try."""
SILENT = 10
"""A host that answered none of so many URLs in a row is not asked again in this run."""


class Report(Protocol):
    """Is told how far the work is: URLs settled in this run, and of these the failed ones by cause."""

    def __call__(self, *, done: int, failed: Mapping[Cause, int]) -> None:
        """Called now and then, and at the end."""


def download(
    urls: Iterable[str],
    folder: Path,
    settings: DownloadSettings,
    report: Report,
    *,
    resolve: Resolve = resolve,
    dial: Dial = dial,
) -> None:
    """Fetch into `folder` what it lacks: each URL once, what failed before as `settings.retry` says.

    What a URL's fault is becomes a row of its table, never an exception. Raises OutsideError where the disk cannot
    take what came, StoreError where another run fetches into the folder. `resolve` and `dial` are the ways to the
    network. `curator.download.Shelf` tells what became of each URL.
    """
    _may_open(settings.concurrency)
    with held(folder):
        crawl = _Crawl(folder, settings, report)

        async def run() -> None:
            async with Client(settings, resolve, dial) as client:
                await crawl.run(urls, client)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(run())
        else:
            _run_beside(run())


def _run_beside(work: Coroutine[None, None, None]) -> None:
    """Run to the end in a thread, as in a notebook, whose own loop has this one; an interrupt stops it there."""
    begun: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def stoppable() -> None:
        task = asyncio.ensure_future(work)
        begun.append((asyncio.get_running_loop(), task))
        await task

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(asyncio.run, stoppable())
        try:
            running.result()
        except KeyboardInterrupt:
            for loop, task in begun:
                loop.call_soon_threadsafe(task.cancel)
            raise


def _may_open(concurrency: int) -> None:
    """See to it that so many connections may be open. Raises ConfigError where the system does not let them."""
    wanted = concurrency + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        told = f"needs {wanted:,} open files, and this system allows {hard:,} (ulimit -n)"
        raise ConfigError(f"concurrency: {concurrency:,} {told}. At most {max(hard - SPARE_FILES, 1):,} will do.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Crawl:
    """One run: who feeds, who fetches, who writes."""

    def __init__(self, folder: Path, settings: DownloadSettings, report: Report) -> None:
        self.folder, self.settings, self.report = folder, settings, report
        self.shelf = Shelf(folder)
        self.number = next_number(folder)
        self.batch: Batch | None = None
        self.begun = self.spoken = time.monotonic()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="shelf")
        self.open, self.done = 0, 0
        self.failed: Counter[Cause] = Counter()

    async def run(self, urls: Iterable[str], client: Client) -> None:
        """Everything; where it ends early, what was fetched is sealed too."""
        self.fetcher = Fetcher(self.settings, client, self.folder)
        self.turns = Turns(self.settings)
        self.settled: asyncio.Queue[Settled] = asyncio.Queue(self.settings.concurrency)
        self.all_settled = asyncio.Event()
        error: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(self._work()) for _ in range(self.settings.concurrency)]
                workers.append(group.create_task(self._write()))
                await self._feed(urls)
                await self.all_settled.wait()
                await self.settled.join()
                for worker in workers:
                    worker.cancel()
        except BaseExceptionGroup as group_error:
            error = _first(group_error)
            raise error from None
        finally:
            self.thread.shutdown(wait=True)
            self._end(error)
        self._speak(every_s=0)

    def _end(self, error: BaseException | None) -> None:
        if self.batch is not None and isinstance(error, OutsideError):
            self.batch.drop()
            return
        self._lay([self.settled.get_nowait() for _ in range(self.settled.qsize())])
        self._seal()

    async def _feed(self, urls: Iterable[str]) -> None:
        """Put every URL that the shelf lacks in its host's line, the same one once."""
        seen: set[bytes] = set()
        self.open += 1  # the list itself
        for some in _batched(urls, LOOKED_UP):
            digests = {url_digest(url): url for url in some}
            new = [url for digest, url in digests.items() if digest not in seen]
            seen.update(digests)
            for n, (url, before) in enumerate(self._lacking(new)):
                await self._begin(url, before)
                if n % 100 == 0:
                    await asyncio.sleep(0)
            while self.turns.waiting >= LOOK_AHEAD:
                await asyncio.sleep(0.05)
        self._less()

    def _lacking(self, urls: Sequence[str]) -> Iterator[tuple[str, int]]:
        """The URLs to be fetched, and how often each was asked for by earlier runs."""
        for url, found, before in zip(urls, self.shelf.look(urls), self.shelf.attempts(urls), strict=True):
            if isinstance(found, Place):
                continue
            if found.cause == Cause.NOT_FETCHED or self.settings.tries_again(found.cause):
                yield url, before

    async def _begin(self, url: str, before: int) -> None:
        self.open += 1
        try:
            target = target_of(url)
        except Fault as fault:
            await self._settle(Settled(url, cause=fault.cause, detail=fault.detail, attempts=before))
        else:
            self.turns.put(Errand(url, target, target, before))

    async def _work(self) -> None:
        while True:
            errand, host = await self.turns.take()
            try:
                await self._step(errand, host)
            finally:
                self.turns.done(host)

    async def _step(self, errand: Errand, host: Host) -> None:
        """One request, and what follows from it."""
        if host.hopeless is not None:
            await self._fail(errand, host.hopeless)
            return
        if not errand.passed:
            errand.tries += 1
        begun = time.monotonic()
        result = await self.fetcher.get(errand.target, self.settings.timeout_s - errand.spent_s)
        errand.spent_s += time.monotonic() - begun
        if result.status:
            host.silent = 0
        if isinstance(result, Got):
            await self._settle(
                Settled(
                    errand.url, result.body, status=result.status, content_type=result.content_type,
                    final_url=str(errand.target), attempts=errand.before + errand.tries, opt_out=result.opt_out,
                )
            )  # fmt: skip
        elif isinstance(result, Moved):
            await self._follow(errand, result)
        elif (wait_s := self._wait(errand, host, result)) is not None:
            errand.target, errand.passed = errand.start, []
            self.turns.put_later(errand, wait_s)
        else:
            self._give_up(host, result)
            await self._fail(errand, result)

    async def _follow(self, errand: Errand, moved: Moved) -> None:
        try:
            target = redirected(errand.target, moved.location)
        except Fault as fault:
            await self._fail(errand, Trouble(fault.cause, fault.detail, moved.status))
            return
        errand.passed.append(errand.target)
        most = self.settings.max_redirects
        if target in errand.passed:
            detail = f"The server redirects in a circle, by way of {shown(str(target))}."
            await self._fail(errand, Trouble(Cause.REDIRECT_LOOP, detail, moved.status))
        elif len(errand.passed) > most:
            detail = f"More than {most} redirects; the next was to {shown(str(target))}."
            await self._fail(errand, Trouble(Cause.TOO_MANY_REDIRECTS, detail, moved.status))
        else:
            errand.target = target
            self.turns.put(errand, front=True)

    def _wait(self, errand: Errand, host: Host, trouble: Trouble) -> float | None:
        """Seconds before another try; None where there is none. A host that asks for a pause gets it."""
        asked = trouble.wait_s
        if asked is not None and asked <= self.settings.max_wait_s:
            self.turns.pause(host, asked)
        last = errand.tries > self.settings.retries or self.settings.timeout_s - errand.spent_s < LEAST_S
        if last or trouble.cause not in TRANSIENT_FETCHES:
            return None
        wait_s = self.settings.back_off_s * 2 ** (errand.tries - 1) if asked is None else asked
        return wait_s if wait_s <= self.settings.max_wait_s else None

    def _give_up(self, host: Host, trouble: Trouble) -> None:
        """See whether asking this host for more is of any use."""
        if trouble.cause == Cause.UNKNOWN_HOST:
            host.hopeless = trouble
        elif trouble.cause == Cause.RATE_LIMITED and (trouble.wait_s or 0) > self.settings.max_wait_s:
            told = f"{host.name} asks to be left alone for {trouble.wait_s:,.0f} s (429)."
            host.hopeless = Trouble(trouble.cause, told)
        elif not trouble.status and trouble.cause in {Cause.CONNECTION_FAILED, Cause.TIMEOUT}:
            host.silent += 1
            if host.silent >= SILENT:
                told = f"{host.name} answered none of {SILENT} URLs in a row; this one was not tried."
                host.hopeless = Trouble(Cause.CONNECTION_FAILED, told)

    async def _fail(self, errand: Errand, trouble: Trouble) -> None:
        moved = f" This was after a redirect to {shown(str(errand.target))}." if errand.target != errand.start else ""
        await self._settle(
            Settled(
                errand.url, cause=trouble.cause, detail=trouble.detail + moved, status=trouble.status,
                content_type=trouble.content_type, final_url=str(errand.target),
                attempts=errand.before + errand.tries,
            )
        )  # fmt: skip

    async def _settle(self, settled: Settled) -> None:
        await self.settled.put(settled)
        self.done += 1
        if settled.cause is not None:
            self.failed[settled.cause] += 1
        self._less()

    def _less(self) -> None:
        self.open -= 1
        if not self.open:
            self.all_settled.set()

    async def _write(self) -> None:
        """Lay down what is settled, in another thread, as much at once as has come."""
        loop = asyncio.get_running_loop()
        while True:
            some = [await self.settled.get()]
            some += [self.settled.get_nowait() for _ in range(self.settled.qsize())]
            await loop.run_in_executor(self.thread, self._lay, some)
            for _ in some:
                self.settled.task_done()
            self._speak(REPORT_S)

    def _lay(self, some: Iterable[Settled]) -> None:
        for settled in some:
            size = settled.body.size if settled.body is not None else 0
            most = self.settings.bytes_per_tar
            if self.batch is not None and self.batch.count and size and self.batch.with_member(size) > most:
                self._seal()
            if self.batch is None:
                self.batch, self.begun = Batch(self.folder, self.number), time.monotonic()
            self.batch.add(settled)
            full = self.batch.count >= self.settings.images_per_tar or len(self.batch.rows["url"]) >= ROWS
            if full or time.monotonic() - self.begun > SEAL_S:
                self._seal()

    def _seal(self) -> None:
        if self.batch is not None:
            self.batch.seal()
            self.batch = None
            self.number += 1

    def _speak(self, every_s: float) -> None:
        if time.monotonic() - self.spoken >= every_s:
            self.spoken = time.monotonic()
            self.report(done=self.done, failed=dict(self.failed))


def _batched(urls: Iterable[str], count: int) -> Iterator[list[str]]:
    urls = iter(urls)
    while some := list(islice(urls, count)):
        yield some


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
