"""The shape of the code: direction of imports, what starts quickly, names, docstrings."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "qvec_deploy"
HEAVY = ("torch", "timm", "onnx", "onnxruntime", "modelopt", "scipy", "matplotlib", "sklearn", "pydantic", "numpy")


@cache
def modules() -> dict[Path, ast.Module]:
    """Every file of the package, parsed."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def _modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_imports_go_one_way() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = "from click.testing import CliRunner\nfrom qvec_deploy.cli.commands import commands\n"
    code += "assert 'doctor' in CliRunner().invoke(commands, ['--help']).output"
    assert not _modules_after(code) & set(HEAVY)


def test_reading_a_recipe_imports_no_framework() -> None:
    loaded = _modules_after("from qvec_deploy.recipe import load_recipe\nimport qvec_deploy.io.checkpoint")
    assert not loaded & {"torch", "timm", "onnx", "onnxruntime", "modelopt"}


def test_running_an_engine_needs_no_torch() -> None:
    code = "import qvec_deploy.runtimes.registry, qvec_deploy.bundle.bundle, onnxruntime\n"
    code += "import qvec_deploy.runtimes.onnxruntime.ort_lowering"
    assert not _modules_after(code) & {"torch", "timm", "modelopt"}


def test_modules_are_small_named_and_documented() -> None:
    assert not {path.stem for path in modules()} & {"utils", "helpers", "common", "misc"}
    long = [str(path) for path in modules() if path.read_text(encoding="utf-8").count("\n") > 400]
    assert not long, "is it one thing?"
    bare = [str(path) for path, tree in modules().items() if not ast.get_docstring(tree)]
    assert not bare, "what is this module? (ruff looks at functions and classes)"


NAMED_ELSEWHERE = {
    "cli/doctor_command.py": {"tensorrt"},  # a key of its document
    "cli/parts.py": {"tensorrt"},  # the name of an extra
    "cli/vector_command.py": {"rtn", "mse"},  # the grid's words; the table would make the help slow
    "donors/donor_recipe.py": {"mse"},  # the default of a field
    "recipe/blocks.py": {"onnxruntime", "rtn", "mse"},  # the defaults of fields
    "research/study/analysis/setting_cells.py": {"rtn", "mse"},  # rows of the study
    "research/study/analysis/paper.py": {"awq", "gptq"},  # rows of the paper's tables
    "research/study/analysis/row_key.py": {"rtn", "mse"},  # rows of the study
    "research/study/analysis/summarize.py": {"rtn"},  # a row of the study
    "research/study/cell.py": {"gptq"},  # the control `gptq_displacement`
    "research/study/study_recipe.py": {"awq", "gptq"},  # the default of a field
    "research/study/cell_values.py": {"rtn", "mse"},  # the grid's words
    "tensors.py": {"rtn", "mse"},  # the words of files for a grid's rule
}
"""Names of runtimes and methods that stand outside their tables, by file; each with its reason."""


@pytest.mark.parametrize("table", ["runtimes", "quantize"])
def test_runtimes_and_methods_are_named_in_their_tables_alone(table: str) -> None:
    from qvec_deploy.quantize.methods import METHODS
    from qvec_deploy.runtimes.registry import RUNTIMES

    names = set(RUNTIMES) if table == "runtimes" else set(METHODS)
    found = {
        f"{path.relative_to(PACKAGE)}:{node.lineno} names {node.value}"
        for path, tree in modules().items()
        if path.relative_to(PACKAGE).parts[0] != table
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
        if node.value not in NAMED_ELSEWHERE.get(str(path.relative_to(PACKAGE)), set())
    }
    assert not found, f"ask the row of the table instead: {sorted(found)}"


def test_files_get_their_names_in_one_place() -> None:
    """Nothing is renamed but by `io/files.py`, which sees to it that a power cut finds whole files."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path, tree in modules().items()
        if path != PACKAGE / "io" / "files.py"
        for node in ast.walk(tree)
        if _renames(node)
    ]
    assert not found, "use publish, atomic_path, write_bytes, staging_directory or move_files"


def _renames(node: ast.AST) -> bool:
    """Whether it gives files names; `replace` of a text takes two texts, and that of a dataclass is no attribute."""
    if isinstance(node, ast.Call):
        called = isinstance(node.func, ast.Attribute) and node.func.attr == "replace"
        return called and len(node.args) == 1 and not node.keywords
    if not isinstance(node, ast.Attribute):
        return False
    if isinstance(node.value, ast.Name) and node.value.id in ("os", "shutil"):
        return node.attr in ("replace", "rename", "renames", "link", "move", "copy", "copy2", "copyfile", "copytree")
    return node.attr in ("rename", "hardlink_to")


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("os.replace", True),
        ("made.replace(final)", True),
        ("path.rename", True),
        ("shutil.move", True),
        ("text.replace('a', 'b')", False),
        ("replace(value)", False),
        ("now.replace(microsecond=0)", False),
        ("os.stat", False),
    ],
)
def test_what_renames_is_known(code: str, found: bool) -> None:
    assert _renames(ast.parse(code, mode="eval").body) is found


DOORS = {
    "terminal": (
        r"(?:^|[^.\w])print\(|click\.s?echo\(|std(?:out|err)\.write\(|(?:^|[^\w])Console\(",
        {
            "bench/footprint.py": "to the process that asked, as JSON",
            "datasets/standalone_run.py": "a program of its own, with a door of its own",
            "jobs/processes.py": "to a job's log",
            "research/study/trainings.py": "to a job's log",
            "runtimes/tensorrt/tensorrt_library.py": "to a job's log",
        },
    ),
    "HTML": (r"from markupsafe import .*escape|jinja2\.Environment\(", {"report/render_html.py": "the door"}),
    "text in HTML of Markdown and in attributes of SVG": (
        r"html\.escape|from html import|saxutils",
        {"report/render_markdown.py": "the door of Markdown", "report/svg.py": "the door of SVG"},
    ),
    "CSV": (r"csv\.(?:writer|DictWriter)\(", {"report/csv_text.py": "the door"}),
    "SVG": (r"\.savefig\(", {"report/svg.py": "the door"}),
    "YAML": (r"yaml\.(?:safe_)?dump\(", {"io/yaml.py": "the door"}),
}
"""What makes text of data by form, and the files in which it stands, each with its reason."""


@pytest.mark.parametrize("form", DOORS)
def test_text_leaves_through_one_door(form: str) -> None:
    pattern, known = DOORS[form]
    found = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert found == set(known), "what is shown goes through the door, where everything in it is made visible"


FRAGMENT = re.compile(r"^    [a-z_]+: (?:Of|As|For|By|In|At|To|From|With|That|Which|Where) \S+(?: \S+){0,7}$", re.M)


def test_argument_lines_stand_alone() -> None:
    """`folder: Of the sweep.` says nothing to who reads that line alone."""
    fragments = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {fragment.strip()}"
        for path, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        for fragment in FRAGMENT.findall(ast.get_docstring(node) or "")
    ]
    assert not fragments


def test_a_class_name_means_one_thing() -> None:
    places: dict[str, list[str]] = {}
    for path, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_a_file_name_is_used_once() -> None:
    names = [path.name for path in modules() if path.name not in ("__init__.py", "__main__.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports inside functions and those for type checkers count too."""
    imports: dict[str, set[str]] = {}
    names = {_module(path) for path in modules()}
    for path in modules():
        if path.name != "__init__.py":  # a package's face hands names on
            imports[_module(path)] = _imports(path) & names - {_module(path)}
    left = dict(imports)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == [], "each of these is in a circle, or imports one that is"


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(modules()[path]):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found
