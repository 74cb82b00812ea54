"""The queue's steps, each one script; what they share, and how jobs are kept, is told in `lua/prelude.lua`."""

from __future__ import annotations

from functools import cache
from hashlib import sha1
from importlib.resources import files


@cache
def script(name: str) -> tuple[str, str]:
    """The text of a step, and the digest that a server knows it by."""
    folder = files(__package__) / "lua"
    text = "\n".join((folder / f"{part}.lua").read_text() for part in ("prelude", name))
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()
