"""Every setting with its value, its variable and its source, safe to print."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from svc_infra.config.settings import Settings
from svc_infra.config.url import Url, mask_url
from svc_infra.config.variables import ENV_FILE

MASK = "********"
_SIMILARITY = 0.8  # of a misspelt name to the right one, from 0 to 1 (difflib)


@dataclass(frozen=True, slots=True)
class ListedSetting:
    """One line of the listing; `value` is masked where it is secret and blank where there is none."""

    name: str
    value: str
    variable: str
    source: str


def list_settings(settings: Settings) -> list[ListedSetting]:
    """Every setting and every secret that the library knows, in the order in which they are declared."""
    listed = []
    for name, section in settings.sections().items():
        for field in type(section).model_fields:
            variable = section.variable(field)
            source = "code" if field in section.given else settings.variables.source(variable) or "default"
            listed.append(ListedSetting(f"{name}.{field}", _shown(getattr(section, field)), variable, source))
        missing = "development value" if settings.environment.is_trusted else "not set"
        listed.extend(_secret(settings, secret, missing) for secret in section.secrets)
        listed.extend(_secret(settings, secret, "not set") for secret in section.optional_secrets)
    return listed


def likely_typos(settings: Settings) -> list[str]:
    """A sentence for each variable that begins like one of ours, is none of them, and resembles one."""
    sections = settings.sections().values()
    secrets = [secret for section in sections for secret in (*section.secrets, *section.optional_secrets)]
    known = {ENV_FILE, *secrets, *(f"{secret}_FILE" for secret in secrets)}
    known.update(section.variable(field) for section in sections for field in type(section).model_fields)
    prefixes = tuple(section.variable("") for section in sections)
    sentences: list[str] = []
    for name in sorted(settings.variables.names() - known):
        close = get_close_matches(name, known, n=1, cutoff=_SIMILARITY) if name.startswith(prefixes) else []
        sentences.extend(f"{name} is no setting: did you mean {match}?" for match in close)
    return sentences


def _secret(settings: Settings, variable: str, missing: str) -> ListedSetting:
    source = settings.secrets.source(variable)
    name = variable.lower().replace("_", ".", 1)
    return ListedSetting(name, MASK if source else "", variable, source or missing)


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Url):
        return mask_url(value)
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
