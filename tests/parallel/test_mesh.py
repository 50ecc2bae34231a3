import jax
import pytest
from jax.sharding import AxisType

from internvideo_jax.parallel.mesh import AXES, MeshConfig, default_fsdp, make_mesh


@pytest.mark.parametrize(
    ("config", "devices", "shape"),
    [
        (MeshConfig(), 1, (1, 1, 1, 1)),
        (MeshConfig(), 8, (2, 4, 1, 1)),
        (MeshConfig(), 256, (16, 16, 1, 1)),
        (MeshConfig(tensor=2), 16, (2, 4, 2, 1)),
        (MeshConfig(data=4), 32, (4, 8, 1, 1)),
        (MeshConfig(fsdp=1), 256, (256, 1, 1, 1)),
        (MeshConfig(fsdp=16), 256, (16, 16, 1, 1)),
        (MeshConfig(data=2, fsdp=-1), 16, (2, 8, 1, 1)),
        (MeshConfig(data=2, fsdp=2, tensor=2, context=2), 16, (2, 2, 2, 2)),
        (MeshConfig(fsdp=8, tensor=5), 80, (2, 8, 5, 1)),
    ],
)
def test_shape_fills_the_open_axis(config, devices, shape):
    assert config.shape(devices) == shape


@pytest.mark.parametrize(
    ("config", "devices", "message"),
    [
        (MeshConfig(fsdp=3), 16, "data=-1 x fsdp=3 x tensor=1 x context=1 needs a multiple of 3"),
        (MeshConfig(data=2, fsdp=2), 8, "needs 4 devices, found 8"),
        (MeshConfig(data=4, fsdp=4), 8, "needs 16 devices, found 8"),
        (MeshConfig(fsdp=-1), 8, "at most one of them -1"),
        (MeshConfig(tensor=0), 8, "positive sizes"),
        (MeshConfig(tensor=-2), 8, "positive sizes"),
    ],
)
def test_shape_refuses(config, devices, message):
    with pytest.raises(ValueError, match=message):
        config.shape(devices)


def test_make_mesh_on_one_device_has_all_axes_of_type_auto():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert mesh.axis_names == AXES == ("data", "fsdp", "tensor", "context")
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert mesh.devices.shape == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("devices", "fsdp"),
    [(1, 1), (2, 2), (3, 3), (4, 2), (8, 4), (16, 8), (24, 8), (32, 16), (256, 16), (1024, 16)],
)
def test_default_fsdp_is_a_part_of_the_slice(devices, fsdp):
    assert default_fsdp(devices) == fsdp
