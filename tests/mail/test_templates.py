from __future__ import annotations

from pathlib import Path

import pytest

from svc_infra.errors import ConfigurationError, ValidationError
from svc_infra.mail import Templates
from svc_infra.mail.queue import NOBODY
from svc_infra.security.accounts import LinkKind
from svc_infra.security.accounts.credentials import EMAIL_CHANGED, PASSWORD_CHANGED
from svc_infra.security.mfa.email_codes import CODE_MAIL
from svc_infra.security.mfa.factors import ENROLLED_MAIL, REMOVED_MAIL, RESET_MAIL
from svc_infra.security.mfa.login import RECOVERY_LOW_MAIL

TO = "ana@example.com"


def templates(folder: Path | None = None, app: str = "Shop") -> Templates:
    return Templates({"app": app}, base_url="https://shop.example/", folder=folder)


@pytest.mark.parametrize("kind", LinkKind)
def test_every_link_that_accounts_send_is_absolute_in_text_and_html(kind: LinkKind) -> None:
    message = templates().render(kind, TO, {"link": "/page#token"})
    assert "Shop" in message.subject
    assert message.html is not None
    if kind is not LinkKind.AGAIN:
        assert "https://shop.example/page#token" in message.text
        assert 'href="https://shop.example/page#token"' in message.html
    assert "$" not in message.text + message.html + message.subject


@pytest.mark.parametrize(
    "name",
    [PASSWORD_CHANGED, EMAIL_CHANGED, ENROLLED_MAIL, REMOVED_MAIL, RESET_MAIL, RECOVERY_LOW_MAIL, CODE_MAIL],
)
def test_every_notice_that_accounts_send_can_be_written(name: str) -> None:
    values = {"email": "new@example.com", "factor": "Phone", "left": "3", "code": "12345678"}
    message = templates().render(name, NOBODY, values)
    assert "Shop" in message.subject
    assert message.html is not None
    assert "$" not in message.text + message.html


def test_the_offer_to_link_an_identity_leads_to_a_page() -> None:
    message = templates().render("oauth_offer", TO, {"provider": "google", "link": "/link-account#token"})
    assert message.subject == "Log in to Shop with google"
    for text in (message.text, message.html or ""):
        assert "https://shop.example/link-account#token" in text
        assert "$" not in text


def test_the_notice_of_a_leaked_key_shows_what_its_finder_says_as_text() -> None:
    message = templates().render("key_leaked", TO, {"name": "ci", "hint": "aB3x", "found_at": "<a href=x>"})
    assert "&lt;a href=x&gt;" in (message.html or "")
    assert "aB3x" in message.text
    assert "$" not in message.text + (message.html or "") + message.subject


def test_values_are_escaped_in_html_and_not_in_text(tmp_path: Path) -> None:
    (tmp_path / "hello.txt").write_text("Subject: Hello $name\n\nDear $name: $link\n")
    (tmp_path / "hello.html").write_text('<a href="$link">$name</a>')
    nasty = {"name": "<script>alert('x')</script> & Söhne", "link": '/"><img src=x>'}
    message = templates(tmp_path).render("hello", TO, nasty)
    assert nasty["name"] in message.text
    assert message.html is not None
    assert "<script>" not in message.html
    assert "<img" not in message.html
    assert "&lt;script&gt;" in message.html


def test_a_value_cannot_name_another_value(tmp_path: Path) -> None:
    (tmp_path / "hello.txt").write_text("Subject: Hello\n\n$name $secret\n")
    message = templates(tmp_path).render("hello", TO, {"name": "$secret ${secret}", "secret": "hidden"})
    assert message.text == "$secret ${secret} hidden\n"
    assert message.html is None


def test_an_apps_own_template_comes_first(tmp_path: Path) -> None:
    (tmp_path / "verify.txt").write_text("Subject: Ciao\n\n$link\n")
    own = templates(tmp_path)
    message = own.render("verify", TO, {"link": "/x"})
    assert (message.subject, message.text) == ("Ciao", "https://shop.example/x\n")
    assert "Shop" in own.render("reset", TO, {"link": "/x"}).subject


@pytest.mark.parametrize("name", ["nothing", "../verify", "Verify", "", "verify.txt", "a" * 70])
def test_what_is_no_template_is_told(name: str) -> None:
    with pytest.raises(ConfigurationError):
        templates().render(name, TO, {})


@pytest.mark.parametrize(
    "text", ["no subject", "Subject: $missing\n\nx", "Subject: x\n\n$missing", "Subject: x\n\n$ 5"]
)
def test_a_template_that_cannot_be_written_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "broken.txt").write_text(text)
    with pytest.raises(ConfigurationError):
        templates(tmp_path).render("broken", TO, {})


def test_a_value_cannot_begin_a_header(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        templates(app="Shop\nBcc: eve@example.com").render("verify", TO, {"link": "/x"})


def test_a_link_to_elsewhere_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "hello.txt").write_text("Subject: Hello\n\n$link\n")
    assert templates(tmp_path).render("hello", TO, {"link": "https://x.example/"}).text == "https://x.example/\n"
