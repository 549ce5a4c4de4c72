"""The rules of the house that no linter knows: names, places and what the import costs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kvsage

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kvsage"

TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "LICENSE",
    "Makefile",
    "README.md",
    "bench",
    "docs",
    "kvsage",
    "pyproject.toml",
    "tests",
    "tools",
}
BUILT = {"__pycache__", "dist"}
LOCK_FILES = re.compile(r"(uv|poetry|pdm|Pipfile)\.lock|pylock(\..+)?\.toml")
JUNK_DRAWERS = {"common", "core", "helpers", "misc", "util", "utils"}

# Written so that no expression matches its own text.
OPEN_WORK = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X])\b")
REGISTRY = re.compile(
    r"index[-_]url|find[-_]links|trusted[-_]host|tool\.uv\.inde[x]"
    r"|https?://[^\s\"'`>)]*(/simple\b|\.whl\b|\.tar\.gz\b)"
)
LMDB_IMPORT = re.compile(r"^\s*(import|from)\s+lmdb\b", re.MULTILINE)

# Loaded by the first use of what needs them, never by `import kvsage`.
LAZY = {"asyncio", "click", "multiprocessing", "psycopg", "redis", "rich", "sqlite3", "yaml"}


def top_level() -> Iterator[Path]:
    """Yield what is part of the project, and no caches or environments."""
    for path in sorted(ROOT.iterdir()):
        hidden = path.name.startswith(".") and path.name not in TOP_LEVEL
        if not hidden and path.name not in BUILT:
            yield path


def project_files(suffix: str = "") -> Iterator[Path]:
    for top in top_level():
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            built = BUILT & set(path.relative_to(ROOT).parts)
            if path.is_file() and not built and path.name.endswith(suffix):
                yield path


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_top_level_holds_only_the_agreed_names():
    assert {path.name for path in top_level()} <= TOP_LEVEL


def test_every_module_says_what_it_is_for():
    silent = [
        shown(path)
        for path in project_files(".py")
        if path.is_relative_to(PACKAGE) and not ast.get_docstring(ast.parse(path.read_bytes()))
    ]
    assert silent == []


def test_no_module_is_a_junk_drawer():
    named = [shown(p) for p in project_files(".py") if JUNK_DRAWERS & {p.stem, p.parent.name}]
    assert named == []


def test_python_files_are_clean():
    offending = [
        f"{shown(path)}:{number}"
        for path in project_files(".py")
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1)
        if "\t" in line or line != line.rstrip() or OPEN_WORK.search(line)
    ]
    assert offending == []


def test_lmdb_is_imported_in_the_index_alone():
    importers = {
        shown(path.parent)
        for path in project_files(".py")
        if path.is_relative_to(PACKAGE) and LMDB_IMPORT.search(path.read_text(encoding="utf-8"))
    }
    assert importers <= {"kvsage/index"}


def test_no_file_records_where_packages_come_from():
    telling = []
    for path in project_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        if LOCK_FILES.fullmatch(path.name) or REGISTRY.search(text):
            telling.append(shown(path))
    assert telling == []


def test_public_names_are_sorted_and_importable():
    assert list(kvsage.__all__) == sorted(set(kvsage.__all__))
    absent = [name for name in kvsage.__all__ if not hasattr(kvsage, name)]
    assert absent == []


def test_import_loads_nothing_heavy():
    # The difference counts: a tool that watches the interpreter may have loaded any of them before.
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules); "
        "import kvsage; print(*(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", program, ROOT], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "kvsage" in loaded
    assert LAZY & set(loaded) == set()
