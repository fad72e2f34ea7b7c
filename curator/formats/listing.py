"""What the URLs of an input hold, as `paths.py` tells it of paths: globs, braces and folders -> shards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from curator import remote
from curator.errors import ConfigError
from curator.formats import bucket
from curator.formats.base import Shard
from curator.formats.files import GZIPPED
from curator.formats.folder import is_image, walk
from curator.formats.tables import suffix_of as table_suffix

TARS = (".tar", *GZIPPED)


def expanded(given: str, braces: Callable[[str], Iterator[str]]) -> Iterator[str]:
    """The URLs that one input means: itself, or what its braces and wildcards stand for. ConfigError for a bad one."""
    for url in dict.fromkeys(braces(given)):
        if (wrong := remote.mistake(url)) is not None:
            raise ConfigError(f"input: {wrong}")
        if not any(sign in url for sign in "*?["):
            yield url
        elif found := remote.matching(url):
            yield from found
        else:
            raise ConfigError(f"input: {url} names nothing that is there.")


def shards_at(url: str, skip: Collection[str]) -> Iterator[Shard]:
    """What a URL holds: a tar; or all tars and, as one shard, all other objects below a folder."""
    if url.lower().endswith(TARS) and remote.exists(url):
        yield _tar(url, remote.stat(url))
        return
    outside = {one for one in skip if remote.is_url(one) and not remote.within(url, one)}
    below = [e for e in bucket.below(url, outside) if "/." not in e.url[len(url.rstrip("/")) :]]
    if not below:
        raise ConfigError(f"input: {url} {_what_is_wrong(url)}.")
    tars = [entry for entry in below if entry.url.lower().endswith(TARS)]
    yield from (_tar(entry.url, entry) for entry in tars)
    others = [entry for entry in below if not entry.url.lower().endswith(TARS)]
    folder = Shard(url, url.rstrip("/"), "folder", sum(e.size for e in others), skip=tuple(sorted(outside)))
    if others and (not tars or any(is_image(folder.path, name) for name, _ in walk(folder))):
        yield folder


def _what_is_wrong(url: str) -> str:
    if not remote.exists(url):
        return "names nothing that is there"
    if table_suffix(url) or url.lower().endswith((".npy", ".npz")):
        return "is a table or holds vectors. Copy it to this machine; the paths in a table may be URLs"
    return "is neither a tar nor a folder. For one image, name its folder"


def _tar(url: str, entry: remote.Entry) -> Shard:
    return Shard(url, entry.url, "webdataset", entry.size)
