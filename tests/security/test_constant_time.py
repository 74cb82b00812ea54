"""The house's rule on secrets: compared by `hmac.compare_digest`, whose time tells nothing, or looked up by a hash."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src/svc_infra"
SECRET = re.compile(
    r"(^|_)(token|secret|hash|hashed|digest|signature|h?mac|seal|sealed|password|cookie|csrf|nonce|otp|code)s?($|_)"
)
IS_NO_SECRET = re.compile(r"token_(type|cache)|(status|error)_code|sqlstate")
ALLOWED = {  # what is compared, and why its time tells nothing
    "AccountLink.token_hash == _hashed(token)": "in SQL: a hash is looked up",
    "Challenge.secret_hash == hashed(token)": "in SQL: a hash is looked up",
    "Challenge.secret_hash == hashed(_challenge_in(credential))": "in SQL: a hash is looked up",
    "Invitation.token_hash == _hashed(token)": "in SQL: a hash is looked up",
    "RecoveryCode.code_hash == hashed(code)": "in SQL: a hash is looked up",
    "RefreshToken.token_hash == _hashed(token)": "in SQL: a hash is looked up",
    "desk.user_model.password_hash == user.password_hash": "in SQL: both were stored; did the row change meanwhile?",
    "_OF.token == bindparam('held_token')": "in SQL: a fencing token, which opens nothing",
    "_c.token == sa.bindparam('held_token')": "in SQL: a fencing token, which opens nothing",
    "entry.job.token != job.token": "a fencing token, which opens nothing",
    "stored.tags != tokens": "versions of cache tags, which open nothing",
    "kind.code == code": "the code of a kind of error",
    "model.password_hash == user.password_hash": "in SQL: both were stored; did the row change meanwhile?",
}


def comparisons(source: str) -> Iterator[tuple[int, str]]:
    """Where something that is named like a secret is compared by `==` or `!=`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for operator, left, right in zip(node.ops, sides, sides[1:], strict=False):
                pair = (left, right)
                is_equality = isinstance(operator, ast.Eq | ast.NotEq) and not any(map(is_constant, pair))
                if is_equality and any(map(is_secret, pair)):
                    yield node.lineno, ast.unparse(node)


def is_constant(node: ast.expr) -> bool:
    """Whether this is written in the source: nothing to guess."""
    return isinstance(node, ast.Constant) or (isinstance(node, ast.Name | ast.Attribute) and name_of(node).isupper())


def is_secret(node: ast.expr) -> bool:
    name = name_of(node)
    return SECRET.search(name.lower()) is not None and IS_NO_SECRET.search(name) is None


def name_of(node: ast.expr) -> str:
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return node.attr
        case ast.Call():
            return name_of(node.func)
        case ast.Subscript(slice=ast.Constant(value=str(key))):
            return key
        case ast.Subscript():
            return name_of(node.value)
        case _:
            return ""


FOUND = [
    (f"{file.relative_to(PACKAGE)}:{line}", text)
    for file in sorted(PACKAGE.rglob("*.py"))
    for line, text in comparisons(file.read_text())
]


def test_no_secret_is_compared_by_an_operator() -> None:
    wrong = [f"{place}: {text}" for place, text in FOUND if text not in ALLOWED]
    assert not wrong, "Use hmac.compare_digest, or say in ALLOWED why its time tells nothing:\n" + "\n".join(wrong)


def test_every_exception_still_exists() -> None:
    assert set(ALLOWED) - {text for _, text in FOUND} == set()


@pytest.mark.parametrize(
    "line",
    [
        "if token == given: ...",
        "ok = row.token_hash != sent",
        "return request.headers['x-signature'] == mac(body)",
        "x = digest(a) == digest(b)",
        "x = secrets[0] == other",
        "x = a < b and api_secret == c",
    ],
)
def test_a_planted_comparison_is_found(line: str) -> None:
    source = f"def f():\n    {line}" if "return" in line else line
    assert len(list(comparisons(source))) == 1


@pytest.mark.parametrize(
    "line", ["hmac.compare_digest(token, given)", "token is None", "token == ''", "kind == OTHER_TOKEN", "a == b"]
)
def test_what_tells_nothing_is_left_alone(line: str) -> None:
    assert list(comparisons(line)) == []
