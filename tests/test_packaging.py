"""The three ways to have the package: a bare checkout, a wheel, an editable installation."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import internvideo_jax
from internvideo_jax.launch import doctor

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "configs", "launch")
# Prints where the four packages come from, and what else is importable that should not be.
LOCATE = """
import importlib, importlib.util, json
names = ["internvideo_jax"] + ["internvideo_jax." + n for n in ("kernels", "configs", "launch")]
print(json.dumps({n: importlib.import_module(n).__file__ for n in names}))
top = [n for n in ("kernels", "configs", "launch", "tests") if importlib.util.find_spec(n)]
inner = [n for n in ("internvideo_jax", "tests", "docs")
         if importlib.util.find_spec("internvideo_jax." + n)]
print(json.dumps([top, inner]))
"""
# Every subpackage that a walker meets, each once.
WALK = """
import internvideo_jax, pkgutil
for module in pkgutil.walk_packages(internvideo_jax.__path__, "internvideo_jax."):
    print(module.name)
"""


def python(code, cwd, interpreter=sys.executable, **environment):
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        [str(interpreter), "-c", code],
        cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def locate(cwd, **options):
    places, (top, inner) = map(json.loads, python(LOCATE, cwd, **options).splitlines())
    assert inner == []
    return {name: Path(place).parent for name, place in places.items()}, top


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what a commit of the working tree would hold, without the test data."""
    copy = tmp_path_factory.mktemp("checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listing.returncode:
        pytest.skip("not a git checkout: there is no list of files to copy")
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def test_a_bare_checkout_works_from_anywhere(checkout, tmp_path):
    places, _ = locate(tmp_path, PYTHONPATH=str(checkout))
    expected = {"internvideo_jax": checkout / "internvideo_jax"}
    assert places == expected | {f"internvideo_jax.{name}": checkout / name for name in FOLDERS}


def test_package_walkers_see_everything_once_and_end(checkout, tmp_path):
    names = python(WALK, tmp_path, PYTHONPATH=str(checkout)).split()
    assert len(names) == len(set(names))
    assert {f"internvideo_jax.{name}" for name in FOLDERS} <= set(names)
    assert {"internvideo_jax.config", "internvideo_jax.launch.doctor"} <= set(names)
    assert not [name for name in names if "internvideo_jax.internvideo_jax" in name]


def test_a_copy_without_the_checkout_does_not_take_its_neighbours(tmp_path):
    """As in site-packages, where another project's `kernels` may lie beside ours."""
    (tmp_path / "internvideo_jax").mkdir()
    shutil.copy(ROOT / "internvideo_jax" / "__init__.py", tmp_path / "internvideo_jax")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    code = "import importlib.util as u; print(u.find_spec('internvideo_jax.kernels'))"
    # This environment may hold an editable installation, which may answer.
    assert str(tmp_path) not in python(code, tmp_path, PYTHONPATH=str(tmp_path))


def test_public_names_are_lazy_and_exist():
    loaded = python("import internvideo_jax, sys; print(*sys.modules)", ROOT).split()
    assert not {"jax", "flax", "numpy"} & set(loaded)
    for name in internvideo_jax.__all__:
        assert getattr(internvideo_jax, name) is not None
    assert callable(internvideo_jax.load)
    assert set(internvideo_jax.__all__) <= set(dir(internvideo_jax))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = internvideo_jax.nothing


def test_every_requirement_has_a_lower_bound_and_none_is_a_framework():
    names = [line.partition(">=")[0] for line in doctor.requirements()]
    assert all(line.count(">=") == 1 for line in doctor.requirements())
    assert names == sorted(names, key=str.lower)
    assert not {"torch", "tensorflow", "tensorflow-cpu"} & set(names)


def build(source, kind, output):
    """Runs the build backend of this environment: no isolation, so no network."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(output)!r}))"
    return output / python(code, source).splitlines()[-1]


@pytest.fixture
def interpreter(tmp_path):
    """The Python of a new environment that sees this one's packages, but not its own copy of us."""
    venv.create(tmp_path / "venv", with_pip=False)
    python_path = tmp_path / "venv" / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site_packages = tmp_path / "venv" / "lib" / version / "site-packages"
    # A folder named in a .pth file is searched, but the .pth files in it (of an editable
    # installation of ours) are not read.
    (site_packages / "parent.pth").write_text(sysconfig.get_path("purelib"))
    return python_path


def install(interpreter, *what):
    pip = [sys.executable, "-m", "pip", f"--python={interpreter}"]
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    subprocess.run([*pip, "install", *options, *what], check=True)


@pytest.mark.slow
def test_the_wheel(checkout, interpreter, tmp_path):
    wheel = build(checkout, "wheel", tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"internvideo_jax"}
    code = {
        path.relative_to(checkout).as_posix()
        for folder in ("internvideo_jax", *FOLDERS)
        for path in (checkout / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {n for n in names if ".dist-info/" not in n} == {
        name if name.startswith("internvideo_jax/") else f"internvideo_jax/{name}" for name in code
    }
    install(interpreter, wheel)
    places, top = locate(tmp_path, interpreter=interpreter)
    site_packages = places["internvideo_jax"].parent
    assert site_packages.is_relative_to(tmp_path / "venv")
    for name in FOLDERS:
        assert places[f"internvideo_jax.{name}"] == site_packages / "internvideo_jax" / name
    assert top == []
    # In the checkout's root the checkout wins, whole.
    places, _ = locate(checkout, interpreter=interpreter)
    assert set(places.values()) == {checkout / n for n in ("internvideo_jax", *FOLDERS)}
    program = interpreter.with_name("internvideo-jax")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"internvideo-jax {internvideo_jax.__version__}\n"


@pytest.mark.slow
def test_the_sdist_makes_the_same_wheel(checkout, tmp_path):
    direct = build(checkout, "wheel", tmp_path)
    sdist = build(checkout, "sdist", tmp_path)
    shutil.unpack_archive(sdist, tmp_path / "unpacked")
    (source,) = (tmp_path / "unpacked").iterdir()
    (tmp_path / "again").mkdir()
    again = build(source, "wheel", tmp_path / "again")
    with zipfile.ZipFile(direct) as a, zipfile.ZipFile(again) as b:
        assert sorted(a.namelist()) == sorted(b.namelist())
        for name in a.namelist():
            if not name.endswith("RECORD"):
                assert a.read(name) == b.read(name), name


@pytest.mark.slow
def test_an_editable_installation(checkout, interpreter, tmp_path):
    install(interpreter, "--editable", str(checkout))
    expected = {checkout / name for name in ("internvideo_jax", *FOLDERS)}
    for cwd in (tmp_path, checkout):
        places, top = locate(cwd, interpreter=interpreter)
        assert set(places.values()) == expected
        assert top == [] or cwd == checkout
    names = python(WALK, tmp_path, interpreter=interpreter).split()
    assert len(names) == len(set(names))
    assert {f"internvideo_jax.{name}" for name in FOLDERS} <= set(names)
    # A file that is added later is there at once.
    (checkout / "configs" / "added_later.py").write_text("VALUE = 3\n")
    code = "from internvideo_jax.configs.added_later import VALUE; print(VALUE)"
    assert python(code, tmp_path, interpreter=interpreter) == "3\n"


def make(folder, *arguments, **environment):
    return subprocess.run(
        ["make", *arguments],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def bare_project(tmp_path):
    """The files that `make venv` reads, and a requirement that nobody can meet."""
    for name in ("Makefile", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "requirements.txt").write_text("no-such-package-of-internvideo-jax\n")
    return tmp_path


def test_make_says_when_python_is_too_old(bare_project):
    old = bare_project / "python3.8"
    old.write_text(
        "#!/bin/sh\n"
        'case "$1" in --version) echo Python 3.8.18 ;; *) exit 1 ;; esac\n'
    )  # fmt: skip
    old.chmod(0o755)
    run = make(bare_project, "venv", f"PYTHON={old}")
    assert run.returncode == 2
    assert "Expected Python 3.11 or newer, found Python 3.8.18" in run.stderr
    assert not (bare_project / ".venv").exists()


@pytest.mark.slow
def test_make_stops_when_pip_fails(bare_project):
    for target in ("venv", "test"):
        run = make(bare_project, target, f"PYTHON={sys.executable}", PIP_NO_INDEX="1")
        assert run.returncode == 2
        assert "-m pytest" not in run.stdout
        assert not (bare_project / ".venv" / "installed").exists()


def test_the_tools_are_pinned_where_they_judge():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {"tpu", "cuda", "tf", "torch", "wandb", "dev"}
    assert any(line.startswith("ruff>=") and ",<" in line for line in extras["dev"])
