"""What may be said about how URLs are fetched, and what holds where nothing is said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from curator.errors import TRANSIENT_FETCHES, Cause, ConfigError
from curator.wording import meant

POLICIES = ("transient", "all", "never")


@dataclass(frozen=True, kw_only=True)
class DownloadSettings:
    """How URLs are fetched. Raises ConfigError with every mistake at once."""

    concurrency: int = 64
    """URLs under way at once."""

    per_host: int = 8
    """Of these, at one host."""

    per_host_per_s: float = 50.0
    """Requests that one host gets in a second at most."""

    timeout_s: float = 30.0
    """Seconds that a URL may take on the network, redirects and tries together; waiting for its turn not counted."""

    min_bytes_per_s: float = 1024.0
    """A body that comes slower than this is given up, though not in its first `patience_s` seconds."""

    patience_s: float = 5.0

    max_bytes: int = 64 * 1024**2
    """The largest body."""

    retries: int = 2
    """Further tries within a run after a transient failure."""

    back_off_s: float = 0.5
    """Seconds before the first of them; each time twice as long, or as long as the server says (Retry-After)."""

    max_wait_s: float = 60.0
    """A server that wants to be left alone for longer is asked by the next run."""

    max_redirects: int = 5

    allow_private_addresses: bool = False
    """Whether hosts of the local network may be asked."""

    respect_opt_out: bool = True
    """Whether `X-Robots-Tag: noai` and the like, and `TDM-Reservation: 1`, are obeyed."""

    contact: str = ""
    """A mail address or page of whoever runs this, told to the servers."""

    user_agent: str = ""
    """What is said instead of `Curator/<version> (image curation; <contact>)`."""

    retry: str | Sequence[str] = "transient"
    """Which failures a rerun tries again: transient, all, never, or a list of causes."""

    images_per_tar: int = 1_000
    bytes_per_tar: int = 1_000_000_000

    def __post_init__(self) -> None:
        mistakes = [
            f"{name}: must be {'at least' if least else 'more than'} {least}, not {getattr(self, name)!r}"
            for name, least in (
                ("concurrency", 1), ("per_host", 1), ("per_host_per_s", 0), ("timeout_s", 0), ("max_bytes", 1),
                ("images_per_tar", 1), ("bytes_per_tar", 1),
            )
            if getattr(self, name) < least or getattr(self, name) == 0
        ]  # fmt: skip
        for name in ("min_bytes_per_s", "patience_s", "retries", "back_off_s", "max_wait_s", "max_redirects"):
            if getattr(self, name) < 0:
                mistakes.append(f"{name}: must be at least 0, not {getattr(self, name)!r}")
        for name in ("contact", "user_agent"):
            if not re.fullmatch(r"[ -~]*", getattr(self, name)):
                mistakes.append(f"{name}: must be one line of plain ASCII, not {getattr(self, name)!r}")
        mistakes += self._retry_mistakes()
        if mistakes:
            raise ConfigError(mistakes)

    def _retry_mistakes(self) -> list[str]:
        causes = [str(cause) for cause in Cause]
        if isinstance(self.retry, str):
            if self.retry in POLICIES or self.retry in causes:
                return []
            near = meant(self.retry, [*POLICIES, *causes])
            return [f"retry: must be {', '.join(POLICIES)} or a list of causes, not {self.retry!r}.{near}"]
        return [f"retry: {name!r} is no cause.{meant(name, causes)}" for name in self.retry if name not in causes]

    @property
    def agent(self) -> str:
        """The User-Agent that servers see."""
        try:
            number = version("curator")
        except PackageNotFoundError:
            number = "0"
        return self.user_agent or f"Curator/{number} (image curation{f'; {self.contact}' if self.contact else ''})"

    def tries_again(self, cause: str) -> bool:
        """Whether a URL that failed with this cause in an earlier run is fetched again."""
        if cause == Cause.OPTED_OUT and not self.respect_opt_out:
            return True
        if cause == Cause.ADDRESS_REFUSED and self.allow_private_addresses:
            return True
        if self.retry in {"never", "all"} if isinstance(self.retry, str) else False:
            return self.retry == "all"
        if self.retry == "transient":
            return cause in TRANSIENT_FETCHES
        return cause in ([self.retry] if isinstance(self.retry, str) else self.retry)
