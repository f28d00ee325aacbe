import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import recsys

PACKAGE = Path(recsys.__file__).parent
# a file, or a folder of files that hold one idea
FILES = {path.name: [path] for path in PACKAGE.glob("*.py") if path.name != "__init__.py"}
FILES |= {f"{path.parent.name}/": sorted(path.parent.glob("*.py")) for path in PACKAGE.glob("*/__init__.py")}
# A line of a map: a file's name, R where it imports Ray, and what it is.
LINE = re.compile(r"^ +(?P<file>\w+(?:\.py|/)) +(?P<ray>R )?(?P<words>\S.*)$", re.MULTILINE)


def lines(text: str) -> dict[str, re.Match[str]]:
    """The map's lines by file; a file that stands there twice is a mistake."""
    found = list(LINE.finditer(text))
    names = [line["file"] for line in found]
    assert len(names) == len(set(names)), names
    return {line["file"]: line for line in found}


def docstring() -> dict[str, re.Match[str]]:
    assert recsys.__doc__ is not None
    return lines(recsys.__doc__)


def readme() -> dict[str, re.Match[str]]:
    """The lines below `recsys/` in README's tree, down to the next folder."""
    text = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"^    recsys/ .*\n((?:      .*\n)+)", text, re.MULTILINE)
    assert tree, "README has no tree with a line `    recsys/` followed by indented files"
    return lines(tree[1])


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


def test_every_file_stands_in_the_package_s_map_and_every_line_of_the_map_is_a_file():
    assert docstring().keys() == FILES.keys()


def test_every_file_stands_in_readme_s_tree_and_every_line_of_the_tree_is_a_file():
    assert readme().keys() == FILES.keys()


def test_both_maps_have_one_order_and_mark_the_same_files():
    def marks(found: dict[str, re.Match[str]]) -> list[tuple[str, bool]]:
        return [(name, bool(line["ray"])) for name, line in found.items()]

    assert marks(readme()) == marks(docstring())


def test_a_folder_s_map_names_its_files():
    folders = {name: paths for name, paths in FILES.items() if name.endswith("/")}
    assert folders
    for paths in folders.values():
        (start,) = (path for path in paths if path.name == "__init__.py")
        assert lines(ast.get_docstring(ast.parse(start.read_text(encoding="utf-8"))) or "").keys() == {path.name for path in paths} - {
            "__init__.py"
        }


def test_only_files_marked_r_import_ray_or_one_that_does():
    marked = {name for name, line in docstring().items() if line["ray"]}
    reaches = {f"recsys.{name.removesuffix('.py')}" for name in marked}
    for name, paths in FILES.items():
        seen = set().union(*map(imports, paths))
        touches = {module for module in seen if module.split(".")[0] == "ray" or module in reaches}
        assert bool(touches) == (name in marked), f"{name} imports {touches or 'no Ray'}"


def test_no_file_reads_the_environment_but_runtime():
    for name, path in ((name, path) for name, paths in FILES.items() for path in paths):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute | ast.Name) and name != "runtime.py":
                word = node.attr if isinstance(node, ast.Attribute) else node.id
                assert word not in ("environ", "environb", "getenv", "getenvb"), f"{name}:{node.lineno} reads the environment"


def test_nobody_takes_names_that_ray_keeps_to_itself():
    for folder in ("recsys", "jobs", "cluster"):
        for path in (PACKAGE.parent / folder).rglob("*.py"):
            found = re.findall(r"unittest|ray\._private|_raylet", path.read_text(encoding="utf-8"))
            assert not found, f"{path} asks for {found}"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import recsys", {"ray", "tensorflow", "keras", "pandas", "pyarrow", "numpy", "pydantic"}),
        ("import recsys.bundle, recsys.score", {"ray", "tensorflow", "keras", "torch"}),
        ("import recsys.config, recsys.tables, recsys.errors", {"ray", "tensorflow", "keras", "pandas"}),
        ("import recsys.pipeline", {"tensorflow", "keras"}),  # the driver of a night that needs no training
    ],
)
def test_an_import_loads_nothing_heavier_than_it_needs(statement: str, heavy: set[str]):
    code = f"import sys; {statement}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True).stdout.split()
    assert "recsys" in loaded
    assert heavy.isdisjoint(loaded), f"{statement} loads {heavy & set(loaded)}"


def test_what_the_bench_holds_us_against_carries_nothing_of_ours():
    code = "import runpy, sys; runpy.run_path('jobs/_bench_alternatives.py'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True).stdout.split()
    assert "pyarrow" in loaded
    assert {"recsys", "jobs", "ray", "tensorflow", "keras"}.isdisjoint(loaded)
