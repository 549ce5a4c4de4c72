"""Every block of code in a document runs, and prints what the document says."""

import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO

import pytest

from tests.unit.docs.documents import ROOT, blocks, documents

OTHERS = {"cli.md"}  # its sessions stand for any store

PYTHON = [
    pytest.param(path, id=str(path.relative_to(ROOT)))
    for path in documents()
    if path.name not in OTHERS
    if any(block.language == "python" for block in blocks(path))
]
CONSOLE = [
    pytest.param(path, block, id=f"{path.relative_to(ROOT)}:{block.line}")
    for path in documents()
    if path.name not in OTHERS
    for block in blocks(path)
    if block.language == "console"
]


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("path", PYTHON)
def test_the_python_of_a_document_runs_from_top_to_bottom(path, place):
    # One namespace for the whole document. A block without a language right behind one of Python is
    # what that one prints.
    namespace = {"__name__": "__main__"}
    printed = None
    for block in blocks(path):
        if block.language == "python":
            padded = "\n" * (block.line - 1) + block.text  # so that a traceback names the line
            with redirect_stdout(StringIO()) as stdout:
                exec(compile(padded, str(path), "exec"), namespace)  # our own text
            printed = stdout.getvalue()
        elif not block.language and printed is not None:
            assert printed == block.text, f"{path.name}, line {block.line}"
            printed = None
    store = namespace.get("store")
    if store is not None:
        store.close()


@pytest.mark.parametrize(("path", "block"), CONSOLE)
def test_a_session_on_the_command_line_is_real(path, block, place):
    command = place / "bin" / "kvsage"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kvsage "$@"\n')
    command.chmod(0o700)
    environment = {
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(place),
        "LC_ALL": "C.UTF-8",
    }
    lines = block.text.splitlines()
    # Echoing each command makes the shell print what a person would see.
    script = "\n".join(
        f"printf '%s\\n' {quoted(line)}\n{line[2:]}" for line in lines if line.startswith("$ ")
    )
    run = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    # Three dots in a line stand for what differs from run to run.
    pattern = re.escape(block.text).replace(re.escape("..."), "[^\n]*")
    assert re.fullmatch(pattern, run.stdout), run.stdout


def quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


def test_the_readme_keeps_its_word_about_ten_lines():
    first = next(block for block in blocks(ROOT / "README.md") if block.language == "python")
    assert len([line for line in first.text.splitlines() if line]) <= 10
