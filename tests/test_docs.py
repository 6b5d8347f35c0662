"""What the documents say can be typed as it stands, and what can be typed is documented."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mnistexp import cli
from mnistexp.commands.args import split_args
from mnistexp.config import compose, option_files
from mnistexp.search import space

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "GUIDE.md", "CONTRIBUTING.md", "CLUSTER.md")
DOCUMENTS = sorted([*(ROOT / page for page in PAGES), *(ROOT / "experiments").rglob("README.md")])
README = (ROOT / "README.md").read_text()
OWN_FILES = ("mine", "FOLDER", "ID")
"""Words that stand for something of the reader's."""


def commands(path: Path) -> list[str]:
    """Each mnistexp command of a document's code blocks and code spans, on one line, without comments."""
    text = path.read_text().replace("\\\n", " ")
    if path.name == "GUIDE.md":  # test_guide.py does what this section says, files and all
        text = re.sub(r"\n## Put your own in\n.*?(?=\n## )", "", text, flags=re.DOTALL)
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`(python -m [^`\n]+)`", text)
    found = (re.match(r"\s*(?:python -m )mnistexp (.+)", line.partition(" #")[0]) for line in lines)
    return [match[1].strip() for match in found if match and not match[1].startswith("COMMAND")]


CASES = [(path, command) for path in DOCUMENTS for command in commands(path)]


@pytest.mark.parametrize(("path", "command"), CASES, ids=[f"{p.parent.name}: {c}" for p, c in CASES])
def test_a_documented_command_is_one(path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command in a document names a real command, and its overrides compose, a sweep's space included."""
    monkeypatch.setenv("STUDY_DATABASE", "postgresql://me@db/studies")  # which CLUSTER.md has its reader export
    name, *words = shlex.split(command)
    assert name in cli.COMMANDS
    about = cli.COMMANDS[name]
    own = [word for word in words if word.startswith("-") or re.split("[./=]", word)[-1] in OWN_FILES]
    _, typed = split_args([word for word in words if word not in own], about.keys, bool(about.names))

    request = compose.parse_request(typed)
    compose.compose(request)
    if name == "sweep" and not own:
        space.build(request)


def test_every_command_stands_in_the_readme() -> None:
    """A command that nobody reads of is a command that nobody has."""
    missing = [name for name in cli.COMMANDS if f"mnistexp {name}" not in README]

    assert missing == []


def test_every_option_of_the_readme_exists_and_every_existing_one_is_there() -> None:
    """The table of options is the options."""
    for group in ("data", "optimizer", "search", "study/sampler", "study/pruner", "tracking"):
        row = re.search(rf"`{group}=(.+?)(?:;| \|)", README)
        assert row is not None, group
        named = set(re.findall(r"[a-z_]+", row[1]))

        assert named == set(option_files.config_groups()[group]), group


def test_links_between_documents_lead_somewhere() -> None:
    """A relative link's file exists."""
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in DOCUMENTS
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text())
        if not (path.parent / target).exists()
    ]

    assert broken == []
