"""Everything Curator raises, and the short list of ways in which one input can fail.

CuratorError                 what went wrong, in words for a person; `exit_code` for the shell
├── ConfigError         2    the config or the command is wrong: every mistake at once
├── TooManyFailed       3    more inputs failed than `max_failed` allows: nothing was written
└── OutsideError        4    the world failed; what was measured is kept
    ├── InputChanged         an input is not what was measured
    ├── StoreError           the store cannot be read, written or locked
    ├── RemoteError          a bucket cannot be reached, read or written
    ├── WeightsError         a weights file is missing, cut short or not the one it should be
    └── ClusterError         workers or scheduler were lost, or never reached

Fault                        one image that cannot be used: becomes a row, never an exception for the user
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class CuratorError(Exception):
    """The root of what a user may meet; its text is one message, ready to print."""

    exit_code = 4


class ConfigError(CuratorError):
    """The config or the command is wrong. `mistakes` holds one line per mistake."""

    exit_code = 2

    def __init__(self, mistakes: Sequence[str] | str) -> None:
        self.mistakes = [mistakes] if isinstance(mistakes, str) else list(mistakes)
        super().__init__("\n".join(self.mistakes))


class TooManyFailed(CuratorError):
    """More inputs failed than `max_failed` allows."""

    exit_code = 3


class OutsideError(CuratorError):
    """Something outside Curator failed: disk, cluster, input. What was measured is kept."""

    exit_code = 4


class InputChanged(OutsideError):
    """An input's bytes are not those that were measured; `shard` is the one that is not to be trusted, if known."""

    shard: str | None = None


class StoreError(OutsideError):
    """The store cannot be read, written or locked."""


class RemoteError(OutsideError):
    """What lies behind a URL cannot be reached, read or written."""


class WeightsError(OutsideError):
    """A weights file is missing, cut short, or not the one that it should be."""


class ClusterError(OutsideError):
    """The Dask cluster was lost, or could not be reached."""


class Cause(StrEnum):
    """Why an input failed: the ledger's `cause` for rows whose status is `failed`."""

    EMPTY_FILE = "empty_file"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_MANY_PIXELS = "too_many_pixels"
    FORMAT_OFF = "format_off"
    NO_IMAGE = "no_image"
    MISSING_FILE = "missing_file"
    BAD_ROW = "bad_row"  # of a table that is a text: a line that cannot be read
    LINK_MEMBER = "link_member"
    SPECIAL_MEMBER = "special_member"
    MEMBER_TOO_LARGE = "member_too_large"
    DECODER_CRASHED = "decoder_crashed"
    DECODER_TIMEOUT = "decoder_timeout"
    DECODER_OUT_OF_MEMORY = "decoder_out_of_memory"
    SCORE_NOT_FINITE = "score_not_finite"
    STAGE_ERROR = "stage_error"
    UNREADABLE = "unreadable"
    DAMAGED_AT_OFFSET = "damaged_at_offset"
    NO_END_MARKER = "no_end_marker"
    EXPANDS_TOO_FAR = "expands_too_far"

    # a URL that could not be fetched
    BAD_URL = "bad_url"  # no URL that anything could be asked for
    BAD_SCHEME = "bad_scheme"  # neither http nor https
    ADDRESS_REFUSED = "address_refused"  # the host's address is not public
    UNKNOWN_HOST = "unknown_host"  # there is no host of this name
    CONNECTION_FAILED = "connection_failed"  # refused, reset, unreachable
    TLS_FAILED = "tls_failed"  # the server's certificate is not to be trusted
    NOT_HTTP = "not_http"  # what answers does not speak HTTP
    TIMEOUT = "timeout"
    TOO_SLOW = "too_slow"
    TOO_LARGE = "too_large"
    TRUNCATED_BODY = "truncated_body"  # fewer bytes than announced
    CONTENT_ENCODED = "content_encoded"  # compressed though nobody asked for it
    NOT_AN_IMAGE_TYPE = "not_an_image_type"  # by the server's own words, and by the first bytes
    NOT_FOUND = "not_found"  # 404, 410
    FORBIDDEN = "forbidden"  # 401, 402, 403, 407, 451
    RATE_LIMITED = "rate_limited"  # 429
    SERVER_ERROR = "server_error"  # 5xx
    BAD_STATUS = "bad_status"  # any other
    REDIRECT_LOOP = "redirect_loop"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    OPTED_OUT = "opted_out"  # the server asks that the image not be used: a row that is dropped rather than failed
    NOT_FETCHED = "not_fetched"  # nobody has asked yet


TRANSIENT = frozenset({Cause.DECODER_CRASHED, Cause.DECODER_TIMEOUT, Cause.DECODER_OUT_OF_MEMORY})
"""Faults of the machine, not of the bytes: their rows stay open and the next run tries them again."""

TRANSIENT_FETCHES = frozenset(
    {
        Cause.CONNECTION_FAILED, Cause.TIMEOUT, Cause.TOO_SLOW, Cause.TRUNCATED_BODY, Cause.RATE_LIMITED,
        Cause.SERVER_ERROR, Cause.NOT_FETCHED,
    }
)  # fmt: skip
"""Of a URL's causes those that may pass by themselves: tried again within a run, and by the next one."""


class Fault(Exception):
    """One image that cannot be used: `cause` is the code, `detail` the sentence a person reads."""

    def __init__(self, cause: Cause, detail: str) -> None:
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = detail
