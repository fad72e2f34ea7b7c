"""Objects behind URLs: list, look at, read in ranges, put, delete. The only file that knows fsspec.

`s3://` through s3fs (the extra `s3`), others that fsspec has a package for likewise. Credentials come from where the
service's own tools look for them (environment, profile, the machine's role), never from a setting or a URL. What goes
wrong out there is a RemoteError in a sentence; a single object that is not there is a FileNotFoundError.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from curator.errors import RemoteError

T = TypeVar("T")

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""The schemes that are read and written, and the package behind each."""
OPTIONS = {
    "s3": {
        "config_kwargs": {
            "connect_timeout": 5, "read_timeout": 60, "retries": {"mode": "standard", "max_attempts": 4},
            "max_pool_connections": 64,
        },
    }
}  # fmt: skip
SIDE_BY_SIDE = 16  # requests in flight at once
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
SIGNED = re.compile(r"[?&](x-amz-[a-z-]+|awsaccesskeyid|signature|sig|token|se|sv)=", re.IGNORECASE)
ENVIRONMENT = ("AWS_", "GOOGLE_", "AZURE_", "FSSPEC_")  # how variables begin that say where and who
HOW_TO_SIGN = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role"
    " (FSSPEC_S3_ANON=true for a bucket that is open to all)",
}

_systems: dict[Any, Any] = {}
_listed: dict[str, Entry] = {}
_trusted: tuple[str, ...] | None = None  # while listings are trusted: the folders that were listed whole


@dataclass(frozen=True)
class Entry:
    """One object as the service describes it; `stamp` changes when its content does."""

    url: str
    size: int
    stamp: str


def is_url(text: str | os.PathLike[str]) -> bool:
    """Whether a path is none of this machine's."""
    return URL.match(str(text)) is not None


def local(text: str) -> str:
    """`file:///x y` and `file:/x` -> the path; anything else as it is."""
    if not re.match(r"file:/", text, re.IGNORECASE):
        return text
    return unquote(urlsplit(text).path)


def mistake(url: str) -> str | None:
    """What is wrong with a URL as it is written, in words that hold none of its secrets."""
    if "@" in urlsplit(url).netloc or SIGNED.search(url):
        return (
            f"{redacted(url)}: holds a secret, which would end up in the log and in run.json. Credentials belong into "
            f"the environment: {_how_to_sign(url)}."
        )
    if scheme_of(url) not in PACKAGES:
        return f"{url}: {scheme_of(url)}:// is not read here. Of URLs, {', '.join(f'{s}://' for s in PACKAGES)} are."
    if not urlsplit(url).netloc:
        return f"{url}: names no bucket."
    return None


def redacted(url: str) -> str:
    """A URL as it may be shown: no user, no password, no query that signs."""
    parts = urlsplit(url)
    netloc = f"***@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    return f"{parts.scheme}://{netloc}{parts.path}" + ("?***" if parts.query and SIGNED.search(url) else "")


def scheme_of(url: str) -> str:
    """`s3` of `s3://bucket/key`."""
    return url.partition("://")[0].lower()


def joined(url: str, *names: str) -> str:
    """A name below a URL."""
    return "/".join([url.rstrip("/"), *names])


def within(url: str, folder: str) -> bool:
    """Whether a URL is that of a folder, or lies below it."""
    return f"{url.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")


def entries(folder: str, prefix: str = "", itself: bool = False) -> list[Entry]:
    """Every object below a folder whose name goes on with `prefix`, by URL; nothing where there is none.

    `itself`: also the object of that very name.
    """
    system = _system(folder)
    extra = {"prefix": prefix} if prefix else {}
    found = _asked(folder, lambda: system.find(_path(folder), detail=True, **extra), missing={})
    told = sorted((_entry(folder, info) for info in found.values()), key=lambda entry: entry.url)
    own = folder.rstrip("/")
    told = [e for e in told if not e.url.endswith("/") and (e.url.startswith(f"{own}/") or (itself and e.url == own))]
    _listed.update((entry.url, entry) for entry in told)
    return told


def children(folder: str) -> list[str]:
    """The names of what lies directly below a folder, sorted; nothing where there is none."""
    system = _system(folder)
    found = _asked(folder, lambda: system.ls(_path(folder), detail=False), missing=[])
    own = _path(folder).rstrip("/")
    return sorted({name.rstrip("/").rpartition("/")[2] for name in found if name.rstrip("/") != own})


def matching(pattern: str) -> list[str]:
    """The objects and folders that a pattern with wildcards stands for, sorted."""
    system = _system(pattern)
    found = _asked(pattern, lambda: system.glob(_path(pattern), detail=True), missing={})
    files = [_entry(pattern, info) for info in found.values() if info["type"] == "file"]
    _listed.update((entry.url, entry) for entry in files)
    return sorted(_url(pattern, name) for name in found)


def stat(url: str) -> Entry:
    """One object. FileNotFoundError where there is none (a folder is none)."""
    if _trusted is not None and url in _listed:
        return _listed[url]
    if any(within(url, folder) for folder in _trusted or ()):
        raise FileNotFoundError(errno.ENOENT, "nothing is there", url)
    _listed.pop(url, None)
    system = _system(url)
    info = _asked(url, lambda: system.info(_path(url)))
    if info["type"] != "file":
        raise FileNotFoundError(errno.ENOENT, "a folder, where an object was expected", url)
    entry = _entry(url, info)
    _listed[url] = entry
    return entry


def look_at(urls: Iterable[str]) -> None:
    """Ask about many objects side by side; `seen` knows then of those that are there.

    Raises RemoteError where none of them can be asked about; where some can, the others are as if they were not there.
    """
    wanted, lost = list(urls), []

    def ask(url: str) -> None:
        try:
            exists(url)
        except RemoteError as error:
            lost.append(error)

    _side_by_side(ask, wanted)
    if lost and len(lost) == len(wanted):
        raise lost[0]


def seen(url: str) -> Entry | None:
    """An object as it was when this process last listed or looked at it."""
    return _listed.get(url)


def exists(url: str) -> bool:
    """Whether there is an object of this name."""
    try:
        stat(url)
    except FileNotFoundError:
        return False
    return True


def is_folder(url: str) -> bool:
    """Whether anything lies below a URL."""
    system = _system(url)
    info = _asked(url, lambda: system.info(_path(url)), missing={"type": ""})
    return bool(info["type"] == "directory")


def is_there(path: str) -> bool:
    """Whether this machine sees a path or a URL, an object or a folder."""
    if not is_url(path):
        return Path(path).exists()
    try:
        return exists(path) or is_folder(path)
    except RemoteError:
        return False


@contextmanager
def as_listed(*folders: str) -> Iterator[None]:
    """In here, an object that was listed or looked at before is not asked about again.

    `folders` are listed now, and what is not in them is not there.
    """
    global _trusted
    for folder in folders:
        for url in [url for url in _listed if within(url, folder)]:
            del _listed[url]
        entries(folder)
    _trusted = folders
    try:
        yield
    finally:
        _trusted = None


def ranges(wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """The bytes begin..end-1 of each object, side by side; fewer where one ends earlier."""
    asked = [(url, begin, end) for url, begin, end in wanted if end > begin]
    if not asked:
        return [b""] * len(wanted)
    urls, begins, ends = (list(column) for column in zip(*asked, strict=True))
    system = _system(urls[0])
    paths = [_path(url) for url in urls]
    found = iter(
        _asked(
            urls[0],
            lambda: system.cat_ranges(paths, begins, ends, batch_size=SIDE_BY_SIDE, on_error="raise"),
        )
    )
    return [bytes(next(found)) if end > begin else b"" for _, begin, end in wanted]


def read(url: str) -> bytes:
    """A whole object that is not empty, in one request. FileNotFoundError where there is none."""
    system = _system(url)
    return bytes(_asked(url, lambda: system.cat_file(_path(url), start=0)))


def put(url: str, content: bytes | Path) -> None:
    """One object, whole or not at all."""
    system = _system(url)
    if isinstance(content, bytes):
        _asked(url, lambda: system.pipe_file(_path(url), content))
    else:
        _asked(url, lambda: system.put_file(str(content), _path(url)))
    _listed.pop(url, None)


def get(url: str, path: Path) -> None:
    """Bring one object to a file on disk. FileNotFoundError where there is none."""
    system = _system(url)
    _asked(url, lambda: system.get_file(_path(url), str(path)))


def delete(urls: Iterable[str]) -> None:
    """Objects that may be there go, side by side."""
    _side_by_side(_delete, urls)


def _delete(url: str) -> None:
    _listed.pop(url, None)
    system = _system(url)
    _asked(url, lambda: system.rm_file(_path(url)), missing=None)


def put_all(files: Iterable[tuple[Path, str]]) -> None:
    """Copy files on disk to URLs, side by side."""
    _side_by_side(lambda pair: put(pair[1], pair[0]), files)


def get_all(urls: Iterable[tuple[str, Path]]) -> None:
    """Bring objects to files on disk, side by side."""
    _side_by_side(lambda pair: get(*pair), urls)


def _side_by_side(fn: Callable[[T], Any], items: Iterable[T]) -> None:
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for done in [pool.submit(fn, item) for item in items]:
            done.result()


def try_writing(folder: str) -> None:
    """Raise RemoteError unless an object can be put below a folder, and taken away again."""
    url = joined(folder, f".probe-{secrets.token_hex(4)}")
    put(url, b"")
    delete([url])


def _system(url: str) -> Any:
    """The one file system of a scheme in this process. Raises RemoteError where its package is missing."""
    if (wrong := mistake(url)) is not None:
        raise RemoteError(wrong)
    scheme = scheme_of(url)
    who = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(ENVIRONMENT)))
    if (scheme, who) not in _systems:
        import fsspec

        for name in ("s3fs", "aiobotocore", "botocore", "gcsfs", "adlfs", "azure"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is told by us
        try:
            kind = fsspec.get_filesystem_class(scheme)
        except ImportError as error:
            extra = "in Curator's folder: pip install -e '.[s3]', or " if scheme == "s3" else ""
            raise RemoteError(
                f"{url}: {scheme}:// needs the package {PACKAGES[scheme]} ({extra}pip install {PACKAGES[scheme]})."
            ) from error
        try:
            # one for all threads, where fsspec would make one for each; a listing is never an old one
            made = kind(**OPTIONS.get(scheme, {}), skip_instance_cache=True, use_listings_cache=False)
        except Exception as error:  # some look for credentials at once
            raise explained(error, url) from error
        _systems[scheme, who] = made
    return _systems[scheme, who]


def _asked(url: str, request: Callable[[], Any], **answers: Any) -> Any:
    """What a request gives; `missing`, if given, where nothing is there. Foreign errors become ours."""
    try:
        return request()
    except Exception as error:
        told = explained(error, url)
        if isinstance(told, FileNotFoundError) and "missing" in answers:
            return answers["missing"]
        raise told from error


def explained(error: Exception, url: str) -> Exception:
    """A foreign error in a sentence: what could not be done, and what to do about it."""
    told = " ".join(str(error).split()).rstrip(".")
    name = type(error).__name__
    bucket = f"{scheme_of(url)}://{urlsplit(url).netloc}"
    where = _endpoint()
    if isinstance(error, FileNotFoundError):
        if "bucket" in told.lower() and "exist" in told.lower():
            return RemoteError(f"{url}: there is no bucket {bucket}{where}. Is its name right, and its region?")
        return FileNotFoundError(errno.ENOENT, "nothing is there", url)
    if "Credential" in name or "credential" in told.lower()[:60] or "ProfileNotFound" in name:
        return RemoteError(f"{url}: no credentials: {told}. They are looked for in {_how_to_sign(url)}.")
    if isinstance(error, PermissionError):
        return RemoteError(
            f"{url}: access is refused{where}: {told}. Are the credentials the right ones, and may they read here, and "
            f"write where something is written? They come from {_how_to_sign(url)}."
        )
    if re.search(r"Connect|Timeout|SSLError|DNS|HTTPClient", name) or isinstance(error, ConnectionError | TimeoutError):
        return RemoteError(
            f"{url}: cannot be reached{where}: {told}. What was stored is kept; when the network and the address are "
            "right, run the same command again."
        )
    if isinstance(error, OSError) and error.errno == errno.EINVAL and "range" in told.lower():
        return OSError(errno.EINVAL, "shorter than before", url)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return error
    return RemoteError(f"{url}: {told or name}. What was stored is kept; run the same command again.")


def _endpoint() -> str:
    """` at HOST`, where the environment names another service than the scheme's own."""
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return f" at {urlsplit(given).netloc.rpartition('@')[2]}" if given else ""


def _how_to_sign(url: str) -> str:
    return HOW_TO_SIGN.get(scheme_of(url), "the environment, as the service's own tools look for them")


def _path(url: str) -> str:
    """What fsspec calls an object: bucket and key."""
    return url.partition("://")[2]


def _url(like: str, path: str) -> str:
    return f"{like.partition('://')[0]}://{path.lstrip('/')}"


def _entry(like: str, info: dict[str, Any]) -> Entry:
    tag = next((info[key] for key in ("ETag", "etag", "md5Hash", "content_md5") if info.get(key)), None)
    changed = next((info[key] for key in ("LastModified", "last_modified", "updated", "mtime") if info.get(key)), "")
    size = int(info.get("size") or 0)
    return Entry(_url(like, info["name"]), size, f"{size}:{str(tag or changed).strip(chr(34))}")
