"""The HTML pages that an app serves about itself. No inline script or style, and no address outside of the app."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

from svc_infra.openapi.problems import ProblemType


@dataclass(frozen=True, slots=True)
class Pages:
    """Makes the pages.

    Attributes:
        base: The path that the app is mounted under, without a slash at the end.
        version: Changes with the assets, so that browsers may keep them for long.
    """

    base: str
    version: str

    def landing(self, *, name: str, facts: str, links: Mapping[str, str]) -> str:
        """What this service is, and where to look next (a path for each label)."""
        items = "".join(
            f'<li><a href="{self._address(path)}">{escape(label)}</a> <code>{escape(path)}</code></li>'
            for label, path in links.items()
        )
        return self._page(name, f'<h1>{escape(name)}</h1><p class="muted">{escape(facts)}</p><ul>{items}</ul>')

    def problems(self, types: Iterable[ProblemType]) -> str:
        """Every type of problem that this service can answer with."""
        rows = "".join(
            f'<tr><td>{kind.status}</td><td><a href="{self._address(kind.path)}"><code>{escape(kind.code)}</code></a>'
            f"</td><td>{_prose(kind.when)}</td></tr>"
            for kind in sorted(types, key=lambda kind: kind.status)
        )
        return self._page(
            "Problems",
            "<h1>Problems</h1><p>Every error is answered with <code>application/problem+json</code> (RFC 9457). Its "
            "<code>type</code> is one of these pages; quote its <code>request_id</code> when you report it.</p>"
            f"<table><thead><tr><th>Status</th><th>Code</th><th>When</th></tr></thead><tbody>{rows}</tbody></table>",
        )

    def problem(self, kind: ProblemType) -> str:
        """One type of problem: when it happens and what to do."""
        return self._page(
            kind.title,
            f'<p><a href="{self._address("/problems")}">All problems</a></p><h1>{escape(kind.title)}</h1>'
            f'<p class="muted">Status {kind.status} · <code>{escape(kind.code)}</code></p>'
            f"<h2>When it happens</h2><p>{_prose(kind.when)}</p><h2>What to do</h2><p>{_prose(kind.advice)}</p>",
        )

    def reference(self, *, title: str, styles: Iterable[str], scripts: Iterable[str], options: object) -> str:
        """The API reference: a viewer's own files, and our script that starts it with these options."""
        body = f'<div id="reference" data-options="{escape(json.dumps(options))}"></div>'
        return self._document(f"{title}: API reference", body, styles=styles, scripts=scripts)

    def signing_in(self) -> str:
        """Where an authorization server sends the browser back to."""
        return self._page("Signing in", "<p>Signing in…</p>", scripts=["oauth2-redirect.js"])

    def _page(self, title: str, body: str, *, scripts: Iterable[str] = ()) -> str:
        return self._document(title, f"<main>{body}</main>", styles=["pages.css"], scripts=scripts)

    def _document(self, title: str, body: str, *, styles: Iterable[str], scripts: Iterable[str]) -> str:
        head = "".join(
            [
                '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
                f'<title>{escape(title)}</title><link rel="icon" href="{self._asset("icon.svg")}">',
                *(f'<link rel="stylesheet" href="{self._asset(style)}">' for style in styles),
                *(f'<script src="{self._asset(script)}" defer></script>' for script in scripts),
            ]
        )
        return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'

    def _asset(self, file: str) -> str:
        return self._address(f"/_assets/{file}?v={self.version}")

    def _address(self, path: str) -> str:
        return escape(self.base + path)


def _prose(text: str) -> str:
    """A sentence as HTML; what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
