"""The house's own rules, read from the sources: sizes, names, what may be used where, and what nobody may write."""

from __future__ import annotations

import ast
import gc
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path, PurePath

import pytest

ROOT = Path(__file__).parent.parent

FILE_LINES = 400
FUNCTION_LINES = 60
INIT_LINES = 40
ROOM_FILES = 14
FOLDERS_DEEP = 2
SAYS_NOTHING = {"base", "common", "core", "helper", "helpers", "misc", "shared", "util", "utils"}
PACKAGE = "src/svc_infra/"
DOCUMENTED_PATHS = (f"{PACKAGE}api/fastapi/*",)  # as deep as the documented imports are
MIGRATIONS = f"{PACKAGE}db/migrations"  # a history, not a room: it only ever grows
TEMPLATES = f"{PACKAGE}mail/templates"  # texts, two for each mail


@dataclass(frozen=True)
class Source:
    """One tracked file."""

    path: str
    text: str

    @property
    def is_python(self) -> bool:
        return self.path.endswith(".py")

    @property
    def is_shipped(self) -> bool:
        return self.is_python and self.path.startswith(PACKAGE)

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree)) if self.is_python else []

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()


Rule = Callable[[Source], Iterator[str]]


@dataclass(frozen=True)
class Ban:
    """A module or function that only these files may use, and what the others do instead."""

    name: str
    instead: str
    allowed: tuple[str, ...] = ()


NOT_THE_PACKAGE = ("tests/*", "bench/*", "examples/*")
BANS = (
    Ban("fastapi", "use the room's http.py", (*NOT_THE_PACKAGE, "*/http.py", f"{PACKAGE}app/*")),
    Ban("fastapi_users", "use svc_infra.security"),
    Ban("jose", "use joserfc"),
    Ban("motor", "use pymongo's AsyncMongoClient"),
    Ban("os.environ", "add a field to config/settings.py and pass it in", (*NOT_THE_PACKAGE, f"{PACKAGE}config/*")),
    Ban("os.getenv", "add a field to config/settings.py and pass it in", (*NOT_THE_PACKAGE, f"{PACKAGE}config/*")),
    Ban("os.putenv", "pass the value in"),
    Ban("passlib", "use svc_infra.security.passwords"),
    Ban("pickle", "store JSON"),
    Ban("requests", "use svc_infra.http"),
    Ban("starlette.middleware.base", "write a class with `async def __call__(self, scope, receive, send)`"),
    Ban("time.sleep", "await the fact itself, or asyncio.sleep", ("bench/*",)),
)


def file_is_short(source: Source) -> Iterator[str]:
    limit = INIT_LINES if source.is_shipped and PurePath(source.path).name == "__init__.py" else FILE_LINES
    if source.is_python and len(source.lines) > limit:
        yield f"{source.path} has {len(source.lines)} lines and {limit} are allowed: move one noun to its own file."


def functions_are_short(source: Source) -> Iterator[str]:
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{at(source, node)}: {node.name} has {lines} lines and {FUNCTION_LINES} are allowed: split it."


def path_is_shallow(source: Source) -> Iterator[str]:
    folders = len(PurePath(source.path.removeprefix(PACKAGE)).parts) - 1
    if source.is_shipped and folders > FOLDERS_DEEP and not matches(source.path, DOCUMENTED_PATHS):
        yield f"{source.path} lies {folders} folders deep and {FOLDERS_DEEP} are allowed: move it up."


def front_door_only_opens(source: Source) -> Iterator[str]:
    if not (source.is_shipped and PurePath(source.path).name == "__init__.py"):
        return
    if ast.get_docstring(source.tree) is None:
        yield f"{source.path} has no docstring: draw the map of the room there."
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef):
            opens = node.name in ("__getattr__", "__dir__")
        elif isinstance(node, ast.If):
            opens = is_typing_only(node)
        else:
            opens = isinstance(node, ast.Expr | ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign)
        if not opens:
            yield f"{at(source, node)} is logic in a front door: move it to a file of its own."


def names_say_something(source: Source) -> Iterator[str]:
    for name in PurePath(source.path).with_suffix("").parts:
        if source.is_python and name.strip("_") in SAYS_NOTHING:
            yield f"{source.path}: {name!r} says nothing: name it by the noun that it holds."


def uses_only_what_it_may(source: Source) -> Iterator[str]:
    for line, used in names_used(source) if source.is_python else ():
        for ban in BANS:
            if f"{used}.".startswith(f"{ban.name}.") and not matches(source.path, ban.allowed):
                yield f"{source.path}:{line}: {used} may not be used here: {ban.instead}."


def swallows_nothing(source: Source) -> Iterator[str]:
    for node in source.nodes if source.is_shipped else ():
        if isinstance(node, ast.ExceptHandler):
            broad = is_broad(node.type) and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        elif isinstance(node, ast.Call):
            broad = ast.unparse(node.func).endswith("suppress") and any(is_broad(kind) for kind in node.args)
        else:
            continue
        if broad and not gives_reason(source.lines[node.lineno - 1]):
            yield f"{at(source, node)} swallows every error: name the errors, or say why: `# noqa: BLE001 - <reason>`."


def promises_nothing(source: Source) -> Iterator[str]:
    for node in source.nodes if source.is_shipped else ():
        if isinstance(node, ast.Name) and node.id == "NotImplementedError":
            yield f"{at(source, node)} raises NotImplementedError: write it, or leave it out."


def belongs_to_no_machine(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.lines, 1):
        if found := MACHINES.search(line):
            yield f"{source.path}:{number} names {found[0]!r}, a machine's own path or a download host: take it out."


def folders_are_packages(sources: Iterable[Source]) -> Iterator[str]:
    shipped = {source.path for source in sources if source.is_shipped}
    for folder in sorted({str(PurePath(path).parent) for path in shipped} - {MIGRATIONS}):
        if f"{folder}/__init__.py" not in shipped:
            yield f"{folder} has no __init__.py, so no layer and no type checker sees it: add one."


def rooms_are_small(sources: Iterable[Source]) -> Iterator[str]:
    folders = Counter(str(PurePath(source.path).parent) for source in sources if source.is_shipped)
    for folder, files in folders.items():
        if files > ROOM_FILES and folder not in (MIGRATIONS, TEMPLATES):
            yield f"{folder} has {files} files and {ROOM_FILES} are allowed: it is two rooms."


RULES: tuple[Rule, ...] = (
    file_is_short,
    functions_are_short,
    path_is_shallow,
    front_door_only_opens,
    names_say_something,
    uses_only_what_it_may,
    swallows_nothing,
    promises_nothing,
    belongs_to_no_machine,
)
MACHINES = re.compile(
    r"(?<![\w.}~-])/(?:work|root|opt|home/\w+|Users/\w+)/"
    r"|py[p]i\.org|python[h]osted|npm[j]s\.|registry\.yar[n]pkg|deb\.debia[n]"
)


def report(complaints: Iterable[str]) -> None:
    if found := "\n".join(complaints):
        pytest.fail(f"\n{found}", pytrace=False)


def at(source: Source, node: ast.stmt | ast.expr | ast.ExceptHandler) -> str:
    return f"{source.path}:{node.lineno}"


def matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def is_typing_only(node: ast.If) -> bool:
    return ast.unparse(node.test).endswith("TYPE_CHECKING")


def is_broad(kind: ast.expr | None) -> bool:
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(one is None or ast.unparse(one) in ("Exception", "BaseException") for one in kinds)


def gives_reason(line: str) -> bool:
    _, _, comment = line.partition("#")
    return len(re.sub(r"noqa: BLE001|[^\w\s]", "", comment).split()) >= 3


def names_used(source: Source) -> Iterator[tuple[int, str]]:
    """What the module imports, and what it reaches through those imports, as full dotted names."""
    local: dict[str, str] = {}
    only_typed = set(typing_only(source)) if source.path.endswith("/add.py") else set()
    for node in source.nodes:
        if isinstance(node, ast.Import) and node not in only_typed:
            for alias in node.names:
                top = alias.name.partition(".")[0]
                local[alias.asname or top] = alias.name if alias.asname else top
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node not in only_typed:
            for alias in node.names:
                local[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield node.lineno, f"{node.module}.{alias.name}"
    for node in source.nodes:
        if isinstance(node, ast.Attribute):
            root, _, rest = dotted(node).partition(".")
            if root in local:
                yield node.lineno, f"{local[root]}.{rest}"


def dotted(node: ast.expr) -> str:
    """`a.b.c` as it is written; empty where it does not begin with a name."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def typing_only(source: Source) -> Iterator[ast.AST]:
    """Everything under `if TYPE_CHECKING:`, which is how an `add.py` names the app's class."""
    for node in source.nodes:
        if isinstance(node, ast.If) and is_typing_only(node):
            for statement in node.body:
                yield from ast.walk(statement)


@pytest.fixture(scope="module", autouse=True)
def _garbage_is_left() -> Iterator[None]:
    """Half a million nodes stay until the end: looking for garbage among them takes longer than to read them."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    """Every text file that is, or is about to be, in the repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = []
    for path in sorted(listed.split("\0")):
        if (ROOT / path).is_file():
            try:
                found.append(Source(path, (ROOT / path).read_text()))
            except UnicodeDecodeError:
                continue
    assert any(source.path == f"{PACKAGE}errors.py" for source in found)
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule, sources: list[Source]) -> None:
    report(complaint for source in sources for complaint in rule(source))


@pytest.mark.parametrize("rule", [rooms_are_small, folders_are_packages], ids=lambda rule: rule.__name__)
def test_every_folder_keeps_the_rule(rule: Callable[[Iterable[Source]], Iterator[str]], sources: list[Source]) -> None:
    report(rule(sources))


ROOM = f"{PACKAGE}room/"


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (file_is_short, f"{ROOM}noun.py", "x = 1\n" * 401),
        (file_is_short, f"{ROOM}__init__.py", "x = 1\n" * 41),
        (functions_are_short, f"{ROOM}noun.py", "async def f():\n" + "    x = 1\n" * 60),
        (functions_are_short, "tests/room/test_noun.py", "class A:\n  def f(self):\n" + "    x = 1\n" * 60),
        (path_is_shallow, f"{ROOM}a/b/c.py", ""),
        (front_door_only_opens, f"{ROOM}__init__.py", "from svc_infra.errors import ConflictError"),
        (front_door_only_opens, f"{ROOM}__init__.py", "'''The room.'''\ndef add_room(app): ..."),
        (names_say_something, f"{ROOM}utils.py", ""),
        (names_say_something, f"{PACKAGE}_common/noun.py", ""),
        (uses_only_what_it_may, f"{ROOM}noun.py", "from fastapi import FastAPI"),
        (uses_only_what_it_may, f"{ROOM}add.py", "def f():\n    import fastapi.routing"),
        (uses_only_what_it_may, f"{ROOM}noun.py", "if TYPE_CHECKING:\n    from fastapi import FastAPI"),
        (uses_only_what_it_may, f"{ROOM}noun.py", "import os\nx = os.environ['A']"),
        (uses_only_what_it_may, f"{ROOM}noun.py", "import os as o\nx = o.getenv('A')"),
        (uses_only_what_it_may, f"{PACKAGE}cli/demo.py", "from os import environ"),
        (uses_only_what_it_may, "tests/test_noun.py", "import time\ntime.sleep(1)"),
        (uses_only_what_it_may, f"{ROOM}noun.py", "from starlette.middleware.base import BaseHTTPMiddleware"),
        (uses_only_what_it_may, f"{ROOM}noun.py", "import pickle"),
        (swallows_nothing, f"{ROOM}noun.py", "try:\n    f()\nexcept Exception:\n    pass"),
        (
            swallows_nothing,
            f"{ROOM}noun.py",
            "try:\n    f()\nexcept (ValueError, Exception):  # noqa: BLE001\n    pass",
        ),
        (swallows_nothing, f"{ROOM}noun.py", "try:\n    f()\nexcept:\n    log()"),
        (swallows_nothing, f"{ROOM}noun.py", "with contextlib.suppress(Exception):\n    f()"),
        (promises_nothing, f"{ROOM}noun.py", "def f():\n    raise NotImplementedError('later')"),
        (belongs_to_no_machine, "README.md", "Look in /ho" + "me/me/project/notes."),
        (belongs_to_no_machine, "requirements/dev.txt", "--index-url https://py" + "pi.org/simple"),
    ],
)
def test_the_rule_finds_a_planted_violation(rule: Rule, path: str, text: str) -> None:
    complaints = list(rule(Source(path, text)))
    assert len(complaints) == 1
    assert path in complaints[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (f"{ROOM}__init__.py", "'The room.'\nfrom svc_infra.errors import ConflictError\n__all__ = ['ConflictError']"),
        (f"{ROOM}http.py", "from fastapi import Depends"),
        (f"{PACKAGE}app/factory.py", "from fastapi import FastAPI"),
        (f"{PACKAGE}api/fastapi/tenancy/context.py", "from svc_infra.tenancy.http import resolve_tenant_id"),
        (f"{ROOM}add.py", "if TYPE_CHECKING:\n    from fastapi import FastAPI"),
        (f"{PACKAGE}config/secrets.py", "import os\nx = os.environ.get('A')"),
        (f"{ROOM}noun.py", "try:\n    f()\nexcept Exception as error:\n    raise Other() from error"),
        (f"{ROOM}noun.py", "try:\n    f()\nexcept Exception:  # noqa: BLE001 - a task may raise anything\n    fail()"),
        (f"{ROOM}noun.py", "requests = []\nrequests.append(1)"),
        ("README.md", "`GET /api/work/items` and $HOME/project/notes"),
    ],
)
def test_the_rules_leave_a_good_file_alone(path: str, text: str) -> None:
    assert not [complaint for rule in RULES for complaint in rule(Source(path, text))]


def test_a_room_of_fifteen_files_is_two_rooms() -> None:
    assert not list(rooms_are_small(Source(f"{ROOM}file_{number}.py", "") for number in range(14)))
    assert len(list(rooms_are_small(Source(f"{ROOM}file_{number}.py", "") for number in range(15)))) == 1


def test_a_folder_without_a_front_door_is_found() -> None:
    assert not list(folders_are_packages([Source(f"{ROOM}__init__.py", ""), Source(f"{ROOM}noun.py", "")]))
    assert len(list(folders_are_packages([Source(f"{ROOM}noun.py", "")]))) == 1
