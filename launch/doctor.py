"""`internvideo-jax doctor`: what is installed, what works, and how to get the rest."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import internvideo_jax
from internvideo_jax import environment
from internvideo_jax.files import write_json
from internvideo_jax.launch import arguments
from internvideo_jax.launch.diagnosis import probes
from internvideo_jax.launch.diagnosis.probes import Check

SUMMARY = "print versions, devices, dtypes and optional parts, and what is missing"

EPILOG = """\
Exit code 1 means that something required is missing or broken.

examples:
  internvideo-jax doctor
  internvideo-jax doctor --json=report.json
  JAX_PLATFORMS=cpu internvideo-jax doctor      leave the TPU or GPU alone
"""

# What only some commands need: module -> extra and purpose.
OPTIONAL = {
    "tensorflow": ("tf", "data sets that TFDS reads through TensorFlow"),
    "torch": ("torch", "comparisons with PyTorch, references for verify"),
    "libtpu": ("tpu", "TPUs"),
    "wandb": ("wandb", "the tracker of that name"),
}


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Prints the report; returns 0 when everything required works, else 1."""
    parser = arguments.make_parser("doctor", SUMMARY, EPILOG)
    parser.add_argument("--json", metavar="FILE", help="also write the report to this file")
    args = parser.parse_args(argv)
    arguments.new_output_file(args.json, "--json")

    checks = [
        *system_checks(),
        *probes.run(requirements()),
        *optional_checks(),
        *file_checks(),
    ]
    is_well = all(check.status != "bad" for check in checks)
    if args.json:
        rows = [dataclasses.asdict(check) for check in checks]
        write_json(args.json, {"ok": is_well, "checks": rows})
    print(render(checks))
    return 0 if is_well else 1


def render(checks: Sequence[Check]) -> str:
    """The report as text: a line per check under its section, then the conclusion."""
    width = max(len(check.name) for check in checks)
    lines: list[str] = []
    section = ""
    for check in checks:
        if check.section != section:
            section = check.section
            lines += ["", section] if lines else [section]
        lines.append(f"  {check.status:<4}  {check.name:<{width}}  {check.value}")
        if check.advice:
            lines.append(f"  {'':<4}  {'':<{width}}  -> {check.advice}")
    bad = [check.name for check in checks if check.status == "bad"]
    conclusion = f"Needs attention: {', '.join(bad)}" if bad else "Everything required works."
    return "\n".join([*lines, "", conclusion])


def requirements() -> list[str]:
    """The core's requirements: the checkout's requirements.txt, or the installed metadata."""
    checkout = Path(internvideo_jax.__file__).parents[1]
    if (checkout / "pyproject.toml").is_file():
        lines = (checkout / "requirements.txt").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line and not line.startswith("#")]
    lines = importlib.metadata.requires("internvideo-jax") or []
    return [line for line in lines if "extra ==" not in line]


def system_checks() -> Iterator[Check]:
    """Ourselves, the interpreter, the machine."""
    where = Path(internvideo_jax.__file__).parent
    version = f"{internvideo_jax.__version__} in {where}"
    yield Check("system", "internvideo-jax", "ok", version)
    yield Check("system", "python", "ok", f"{platform.python_version()} in {sys.prefix}")
    yield Check("system", "machine", "ok", f"{platform.platform()}, {os.cpu_count()} CPU cores")


def optional_checks() -> Iterator[Check]:
    """Parts that only some commands need; looked up, not imported."""
    for module, (extra, purpose) in OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            advice = f"for {purpose}: pip install 'internvideo-jax[{extra}]'"
            yield Check("optional", module, "note", "not installed", advice)
            continue
        # TensorFlow also comes in distributions with other names, such as tensorflow-cpu.
        names = importlib.metadata.packages_distributions().get(module, [module])
        versions = [importlib.metadata.version(name) for name in names]
        yield Check("optional", module, "ok", ", ".join(versions))


def file_checks() -> Iterator[Check]:
    """The folder of converted models and demo outputs."""
    home = environment.home()
    existing = next(path for path in (home, *home.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free / 2**30
    except OSError as error:
        found = f"{home} cannot be written: {error.strerror}"
        advice = "set it to a folder that you may write"
        yield Check("files", "INTERNVIDEO_HOME", "bad", found, advice)
    else:
        yield Check("files", "INTERNVIDEO_HOME", "ok", f"{home}, {free:.0f} GiB free")
