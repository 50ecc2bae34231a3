import dataclasses
import json
import math
import re
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from internvideo_jax.config import (
    CheckedConfig,
    Range,
    from_dict,
    nearest_fields,
    nearest_name,
    to_dict,
)


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int
    mode: Literal["joint", "separable"] = "joint"
    scale: float | None = 1e-5


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    layers: tuple[int, ...] = ()
    mean: tuple[float, float] = (0.5, 0.5)
    is_causal: bool = False
    optional: Inner | None = None
    grid: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        if self.is_causal and not self.layers:
            raise ValueError("is_causal needs layers")


def test_values_arrive_in_the_types_of_their_fields():
    outer = from_dict(
        Outer,
        {
            "inner": {"width": 8, "scale": None},
            "layers": [1, 2],
            "mean": [0, 1.5],
            "optional": {"width": 4, "mode": "separable", "scale": 1},
            "grid": [[1, 2]],
        },
    )
    assert outer == Outer(
        inner=Inner(8, scale=None),
        layers=(1, 2),
        mean=(0.0, 1.5),
        optional=Inner(4, "separable", 1.0),
        grid=((1, 2),),
    )
    assert isinstance(outer.mean[0], float)
    assert isinstance(outer.optional.scale, float)


def test_a_config_dict_serves_as_a_mapping():
    config = ConfigDict({"inner": {"width": 8}, "layers": (3,)})
    assert from_dict(Outer, config) == Outer(Inner(8), layers=(3,))


def test_instances_of_nested_dataclasses_pass():
    assert from_dict(Outer, {"inner": Inner(8)}) == Outer(Inner(8))


@given(
    st.builds(
        Outer,
        inner=st.builds(
            Inner,
            width=st.integers(),
            scale=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        ),
        layers=st.lists(st.integers(), min_size=1).map(tuple),
        is_causal=st.booleans(),
        optional=st.none() | st.builds(Inner, width=st.integers()),
        grid=st.lists(st.tuples(st.integers(), st.integers())).map(tuple),
    )
)
def test_json_and_back(outer):
    assert from_dict(Outer, json.loads(json.dumps(to_dict(outer)))) == outer


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 8, "scal": 1.0}, "inner: unknown field 'scal' of Inner; did you mean 'scale'"),
        ({"mode": "joint"}, "model.inner: Inner needs 'width', found only 'mode'"),
        ({"width": "8"}, "model.inner.width: expected int, found str '8'"),
        ({"width": 8.0}, "model.inner.width: expected int, found float 8.0"),
        ({"width": True}, "model.inner.width: expected int, found bool True"),
        ({"width": None}, "model.inner.width: expected int, found None"),
        ({"width": 8, "scale": "x"}, "inner.scale: expected float or None, found str 'x'"),
        ({"width": 8, "mode": "join"}, "'joint', 'separable', found 'join'; did you mean 'joint'"),
        (8, "model.inner: expected the fields of Inner, found 8"),
    ],
)
def test_misfits_of_an_inner_dataclass_are_named(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_dict(Outer, {"inner": fields}, where="model")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"zzz": 1}, "model: unknown field 'zzz' of Outer (fields: inner, layers,"),
        ({"layers": 3}, "model.layers: expected a list, found int 3"),
        ({"layers": "12"}, "model.layers: expected a list, found str '12'"),
        ({"layers": [1, "2"]}, "model.layers[1]: expected int, found str '2'"),
        ({"mean": [1.0]}, "model.mean: expected 2 values, found 1: [1.0]"),
        ({"is_causal": 1}, "model.is_causal: expected bool, found int 1"),
        ({"optional": {"width": "8"}}, "model.optional.width: expected int, found str '8'"),
        ({"is_causal": True}, "is_causal needs layers"),
    ],
)
def test_misfits_are_named(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_dict(Outer, {"inner": {"width": 8}, **fields}, where="model")


@dataclasses.dataclass(frozen=True)
class Limited(CheckedConfig):
    count: Annotated[int, Range(1, 9)]
    rate: Annotated[float, Range(0.0, 0.5)] | None = None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 0}, "count: expected int from 1 to 9, found 0"),
        ({"count": 10}, "count: expected int from 1 to 9, found 10"),
        ({"count": True}, "count: expected int, found bool True"),
        ({"count": 1, "rate": -0.1}, "rate: expected float from 0.0 to 0.5, found -0.1"),
        ({"count": 1, "rate": math.nan}, "rate: expected float from 0.0 to 0.5, found nan"),
        ({"count": 1, "rate": 10**400}, "rate: expected float, found int 1000"),
        ({"count": 1, "rate": "x" * 1000}, "rate: expected float, found str 'xxx"),
    ],
)
def test_ranges_hold_however_a_config_is_made(fields, message):
    with pytest.raises(ValueError, match=re.escape(f"model.json.{message}")) as caught:
        from_dict(Limited, fields, "model.json")
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match=re.escape(f"Limited.{message}")):
        Limited(**fields)


def test_values_in_range_arrive():
    assert Limited(1) == from_dict(Limited, {"count": 1, "rate": None})
    assert type(Limited(9, 0).rate) is float


def test_all_missing_fields_are_named():
    with pytest.raises(ValueError, match="config: Outer needs 'inner', found only nothing"):
        from_dict(Outer, {})


def test_nearest_name_is_silent_when_nothing_is_near():
    assert nearest_name("width", ["depth", "widht"]) == "; did you mean 'widht'?"
    assert nearest_name("zzz", ["depth"]) == ""


def test_nearest_name_passes_over_capitals_and_knows_beginnings():
    known = ["Model-CLIP-1B-224p-f8", "Model-CLIP-B14", "model-b14-clips"]
    for found, expected in {
        "model-clip-b14": known[1], "Model-Clip-B15": known[1], "Model-CLIP-1B": known[0],
    }.items():  # fmt: skip
        assert nearest_name(found, known) == f"; did you mean {expected!r}?"
    assert nearest_name("MODEL-C", known) == f"; did you mean {known[0]!r} or {known[1]!r}?"


def test_to_dict_takes_instances_only():
    with pytest.raises(TypeError, match="expected an instance of a dataclass"):
        to_dict(Inner)


FIELDS = (
    *("stage.model.num_classes", "data.num_classes", "data.validation_share", "train.epochs"),
    *("train.batch_size", "train.steps", "train.warmup_steps", "train.log_every"),
    *("train.optimizer", "train.optimizer.lr", "train.optimizer.min_lr"),
    *("train.optimizer.weight_decay", "train.optimizer.layer_decay"),
)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("train.lr", ["train.optimizer.lr"]),
        ("optimizer.learning_rate", ["train.optimizer.lr"]),
        ("train.wd", ["train.optimizer.weight_decay"]),
        ("batch_sise", ["train.batch_size"]),
        ("train.num_epochs", ["train.epochs"]),
        ("model.num_classes", ["stage.model.num_classes", "data.num_classes"]),
        ("data.nothing_like_it", []),
    ],
)
def test_the_nearest_fields_are_found_whatever_part_they_are_sought_in(name, nearest):
    assert nearest_fields(name, FIELDS) == nearest


def test_three_fields_are_suggested_at_most():
    assert len(nearest_fields("lr", [f"{part}.lr" for part in "abcde"])) == 3
    assert nearest_fields("lr", []) == []
