from __future__ import annotations

from email import message_from_bytes, policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.errors import ValidationError
from svc_infra.mail import Message

LINE_ENDS = ["\n", "\r", "\r\n", "\x00", "\x0b", "\x85", "\u2028", "\u2029"]


@pytest.mark.parametrize("end", LINE_ENDS, ids=ascii)
@pytest.mark.parametrize("field", ["to", "subject", "id"])
def test_no_value_begins_another_header(field: str, end: str) -> None:
    good = {"to": "ana@example.com", "subject": "Hello", "text": "Hi"}
    with pytest.raises(ValidationError):
        Message(**{**good, field: f"ana@example.com{end}Bcc: eve@example.com"})


@pytest.mark.parametrize(
    "to", ["", "ana", "ana@", "a@b@example.com", "ana@example.com, eve@example.com", "Ana <ana@example.com>", "x" * 600]
)
def test_a_mail_goes_to_one_address(to: str) -> None:
    with pytest.raises(ValidationError):
        Message(to=to, subject="Hello", text="Hi")


def test_a_body_has_a_limit() -> None:
    with pytest.raises(ValidationError):
        Message(to="ana@example.com", subject="Hello", text="x" * (1024 * 1024 + 1))


def test_it_is_sent_as_text_and_html_and_says_that_a_machine_wrote_it() -> None:
    message = Message(to="ana@example.com", subject="Grüße 🐎", text="Häng", html="<p>Häng</p>", id="42")
    sent = message.as_email("Shop <no-reply@shop.example>")
    read = message_from_bytes(sent.as_bytes(), policy=policy.default)
    assert (read["From"], read["To"], read["Subject"]) == (
        "Shop <no-reply@shop.example>",
        "ana@example.com",
        "Grüße 🐎",
    )
    assert (read["Message-ID"], read["Auto-Submitted"]) == ("<42@shop.example>", "auto-generated")
    kinds = [part.get_content_type() for part in read.walk()]
    assert kinds == ["multipart/alternative", "text/plain", "text/html"]


@given(subject=st.text(max_size=600), text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=50))
def test_whatever_is_accepted_has_the_headers_that_it_should(subject: str, text: str) -> None:
    try:
        message = Message(to="ana@example.com", subject=subject, text=text)
        sent = message.as_email("no-reply@shop.example").as_bytes()
    except (ValidationError, UnicodeEncodeError):
        return
    read = message_from_bytes(sent, policy=policy.compat32)
    assert [name for name in read.keys() if name.lower() in ("bcc", "cc")] == []  # noqa: SIM118
    assert read["To"] == "ana@example.com"
