"""Reference activations from modules in PyTorch's manner."""

import sys

import numpy as np
import pytest
import safetensors.numpy

from internvideo_jax.convert.engine import reference
from internvideo_jax.convert.engine.family import all_families
from internvideo_jax.convert.engine.verify import Recipe, find_recipe, load_reference
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.training.masking import mask_to_kept
from tests.small_models import CONFIGS, ENCODER, INTERNVIDEO2_CLIP, TOWERS, VICLIP
from tests.small_torch import make_torch

SIZE = Preprocessing(VideoPreprocessing(image_size=8, num_frames=2))
CODE = """
import torch
from torch.nn import Module
{imports}

class Block(Module):
    def __init__(self, scale):
        super().__init__()
        self.weight = torch.from_numpy(scale)

    def forward(self, x):
        return torch.from_numpy(x.numpy() * self.weight.numpy()), "more"


class Net(Module):
    def __init__(self, size=1):
        super().__init__()
        import numpy as np
        self.first, self.second = Block(np.zeros(size, np.float32)), Block(np.ones(1, np.float32))

    def forward(self, x):
        assert not self.training
        x = self.first(x)[0]
        return {returned}

def number():
    return 3
"""


@pytest.fixture
def torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", make_torch())
    monkeypatch.setitem(sys.modules, "torch.nn", sys.modules["torch"].nn)


@pytest.fixture
def make(torch, tmp_path, monkeypatch):
    """Writes a file of code, and makes a module of it: `make(name="Net", returned=..., ...)`."""

    def run(name="Net", returned="self.second(x)[0]", imports="", options=None, folder="code"):
        file = tmp_path / folder / "nets.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(CODE.format(returned=returned, imports=imports))
        for known in ("nets", "package", "package.nets", "package.inner"):
            monkeypatch.delitem(sys.modules, known, raising=False)
        return reference.make_module(f"{file}:{name}", options or {})

    return run


RECIPE = Recipe(("x",), None, hooks=((r"(first|second)", r"hidden/\1"),), outputs=("logits",))
INPUTS = {"x": np.arange(3, dtype=np.float32)}


def test_outputs_and_activations_have_the_names_of_the_recipe(make):
    before = list(sys.path)
    module = make()
    assert sys.path == before
    module.load_state_dict({"first.weight": np_tensor(2), "second.weight": np_tensor(5)})
    values = reference.run_module(module, INPUTS, RECIPE)
    assert sorted(values) == ["hidden/first", "hidden/second", "logits"]
    np.testing.assert_array_equal(values["hidden/first"], [0, 2, 4])
    np.testing.assert_array_equal(values["logits"], [0, 10, 20])
    # Hooks are gone afterwards.
    assert all(not part._hooks for _, part in module.named_modules())


def np_tensor(value):
    return make_torch().from_numpy(np.full(1, value, np.float32))


@pytest.mark.parametrize(
    ("returned", "names", "expected"),
    [
        ("(x, None, x)", (), ["logits", "output_2"]),
        ("(x, x)", ("a", "b"), ["a", "b"]),
        ('{"pooled": x, "note": "text"}', (), ["pooled"]),
    ],
)
def test_several_outputs_are_named(make, returned, names, expected):
    values = reference.run_module(make(returned=returned), INPUTS, Recipe(("x",), None), names)
    if not names:
        expected = [name.replace("logits", "output_0") for name in expected]
    assert sorted(values) == expected


def test_code_in_a_package_may_import_its_neighbours(make, tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "inner.py").write_text("value = 1")
    assert make(folder="package", imports="from .inner import value")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "Nett"}, "expected a class or function 'Nett', found none"),
        ({"name": "number"}, "expected it to make a torch.nn.Module, found int"),
        ({"imports": "import no_such_package"}, "no_such_package.*install what it needs"),
        ({"name": ""}, "expected FILE.py:NAME"),
    ],
)
def test_code_that_makes_no_module(make, options, reason):
    with pytest.raises(ValueError, match=reason):
        make(**options)


def test_weights_come_from_a_checkpoint_whatever_stands_before_their_names(make, tmp_path):
    stored = {"first.weight": np.full(1, 2, np.float16), "second.weight": np.full(1, 5, np.float32)}
    file = tmp_path / "weights.safetensors"
    tensors = {f"module.net.{name}": array for name, array in stored.items()}
    safetensors.numpy.save_file(tensors | {"head": np.zeros(2, np.float32)}, file)
    module = make()
    assert reference.load_weights(module, str(file)) == ["head"]
    values = reference.run_module(module, INPUTS, RECIPE)
    np.testing.assert_array_equal(values["logits"], [0, 10, 20])
    assert values["logits"].dtype == np.float32


def test_all_tensors_that_do_not_fit_are_listed(make, tmp_path):
    file = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({"first.weight": np.zeros(2, np.float32)}, file)
    with pytest.raises(ValueError, match="2 tensors") as caught:
        reference.load_weights(make(), str(file))
    assert "first.weight: expected shape (1,), found (2,)" in str(caught.value)
    assert "second.weight: missing" in str(caught.value)


@pytest.mark.parametrize(
    "name", sorted(name for family in all_families() for name in family.recipes)
)
def test_inputs_are_those_of_the_model_and_drawn_by_the_seed(name):
    whole = {"viclip": VICLIP, "internvideo2_clip": INTERNVIDEO2_CLIP["llama"]}
    config = (CONFIGS | TOWERS | whole)[name]
    inputs = reference.make_inputs(config, SIZE)
    recipe = find_recipe(name)
    assert tuple(inputs) == recipe.inputs
    again, other = (reference.make_inputs(config, SIZE, seed=seed) for seed in (0, 1))
    for key, array in inputs.items():
        np.testing.assert_array_equal(array, again[key])
        assert (array != other[key]).any()
    if "video" in inputs:
        assert inputs["video"].shape == ((2, 2, 3, 8, 8) if name in whole else (2, 3, 2, 8, 8))
    if "input_ids" in inputs:
        assert inputs["input_ids"].min() >= 0
        text = getattr(config, "text", config)
        assert (inputs["input_ids"] != getattr(text, "pad_id", 29)).all()
    if "mask" in inputs:
        kept = mask_to_kept(inputs["mask"])
        assert inputs["mask"].shape == (2, ENCODER.num_tokens)
        assert (kept[:, 0] == 0).all()


def test_a_reference_comes_back(tmp_path):
    path = tmp_path / "reference.safetensors"
    reference.write_reference(path, INPUTS, {"hidden/first": INPUTS["x"], "logits": INPUTS["x"]})
    found = load_reference(path)
    assert sorted(found.inputs) == ["x"]
    assert sorted(found.outputs) == ["hidden/first", "logits"]
    assert not found.train_mode
