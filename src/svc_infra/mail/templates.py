"""What mails say: a text and an HTML file for each, in which `$name` stands for a value."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from svc_infra.errors import ConfigurationError
from svc_infra.mail.message import Message

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SUBJECT = "Subject: "


class Templates:
    """The templates of one app.

    A template is `<name>.txt`, whose first line is `Subject: ...`, and `<name>.html`, which may be missing. Values are
    put as they are into text and escaped into HTML.

    Args:
        values: What every template can say, such as the app's name.
        base_url: What makes a `link` that begins with `/` absolute.
        folder: Where the app's own templates are; they come before the library's.
    """

    def __init__(self, values: Mapping[str, str], *, base_url: str, folder: Path | None = None) -> None:
        self._values = dict(values)
        self._base_url = base_url.rstrip("/")
        self._folder = folder

    def render(self, template: str, to: str, values: Mapping[str, str], *, message_id: str = "") -> Message:
        """The mail.

        Raises:
            ConfigurationError: There is no such template, it has no subject, or it needs a value that is not there.
            ValidationError: The address or the subject is not acceptable.
        """
        given = {**self._values, **values}
        if given.get("link", "").startswith("/"):
            given["link"] = self._base_url + given["link"]
        subject, _, text = (self._read(template, "txt") or "").partition("\n")
        if not subject.startswith(_SUBJECT):
            raise ConfigurationError(f"There is no template {template}.txt that begins with `Subject: `.")
        markup = self._read(template, "html")
        escaped = {name: html.escape(value) for name, value in given.items()}
        return Message(
            to=to,
            subject=_filled(template, subject.removeprefix(_SUBJECT), given),
            text=_filled(template, text.lstrip("\n"), given),
            html=_filled(template, markup, escaped) if markup is not None else None,
            id=message_id,
        )

    def _read(self, template: str, kind: str) -> str | None:
        if not _NAME.fullmatch(template):
            raise ConfigurationError(f"{template!r} is no name of a template.")
        if self._folder is not None and (own := self._folder / f"{template}.{kind}").is_file():
            return own.read_text(encoding="utf-8")
        shipped = files(__package__).joinpath("templates", f"{template}.{kind}")
        return shipped.read_text(encoding="utf-8") if shipped.is_file() else None


def _filled(template: str, text: str, values: Mapping[str, str]) -> str:
    try:
        return Template(text).substitute(values)
    except (KeyError, ValueError) as error:
        raise ConfigurationError(f"The mail {template} cannot be written: {error} is missing or misspelt.") from None
