from __future__ import annotations

import json
import logging
import re
import sys
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svc_infra.app.logging import setup_logging as documented_setup_logging
from svc_infra.config import AppSettings, LogSettings, Settings
from svc_infra.errors import ConfigurationError
from svc_infra.obs.context import Context, enter, leave
from svc_infra.obs.logging import Answered, LineHandler, adopt_libraries, log_request, setup_logging
from svc_infra.obs.redact import MAX_TEXT_CHARS
from svc_infra.observability import logger
from tests.obs.log_capture import captured, kept_logging

REQUEST = Answered("GET", "/users/42", "/users/{id}", 200, 5, 0.0015, 0.001, "192.0.2.1")
SETTINGS = Settings()


class Untouchable:
    def __str__(self) -> str:
        raise AssertionError("a line that is not written was rendered")


def test_a_line_says_when_where_and_what() -> None:
    with captured() as output:
        logger.info("order.created", user_id=1)
    line = output.only("order.created")
    assert list(line) == ["time", "level", "logger", "pid", "message", "user_id"]
    assert (line["level"], line["logger"], line["user_id"]) == ("INFO", "app", 1)
    time = datetime.fromisoformat(line["time"])
    assert line["time"].endswith("Z")
    assert time.utcoffset() == timedelta(0)


def test_fields_come_as_keywords_or_as_extra_or_bound() -> None:
    with captured() as output:
        logger.info("Creating order", extra={"user_id": 1})
        logger.bind(user_id=1, step="a").info("Creating order", step="b")
    first, second = output.lines
    assert first["user_id"] == second["user_id"] == 1
    assert second["step"] == "b"


def test_every_line_carries_what_is_known_of_the_request() -> None:
    token = enter(Context(request_id="r-1", trace_id="t" * 32, tenant_id="acme", principal_id="u-1", job_id="j-1"))
    try:
        with captured() as output:
            logger.warning("by the logger", tenant_id="other")
            logging.getLogger("some.library").warning("by a library")
    finally:
        leave(token)
    for line in output.lines:
        known = [line[name] for name in ("request_id", "trace_id", "tenant_id", "principal_id", "job_id")]
        assert known == ["r-1", "t" * 32, "acme", "u-1", "j-1"]
    assert output.only("by the logger")["tenant_id_"] == "other"


def test_a_field_never_takes_the_place_of_a_part_of_the_line() -> None:
    with captured() as output:
        logger.info(
            "true", level="fake", time="fake", logger="fake", pid="fake", message="fake", name="kept", args="kept"
        )
    line = output.only("true")
    assert (line["level"], line["logger"]) == ("INFO", "app")
    assert (line["level_"], line["message_"], line["name"], line["args"]) == ("fake", "fake", "kept", "kept")


def test_an_exception_is_told_by_type_message_and_stack_without_its_secrets() -> None:
    with captured() as output:
        try:
            raise ConfigurationError("cannot reach postgresql://app:hunter2@db/app")
        except ConfigurationError as error:
            logger.exception("failed.handled")
            kept = error
        logger.error("failed.given", exc_info=kept)
        logger.error("failed.as_field", error=kept)
        logger.error("failed.told", error="disk full")
    for message in ("failed.handled", "failed.given", "failed.as_field"):
        told = output.only(message)["error"]
        assert told["type"] == "svc_infra.errors.ConfigurationError"
        assert told["message"] == "cannot reach postgresql://app:[redacted]@db/app"
        assert "test_logging.py" in told["stack"]
    assert output.only("failed.told")["error"] == {"message": "disk full"}
    assert "hunter2" not in output.text


def test_a_stack_without_end_keeps_its_end() -> None:
    def fall(depth: int) -> None:
        if depth == 0:
            raise ValueError("bottom " + "x" * 3 * MAX_TEXT_CHARS)
        fall(depth - 1)

    with captured() as output:
        try:
            fall(900)
        except ValueError:
            logger.exception("deep")
    error = output.only("deep")["error"]
    assert error["message"].endswith("characters cut]")
    assert error["stack"].endswith("xxx\n")
    assert len(output.text) < 3 * MAX_TEXT_CHARS


def test_secrets_are_redacted_wherever_the_line_holds_them() -> None:
    with captured() as output:
        logger.info("login with Bearer abc.SECRET", password="SECRET", user={"token": "SECRET", "name": "ada"})
        logging.getLogger("x").info("url %s", "redis://:SECRET@cache/0", extra={"api_key": "SECRET"})
    assert "SECRET" not in output.text
    assert output.lines[0]["user"] == {"token": "[redacted]", "name": "ada"}


def test_a_long_message_and_a_long_field_are_cut_and_marked() -> None:
    with captured() as output:
        logger.info("m" * (MAX_TEXT_CHARS + 5), field="f" * (MAX_TEXT_CHARS + 9))
    (line,) = output.lines
    assert line["message"] == "m" * MAX_TEXT_CHARS + " [5 characters cut]"
    assert line["field"].endswith("f [9 characters cut]")


FIELDS = st.dictionaries(
    st.text(st.characters(), min_size=1, max_size=8),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters()), st.binary()),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
        max_leaves=5,
    ),
    max_size=4,
)


@settings(deadline=None)
@given(message=st.text(st.characters()), fields=FIELDS)
def test_whatever_is_logged_is_one_line_of_valid_json(message: str, fields: dict[str, Any]) -> None:
    with captured(settings=SETTINGS) as output:
        logger.info(message, extra=fields)
    assert len(output.text.splitlines()) == 1
    line = json.loads(output.text)
    assert line["level"] == "INFO"
    assert line["logger"] == "app"


@settings(deadline=None)
@given(message=st.text(st.characters()), fields=FIELDS)
def test_a_readable_line_cannot_be_made_to_look_like_two_or_to_steer_a_terminal(
    message: str, fields: dict[str, Any]
) -> None:
    with captured(fmt="plain", settings=SETTINGS) as output:
        logger.info(message, extra=fields)
    (line,) = output.text.splitlines()
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", line)


def test_a_readable_line_shows_fields_and_the_stack() -> None:
    with captured(fmt="plain") as output:
        logger.info("order.created", user_id=1, note="two words")
        try:
            raise ValueError("no\x1b[2J")
        except ValueError:
            logger.exception("order.failed")
    first, second, *stack = output.text.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} \[info +\] order\.created .*user_id=1 note='two words'", first)
    assert "order.failed" in second
    assert stack[0] == "Traceback (most recent call last):"
    assert stack[-1] == r"ValueError: no\x1b[2J"


def test_a_line_below_the_level_is_not_even_rendered() -> None:
    with captured("WARNING") as output:
        logger.info("%s", Untouchable(), field=Untouchable())
        logger.debug("%s", Untouchable())
        log_request(REQUEST._replace(path=cast(str, Untouchable())))
    assert output.text == ""


def test_libraries_and_the_application_are_written_alike() -> None:
    with captured() as output:
        logging.getLogger("alembic.autogenerate.compare").info("Running upgrade %s", "a -> b", extra={"rows": 3})
        logging.getLogger("sqlalchemy.pool").warning("slow")
        logging.getLogger("uvicorn.error").info("Started", extra={"color_message": "\x1b[1mStarted"})
    first, second, third = output.lines
    assert (first["message"], first["rows"], first["logger"]) == (
        "Running upgrade a -> b",
        3,
        "alembic.autogenerate.compare",
    )
    assert second["logger"] == "sqlalchemy.pool"
    assert "color_message" not in third


def test_uvicorns_own_handlers_and_its_access_log_are_switched_off() -> None:
    import uvicorn

    with captured() as output:
        uvicorn.Config(app="none:app")  # brings its handlers, as `uvicorn.run` does after the app was made
        assert logging.getLogger("uvicorn").handlers
        access = logging.getLogger("uvicorn.access")
        access.propagate = True
        adopt_libraries()
        logging.getLogger("uvicorn.error").info("Uvicorn running")
        access.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1", "GET", "/", "1.1", 200)
        assert not access.hasHandlers()  # by which uvicorn decides whether to write at all
    assert [line["message"] for line in output.lines] == ["Uvicorn running"]


def test_setting_up_twice_writes_each_line_once_and_the_last_set_up_stands() -> None:
    with captured("WARNING", "plain") as output:
        setup_logging("INFO", "json")
        documented_setup_logging("INFO", "json")
        logger.info("once")
    assert [line["message"] for line in output.lines] == ["once"]


def test_other_handlers_of_the_root_logger_are_left_alone() -> None:
    with kept_logging() as root:
        mine = logging.NullHandler()
        root.addHandler(mine)
        setup_logging("INFO")
        assert mine in root.handlers


@pytest.mark.parametrize(("environment", "is_json"), [("prod", True), ("test", True), ("dev", True), ("local", False)])
def test_every_environment_writes_json_but_local_which_writes_for_people(
    environment: str, is_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_ENV", environment)
    with captured(None, None) as output:
        logger.info("hello")
    assert output.text.startswith("{") is is_json


def test_what_the_environment_says_is_used_where_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "ERROR")
    monkeypatch.setenv("LOG_FORMAT", "json")
    monkeypatch.setenv("LOG_DROP_PATHS", "/quiet, /also-quiet")
    with captured(None, None) as output:
        logger.warning("too low")
        logger.error("loud")
        logging.getLogger().setLevel("INFO")
        for path in ("/quiet", "/also-quiet", "/heard"):
            log_request(REQUEST._replace(path=path))
    assert [line["message"] for line in output.lines] == ["loud", "GET /heard 200"]


def test_the_settings_of_an_app_are_used_where_they_are_given() -> None:
    quiet = Settings(app=AppSettings(env="prod"), log=LogSettings(level="WARNING"))
    with captured(None, None, settings=quiet) as output:
        logger.info("quiet")
        logger.warning("loud")
    assert [line["message"] for line in output.lines] == ["loud"]


@pytest.mark.parametrize(("level", "fmt"), [("LOUD", None), (None, "xml")])
def test_a_level_or_format_that_does_not_exist_is_refused(level: str | None, fmt: str | None) -> None:
    with kept_logging(), pytest.raises(ConfigurationError, match=level or fmt):
        setup_logging(level, fmt)


@pytest.mark.parametrize("fmt", ["json", "plain"])
def test_an_access_line_is_the_same_with_and_without_the_detour_of_a_record(fmt: str) -> None:
    with captured(fmt=fmt, drop_paths=["/quiet"]) as output:
        log_request(REQUEST)
        log_request(REQUEST._replace(path="/quiet"))
        log_request(REQUEST._replace(path="/below/quiet", route="/quiet"))
        logging.getLogger().addHandler(logging.NullHandler())  # anything else that listens gets a record
        log_request(REQUEST)
        log_request(REQUEST._replace(path="/quiet"))
        log_request(REQUEST._replace(path="/below/quiet", route="/quiet"))
    direct, detoured = [re.sub(r"\d\d:\d\d:\d\d\.\d+", "", line) for line in output.text.splitlines()]
    assert direct == detoured
    assert "svc_infra.access" in direct


def test_others_who_listen_get_access_lines_as_records(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        log_request(REQUEST)
    assert caplog.messages == ["GET /users/42 200"]


def test_a_handler_that_cannot_write_fails_nobody(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = LineHandler(as_json=True)
    record = logging.makeLogRecord({"msg": "%d", "args": ("not a number",), "levelname": "INFO", "name": "x"})
    handler.emit(record)
    assert "Logging error" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stderr", None)
    handler.emit(record)
    handler.write_request(REQUEST)
