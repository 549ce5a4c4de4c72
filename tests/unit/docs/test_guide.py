"""The guide names every public name, and says of the errors what they are."""

import re

import pytest

import kvsage
from kvsage import errors
from kvsage.options import StoreOptions
from kvsage.store import KEY_BYTES_MAX
from kvsage.stores.registry import QUERY
from tests.unit.docs.documents import DOCS, ROOT, documents

GUIDE = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted((DOCS / "guide").glob("*.md"))
)
ERRORS = [name for name in vars(errors) if name.endswith("Error")]


@pytest.mark.parametrize("name", kvsage.__all__)
def test_every_public_name_is_in_the_guide(name):
    assert re.search(rf"`(kvsage\.)?{name}\b", GUIDE)


def test_the_table_of_errors_is_the_tree():
    text = (DOCS / "guide" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE)
    told = {name: re.findall(r"`(\w+)`", bases) for name, bases in rows}
    real = {name: [base.__name__ for base in getattr(errors, name).__bases__] for name in ERRORS}
    assert told == real


def test_every_option_is_in_its_table_with_its_default():
    text = (DOCS / "guide" / "store.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \| ", text, re.MULTILINE))
    units = {"MiB": 1 << 20, "TiB": 1 << 40}
    for name, default in StoreOptions.__dataclass_fields__.items():
        told = rows[name].strip().strip("`")
        number, _, unit = told.partition(" ")
        if unit:
            assert int(number) * units[unit] == default.default
        elif isinstance(default.default, str):
            assert told == f'"{default.default}"'
        else:
            assert told == str(default.default)


def test_every_option_of_a_url_is_named():
    text = (DOCS / "guide" / "store.md").read_text(encoding="utf-8")
    section = text.split("### URLs")[1].split("\n## ")[0]
    assert {name for name in QUERY if f"`{name}`" in section} == QUERY.keys()


def test_the_limit_of_a_key_is_told_right():
    for path in (ROOT / "README.md", DOCS / "format.md", DOCS / "guide" / "store.md"):
        assert re.search(rf"1 to {KEY_BYTES_MAX} bytes of UTF-8", path.read_text("utf-8"))


def anchors(text):
    """What GitHub makes of the headings."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in file:
            continue
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in anchors(there.read_text("utf-8")), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_a_document_names_is_there(path):
    text = path.read_text(encoding="utf-8")
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        assert (ROOT / file).exists(), f"{path.name} names {file}"
        if name:
            source = (ROOT / file).read_text(encoding="utf-8")
            assert re.search(rf"(def|class) {name}\b", source), f"{path.name} names {file}::{name}"


@pytest.mark.parametrize("readonly", [False, True])
def test_a_directory_that_is_no_store_is_left_as_it_was(tmp_path, readonly):
    (tmp_path / "letter.txt").write_text("Dear Bob")
    with pytest.raises(kvsage.NotAStoreError):
        kvsage.LMDBStore(tmp_path, readonly=readonly)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_every_file_that_the_design_names_is_there():
    text = (DOCS / "design.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:\w+/)?\w+\.py\b", text))
    package = ROOT / "kvsage"
    there = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    assert named
    assert {
        name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in there)
    } == (set())


def test_every_module_of_the_engine_is_in_the_design():
    text = (DOCS / "design.md").read_text(encoding="utf-8")
    modules = {path.name for path in (ROOT / "kvsage" / "engine").glob("[!_]*.py")}
    assert {name for name in modules if f"`{name}`" not in text} == set()
