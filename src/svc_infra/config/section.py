"""How a room's settings are read, and what is said when they are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import PrivateAttr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from svc_infra.config.variables import Variables
from svc_infra.errors import ConfigurationError

_MENDS = {
    "bool_parsing": "must be true or false",
    "enum": "must be one of {expected}",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "literal_error": "must be one of {expected}",
}


class Section(BaseSettings):
    """A room's settings; each field is read from the environment variable that its section's prefix and name make.

    What is given in code comes before the environment, which comes before `.env`, which comes before the default.

    Raises:
        ConfigurationError: A value is wrong; the message names each variable and the mend, and never shows a value.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    secrets: ClassVar[tuple[str, ...]] = ()
    """The names of the secrets that the room requires."""

    optional_secrets: ClassVar[tuple[str, ...]] = ()
    """The names of the secrets that it works without."""

    _given: frozenset[str] = PrivateAttr(default=frozenset())

    def __init__(self, **values: Any) -> None:
        if unknown := values.keys() - type(self).model_fields.keys():
            known = ", ".join(type(self).model_fields)
            raise ConfigurationError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}: it has {known}.")
        wrong: list[dict[str, str]] = []
        try:
            super().__init__(**values)
        except ValidationError as error:
            explained = [_explained(type(self), details, values) for details in error.errors(include_url=False)]
            wrong = list({item["detail"]: item for item in explained}.values())  # a list can be wrong in many places
        if wrong:  # raised out here, so that no context carries pydantic's error and the values in it
            raise all_wrong(wrong)
        self._given = frozenset(values)

    @property
    def given(self) -> frozenset[str]:
        """The fields whose values were given in code."""
        return self._given

    @classmethod
    def variable(cls, field: str) -> str:
        """The environment variable of a field."""
        return f"{cls.model_config.get('env_prefix', '')}{field}".upper()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read through `Variables`, so that settings, secrets and their listing can never see different things."""
        variables = Variables.read()
        found = {field: variables.get(cls.variable(field)) for field in cls.model_fields}
        set_ones = {field: value for field, value in found.items() if value is not None}
        return init_settings, InitSettingsSource(settings_cls, init_kwargs=set_ones)


def all_wrong(errors: Sequence[dict[str, str]]) -> ConfigurationError:
    """One error that lists everything that is wrong; each item has `loc` (the variable) and `detail`."""
    sentences = " ".join(error["detail"] for error in errors)
    count = f"{len(errors)} settings are wrong: " if len(errors) > 1 else ""
    return ConfigurationError(count + sentences, errors=errors)


def _explained(section: type[Section], details: ErrorDetails, given: dict[str, Any]) -> dict[str, str]:
    field = str(details["loc"][0]) if details["loc"] else "*"  # a validator of the whole section names no field
    variable = section.variable(field)
    source = "code" if field in given else Variables.read().source(variable) or "default"
    mend = _MENDS.get(details["type"])
    if mend is None:
        sentence = "is wrong: " + details["msg"].removeprefix("Value error, ")
    else:
        sentence = mend.format_map(details.get("ctx", {}))
    return {"loc": variable, "detail": f"{variable} ({source}) {sentence}."}
