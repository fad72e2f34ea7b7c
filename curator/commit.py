"""How every file is written: under a temporary name beside its final one, synced, renamed, the folder synced.

Whoever looks at a final name sees the whole file or none. Knows nothing about what is in it.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from curator.errors import OutsideError

TEMPORARY = ".tmp-"
"""How temporary names begin; whatever carries it is a left-over of a killed run and may go."""


@contextmanager
def commit(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file for `path`; on leaving without an error it becomes `path`, else it goes.

    A failing write, sync or rename raises OutsideError naming the file: it is never tried again, since after
    one failed fsync the kernel may report success for pages that it has dropped.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name[:80]}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise explained(error, path) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def commit_bytes(path: Path, content: bytes) -> None:
    """Write one small file, as `commit` does."""
    with commit(path) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explained(error: OSError, path: Path) -> OutsideError:
    """The same fault, in a sentence that says where and what to do."""
    what = {
        errno.ENOSPC: "the disk is full. All earlier work is safe; free some space and run the same command again",
        errno.EDQUOT: "the disk quota is used up. All earlier work is safe; make room and run the same command again",
        errno.EROFS: "the file system is read-only. Choose another place with store=... or output=...",
        errno.EACCES: "permission denied. Choose another place with store=... or output=...",
        errno.EMFILE: "too many files are open (ulimit -n); raise the limit, or lower cluster.n_workers",
        errno.EIO: "the disk reports an error. All earlier work is safe; look at the disk, then run the same command",
        errno.EFBIG: "the file would be larger than this system allows (ulimit -f)",
    }.get(error.errno or 0, f"{error.strerror or error}. All earlier work is safe; run the same command again")
    return OutsideError(f"{path}: cannot be written: {what}.")
