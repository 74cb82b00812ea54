"""Turns what SQLAlchemy and its drivers raise into the errors of `svc_infra.errors`."""

from __future__ import annotations

import sqlalchemy.exc as sa

from svc_infra.errors import (
    ConflictError,
    DeadlineExceededError,
    SvcInfraError,
    UnavailableError,
    ValidationError,
)

_SQLSTATES: dict[str, tuple[type[SvcInfraError], str]] = {
    "23505": (ConflictError, "A row with these values already exists."),
    "23503": (ConflictError, "A row that this one refers to does not exist, or is still referred to."),
    "23502": (ValidationError, "A required value is missing."),
    "23514": (ValidationError, "A value is outside of what is allowed."),
    "22001": (ValidationError, "A value is too long."),
    "22P02": (ValidationError, "A value has the wrong form."),
    "40001": (ConflictError, "Another transaction changed the same rows: try again."),
    "40P01": (ConflictError, "Another transaction changed the same rows: try again."),
    "57014": (DeadlineExceededError, "The database did not answer in time."),
}
_SQLITE_CONSTRAINTS: dict[str, tuple[type[SvcInfraError], str]] = {
    "SQLITE_CONSTRAINT_UNIQUE": _SQLSTATES["23505"],
    "SQLITE_CONSTRAINT_PRIMARYKEY": _SQLSTATES["23505"],
    "SQLITE_CONSTRAINT_FOREIGNKEY": _SQLSTATES["23503"],
    "SQLITE_CONSTRAINT_NOTNULL": _SQLSTATES["23502"],
    "SQLITE_CONSTRAINT_CHECK": _SQLSTATES["23514"],
}


def translated(error: sa.SQLAlchemyError) -> SvcInfraError:
    """The library's error for a database error; details that could hold data or SQL stay out of its message."""
    if isinstance(error, sa.DBAPIError):
        sqlstate = getattr(error.orig, "sqlstate", None)
        name = getattr(error.orig, "sqlite_errorname", None)
        kind, detail = _SQLSTATES.get(str(sqlstate)) or _SQLITE_CONSTRAINTS.get(str(name)) or (None, "")
        if kind is not None:
            return kind(detail)
        if error.connection_invalidated or isinstance(error, sa.OperationalError | sa.InterfaceError):
            return UnavailableError("The database is not available.", retry_after_seconds=1)
        if isinstance(error, sa.DataError):
            return ValidationError("A value has the wrong form or is out of range.")
        if isinstance(error, sa.IntegrityError):
            return ConflictError()
    if isinstance(error, sa.TimeoutError):
        return UnavailableError("No database connection became free in time.", retry_after_seconds=1)
    return SvcInfraError("The database refused a statement.")
