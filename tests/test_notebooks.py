"""The notebooks: well formed and with outputs; they run, and what they find is right."""

import ast
import re
from types import SimpleNamespace

import jax
import pytest
from nbformat.v4 import new_code_cell

from tests import notebooks

BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
# Folders of a machine, but for those that an output may name on every one.
MACHINE = re.compile(r"(?<![\w.…])/(home|root|tmp|work|usr|opt|mnt|var|Users|content)/\w")

each = pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts_of(cell):
    """What a cell has printed, and what stands beside its pictures."""
    for output in cell.outputs:
        yield output.get("text", "")
        yield from (x for kind, x in output.get("data", {}).items() if kind.startswith("text/"))


def test_there_are_three():
    assert {path.stem for path in notebooks.NOTEBOOKS} == {
        "zero_shot_retrieval", "convert_checkpoint", "finetune_retrieval",
    }  # fmt: skip


@each
def test_files_are_as_they_would_be_written_again(path):
    notebook = notebooks.read(path)
    assert path.read_text(encoding="utf-8") == notebooks.text(notebook)
    ids = [cell.id for cell in notebook.cells]
    # Cells are told by name in a diff.
    assert all(re.fullmatch(r"[a-z_]+", name) for name in ids)
    assert len(set(ids)) == len(ids)
    assert path.stat().st_size < 1e6


@each
def test_code_is_python_and_has_been_run_from_the_top(path):
    cells = code_of(notebooks.read(path))
    for cell in cells:
        ast.parse(cell.source)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert sum(bool(cell.outputs) for cell in cells) >= 5
    kinds = {kind for c in cells for out in c.outputs for kind in out.get("data", ())}
    assert "image/png" in kinds
    assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"]


@each
def test_outputs_name_no_folders_of_a_machine_and_no_warnings(path):
    printed = [x for cell in code_of(notebooks.read(path)) for x in texts_of(cell)]
    assert [found[0] for text in printed if (found := MACHINE.search(text))] == []
    assert [text for text in printed if "Warning" in text] == []


@each
def test_it_opens_in_colab_and_installs_like_the_others(path):
    first, install, devices = notebooks.read(path).cells[:3]
    assert BADGE in first.source
    links = re.findall(r"\(([^)\s]+)\)", first.source)
    assert all(link.startswith("https://colab.research.google.com/") for link in links)
    for other in notebooks.NOTEBOOKS:
        cells = notebooks.read(other).cells[1:3]
        assert [cell.source for cell in cells] == [install.source, devices.source]


@pytest.fixture
def run(fast_demo, tmp_path):
    """Runs a notebook with the fast demo's model, and then checks that see all of its names."""

    def call(name, checks, **environment):
        notebook = notebooks.read(notebooks.FOLDER / f"{name}.ipynb")
        notebook.cells.append(new_code_cell(checks))
        notebooks.run(
            notebook,
            tmp_path,
            seconds=300,
            INTERNVIDEO_HOME=str(fast_demo.home),
            JAX_PLATFORMS="cpu",
            JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir,
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
            **environment,
        )
        printed = "".join(x for cell in code_of(notebook) for x in texts_of(cell))
        return SimpleNamespace(folder=tmp_path, printed=printed, cells=code_of(notebook))

    return call


@pytest.mark.slow
def test_texts_find_clips(run):
    found = run(
        "zero_shot_retrieval",
        """
assert MODEL == "demo"
assert scores.shape == (len(clips), len(QUERIES)) == (12, 12)
for rows in (video, text):
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
# The card of `evaluate` says the same.
assert card["clips"] == 12
assert metrics["t2v_r1"] == card["metrics"]["similarity/t2v_r1"]
assert [len(query.found) for query in queries] == [TOP] * SHOWN
assert all(found.picture is not None for query in queries for found in query.found)
for best in named:
    assert {name for name, _ in best} <= set(CLASSES) and len(best) == 3
""",
        INTERNVIDEO_MODEL="demo",
    )
    # The heat map and the contact sheet.
    assert sum("image/png" in out.get("data", {}) for c in found.cells for out in c.outputs) == 2
    assert (found.folder / "result" / "contact_sheet.png").is_file()


@pytest.mark.slow
def test_a_checkpoint_is_converted_proved_and_written_back(run):
    found = run(
        "convert_checkpoint",
        """
assert report["tensors_loaded"] == len(checkpoint)
assert list(misfit.missing) == ["blocks.1.mlp.fc1.weight", "head.bias"]
assert list(misfit.extra) == ["blocks.1.mlp.fc1.wieght"]
assert len(rows) == 8 and all(row["ok"] for row in rows) and max(relative) < 1e-5
assert len(best) == 3 and np.isfinite(feature).all()
assert len(same) == len(again) == len(checkpoint)
""",
    )
    assert "all agree" in found.printed


@pytest.mark.slow
def test_pairs_of_ones_own_are_trained_on(run):
    found = run(
        "finetune_retrieval",
        """
assert (len(pairs), len(captions)) == (40, 8)
assert RECIPE == "demo,fast"
steps = [json.loads(line) for line in Path("finetuned/metrics.jsonl").read_text().splitlines()]
assert max(line["step"] for line in steps) == 2
assert set(results) == {"before", "after", "average of both"}
changed = ivj.load("finetuned/model").variables["params"]["text"]["embeddings"]
start = before.variables["params"]["text"]["embeddings"]
assert not all(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (start, changed))))
""",
        INTERNVIDEO_CLIPS="40",
        INTERNVIDEO_EPOCHS="2",
    )
    assert (found.folder / "finetuned" / "loss.png").is_file()
