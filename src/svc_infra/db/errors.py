"""Turns what SQLAlchemy and its drivers raise into the errors of `svc_infra.errors`."""

from __future__ import annotations

import sqlite3

import sqlalchemy.exc as sa
from sqlalchemy.orm.exc import StaleDataError

from svc_infra.errors import (
    ConfigurationError,
    ConflictError,
    DeadlineExceededError,
    NotFoundError,
    SvcInfraError,
    UnavailableError,
    ValidationError,
)

_Meaning = tuple[type[SvcInfraError], str]

_EXISTS: _Meaning = (ConflictError, "A row with these values already exists.")
_REFERENCE: _Meaning = (ConflictError, "A row that this one refers to does not exist, or is still referred to.")
_MISSING: _Meaning = (ValidationError, "A required value is missing.")
_NOT_ALLOWED: _Meaning = (ValidationError, "A value is outside of what is allowed.")
_WRONG_FORM: _Meaning = (ValidationError, "A value has the wrong form or is out of range.")
_CHANGED: _Meaning = (ConflictError, "Another transaction changed the same rows: try again.")
_READ_ONLY: _Meaning = (SvcInfraError, "A write was refused: the unit of work or the database is read-only.")
_UNAVAILABLE: _Meaning = (UnavailableError, "The database is not available.")
_NONE_FREE: _Meaning = (
    UnavailableError,
    "No database connection became free in time; a unit of work that opens one inside another can wait for itself.",
)
_REFUSED: _Meaning = (SvcInfraError, "The database refused a statement.")

# PostgreSQL's SQLSTATE, or its class: the first two characters (PostgreSQL manual, appendix A).
_SQLSTATES: dict[str, _Meaning] = {
    "08": _UNAVAILABLE,
    "0A000": (UnavailableError, "The schema was changed under this connection: try again."),
    "22": _WRONG_FORM,
    "22001": (ValidationError, "A value is too long."),
    "23": (ConflictError, "The rows that are stored do not allow this."),
    "23502": _MISSING,
    "23503": _REFERENCE,
    "23505": _EXISTS,
    "23514": _NOT_ALLOWED,
    "25006": _READ_ONLY,
    "25P03": (DeadlineExceededError, "The transaction was idle for too long."),
    "28": (ConfigurationError, "The database refuses the user or the password: check SQL_URL."),
    "3D000": (ConfigurationError, "The server has no database of this name: check SQL_URL."),
    "40001": _CHANGED,
    "40P01": _CHANGED,
    "53": _UNAVAILABLE,
    "55P03": (ConflictError, "Another transaction holds the same rows: try again."),
    "57": _UNAVAILABLE,
    "57014": (DeadlineExceededError, "The database did not answer in time."),
    "58": _UNAVAILABLE,
}
# SQLite's extended result code, or the primary one that it begins with (sqlite.org/rescode.html).
_SQLITE_CODES: dict[str, _Meaning] = {
    "SQLITE_BUSY": (UnavailableError, "Another process keeps writing to the database: try again."),
    "SQLITE_CANTOPEN": (ConfigurationError, "The SQLite file cannot be opened: check SQL_URL and the folder's rights."),
    "SQLITE_CONSTRAINT": (ConflictError, "The rows that are stored do not allow this."),
    "SQLITE_CONSTRAINT_CHECK": _NOT_ALLOWED,
    "SQLITE_CONSTRAINT_FOREIGNKEY": _REFERENCE,
    "SQLITE_CONSTRAINT_NOTNULL": _MISSING,
    "SQLITE_CONSTRAINT_PRIMARYKEY": _EXISTS,
    "SQLITE_CONSTRAINT_UNIQUE": _EXISTS,
    "SQLITE_FULL": (UnavailableError, "The disk of the database is full."),
    "SQLITE_INTERRUPT": _UNAVAILABLE,
    "SQLITE_IOERR": _UNAVAILABLE,
    "SQLITE_LOCKED": _UNAVAILABLE,
    "SQLITE_MISMATCH": _WRONG_FORM,
    "SQLITE_NOTADB": (ConfigurationError, "The file that SQL_URL names is no SQLite database."),
    "SQLITE_READONLY": _READ_ONLY,
    "SQLITE_TOOBIG": (ValidationError, "A value is too long."),
}


def translated(error: Exception, *, place: str = "") -> SvcInfraError:
    """The library's error for an error of SQLAlchemy, asyncpg or sqlite3.

    Its message names neither data nor SQL: both may hold secrets. Raise it `from` the original.

    Args:
        error: What was raised.
        place: For failures to connect: which database; then the driver's own words are part of the message.
    """
    kind, detail = _meaning(error)
    if place:
        kind = ConfigurationError if kind is SvcInfraError else kind
        detail = f"{detail} ({place}: {error})"
    if kind is UnavailableError:
        return UnavailableError(detail, retry_after_seconds=1)
    return kind(detail)


def _meaning(error: Exception) -> _Meaning:
    driver = error.orig if isinstance(error, sa.StatementError) else error
    if sqlstate := getattr(driver, "sqlstate", None):
        if found := _SQLSTATES.get(sqlstate) or _SQLSTATES.get(sqlstate[:2]):
            return found
    elif name := getattr(driver, "sqlite_errorname", None):
        if found := _SQLITE_CODES.get(name) or _SQLITE_CODES.get("_".join(name.split("_")[:2])):
            return found
    elif isinstance(driver, TypeError | ValueError | AttributeError):
        return _WRONG_FORM  # a value that the column's type cannot store
    elif isinstance(driver, sqlite3.ProgrammingError) and "binding parameter" in str(driver):
        return _WRONG_FORM
    if isinstance(error, sa.DBAPIError) and error.connection_invalidated:
        return _UNAVAILABLE
    if isinstance(error, sa.InterfaceError):
        return _UNAVAILABLE
    if isinstance(error, sa.TimeoutError):
        return _NONE_FREE
    if isinstance(error, sa.NoResultFound):
        return NotFoundError, "There is nothing here."
    if isinstance(error, StaleDataError):
        return _CHANGED
    return _REFUSED
