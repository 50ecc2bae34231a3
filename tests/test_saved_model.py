"""Saved models: what `save` and the converter write comes back, and misfits are named."""

import errno
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from flax import traverse_util

from internvideo_jax import model_files, saved_arrays, saved_model
from internvideo_jax.convert.engine.writer import Declared, write_arrays
from internvideo_jax.files import DiskFullError, atomic_directory
from internvideo_jax.models import ARCHITECTURES, abstract_variables
from internvideo_jax.models.video_classifier import VideoClassifierConfig
from internvideo_jax.preprocessing import Preprocessing, TextPreprocessing, VideoPreprocessing
from internvideo_jax.saved_model import SavedModelError
from internvideo_jax.training.loop import CHECKPOINTS
from tests.processes import outputs, system
from tests.small_models import ENCODER, noise_like

# Orbax abandons its other reads when one fails, and Python complains about some of them later.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIGS = {
    "video_vit": ENCODER,
    # With batch norm, hence with a second collection of variables.
    "video_classifier": VideoClassifierConfig(ENCODER, num_classes=5, head="concat"),
}
PREPROCESSING = Preprocessing(VideoPreprocessing(mean=(0.1, 0.2, 0.3), image_size=8, num_frames=2))


@functools.cache
def shapes_of(architecture):
    return abstract_variables(ARCHITECTURES[architecture].module_cls(CONFIGS[architecture]))


def variables_of(architecture):
    """Distinct values in every element."""
    return jax.tree.map(np.array, noise_like(shapes_of(architecture), 0))


def save(path, architecture="video_vit", variables=None, **changes):
    arguments = {
        "config": CONFIGS[architecture],
        "preprocessing": PREPROCESSING,
        "variables": variables_of(architecture) if variables is None else variables,
    }
    saved_model.save(path, architecture, **arguments | changes)
    return path


def stream(path, architecture="video_vit", dtype=np.float32):
    """Writes the same model as `save` in the converter's way."""
    variables = traverse_util.flatten_dict(variables_of(architecture), sep="/")
    with atomic_directory(path) as directory:
        declared = {name: Declared(a.shape, np.dtype(dtype)) for name, a in variables.items()}
        parts = ((name, None, array.astype(dtype)) for name, array in variables.items())
        written = write_arrays(directory / saved_model.ARRAYS, declared, parts)
        saved_model.write_description(
            directory,
            architecture,
            CONFIGS[architecture],
            PREPROCESSING,
            {"source": {"a": [1]}},
            sums=written.sums,
        )
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return save(tmp_path_factory.mktemp("written") / "model")


@pytest.fixture
def model_dir(tmp_path, written):
    """A video ViT that a test may damage."""
    return shutil.copytree(written, tmp_path / "model")


def check_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("write", [save, stream])
def test_a_model_comes_back_whole(tmp_path, architecture, write):
    write(tmp_path / "model", architecture)
    model = saved_model.load(tmp_path / "model")
    check_equal(model.variables, variables_of(architecture))
    assert model.config == CONFIGS[architecture]
    assert model.preprocessing == PREPROCESSING
    assert isinstance(model.module, ARCHITECTURES[architecture].module_cls)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.variables))


def test_the_description_is_plain_json(tmp_path):
    save(tmp_path / "model", metadata={"source": {"files": ["a.pth"]}, "conversion": {"n": 1}})
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    assert description["format_version"] == 2
    assert description["architecture"] == "video_vit"
    assert description["config"]["width"] == 32
    assert description["preprocessing"]["video"]["mean"] == [0.1, 0.2, 0.3]
    model = saved_model.load(tmp_path / "model")
    assert model.metadata == {"source": {"files": ["a.pth"]}, "conversion": {"n": 1}}


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.float16])
def test_dtype_sets_kernels_and_computation(tmp_path, dtype):
    model = saved_model.load(save(tmp_path / "model", "video_classifier"), dtype=dtype)
    assert model.config.encoder.dtype == np.dtype(dtype).name
    assert model.module.config == model.config
    expected = variables_of("video_classifier")
    for path, leaf in jax.tree.leaves_with_path(model.variables):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        wanted = np.dtype(dtype) if name.endswith("/kernel") else np.dtype("float32")
        assert leaf.dtype == wanted, name
    kernel = expected["params"]["head"]["kernel"].astype(np.dtype(dtype))
    np.testing.assert_array_equal(model.variables["params"]["head"]["kernel"], kernel)


@pytest.mark.parametrize(
    ("stored", "asked", "kernel", "vector"),
    [
        ("float16", None, "float16", "float16"),
        ("float16", "float32", "float32", "float32"),
        ("float16", "float16", "float16", "float16"),
        ("float16", "bfloat16", "bfloat16", "float32"),
        ("bfloat16", "bfloat16", "bfloat16", "bfloat16"),
    ],
)
def test_vectors_never_lose_precision(tmp_path, stored, asked, kernel, vector):
    model = saved_model.load(stream(tmp_path / "model", dtype=stored), dtype=asked)
    block = model.variables["params"]["blocks"]
    assert block["mlp"]["fc1"]["kernel"].dtype == kernel
    assert block["ls1"]["gamma"].dtype == vector


def kernels_of(variables):
    """Kernels and scales of linear layers by path."""
    flat = traverse_util.flatten_dict(variables, sep="/")
    return {name: leaf for name, leaf in flat.items() if "kernel" in name and "patch" not in name}


def test_int8_kernels_compute_what_the_kernels_that_they_stand_for_compute(model_dir, tmp_path):
    packed = saved_model.load(model_dir, storage="int8")
    kernels = kernels_of(packed.variables)
    assert len(kernels) == 2 * 8
    assert {leaf.dtype.name for leaf in kernels.values()} == {"int8", "float32"}
    assert kernels["params/blocks/attn/qkv/kernel_scale"].shape == (2, 3, 2, 16)
    assert kernels["params/blocks/attn/proj/kernel_scale"].shape == (2, 32)
    assert packed.config.dtype == "float32"

    saved_model.save(
        tmp_path / "packed", "video_vit", packed.config, PREPROCESSING, packed.variables
    )
    check_equal(saved_model.load(tmp_path / "packed").variables, packed.variables)
    wide = saved_model.load(tmp_path / "packed", storage="float32")
    for name, kernel in kernels_of(wide.variables).items():
        exact = kernels_of(variables_of("video_vit"))[name]
        # Half a level of the largest entry.
        np.testing.assert_allclose(kernel, exact, atol=np.abs(exact).max() / 254 * 1.01)
    video = jax.random.normal(jax.random.key(0), (1, 2, 8, 8, 3))
    outputs = (jax.jit(model.module.apply)(model.variables, video) for model in (packed, wide))
    check_equal(*outputs)


def test_int8_kernels_stay_int8_unless_another_storage_is_asked(model_dir, tmp_path):
    variables = saved_model.load(model_dir, storage="int8").variables
    path = save(tmp_path / "packed", variables=variables)
    for options in ({}, {"dtype": "bfloat16"}, {"storage": "int8"}):
        check_equal(kernels_of(saved_model.load(path, **options).variables), kernels_of(variables))
    model = saved_model.load(path, dtype="float16", storage="bfloat16")
    assert model.config.dtype == "float16"
    assert {leaf.dtype.name for leaf in kernels_of(model.variables).values()} == {"bfloat16"}


def test_unsupported_arguments(model_dir):
    with pytest.raises(ValueError, match="expected a dtype of float32, bfloat16, float16"):
        saved_model.load(model_dir, dtype="int8")
    with pytest.raises(ValueError, match="expected a storage of .*int8, found 'int32'"):
        saved_model.load(model_dir, storage="int32")


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_existing_things_are_refused(tmp_path, kind):
    path = tmp_path / "model"
    if kind == "file":
        path.write_text("precious")
    else:
        path.mkdir()
        (path / "precious").write_text("precious")
    with pytest.raises(FileExistsError, match="choose another directory"):
        save(path)
    assert sorted(p.name for p in tmp_path.rglob("*"))[-1] in ("model", "precious")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, path, variables):
        path.mkdir()
        raise ValueError(f"RESOURCE_EXHAUSTED: Error writing: {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", fail)
    with pytest.raises(DiskFullError, match="free disk, found .*: make room") as caught:
        save(tmp_path / "model")
    assert caught.value.filename == str(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_nothing(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(tmp_path / "model", metadata={"source": object()})
    assert list(tmp_path.iterdir()) == []


def edit_description(path, **changes):
    """Changes entries on purpose, hence takes the description's own checksum away."""
    changes = {"sha256": None} | changes
    description = json.loads((path / "model.json").read_text()) | changes
    kept = {key: value for key, value in description.items() if value is not None}
    (path / "model.json").write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format_version": 3}, "has format version 3, this internvideo_jax reads 1 to 2"),
        ({"format_version": True}, "does not describe a saved model"),
        ({"format_version": None}, "does not describe a saved model"),
        ({"config": None, "preprocessing": None}, "lacks config, preprocessing"),
        ({"architecture": "video_vt"}, "found 'video_vt'; did you mean 'video_vit'"),
        ({"architecture": ["video_vit"]}, "expected an architecture of .*video_vit"),
        ({"config": {"wdth": 3}}, r"model\.json: config.*wdth.*did you mean 'width'"),
        ({"preprocessing": {"video": {"mean": 3}}}, r"model\.json: preprocessing"),
    ],
)
def test_descriptions_that_do_not_fit(model_dir, changes, reason):
    edit_description(model_dir, **changes)
    with pytest.raises(ValueError, match=reason):
        saved_model.load(model_dir)


@pytest.mark.parametrize("text", ["", "{", "[]", '"model"'])
def test_damaged_descriptions(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(SavedModelError, match="not valid JSON|does not describe"):
        saved_model.load(tmp_path)


def test_what_is_no_model_directory(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(SavedModelError, match="internvideo-jax convert SOURCE"):
            saved_model.load(path)


def test_all_misfits_are_listed_when_loading(model_dir):
    config = json.loads((model_dir / "model.json").read_text())["config"]
    edit_description(model_dir, config=config | {"layer_scale_init": None, "pooled_dim": 12})
    with pytest.raises(SavedModelError) as caught:
        saved_model.load(model_dir)
    for part in (
        "4 arrays of",
        "params/blocks/ls1/gamma: not part of the model, found shape (2, 32)",
        "params/pooler/proj/bias: expected shape (12,), found (8,)",
        "params/pooler/proj/kernel: expected shape (4, 8, 12), found (4, 8, 8)",
    ):
        assert part in str(caught.value)


def test_all_misfits_are_listed_when_saving(tmp_path):
    variables = variables_of("video_vit")
    del variables["params"]["cls_token"]
    variables["params"]["extra"] = np.zeros(3)
    variables["params"]["pooler"]["q"]["bias"] = np.zeros((4, 8), np.int32)
    with pytest.raises(SavedModelError) as caught:
        save(tmp_path / "model", variables=variables)
    for part in (
        "params/cls_token: missing, expected shape (1, 1, 32)",
        "params/extra: not part of the model, found shape (3,)",
        "params/pooler/q/bias: expected dtype float32, found int32",
    ):
        assert part in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_foreign_configs_and_metadata_are_refused(tmp_path):
    with pytest.raises(SavedModelError, match="VideoViTConfig, found VideoClassifierConfig"):
        saved_model.write_description(
            tmp_path, "video_vit", CONFIGS["video_classifier"], PREPROCESSING
        )
    with pytest.raises(SavedModelError, match=r"own entries \['config'\]"):
        saved_model.write_description(
            tmp_path, "video_vit", ENCODER, PREPROCESSING, {"config": {}, "source": {}}
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lost", ["params", "params/_METADATA", "params/d"])
def test_lost_files_are_noticed(model_dir, lost):
    target = model_dir / lost
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(SavedModelError, match=r"the arrays under .*params cannot be read"):
        saved_model.load(model_dir, check=False)
    with pytest.raises(SavedModelError, match=rf"{lost}[^:]*: missing"):
        saved_model.load(model_dir)


def test_arrays_that_may_not_be_read_are_not_called_absent(model_dir, monkeypatch, caplog):
    iterdir = type(epath.Path(model_dir)).iterdir

    def refuse(path):
        if path.name == "params":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(type(epath.Path(model_dir)), "iterdir", refuse)
    with pytest.raises(SavedModelError, match=r"params cannot be read: .*Permission denied"):
        saved_model.load(model_dir, check=False)
    assert not caplog.records


def edit_config(path, **changes):
    config = json.loads((path / "model.json").read_text())["config"]
    edit_description(path, config=config | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 2**16, "mlp_dim": 2**20},
        {"depth": 4096, "mlp_dim": 2**14},
        {"image_size": 2**12, "num_frames": 8},
        {"image_size": 2**12, "num_frames": 8, "position_embedding": "separable"},
    ],
)
def test_a_config_of_more_than_is_stored_is_refused_before_anything_is_made(
    model_dir, monkeypatch, changes
):
    monkeypatch.setattr(saved_arrays, "abstract_variables", None)
    edit_config(model_dir, **changes)
    with pytest.raises(SavedModelError, match="expected a model of at most .* found a config"):
        saved_model.load(model_dir)


def test_arrays_of_more_than_the_files_hold_are_refused_before_they_are_read(tmp_path):
    path = stream(tmp_path / "model")
    description = path / "params" / "params.blocks.mlp.fc1.kernel" / ".zarray"
    description.write_text(
        json.dumps(json.loads(description.read_text()) | {"shape": [2, 2**20, 2**20]})
    )
    with pytest.raises(SavedModelError, match="to hold arrays of 8,796,.* they are cut off"):
        saved_model.load(path, check=False)


@pytest.mark.parametrize("changes", [{"depth": 0}, {"tubelet_size": 2**11, "num_frames": 2**11}])
def test_configs_of_no_model_are_refused(model_dir, changes):
    edit_config(model_dir, **changes)
    with pytest.raises(SavedModelError, match="expected"):
        saved_model.load(model_dir)


def test_numbers_out_of_range_name_field_and_file(model_dir):
    edit_config(model_dir, num_heads=0)
    with pytest.raises(ValueError, match=r"model\.json: config\.num_heads: expected .* found 0"):
        saved_model.load(model_dir)
    edit_config(model_dir, num_heads=2)
    text = (model_dir / "model.json").read_text()
    (model_dir / "model.json").write_text(text.replace("[0.1,", "[1e999,"))
    where = r"model\.json: preprocessing\.video\.mean\[0\]"
    with pytest.raises(ValueError, match=f"{where}: expected .* found inf"):
        saved_model.load(model_dir)


def test_pipes_and_deep_descriptions_among_the_arrays_are_refused(tmp_path):
    path = stream(tmp_path / "piped")
    os.mkfifo(path / "params" / "params.cls_token" / "0.0.1")
    with pytest.raises(SavedModelError, match="expected a regular file, found a pipe"):
        saved_model.load(path, check=False)
    path = stream(tmp_path / "deep")
    (path / "params" / "_METADATA").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(SavedModelError, match="levels, found deeper"):
        saved_model.load(path, check=False)


def flip_bit(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("storage", [None, "bfloat16", "int8"])
def test_a_flipped_bit_of_an_array_names_the_array(tmp_path, monkeypatch, storage):
    # As of files of more than 1 MiB, which no small model has.
    monkeypatch.setattr(model_files, "MAX_HASHED_BYTES", 1000)
    path = stream(tmp_path / "model")
    assert saved_model.load(path, storage=storage).metadata == {"source": {"a": [1]}}
    flip_bit(path / "params" / "params.blocks.mlp.fc1.kernel" / "0.0.0", 1001)
    saved_model.load(path, storage=storage, check=False)
    for read in (saved_model.check, functools.partial(saved_model.load, storage=storage)):
        with pytest.raises(
            SavedModelError, match=r"1 arrays .* damaged.*\n  params/blocks/mlp/fc1"
        ):
            read(path)


@pytest.mark.parametrize("write", [save, stream])
@pytest.mark.parametrize("read", [saved_model.load, saved_model.check])
def test_damage_of_a_small_file_names_the_file(tmp_path, write, read):
    """Also of those that Orbax does not read, or not always."""
    path = write(tmp_path / "model")
    files = [
        file for file in (path / "params").rglob("*") if file.is_file() and file.stat().st_size
    ]
    assert {"_METADATA", "_CHECKPOINT_METADATA"} < {file.name for file in files}
    assert len({file.name for file in files} & {"manifest.ocdbt", ".zarray"}) == 1
    by_kind = {file.suffix or file.name: file for file in files}
    for file in by_kind.values():
        whole = file.read_bytes()
        flip_bit(file, len(whole) // 2)
        with pytest.raises(SavedModelError, match=rf"(?s)^1 of .*{re.escape(str(file))}: damaged"):
            read(path)
        file.write_bytes(whole)
    read(path)


def test_a_flipped_bit_of_the_description_is_found(model_dir):
    whole = (model_dir / "model.json").read_bytes()
    flip_bit(model_dir / "model.json", whole.index(b"0.2"))
    for read in (saved_model.load, saved_model.read_config):
        with pytest.raises(SavedModelError, match=r"model\.json is damaged: .*remove its entry"):
            read(model_dir)


@pytest.mark.parametrize("name", ["../model.json", "/etc/passwd", "params/../../model.json"])
def test_checksums_are_of_files_of_the_model(model_dir, name):
    edit_description(model_dir, files={name: ""})
    with pytest.raises(SavedModelError, match="in the model's folder, found"):
        saved_model.load(model_dir)


def test_what_was_checked_is_told(model_dir):
    checked = saved_model.check(model_dir)
    arrays = jax.tree.leaves(variables_of("video_vit"))
    assert checked.description
    assert (checked.arrays, checked.array_bytes) == (len(arrays), sum(x.nbytes for x in arrays))
    assert checked.files == sum(file.is_file() for file in (model_dir / "params").rglob("*"))
    edit_description(model_dir, checksums=None, files=None)
    assert saved_model.check(model_dir) == (False, 0, checked.array_bytes, 0)


def test_models_saved_from_memory_have_checksums(model_dir, tmp_path):
    saved_model.load(model_dir, check=True)
    packed = saved_model.load(model_dir, storage="int8", check=True)
    path = save(tmp_path / "packed", variables=packed.variables)
    saved_model.load(path, check=True)
    sums = json.loads((path / "model.json").read_text())["checksums"]
    assert "params/blocks/mlp/fc1/kernel_scale" in sums
    edit_description(path, checksums=sums | {"params/cls_token": 1})
    with pytest.raises(SavedModelError, match="params/cls_token"):
        saved_model.load(path, check=True)
    for wrong in ([], {}):
        edit_description(path, checksums=wrong)
        with pytest.raises(SavedModelError, match="checksums"):
            saved_model.load(path, check=True)


def test_models_without_checksums_load_and_say_so(model_dir, caplog):
    edit_description(model_dir, checksums=None)
    saved_model.load(model_dir, check=False)
    assert not caplog.records
    saved_model.load(model_dir)
    assert "holds no checksums" in caplog.text


def test_arrays_of_64_bits_are_saved_as_jax_reads_them(tmp_path):
    wide = jax.tree.map(lambda x: x.astype(np.float64), variables_of("video_vit"))
    model = saved_model.load(save(tmp_path / "model", variables=wide), check=True)
    check_equal(model.variables, variables_of("video_vit"))


def test_a_lost_chunk_is_reported_by_its_cause(model_dir, monkeypatch):
    # As Orbax does; really losing one leaves its other reads behind, about which Python complains.
    def restore(*_):
        raise Exception("while reading") from ValueError("chunk {0, 1} is missing")

    monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", restore)
    with pytest.raises(SavedModelError, match=r"params cannot be read: chunk \{0, 1\} is missing"):
        saved_model.load(model_dir)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(1, 8), (2, 2)])
def test_loading_onto_a_mesh_and_saving_from_it(tmp_path, count, devices):
    """Every process reads its shards of a converted model and writes them as a new one, or two."""
    code = """
    import sys
    from internvideo_jax import saved_model
    from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
    from tests.processes import join_system
    join_system()
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1, tensor=2))
    model = saved_model.load(sys.argv[1], mesh=mesh)
    kernel = model.variables["params"]["encoder"]["blocks"]["mlp"]["fc1"]["kernel"]
    shapes = {shard.data.shape for shard in kernel.addressable_shards}
    assert shapes == {(2, 32 // (mesh.size // 2), 24)}, shapes
    saved_model.save(sys.argv[2], "video_classifier", model.config, model.preprocessing,
                     model.variables, {"source": {"from": "mesh"}})
    packed = saved_model.load(sys.argv[1], mesh=mesh, storage="int8")
    kernel = packed.variables["params"]["encoder"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == shapes
    saved_model.save(sys.argv[3], "video_classifier", model.config, model.preprocessing,
                     packed.variables)
    try:
        saved_model.save(sys.argv[2], "video_classifier", model.config, model.preprocessing,
                         model.variables)
    except FileExistsError:
        pass
    else:
        raise AssertionError("an existing model was overwritten")
    """
    stream(tmp_path / "converted", "video_classifier")
    targets = tmp_path / "saved", tmp_path / "packed"
    arguments = "-c", textwrap.dedent(code), tmp_path / "converted", *targets
    with system(count, devices, *arguments) as running:
        outputs(running)
    model = saved_model.load(tmp_path / "saved")
    check_equal(model.variables, variables_of("video_classifier"))
    assert model.metadata == {"source": {"from": "mesh"}}
    expected = saved_model.load(tmp_path / "converted", storage="int8").variables
    check_equal(saved_model.load(tmp_path / "packed").variables, expected)


def test_the_folder_of_a_run_is_told_from_its_model(tmp_path):
    with pytest.raises(SavedModelError, match=rf"`train` writes {tmp_path}/model when it ends"):
        saved_model.load(tmp_path / CHECKPOINTS / "100")
    with pytest.raises(SavedModelError, match="internvideo-jax convert"):
        saved_model.load(tmp_path / CHECKPOINTS / "downloaded")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    for place in (".", CHECKPOINTS, f"{CHECKPOINTS}/100"):
        with pytest.raises(SavedModelError, match=rf"Did you mean {tmp_path}/model\?"):
            saved_model.load(tmp_path / place)


def test_models_of_the_first_format_take_videos(model_dir):
    description = json.loads((model_dir / "model.json").read_text())
    flat = description["preprocessing"]["video"]
    edit_description(model_dir, format_version=1, preprocessing=flat, tokenizer=None)
    model = saved_model.load(model_dir)
    assert model.preprocessing == PREPROCESSING
    assert model.tokenizer_files == {}


@pytest.fixture
def with_tokenizer(tmp_path):
    """A model with two tokenizer files, and the options that saved it."""
    for name in ("vocab.txt", "merges.txt"):
        (tmp_path / name).write_text(name)
    text = TextPreprocessing("clip_bpe", ("vocab.txt", "merges.txt"), max_length=8)
    options = {
        "preprocessing": Preprocessing(text=text),
        "tokenizer_files": {name: tmp_path / name for name in text.files},
    }
    return save(tmp_path / "model", **options), options


def test_tokenizer_files_come_with_the_model(tmp_path, with_tokenizer):
    path, _ = with_tokenizer
    model = saved_model.load(shutil.move(path, tmp_path / "moved"))
    assert {name: file.read_text() for name, file in model.tokenizer_files.items()} == {
        "vocab.txt": "vocab.txt",
        "merges.txt": "merges.txt",
    }
    # A model saves again from what was loaded.
    save(
        tmp_path / "again",
        preprocessing=model.preprocessing,
        tokenizer_files=model.tokenizer_files,
    )
    assert (tmp_path / "again" / "tokenizer" / "vocab.txt").read_text() == "vocab.txt"


def test_missing_and_changed_tokenizer_files_are_listed(with_tokenizer):
    path, _ = with_tokenizer
    (path / "tokenizer" / "vocab.txt").write_text("another")
    (path / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(SavedModelError, match=r"^2 of 2 files") as caught:
        saved_model.load(path)
    assert "vocab.txt: damaged" in str(caught.value)
    assert "merges.txt: missing" in str(caught.value)


def test_tokenizer_files_are_those_of_the_preprocessing(tmp_path, with_tokenizer):
    _, options = with_tokenizer
    files = options["tokenizer_files"] | {"other.txt": tmp_path / "vocab.txt"}
    with pytest.raises(SavedModelError, match=r"names \(vocab.txt, merges.txt\).*other.txt"):
        save(tmp_path / "other", **options | {"tokenizer_files": files})
    with pytest.raises(SavedModelError, match=r"names \(none\), found vocab.txt"):
        save(tmp_path / "other", tokenizer_files=options["tokenizer_files"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["../vocab.txt", "/etc/passwd", "a\\b", "..", ""])
def test_names_of_tokenizer_files_never_leave_the_directory(tmp_path, with_tokenizer, name):
    path, _ = with_tokenizer
    text = TextPreprocessing("clip_bpe", (name,), max_length=8)
    with pytest.raises(SavedModelError, match="expected the plain name of a tokenizer file"):
        save(
            tmp_path / "other",
            preprocessing=Preprocessing(text=text),
            tokenizer_files={name: tmp_path / "vocab.txt"},
        )
    preprocessing = {"text": {"tokenizer": "clip_bpe", "files": [name], "max_length": 8}}
    edit_description(path, preprocessing=preprocessing)
    with pytest.raises(SavedModelError, match="expected the plain name of a tokenizer file"):
        saved_model.load(path)


def test_class_names_come_with_a_classifier(tmp_path):
    config = CONFIGS["video_classifier"]
    names = [f"class {i}" for i in range(config.num_classes)]
    save(tmp_path / "model", "video_classifier", classes=names)
    model = saved_model.load(tmp_path / "model")
    assert model.classes == tuple(names)
    assert "classes" not in model.metadata
    for wrong in (names[1:], names[:1] * len(names)):
        with pytest.raises(SavedModelError, match=f"expected {len(names)} different names"):
            save(tmp_path / "other", "video_classifier", classes=wrong)


@pytest.mark.parametrize("lost", ["params/d", "params/manifest.ocdbt"])
def test_readers_of_damaged_arrays_print_nothing_besides_the_error(model_dir, lost):
    """Of models of older versions, whose files have no checksums, Orbax finds out."""
    edit_description(model_dir, files=None)
    for file in (model_dir / lost).iterdir() if lost == "params/d" else [model_dir / lost]:
        file.write_bytes(b"{")
    program = (
        "import sys\nfrom internvideo_jax import saved_model\n"
        "try: saved_model.load(sys.argv[1])\nexcept ValueError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(model_dir)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0
    assert result.stdout.startswith(f"the arrays under {model_dir}/params cannot be read: ")
    assert str(model_dir / lost) in result.stdout
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""
