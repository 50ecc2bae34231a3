"""The notebooks: run from their top, and kept with what came out.

    python -m tests.notebooks [NAME ...]

runs those of the repository, or those named, in a new folder, and writes their outputs into their
files. What a notebook reads from the environment (its first cells say what) is passed on.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Of a cell; the longest one trains.
_SECONDS = 600
# What differs from run to run in the outputs of the same numbers.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def read(path: Path) -> NotebookNode:
    """A notebook, checked against the format."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def run(notebook: NotebookNode, folder: Path, *, seconds: float = _SECONDS, **environment: str):
    """Runs the cells of a notebook one after the other, in a process of its own.

    Args:
      notebook: whose cells get their outputs.
      folder: where it runs.
      seconds: that a cell may take.
      environment: variables to set for it.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell has failed; has its traceback.
      nbclient.exceptions.CellTimeoutError: one takes too long.
    """
    client = NotebookClient(
        notebook,
        timeout=seconds,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=os.environ | environment)


def text(notebook: NotebookNode) -> str:
    """A notebook as its file has it: always the same of the same."""
    return nbformat.writes(notebook) + "\n"


def main(names: list[str]) -> None:
    """Runs notebooks and writes their outputs."""
    paths = [path for path in NOTEBOOKS if not names or path.stem in names]
    if unknown := set(names) - {path.stem for path in paths}:
        raise SystemExit(f"expected of {[p.stem for p in NOTEBOOKS]}, found {sorted(unknown)}")
    for path in paths:
        notebook = read(path)
        # The machine's own folders say nothing to a reader.
        with tempfile.TemporaryDirectory() as folder:
            run(notebook, Path(folder))
            own = re.compile("|".join(map(re.escape, filter(None, _places(folder)))))
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            for output in cell.get("outputs", ()):
                _replace(output, own)
        path.write_text(text(notebook), encoding="utf-8")
        print(path)


def _places(folder: str) -> list[str]:
    """Folders of this machine that outputs may name, the inner ones first."""
    home = os.environ.get("INTERNVIDEO_HOME", "")
    return [os.path.realpath(folder), folder, home, str(FOLDER.parent), str(Path.home())]


def _replace(output: NotebookNode, own: re.Pattern[str]) -> None:
    """Writes "…" for folders of this machine in an output's texts."""

    def replaced(value: str) -> str:
        return _ADDRESS.sub("", own.sub("…", value))

    if "text" in output:
        output.text = replaced(output.text)
    for kind, value in output.get("data", {}).items():
        if kind.startswith("text/"):
            output.data[kind] = replaced(value)


if __name__ == "__main__":
    main(sys.argv[1:])
