"""README.md and docs/: commands are run by a test or marked, links resolve, and examples show actual output."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from docs import examples

REPO = Path(__file__).resolve().parents[2]
PAGES = [REPO / "README.md", REPO / "CHANGELOG.md", REPO / "deploy" / "cost.md", *sorted((REPO / "docs").glob("*.md"))]
MAKEFILE = (REPO / "Makefile").read_text(encoding="utf-8")
SCRIPTS: dict[str, str] = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
VOCABULARY = REPO / "docs" / "development.md"

# The visible mark of a command that no test runs. In the paragraph before a block or in a comment line of it, it
# applies to the block; a sentence "The commands of this page (section) are not run here ..." applies to all of them.
MARK = re.compile(r"\bnot run here(?: against AWS)?: (?:they need|needs) \w+", re.IGNORECASE)
RUN_BY = re.compile(r"^# Run by (tests/[\w/]+\.py)\b")
SHELL = {"bash", "sh"}
ALL = re.compile(r"commands of this (page|section) are not run here: they need \w+")

# Commands that another test runs: a pattern, and a text that a file must contain.
ELSEWHERE = {
    r"make image-docker": ("Makefile", "test-lambda: image-docker"),
    r"make sam-invoke EVENT=\S+": ("tests/sam/test_sam.py", "local"),
    r"make zip": ("tests/zip/*.py", "function_zip"),
    r"make cost .*": ("tests/integration/test_cost.py", "cost"),
    r"make unit": ("pyproject.toml", "tests/unit"),  # part of make test
    r"make examples": ("tests/infrastructure/test_docs.py", "examples."),
    r"\.venv/bin/python -m enrichment\.export compact .*": ("Makefile", "enrichment.export compact --out"),
    r"\.venv/bin/python -m enrichment\.export\.reference .*": ("tests/unit/test_reference.py", "module.main("),
    r"\.venv/bin/python -m enrichment score .*": ("tests/unit/test_score.py", '"score"'),
    r"\.venv/bin/python -m handler\.local up .*": ("tests/integration/test_local.py", "--env-file"),
    r"dlq-replay count.*": ("tests/integration/test_*.py", '"count"'),
    r"dlq-replay peek.*": ("tests/integration/test_*.py", '"peek"'),
    r"dlq-replay replay.*": ("tests/integration/test_*.py", '"--audit"'),
    r"dlq-replay redrive": ("tests/endtoend/test_redrive.py", "redrive"),
    r"dlq-replay backfill.*": ("tests/integration/test_*backfill.py", "backfill"),
    # The three services of the development environment, by their manifests' commands.
    r"\. \./stack\.env": ("tests/infrastructure/test_flox.py", "STACK_ENV_FILE"),
    r'export MODEL_BUNDLE="file://.*"': ("tests/infrastructure/test_flox.py", "MODEL_BUNDLE"),
    r"ticket-processor --grace 25": ("tests/infrastructure/test_flox.py", "ticket-processor"),
    r"ticket-generator .*": ("tests/infrastructure/test_flox.py", "ticket-generator"),
    r"tickets forget.*": ("tests/integration/test_forgetting.py", '"--customer"'),
    r"\.venv/bin/python -c .*tombstone_key.*": ("tests/unit/test_forget.py", "tombstone_key("),
    r"tickets serve.*": ("tests/integration/test_page.py", '"serve"'),
    r"make demo PAGE=1": ("tests/integration/test_page.py", '"--page"'),
    r"tickets show.*": ("tests/integration/test_tickets.py", '"show"'),
    r"tickets (index|search|similar|duplicates).*": ("tests/integration/test_search.py", '"duplicates"'),
    r"tickets correct .*": ("tests/integration/test_corrections.py", '"correct"'),
    r"tickets compare.*": ("tests/integration/test_shadow.py", '"compare"'),
    r"tickets corrections.*": ("tests/integration/test_corrections.py", '"corrections"'),
}
HERE = {"make", ".venv/bin/python -m enrichment tickets.jsonl > enriched.jsonl"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines, and whether the text says that its commands are not run."""

    page: Path
    language: str
    lines: tuple[str, ...]
    marked: bool

    def commands(self) -> Iterator[tuple[str, bool]]:
        marked = self.marked
        for line in self.lines:
            if line.startswith("#"):
                named = RUN_BY.match(line)
                assert named is None or (REPO / named[1]).is_file(), line
                marked = marked or named is not None or bool(MARK.search(line))
                continue
            command, _, comment = re.sub(r"\s+#", "\0#", line, count=1).partition("\0")
            if command.strip():
                yield " ".join(command.split()), marked or bool(MARK.search(comment))


def blocks(page: Path) -> Iterator[Block]:
    whole_page = whole_section = False
    paragraph = previous = ""
    lines = iter(page.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith("#"):
            whole_section = False
        if fence := re.match(r"(\s*)```(\w+)$", line):
            inside = []
            for inner in lines:
                if inner == fence[1] + "```":
                    break
                inside.append(inner.removeprefix(fence[1]))
            yield Block(page, fence[2], tuple(inside), whole_page or whole_section or bool(MARK.search(paragraph)))
        elif line.strip():
            paragraph = f"{paragraph} {line.strip()}" if previous.strip() else line.strip()
            if found := ALL.search(paragraph):
                whole_page, whole_section = whole_page or found[1] == "page", True
        previous = line


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = sorted(
    {(command, marked) for block in BLOCKS if block.language in SHELL for command, marked in block.commands()}
)


def ci_targets() -> set[str]:
    script = (REPO / ".ci" / "run").read_text(encoding="utf-8")
    loops = re.findall(r"^for check in ([^;]+);", script, re.MULTILINE)
    return set(re.findall(r"^target ([a-z0-9-]+)", script, re.MULTILINE)) | {
        name for loop in loops for name in loop.split()
    }


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):(?!=)", MAKEFILE, re.MULTILINE))


def is_run(command: str) -> bool:
    if command in HERE:
        return True
    if (target := re.fullmatch(r"make ([a-z0-9-]+)", command)) and target[1] in ci_targets() | {"check"}:
        return True
    return any(
        any(text in file.read_text(encoding="utf-8") for file in REPO.glob(place))
        for pattern, (place, text) in ELSEWHERE.items()
        if re.fullmatch(pattern, command)
    )


@pytest.mark.parametrize(("command", "marked"), COMMANDS)
def test_each_command_is_run_or_marked(command: str, marked: bool) -> None:
    assert is_run(command) or marked, f"{command}: add it to ELSEWHERE, or say '(not run here: needs ...)'"


def test_all_command_blocks_are_recognized() -> None:
    languages = {block.language for block in BLOCKS}
    assert languages <= SHELL | {"json", "jsonc", "python", "mermaid", "yaml"}
    assert len(COMMANDS) > 30
    unused = [p for p in ELSEWHERE if not any(re.fullmatch(p, command) for command, _ in COMMANDS)]
    assert [pattern for pattern in unused if pattern != "make examples"] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z0-9-]*)", text, re.MULTILINE))
    assert named - make_targets() == set()


# -- links and names


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\.ci|\.flox|\.github|enrichment|handler|events|tests|docs|deploy)/[\w./*-]*)`", text))
    assert [name for name in sorted(named) if not any(REPO.glob(name.rstrip("/")))] == []


# -- what is executed


def run(*command: str, cwd: Path = REPO) -> str:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def program_help(name: str, *subcommand: str) -> str:
    app = importlib.import_module(SCRIPTS[name].partition(":")[0]).app
    # rich shortens long options in a narrow terminal.
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*subcommand, "--help"], prog_name=name)
    assert result.exit_code == 0, result.output
    return result.output


def documented() -> list[tuple[str, str]]:
    found = [command.split(maxsplit=1) for command, _ in COMMANDS if command.split()[0] in SCRIPTS]
    return [(words[0], words[1] if len(words) > 1 else "") for words in found]


@pytest.mark.parametrize(("name", "arguments"), documented())
def test_documented_options_exist(name: str, arguments: str) -> None:
    first = arguments.split(maxsplit=1)[0] if arguments else ""
    text = program_help(name, *([first] if first and not first.startswith("-") else []))
    assert [flag for flag in re.findall(r"--[a-z-]+", arguments) if flag not in text] == []


def test_make_lists_the_main_targets() -> None:
    assert re.search(r"\bdemo\b", run("make", "--no-print-directory", "help"))


def test_shell_command_enriches_a_file(bundle: Path, tmp_path: Path) -> None:
    ticket = json.dumps(json.loads(examples.raw_ticket(examples.README.read_text(encoding="utf-8"))))
    (tmp_path / "tickets.jsonl").write_text(ticket + "\n" + ticket + "\n", encoding="utf-8")
    out = run(sys.executable, "-m", "enrichment", "--bundle", str(bundle), "tickets.jsonl", cwd=tmp_path)
    assert [json.loads(line)["ticket_id"] for line in out.splitlines()] == ["T-1042", "T-1042"]


def test_python_snippets_run(bundle: Path) -> None:
    # The receiver's check in events.md is run by tests/unit/test_webhook.py.
    snippets = ["\n".join(b.lines) for b in BLOCKS if b.language == "python" and b.page.name != "events.md"]
    assert snippets
    for snippet in snippets:
        code = snippet.replace('".bundles/compact"', repr(str(bundle)))
        names: dict[str, Any] = {"raw": examples.raw_ticket(examples.README.read_text(encoding="utf-8"))}
        exec(compile(code, "README.md", "exec"), names)
        result = names["result"]  # of one ticket, or of a table
        assert result["summary"][0].as_py() if isinstance(result, pa.Table) else result.summary


def test_readme_shows_actual_output(bundle: Path) -> None:
    readme = examples.README.read_text(encoding="utf-8")
    shown = examples.shown_ticket(readme)["enrichment"]
    actual = examples.enriched_ticket(examples.raw_ticket(readme), bundle)["enrichment"]
    exact = ("intent", "urgency", "sentiment", "summary", "needs_review")
    assert {name: shown[name] for name in exact} == {name: actual[name] for name in exact}, "run: make examples"
    for task in examples.SHOWN:
        assert shown[f"{task}_confidence"] == pytest.approx(actual[f"{task}_confidence"], abs=0.03), (
            "run: make examples"
        )
    assert shown["embedding"] == pytest.approx(actual["embedding"][: examples.DIMENSIONS], abs=0.005)


def test_picture_loads_no_external_resources() -> None:
    picture = examples.PICTURE.read_text(encoding="utf-8")
    assert "lost 0" in picture.replace("&#160;", " ")
    assert "@font-face" not in picture
    assert set(re.findall(r"https?://[^\s\"'<>]+", picture)) <= {
        "http://www.w3.org/2000/svg",
        "https://www.textualize.io",
    }


# -- vocabulary


def table() -> list[tuple[str, str]]:
    """The old names of the mapping table, with their kinds."""
    rows = re.findall(
        r"^\| `([^`]+)` \| .+ \| (\w+) \|$",
        VOCABULARY.read_text(encoding="utf-8").partition("## Vocabulary")[2],
        re.MULTILINE,
    )
    return [(str(old), str(kind)) for old, kind in rows]


def retired(*kinds: str) -> list[str]:
    return [old for old, kind in table() if kind in kinds]


def sources() -> list[Path]:
    folders = ("enrichment", "handler", "events", "deploy", "docs", "tests", ".ci")
    return [path for folder in folders for path in sorted((REPO / folder).rglob("*.py"))]


def test_vocabulary_table_is_parsed() -> None:
    assert {kind for _, kind in table()} == {"module", "class", "function", "flag", "term"}
    assert {"Figures", "put_off", "handler.drain"} <= {old for old, _ in table()}


def test_no_retired_identifier_is_left() -> None:
    old = {name.rpartition(".")[2] for name in retired("class", "function")}
    left = [
        f"{path.relative_to(REPO)}:{token.start[0]}: {token.string}"
        for path in sources()
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
        if token.type == tokenize.NAME and token.string in old
    ]
    assert left == []


def test_no_retired_module_is_left() -> None:
    old = [Path(*name.split(".")) for name in retired("module")]
    assert [
        str(path) for path in old if list((REPO / path).glob("*.py")) or (REPO / path).with_suffix(".py").exists()
    ] == []


def prose(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return text.partition("## Vocabulary")[0] if page == VOCABULARY else text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_standard_terms(page: Path) -> None:
    assert retired_terms(prose(page)) == []


HELP = [
    *((name, ()) for name in SCRIPTS),
    *(("dlq-replay", (command,)) for command in ("count", "peek", "replay", "redrive", "backfill")),
    *(
        ("tickets", (command,))
        for command in ("show", "count", "get", "similar", "search", "duplicates", "index", "forget")
    ),
]


@pytest.mark.parametrize(("name", "subcommand"), HELP)
def test_help_uses_standard_terms(name: str, subcommand: tuple[str, ...]) -> None:
    text = program_help(name, *subcommand)
    assert retired_terms(text) == []
    assert [flag for flag in retired("flag") if re.search(rf"{flag}\b", text)] == []


@pytest.mark.parametrize("module", ["enrichment", "enrichment.export", "handler.local", "handler.local.demo"])
def test_module_help_uses_standard_terms(module: str) -> None:
    assert retired_terms(run(sys.executable, "-m", module, "--help")) == []


def retired_terms(text: str) -> list[str]:
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split()).lower()
    return [term for term in retired("term") if re.search(rf"(?<![\w-]){re.escape(term)}s?(?![\w-])", words)]
