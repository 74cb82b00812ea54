"""Reading a CSV file of tickets."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.errors import ValidationError
from tracker.demo import TICKETS
from tracker.imports import MAX_ERRORS, MAX_ROWS, parsed
from tracker.models import Priority, Status


def test_the_shipped_file_is_read_whole() -> None:
    rows = parsed(TICKETS.read_bytes())
    assert len(rows) == 40
    assert rows[2].description == 'Importing "Ortiz, Ana" splits the name in two columns.'
    assert any("\n" in row.description for row in rows)
    assert {row.priority for row in rows} == set(Priority)
    assert {row.status for row in rows} == set(Status)


def test_missing_columns_and_empty_cells_take_the_defaults() -> None:
    (row,) = parsed(b"\xef\xbb\xbftitle,priority,extra\n fine ,,x\n")
    assert (row.title, row.description, row.priority, row.status) == ("fine", "", Priority.NORMAL, Status.OPEN)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("title\ncafé\n".encode("latin-1"), "not UTF-8"),
        (b"\xff\xfet\x00i\x00", "not UTF-8"),
        (b"", "`title` column"),
        (b"name\nx\n", "`title` column"),
        (b"title,description\n", "between 1 and"),
        (b'title\n"unclosed', "is no CSV"),
        (b"title\n" + b"x\n" * (MAX_ROWS + 1), "between 1 and"),
    ],
)
def test_a_broken_file_is_refused_with_one_clear_sentence(content: bytes, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        parsed(content)


def test_wrong_rows_are_named_by_number_and_column_and_bounded() -> None:
    with pytest.raises(ValidationError, match="nothing was imported") as refused:
        parsed(b"title,priority\nfine,low\n,low\nwrong,apocalyptic\n" + b"wrong,x\n" * 50)
    details = [str(error["detail"]) for error in refused.value.errors]
    assert details[0].startswith("Row 2, title:")
    assert details[1].startswith("Row 3, priority:")
    assert len(details) == MAX_ERRORS


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_and_nothing_else_is_raised(content: bytes) -> None:
    with suppress(ValidationError):
        assert parsed(content)
