"""Rules of this repository that ruff and mypy cannot state."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {
    ".ci", ".gitignore", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE",
    "MANIFEST.in", "Makefile", "README.md", "configs", "docs", "internvideo_jax", "kernels",
    "launch", "notebooks", "pyproject.toml", "requirements.txt", "setup.py", "tests",
}  # fmt: skip
# A package may import from its own layer and the ones below.
LAYERS = (
    {"launch", "configs"},
    {"loading"},
    {"search"},
    {"training", "evaluation", "convert", "data"},
    {
        "model_description",
        "model_files",
        "orbax_errors",
        "saved_arrays",
        "saved_model",
        "stablehlo",
    },
    {"models", "objectives"},
    {"nn"},
    {"kernels", "parallel"},
    {"checksums", "class_names", "config", "environment", "files", "preprocessing", "processes"},
)


@cache
def files():
    """What a commit of the working tree would hold."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listing.returncode:
        pytest.skip("not a git checkout: there is no list of files to hold the rules against")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def python_files():
    return [path for path in files() if path.suffix == ".py"]


def imported_modules(path):
    """Absolute names of the modules that a file imports, with their lines."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def layer(name):
    for rank, names in enumerate(LAYERS):
        if name in names:
            return rank
    return None


def test_the_mapped_folders_are_imported_by_their_one_name():
    """`kernels.x` and `internvideo_jax.kernels.x` would be two modules with two sets of objects."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in python_files()
        for name, line in imported_modules(path)
        if name.partition(".")[0] in {"kernels", "configs", "launch"}
    ]
    assert not wrong, "import internvideo_jax.<name> instead:\n" + "\n".join(wrong)


def test_imports_point_one_way():
    wrong = []
    for path in python_files():
        parts = path.relative_to(ROOT).with_suffix("").parts
        own = parts[1] if parts[0] == "internvideo_jax" else parts[0]
        if layer(own) is None:
            continue
        for name, line in imported_modules(path):
            package, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if package != "internvideo_jax" or layer(other) is None:
                continue
            is_kernel_of_a_mesh = {own, other} == {"kernels", "parallel"}
            if layer(other) < layer(own) or is_kernel_of_a_mesh:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {own} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_package_has_its_place_among_the_layers():
    names = {path.name for path in (ROOT / "internvideo_jax").iterdir() if path.is_dir()}
    names |= {p.stem for p in (ROOT / "internvideo_jax").glob("*.py") if p.stem != "__init__"}
    assert {name for name in names if layer(name) is None} <= {"__pycache__"}


def test_every_code_folder_is_a_package():
    folders = {
        path.parent
        for path in python_files()
        if path.relative_to(ROOT).parts[0] in {"internvideo_jax", "kernels", "configs", "launch"}
    }
    assert [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").is_file()] == []


def test_nothing_is_left_to_do():
    marker = re.compile("TO" + r"DO|FIX" + r"ME|X{3}\b")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in python_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marker.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_tree_stays_small_and_tidy():
    names = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in files()}
    assert {name.partition("/")[0] for name in names} <= TOP_LEVEL
    data = ("tests/goldens/data/", "launch/assets/")
    large = {n: size for n, size in names.items() if size > 2**20 and not n.startswith(data)}
    assert not large, "files over 1 MiB belong to a package, a download or a generator"
    goldens = sum(size for name, size in names.items() if name.startswith(data[0]))
    assert goldens <= 40e6
    assert sum(names.values()) < 50e6
