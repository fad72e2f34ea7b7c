"""URLs from a server on the loopback interface: URLs/s, and the CPU that one costs, by concurrency.

    python scripts/bench_download.py

The server answers at once in one table and after 50 ms in the other (as far as a far host), with 30 kB images, from a
process of its own. Beside Curator, which writes tars and tables, checks and hashes: a plain loop over httpx's client
that keeps nothing. Medians of three rounds, taken in turn.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from curator.download import DownloadSettings, download

BYTES, ROUNDS = 30_000, 3
SERVER = f"""
import asyncio, sys
body = b"\\xff\\xd8\\xff" + bytes({BYTES} - 3)
answer = b"HTTP/1.1 200 OK\\r\\nContent-Type: image/jpeg\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body
async def converse(reader, writer):
    try:
        while await reader.readuntil(b"\\r\\n\\r\\n"):
            await asyncio.sleep(float(sys.argv[1]))
            writer.write(answer)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(converse, "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def by_curator(urls: list[str], concurrency: int) -> None:
    """The downloader, into a new folder."""
    settings = DownloadSettings(
        allow_private_addresses=True, concurrency=concurrency, per_host=concurrency, per_host_per_s=1e9
    )
    with tempfile.TemporaryDirectory() as folder:
        download(urls, Path(folder), settings, lambda **_: None)


def by_httpx(urls: list[str], concurrency: int) -> None:
    """So many tasks around one client."""

    async def run() -> None:
        waiting = iter(urls)
        async with httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_connections=concurrency)) as client:

            async def work() -> None:
                for url in waiting:
                    assert len((await client.get(url)).content) == BYTES

            await asyncio.gather(*(work() for _ in range(concurrency)))

    asyncio.run(run())


def measured(fetch: Callable[[list[str], int], None], urls: list[str], concurrency: int) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    fetch(urls, concurrency)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return time.monotonic() - begin, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print one table."""
    print(f"{os.cpu_count()} cores; the server runs on them too\n")
    print("| answers after | concurrency | Curator, URLs/s | ms CPU a URL | httpx loop, URLs/s | ms CPU a URL |")
    print("|---|---|---|---|---|---|")
    for delay, count in (("0", 2000), ("0.05", 1000)):
        server = subprocess.Popen([sys.executable, "-c", SERVER, delay], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        port = int(server.stdout.readline())
        for concurrency in (1, 16, 64, 256):
            some = count if concurrency > 1 else count // 10
            urls = [f"http://127.0.0.1:{port}/{n}.jpg" for n in range(some)]
            rounds = [[measured(fetch, urls, concurrency) for fetch in (by_curator, by_httpx)] for _ in range(ROUNDS)]
            cells = []
            for which in (0, 1):
                seconds = statistics.median(r[which][0] for r in rounds)
                cpu = statistics.median(r[which][1] for r in rounds)
                cells.append(f"{some / seconds:,.0f} | {cpu / some * 1000:.2f}")
            print(f"| {float(delay) * 1000:.0f} ms | {concurrency} | {' | '.join(cells)} |", flush=True)
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
