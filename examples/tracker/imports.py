"""Importing a CSV file of tickets: checked whole when it is uploaded, stored in batches by a job."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Iterator
from itertools import islice
from typing import Annotated
from uuid import UUID

import pydantic
from sqlalchemy import update
from sqlalchemy.orm import undefer

from svc_infra.errors import ValidationError
from svc_infra.jobs import Cancel, JobContext, task
from svc_infra.webhooks import Webhooks
from tracker.counters import count_tickets
from tracker.models import Import, Priority, Status, Ticket

BATCH_ROWS = 200
MAX_ROWS = 100_000
MAX_ERRORS = 10


class Row(pydantic.BaseModel):
    """One line of the file."""

    model_config = pydantic.ConfigDict(extra="ignore", str_strip_whitespace=True)

    title: Annotated[str, pydantic.Field(min_length=1, max_length=300)]
    description: Annotated[str, pydantic.Field(max_length=10_000)] = ""
    priority: Priority = Priority.NORMAL
    status: Status = Status.OPEN


def parsed(content: bytes) -> list[Row]:
    """The rows of a CSV file (RFC 4180) in UTF-8 with a header line.

    Raises:
        ValidationError: The file cannot be read, has no `title` column, has no rows or too many, or some are wrong.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValidationError(f"The file is not UTF-8 (byte {error.start + 1}): save it as CSV UTF-8.") from None
    lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if "title" not in (lines.fieldnames or ()):
            raise ValidationError("The file has no `title` column: its first line must name the columns.")
        given = list(islice(lines, MAX_ROWS + 1))
    except csv.Error as error:
        raise ValidationError(f"Line {lines.line_num} of the file is no CSV: {error}.") from None
    if not 1 <= len(given) <= MAX_ROWS:
        raise ValidationError(f"The file must have between 1 and {MAX_ROWS:,} rows below its header line.")
    rows, errors = [], []
    for number, line in enumerate(given, start=1):
        try:
            rows.append(Row.model_validate({name: value for name, value in line.items() if name and value}))
        except pydantic.ValidationError as error:
            errors += [{"detail": f"Row {number}, {each['loc'][0]}: {each['msg']}"} for each in error.errors()]
            if len(errors) >= MAX_ERRORS:
                break
    if errors:
        raise ValidationError("Some rows of the file are wrong; nothing was imported.", errors=errors[:MAX_ERRORS])
    return rows


@task
async def store_import(import_id: UUID, job: JobContext) -> None:
    """Turn an uploaded file into tickets; an attempt goes on where the one before it stopped."""
    async with job.db.session(read_only=True) as session:
        upload = await session.get_one(Import, import_id, options=[undefer(Import.content)])
    rows = iter((await asyncio.to_thread(parsed, upload.content))[upload.rows_done :])
    done = upload.rows_done
    while batch := list(islice(rows, BATCH_ROWS)):
        async with job.db.session() as session:
            moved = update(Import).where(Import.id == upload.id, Import.rows_done == done)
            advanced = await session.execute(moved.values(rows_done=done + len(batch)).returning(Import.id))
            if advanced.first() is None:
                raise Cancel("Another attempt is ahead.")
            session.add_all(_tickets(upload, batch))
            done += len(batch)
            if done == upload.rows_total:
                payload = {"id": upload.id, "project_id": upload.project_id, "rows": done}
                await job.get(Webhooks).publish(
                    "import.finished", payload, session=session, tenant_id=upload.tenant_id, key=f"import:{upload.id}"
                )
                await count_tickets.options(session=session).enqueue(project_id=upload.project_id)
        job.progress(done, upload.rows_total)


def _tickets(upload: Import, rows: list[Row]) -> Iterator[Ticket]:
    for row in rows:
        yield Ticket(tenant_id=upload.tenant_id, project_id=upload.project_id, **row.model_dump(mode="json"))
