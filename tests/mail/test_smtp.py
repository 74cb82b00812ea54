"""Against a server on a socket."""

from __future__ import annotations

import asyncio

import pytest

from svc_infra.errors import UnavailableError, ValidationError
from svc_infra.mail import Message
from svc_infra.mail._smtp import SmtpSender
from tests.mail.conftest import SmtpServer, serving

MESSAGE = Message(to="ana@example.com", subject="Hello", text="Hi\n.\nstill here\n", html="<p>Hi</p>", id="42")


def sender_to(port: int, **options: object) -> SmtpSender:
    chosen = {"port": port, "sender": "Shop <no-reply@shop.example>", "tls": "none", "timeout_seconds": 5, **options}
    return SmtpSender("127.0.0.1", **chosen)  # type: ignore[arg-type]


async def test_a_mail_arrives_as_it_was_written(smtp: SmtpServer) -> None:
    await sender_to(smtp.port).send(MESSAGE)
    [mail] = await smtp.wait_for(1)
    assert (mail["To"], mail["Subject"], mail["Message-ID"]) == ("ana@example.com", "Hello", "<42@shop.example>")
    text = mail.get_body(("plain",))
    assert text is not None
    assert text.get_content().splitlines() == ["Hi", ".", "still here"]
    assert smtp.envelopes[0].mail_from == "no-reply@shop.example"


async def test_an_address_in_another_script_is_reached(smtp: SmtpServer) -> None:
    await sender_to(smtp.port).send(Message(to="josé@bücher.example", subject="Hello", text="Hi"))
    await smtp.wait_for(1)
    assert smtp.envelopes[0].rcpt_tos == ["josé@bücher.example"]


@pytest.mark.parametrize(
    ("rcpt", "data", "error"),
    [
        ("550 no such user", "250 OK", ValidationError),
        ("450 busy", "250 OK", UnavailableError),
        ("250 OK", "554 looks like spam", ValidationError),
        ("250 OK", "451 try later", UnavailableError),
    ],
)
async def test_a_refusal_says_whether_to_try_again(rcpt: str, data: str, error: type[Exception]) -> None:
    async with serving(SmtpServer(rcpt=(rcpt,), data=(data,))) as server:
        with pytest.raises(error):
            await sender_to(server.port).send(MESSAGE)
        await sender_to(server.port).send(MESSAGE)
        assert len(server.taken) == 1


async def test_a_server_that_is_away_or_says_nothing_is_tried_again_later() -> None:
    async with serving(SmtpServer()) as server:
        port = server.port
    with pytest.raises(UnavailableError):
        await sender_to(port).send(MESSAGE)

    left = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        left.set()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listening:
        with pytest.raises(UnavailableError):
            await sender_to(listening.sockets[0].getsockname()[1], timeout_seconds=0.05).send(MESSAGE)
        await left.wait()


async def test_no_mail_leaves_in_the_clear_unless_that_was_asked_for(smtp: SmtpServer) -> None:
    with pytest.raises(UnavailableError):
        await sender_to(smtp.port, tls="starttls").send(MESSAGE)
    assert smtp.taken == []
