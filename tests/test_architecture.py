import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

import recsys

PACKAGE = Path(recsys.__file__).parent
ROOT = PACKAGE.parent
# From the ground up: a part may import those of earlier lines. Parts of one line know nothing of one another.
FLOORS = (
    ("compiled", "errors", "hashing", "metrics"),
    ("schema", "secret"),
    ("config", "storage"),
    ("engine",),
    ("data",),
    ("retrieval",),
    ("features",),
    ("ranking",),
    ("training", "publishing"),
    ("evaluation",),
    ("pipelines",),
    ("command", "reading"),
    ("__main__",),
)
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}
# What stands on a lower floor and is none of a part's business all the same.
NOT = {
    "storage": {"schema"},
    "engine": {"config", "schema", "metrics", "hashing"},
    "data": {"engine"},
    "retrieval": {"engine"},
    "features": {"engine"},
    "ranking": {"engine"},
    "publishing": {"engine", "data", "retrieval", "features", "ranking"},
    "evaluation": {"engine", "training", "publishing"},
}
RAY = {"engine"}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The folder of recsys that a file stands in, or its own name at the root."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever it stands in it: dotted names, `recsys.x` for `from recsys import x`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            found |= {node.module or "", *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def parts(path: Path) -> set[str]:
    """The other parts of recsys that a file imports."""
    names = {module.split(".")[1] for module in imports(path) if module.startswith("recsys.")}
    return {name for name in names if name in FLOOR} - {part_of(path)}


def test_every_part_has_its_floor():
    assert {part_of(path) for path in FILES} - {"__init__"} == FLOOR.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_leads_upwards(path: Path):
    here = part_of(path)
    if here == "__init__":
        assert parts(path) <= {"reading"}  # when one of its names is asked for
        return
    upwards = {part for part in parts(path) if FLOOR[part] >= FLOOR[here]}
    assert not upwards, f"{path.name} imports {upwards}, which stand on its own floor or above it"
    foreign = parts(path) & NOT.get(here, set())
    assert not foreign, f"{path.name} imports {foreign}, which are none of its business"


def test_no_import_goes_round_in_a_circle():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES if path.name != "__init__.py"}
    arrows = {name: imports(path) & modules.keys() - {name} for name, path in modules.items()}
    while free := [name for name, others in arrows.items() if not others & arrows.keys()]:
        for name in free:
            del arrows[name]
    assert not arrows, f"in circles or above one: {sorted(arrows)}"


def test_of_recsys_only_the_engine_imports_ray():
    for path in FILES:
        touches = {module for module in imports(path) if module.split(".")[0] == "ray"}
        assert not touches or part_of(path) in RAY, f"{path}: imports {touches}"


def test_recsys_imports_neither_jobs_nor_cluster_and_cluster_no_job_and_little_of_recsys():
    for path in FILES:
        assert not {module for module in imports(path) if module.split(".")[0] in ("jobs", "cluster", "tests")}, path
    for path in (ROOT / "cluster").rglob("*.py"):
        assert not {module for module in imports(path) if module.split(".")[0] in ("jobs", "tests")}, path
        assert parts_below(path) <= {"config", "engine", "errors", "storage"}, path


def parts_below(path: Path) -> set[str]:
    return {module.split(".")[1] for module in imports(path) if module.startswith("recsys.")} & FLOOR.keys()


def test_a_folder_says_what_comes_in_and_goes_out_and_names_its_files():
    for face in PACKAGE.glob("*/__init__.py"):
        if face.parent.name == "config":
            continue  # its face names the sections of the settings file in their order
        tree = ast.parse(face.read_text(encoding="utf-8"))
        assert len(tree.body) == 1, f"{face}: a face holds a docstring and nothing else"
        said = ast.get_docstring(tree) or ""
        assert "In: " in said, face
        assert "Out: " in said, face
        assert set(re.findall(r"`(\w+)`", said)) == {path.stem for path in face.parent.glob("[a-z]*.py")}, face


def test_files_are_short_enough_to_be_one_idea():
    for folder in ("recsys", "jobs", "cluster"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path


def test_a_compiled_loop_calls_those_of_its_own_file_alone():
    """Numba keeps machine code until the file of the loop changes, and does not see that another file, built into it, has changed."""
    found = 0
    for path in FILES:
        if "recsys.compiled" not in imports(path):
            continue
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        loops = {name: value for name, value in vars(module).items() if isinstance(value, Dispatcher)}
        for name, loop in loops.items():
            for other in set(loop.py_func.__code__.co_names) & loops.keys():
                assert loops[other].py_func.__module__ == module.__name__, f"{path}: {name} calls {other} of another file"
                found += 1
    assert found


def test_no_file_reads_the_environment_but_connect_secret_and_command():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute | ast.Name) and path.name not in ("connect.py", "secret.py", "command.py"):
                word = node.attr if isinstance(node, ast.Attribute) else node.id
                assert word not in ("environ", "environb", "getenv", "getenvb"), f"{path}:{node.lineno} reads the environment"


def test_nobody_takes_names_that_ray_keeps_to_itself():
    for folder in ("recsys", "jobs", "cluster"):
        for path in (PACKAGE.parent / folder).rglob("*.py"):
            found = re.findall(r"unittest|ray\._private|_raylet", path.read_text(encoding="utf-8"))
            assert not found, f"{path} asks for {found}"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import recsys", {"ray", "tensorflow", "keras", "pandas", "pyarrow", "numpy", "pydantic"}),
        ("import recsys.ranking.bundle, recsys.ranking.scorer", {"ray", "tensorflow", "keras", "torch"}),
        ("import recsys.config, recsys.schema, recsys.errors", {"ray", "tensorflow", "keras", "pandas"}),
        ("import recsys.pipelines.score", {"tensorflow", "keras"}),  # the driver of a night that needs no training
    ],
)
def test_an_import_loads_nothing_heavier_than_it_needs(statement: str, heavy: set[str]):
    code = f"import sys; {statement}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "recsys" in loaded
    assert heavy.isdisjoint(loaded), f"{statement} loads {heavy & set(loaded)}"


def test_what_the_bench_holds_us_against_carries_nothing_of_ours():
    code = "import runpy, sys; runpy.run_path('jobs/bench/alternatives.py'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "pyarrow" in loaded
    assert {"recsys", "jobs", "ray", "tensorflow", "keras"}.isdisjoint(loaded)


def _no_encoding(tree: ast.AST) -> list[int]:
    """Lines that read or write text without saying its encoding, which else is the machine's: ASCII under LC_ALL=C."""
    found: list[int] = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        said = {keyword.arg for keyword in call.keywords}
        modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant) and isinstance(argument.value, str)]
        text = name in ("read_text", "write_text") or (
            name == "open" and (not call.args or any(set(mode) <= set("rwatx+") for mode in modes))
        )
        if text and "encoding" not in said:
            found.append(call.lineno)
    return found


def test_text_is_read_and_written_in_an_encoding_that_is_said():
    assert _no_encoding(
        ast.parse("a.read_text()\na.open()\na.open('w')\nb.open('rb')\nfs.open_file(p)\nc.write_text('x', encoding='utf-8')")
    ) == [1, 2, 3]
    for folder in ("recsys", "jobs", "cluster"):
        for file in (PACKAGE.parent / folder).rglob("*.py"):
            assert _no_encoding(ast.parse(file.read_text(encoding="utf-8"))) == [], file
