"""The promises the project makes about itself: metadata, who may import whom, what source files may hold.

Each rule is read from the files as they are (as git would commit them), never from a list kept here, so that a new
module, dependency or citation is held to it without anybody thinking of this file.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "leadline"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
APACHE_2_0 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
BINARY = {".png", ".parquet", ".safetensors", ".gguf", ".ico"}
MAX_LINES = 400
COMMANDS = {
    "cli.py",
    "commands.py",
    "catalogue.py",
    "doctor.py",
}  # they import when called, so that the others start at once


@cache
def project_files() -> tuple[Path, ...]:
    """What git tracks or would track; outside a git checkout (an unpacked archive) everything but hidden folders."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode == 0:
        names = [ROOT / line for line in listing.stdout.splitlines()]
    else:
        names = [path for path in ROOT.rglob("*") if not any(p.startswith(".") for p in path.relative_to(ROOT).parts)]
    return tuple(path for path in names if path.is_file())


def text_files() -> list[Path]:
    return [path for path in project_files() if path.suffix not in BINARY]


def modules() -> list[Path]:
    return sorted(path for path in project_files() if path.suffix == ".py" and path.is_relative_to(PACKAGE))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def requirements(*extras: str) -> list[Requirement]:
    """The direct dependencies, and those of the named extras; the project's own name among them is left out."""
    optional = PROJECT["project"]["optional-dependencies"]
    lines = PROJECT["project"]["dependencies"] + [line for extra in extras for line in optional[extra]]
    return [found for line in lines if (found := Requirement(line)).name != "leadline"]


# Metadata


def test_metadata_is_complete_and_installed_as_written() -> None:
    project = PROJECT["project"]
    assert project["name"] == "leadline"
    assert project["requires-python"] == ">=3.11"
    assert project["license"] == "Apache-2.0"
    assert {"view", "peft", "scorers", "dev"} <= set(project["optional-dependencies"])
    assert importlib.metadata.version("leadline") == project["version"]


def test_license_is_the_unmodified_apache_text() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_0


def test_each_direct_dependency_is_pinned_within_its_range() -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = {}
    for line in filter(None, lines):
        name, version = line.split("==")
        pins[canonicalize_name(name)] = Version(version)
    assert str(pins["torch"]) == "2.13.0"
    for requirement in requirements("view", "peft", "scorers", "dev"):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_each_import_is_of_a_declared_dependency() -> None:
    """An undeclared import works here, by way of somebody else's dependency, and breaks at a user's."""
    providers = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(requirement.name) for requirement in requirements("view", "peft", "scorers")}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            else:
                continue
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"leadline"}:
                owners = {canonicalize_name(owner) for owner in providers.get(top, [top])}
                assert owners & declared, f"{relative(path)} imports {top}, which pyproject.toml does not declare"


def test_python_classifiers_and_tools_agree_on_the_oldest_python() -> None:
    assert PROJECT["tool"]["ruff"]["target-version"] == "py311"
    assert "Programming Language :: Python :: 3.11" in PROJECT["project"]["classifiers"]


def test_each_excepted_warning_names_its_reason() -> None:
    """`filterwarnings` is "error" first; each exception has a comment on the line above it."""
    section = (ROOT / "pyproject.toml").read_text().split("filterwarnings = [", 1)[1].split("\n]", 1)[0]
    lines = [line.strip() for line in section.splitlines() if line.strip()]
    assert lines[0] == '"error",'
    previous = lines[0]
    for line in lines[1:]:
        assert line.startswith("#") or previous.startswith("#"), f"no reason for {line}"
        previous = line


# Who may import whom


def test_import_rules_hold() -> None:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    result = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "module",
    [
        "leadline",
        "leadline.information",
        "leadline.curve",
        "leadline.result",
        "leadline.records",
        "leadline.report",
        "leadline.compare",
        "leadline.gate",
        "leadline.schemas",
        "leadline.cli",
    ],
)
def test_starts_without_torch(module: str) -> None:
    """`leadline show` and `--help` must not wait for torch, and records must be readable where it is missing."""
    probe = f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_imports_stand_at_the_top() -> None:
    """Within a function only optional extras, the lazy names of the package, and the commands' start-up time."""
    optional = {name.name for name in requirements("view", "peft", "scorers")} - {name.name for name in requirements()}
    for path in modules():
        if path.name in COMMANDS or path == PACKAGE / "__init__.py":
            continue
        tree = ast.parse(path.read_text())
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            if function.name == "main":  # a command of its own: `python -m leadline.smollm2`
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    first = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                    assert (first or "").split(".")[0] in optional, f"{relative(path)}:{node.lineno} imports {first}"


# What files may hold


def test_text_is_ascii() -> None:
    for path in text_files():
        content = path.read_bytes()
        bad = [number for number, line in enumerate(content.splitlines(), 1) if not line.isascii()]
        assert not bad, f"{relative(path)} has non-ASCII characters in lines {bad[:5]}"


def test_no_machine_paths_or_registry_hosts() -> None:
    """The patterns are put together here, so that this file does not hold them itself."""
    folders = "|".join(["root", "work", "opt", "Users", "home"])
    forbidden = re.compile(rf"(?<![\w.$}}/-])/({folders})/\w|" + r"(?:files\.python" + r"hosted|py" + r"pi)\.org")
    for path in text_files():
        content = path.read_text()
        found = forbidden.search(content)
        assert not found, f"{relative(path)} names {found and found.group()}"
        for place in {str(ROOT), str(Path.home())} - {"/"}:
            assert f"{place}/" not in content, f"{relative(path)} names a folder of this machine"


def test_nothing_is_left_over() -> None:
    marks = re.compile("|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"]))
    for path in text_files():
        found = marks.search(path.read_text())
        assert not found, f"{relative(path)} has {found and found.group()}"


def test_files_stay_small_enough_to_live_in() -> None:
    for path in text_files():
        if path.suffix == ".py":
            lines = len(path.read_text().splitlines())
            assert lines <= MAX_LINES, f"{relative(path)} has {lines} lines, the ceiling is {MAX_LINES}"


def test_each_module_says_what_it_is_and_has_a_name_of_its_own() -> None:
    for path in modules():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{relative(path)} opens without a docstring"
        assert path.stem not in {"utils", "util", "common", "helpers", "misc"}, relative(path)


def test_weights_are_never_unpickled_and_no_model_code_is_run() -> None:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "dill", "joblib", "cloudpickle"}, relative(path)
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"torch.load", "torch.save"}, f"{relative(path)}:{node.lineno} calls {called}"
                for keyword in node.keywords:
                    trusting = keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) == "True"
                    assert not trusting, f"{relative(path)}:{node.lineno}"


def test_no_global_seed_and_no_autocast() -> None:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                last = called.split(".")[-1]
                assert last != "autocast", f"{relative(path)}:{node.lineno}"
                assert called not in {"torch.manual_seed", "random.seed", "np.random.seed"}, (
                    f"{relative(path)}:{node.lineno} calls {called}: pass a generator instead"
                )


# Documents


def test_citations_of_the_definition_lead_somewhere() -> None:
    definition = (ROOT / "docs" / "measurement.md").read_text()
    sections = set(re.findall(r"^## (\d+)\. ", definition, flags=re.MULTILINE))
    assert sections == {str(number) for number in range(1, 11)}
    for path in text_files():
        for number in re.findall(r"measurement\.md,?\s+section\s+(\d+)", path.read_text()):
            assert number in sections, f"{relative(path)} cites section {number}"


def test_the_definition_has_every_bound_and_every_known_answer() -> None:
    definition = (ROOT / "docs" / "measurement.md").read_text()
    for name in ["MC", "COND", "KL", "IW", "SPLIT", "LOWER", "CODE", "TEXT", "PREFILL"]:
        assert f"\n| {name} |" in definition, name
    for number in range(1, 17):
        assert f"\n| K{number} |" in definition, f"K{number}"


def test_readme_makefile_and_ci_name_the_same_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    ci = (ROOT / ".ci" / "run").read_text()
    blocks = re.findall(r"```console\n(.*?)```", readme, flags=re.DOTALL)
    assert blocks[0].split("\n")[:2] == ["make demo", "make test"]
    for target in ["demo", "test"]:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
    assert ci.rstrip().endswith("exec make test")
    assert "LEADLINE_REQUIRE_BROWSER=1" in ci
    assert "LEADLINE_REQUIRE_SMOLLM2=1" in ci


def test_readme_tree_names_what_exists() -> None:
    """Every path of the annotated tree is there, and every module and folder of the package is in the tree."""
    tree = (ROOT / "README.md").read_text().split("## The tree", 1)[1].split("```")[1]
    package = tree.split("src/leadline/\n", 1)[1].split("\ntests/", 1)[0]
    named = set(re.findall(r"(?<!\S)([a-z_0-9]+(?:\.py|/))(?!\S)", package))
    shared = {"__init__.py", "py.typed", "__pycache__"}
    present = {p.name + ("/" if p.is_dir() else "") for p in PACKAGE.iterdir() if p.name not in shared}
    assert named == present
    for other in re.findall(r"(?<!\S)([\w./]+(?:\.md|\.txt|\.toml|/))(?!\S)", tree.replace(package, "")):
        assert (ROOT / other).exists(), other


def test_changelog_has_an_unreleased_section_in_known_words() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "\n## Unreleased\n" in changelog
    assert set(re.findall(r"^### (\w+)", changelog, flags=re.MULTILINE)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
    }


def test_hooks_are_local() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert {repo["repo"] for repo in hooks["repos"]} == {"local"}
    assert {hook["id"] for repo in hooks["repos"] for hook in repo["hooks"]} == {
        "ruff-check",
        "ruff-format",
        "mypy",
        "import-linter",
    }


# The set-up


def test_make_alone_explains_itself() -> None:
    result = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ["make demo", "make test", "make lint", "make weights"]:
        assert target in result.stdout


def test_set_up_without_a_fitting_python_says_how_to_mend_it(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    result = subprocess.run(
        ["make", ".venv/.made", "PYTHON=python2.7"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "No Python of version 3.11 or newer" in result.stdout
    assert "PYTHON=" in result.stdout
    assert not (tmp_path / ".venv").exists()
