"""Conditional requests: entity tags, and what `If-Match` and its relatives make of a request (RFC 9110, section 13)."""

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import format_datetime

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from svc_infra.errors import BadRequestError, ConfigurationError, PreconditionFailedError, PreconditionRequiredError

MAX_ENTITY_TAGS = 100
"""The most entity tags that one request may list."""

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_ONE_TAG = re.compile(_TAG)
_TAGS = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")  # empty elements count as nothing: section 5.6.1
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_DATES = (  # RFC 9110, section 5.6.7: today's form and the two obsolete ones
    re.compile(rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT"),
    re.compile(rf"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT"),
    re.compile(rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) {_MONTH} (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})"),
)
_OF_THE_REPRESENTATION = ("cache-control", "content-location", "expires", "vary")
"""What a 304 must repeat of the headers that a 200 would have, beside the validators (RFC 9110, section 15.4.5)."""


def etag_of(*parts: object, weak: bool = False) -> str:
    """An entity tag for what these parts identify: the bytes of a representation, or an id and a version.

    Args:
        *parts: Bytes are taken as they are, everything else as the text that `str` makes of it.
        weak: The same tag may stand for representations that differ in what does not matter.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8) + data)
    tag = urlsafe_b64encode(digest.digest()[:18]).decode()
    return f'W/"{tag}"' if weak else f'"{tag}"'


class Conditional:
    """What a request asks to be true before it is carried out; a dependency: `Annotated[Conditional, Depends()]`."""

    def __init__(self, request: Request, response: Response) -> None:
        self._request = request
        self._response = response

    def check(
        self,
        *,
        etag: str | None = None,
        last_modified: datetime | None = None,
        exists: bool = True,
        required: bool = False,
    ) -> None:
        """Compare what the request expects with what there is now; answer it here when they differ.

        Call it when the request would be carried out otherwise, with the validators of the very representation that
        a GET of this address gives this caller, and before anything is changed. To let no other request come between,
        read what the tag is made of with the row locked, or write with a version column.

        On GET and HEAD the response gets `ETag` and `Last-Modified`; a handler that returns a `Response` of its own
        sets them itself. The new tag of what a write has made is the handler's to send.

        Args:
            etag: The entity tag, as `etag_of` makes it.
            last_modified: When it was changed last; to the second.
            exists: Whether there is anything now: `*` stands for that.
            required: Refuse a write that expects nothing (RFC 6585, section 3).

        Raises:
            HTTPException: 304, the client has it already.
            PreconditionFailedError: There is something else now.
            PreconditionRequiredError: See `required`.
            BadRequestError: An entity tag list of a write cannot be understood.
            ConfigurationError: `etag` is no entity tag, `last_modified` is naive, or there is a tag of nothing.
        """
        _refuse_nonsense(etag, last_modified, exists)
        reads = self._request.method in ("GET", "HEAD")
        since = None if last_modified is None else last_modified.replace(microsecond=0)
        unmodified_since = None if since is None else self._date("if-unmodified-since")
        expects = self._has("if-match", "if-none-match") or unmodified_since is not None
        if required and not reads and not expects:
            raise PreconditionRequiredError
        if reads:
            self._response.headers.update(_validators(etag, last_modified))
        if self._has("if-match"):  # the order of RFC 9110, section 13.2.2
            if not self._matches("if-match", etag, exists=exists, weakly=False):
                raise PreconditionFailedError
        elif since is not None and unmodified_since is not None and since > unmodified_since:
            raise PreconditionFailedError
        if self._has("if-none-match"):
            if self._matches("if-none-match", etag, exists=exists, weakly=True):
                raise self._unchanged(etag, last_modified) if reads else PreconditionFailedError
        elif reads and since is not None and (date := self._date("if-modified-since")) is not None and since <= date:
            raise self._unchanged(etag, last_modified)

    def _has(self, *names: str) -> bool:
        return any(name in self._request.headers for name in names)

    def _matches(self, name: str, etag: str | None, *, exists: bool, weakly: bool) -> bool:
        try:
            tags = parse_entity_tags(self._request.headers.getlist(name))
        except BadRequestError:
            if name == "if-none-match" and self._request.method in ("GET", "HEAD"):
                return False  # a tag that was never given: the whole answer is always right
            raise
        if tags is None:
            return exists
        return etag is not None and any(_same(etag, tag, weakly=weakly) for tag in tags)

    def _date(self, name: str) -> datetime | None:
        dates = self._request.headers.getlist(name)
        return parse_http_date(dates[0]) if len(dates) == 1 else None

    def _unchanged(self, etag: str | None, last_modified: datetime | None) -> HTTPException:
        kept = {name: self._response.headers[name] for name in _OF_THE_REPRESENTATION if name in self._response.headers}
        return HTTPException(304, headers={**kept, **_validators(etag, last_modified)})


def parse_entity_tags(values: Iterable[str]) -> list[str] | None:
    """The entity tags that a header lists; None for `*`. RFC 9110, sections 8.8.3 and 13.1.

    Args:
        values: The header's values, one for each time that it was sent.

    Raises:
        BadRequestError: It is empty, lists more than `MAX_ENTITY_TAGS`, or is of another form.
    """
    text = ",".join(values)
    if text.strip(" \t") == "*":
        return None
    if _TAGS.fullmatch(text) and len(tags := _ONE_TAG.findall(text)) <= MAX_ENTITY_TAGS:
        return tags
    raise BadRequestError(f'An entity tag list is "*", or up to {MAX_ENTITY_TAGS} tags such as "abc" or W/"abc".')


def parse_http_date(value: str) -> datetime | None:
    """A date in one of the three forms that HTTP knows, or None. RFC 9110, section 5.6.7."""
    text = value.strip(" \t")
    found = next((match for form in _DATES if (match := form.fullmatch(text)) is not None), None)
    if found is None:
        return None
    year = int(found["year"])
    if len(found["year"]) == 2:  # what lies more than 50 years ahead was meant to be in the past
        now = datetime.now(UTC).year
        year += now // 100 * 100
        year -= 100 if year > now + 50 else 0
    day, hour, minute, second = (int(found[name]) for name in ("day", "hour", "minute", "second"))
    try:
        return datetime(year, _MONTHS.index(found["month"]) + 1, day, hour, minute, second, tzinfo=UTC)
    except ValueError:  # no such day, or a leap second
        return None


def _same(one: str, other: str, *, weakly: bool) -> bool:
    """RFC 9110, section 8.8.3.2."""
    if weakly:
        return one.removeprefix("W/") == other.removeprefix("W/")
    return one == other and not one.startswith("W/")


def _validators(etag: str | None, last_modified: datetime | None) -> dict[str, str]:
    headers = {} if etag is None else {"etag": etag}
    if last_modified is not None:
        headers["last-modified"] = format_datetime(last_modified.astimezone(UTC), usegmt=True)
    return headers


def _refuse_nonsense(etag: str | None, last_modified: datetime | None, exists: bool) -> None:
    if etag is not None and not _ONE_TAG.fullmatch(etag):
        raise ConfigurationError("That is no entity tag: make one with etag_of(...).")
    if last_modified is not None and last_modified.tzinfo is None:
        raise ConfigurationError("last_modified has no time zone: use datetime.now(UTC).")
    if not exists and (etag is not None or last_modified is not None):
        raise ConfigurationError("What does not exist has neither an entity tag nor a date.")
