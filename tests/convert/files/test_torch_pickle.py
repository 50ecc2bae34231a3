"""The pickle reader against Python's own pickler, and against pickles made to do harm."""

import argparse
import collections
import datetime
import decimal
import enum
import json
import os
import pathlib
import pickle
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvideo_jax.convert.files import torch_pickle
from internvideo_jax.convert.files.checkpoint import CheckpointError, UnsafePickleError
from internvideo_jax.convert.files.pickle_summary import summarize
from internvideo_jax.convert.files.pickle_values import Global, Opaque
from internvideo_jax.convert.files.torch_file import open_torch_file

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary(),
    lambda inner: st.lists(inner)
    | st.lists(inner).map(tuple)
    | st.dictionaries(st.text() | st.integers(-(2**60), 2**60) | st.binary(), inner)
    | st.sets(st.integers(-100, 100) | st.text())
    | st.frozensets(st.text()),
    max_leaves=20,
)  # fmt: skip


@given(value=plain_values, protocol=st.sampled_from([4, 5]))
def test_plain_values_come_back(value, protocol):
    assert torch_pickle.loads(pickle.dumps(value, protocol)) == value


@given(value=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=20,
), protocol=st.sampled_from([0, 1, 2, 3]))  # fmt: skip
def test_plain_values_come_back_from_old_protocols(value, protocol):
    assert torch_pickle.loads(pickle.dumps(value, protocol)) == value


class Colour(enum.Enum):
    RED = 1


class Settings:
    class Inner:
        pass

    def __init__(self):
        self.rate = 0.1
        self.inner = Settings.Inner()
        self.inner.depth = 3


class EasyDict(dict):
    def __init__(self, **fields):
        super().__init__(fields)
        self.__dict__ = self


@pytest.mark.parametrize("protocol", range(2, 6))
def test_objects_become_the_dict_of_their_fields(protocol):
    value = {
        "args": argparse.Namespace(lr=1e-3, path=pathlib.PurePosixPath("/data"), colour=Colour.RED),
        "settings": Settings(),
        "easy": EasyDict(a=1, nested=EasyDict(b=[1, 2])),
        "ordered": collections.OrderedDict(x=1),
        "counts": collections.Counter("aab"),
        "when": datetime.timedelta(seconds=3),
        "amount": decimal.Decimal("1.5"),
    }
    read = torch_pickle.loads(pickle.dumps(value, protocol))
    summary = summarize(read.items())
    assert summary["args"]["lr"] == 1e-3
    assert "PurePosixPath" in summary["args"]["path"]
    assert summary["settings"] == {"rate": 0.1, "inner": {"depth": 3}}
    assert summary["easy"] == {"a": 1, "nested": {"b": [1, 2]}}
    assert read["ordered"] == {"x": 1}
    assert summary["amount"] == "decimal.Decimal"


def test_functions_that_are_only_mentioned_are_harmless():
    read = torch_pickle.loads(pickle.dumps({"activation": os.path.join, "kind": print}))
    assert read == {
        "activation": Global("posixpath", "join"),
        "kind": Global("builtins", "print"),
    }


class Attack:
    def __init__(self, callee, *args):
        self.callee, self.args = callee, args

    def __reduce__(self):
        return self.callee, self.args


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("callee", [os.system, eval, exec, __import__, open, os.remove, print])
def test_a_pickle_that_calls_something_is_refused_unrun(tmp_path, callee, protocol):
    target = tmp_path / "precious"
    target.write_text("data")
    argument = {os.system: f"rm {target}", os.remove: str(target), open: str(target)}.get(
        callee, f"__import__('os').remove({str(target)!r})"
    )
    data = pickle.dumps({"state_dict": {}, "args": [Attack(callee, argument)]}, protocol)
    with pytest.raises(UnsafePickleError, match=f"{callee.__name__}; nothing was run"):
        torch_pickle.loads(data)
    assert target.read_text() == "data"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "posix.system|os.system"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'true'\no.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "os.system"),
        (b"cbuiltins\ngetattr\n(cos\nenviron\nS'get'\ntR(S'HOME'\ntR.", "os.environ.get"),
        (b"cbuiltins\ngetattr\n((lS'append'\ntR.", "attribute of an object"),
        (b"ccollections\nOrderedDict\n)R)R.", "object that it built itself"),
        (b"cfunctools\nreduce\n)R.", "functools.reduce"),
        (b"coperator\nattrgetter\n(S'x'\ntR.", "operator.attrgetter"),
        (b"cpickle\nloads\n(S''\ntR.", "pickle.loads"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        (b"cimportlib\nimport_module\n(S'os'\ntR.", "importlib.import_module"),
    ],
)
def test_every_way_to_call_is_refused(data, reason):
    with pytest.raises(UnsafePickleError, match=reason):
        torch_pickle.loads(data)


def test_calls_of_other_packages_stay_inert():
    read = torch_pickle.loads(b"ctorch.hub\nload\n(S'owner/repo'\ntR.")
    assert isinstance(read, Opaque)
    assert summarize([("model", read)]) == {"model": "torch.hub.load"}


def test_allocating_a_dangerous_class_allocates_nothing():
    read = torch_pickle.loads(b"csubprocess\nPopen\n)\x81.")
    assert read.kind == Global("subprocess", "Popen")


def test_state_cannot_change_real_objects():
    # In Python's unpickler this sets an attribute of the class itself.
    torch_pickle.loads(b"ccollections\nOrderedDict\n(N}S'move_to_end'\nNstb.")
    assert callable(collections.OrderedDict.move_to_end)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b".", b"N", b"NN.", b"0.", b"h\x00.", b"t.", b"u.", b"(NNt"),
        b"X\xff\xff\xff\x7fabc.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x8b\xff\xff\xff\x7fabc.",
        *(b"Pouter\n.", b"\x82\x01.", b"}]Ns.", b"]N(NNu.", b"}NNa.", b"NNQ."),
        b"I" + b"9" * 10_000 + b"\n.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"c" + b"x" * 600 + b"\ny\n.",
        b"ctorch\nSize\n((I-1\nttR.",
    ],
)
def test_damaged_pickles_are_named(data):
    with pytest.raises(CheckpointError, match="the pickle|a tensor"):
        torch_pickle.loads(data)


@given(
    data=st.binary(max_size=200)
    | st.builds(
        lambda value, edits: bytes(
            edits.get(position, byte) for position, byte in enumerate(pickle.dumps(value))
        ),
        plain_values,
        st.dictionaries(st.integers(0, 60), st.integers(0, 255), max_size=4),
    )
)
def test_arbitrary_bytes_give_data_or_a_checkpoint_error(data):
    try:
        value = torch_pickle.loads(data)
    except CheckpointError:
        return
    summarize([("value", value)])


def _resources(data):
    """Returns (seconds, peak bytes) of reading a pickle, whether it is accepted or not."""
    tracemalloc.start()
    started = time.process_time()
    try:
        summarize([("value", torch_pickle.loads(data))])
    except CheckpointError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return time.process_time() - started, peak


def _doubled_tuple(levels):
    """A tuple of twice a tuple of twice ..., which is 2^levels long when written out."""
    return b")" + b"q\x00h\x00\x86" * levels


def _equal_hashes(count):
    """As many frozensets of one hash: each takes one of two integers from each of pairs."""
    step = 2**61 - 1
    chosen = [
        frozenset(n + step * (number >> n & 1) for n in range(1, 14)) for number in range(count)
    ]
    return pickle.dumps(dict.fromkeys(chosen), 4)


@pytest.mark.parametrize(
    "data",
    [
        # As a dictionary's key, in a frozenset, as what builds a tensor.
        b"}" + _doubled_tuple(60) + b"Ns.",
        b"(" + _doubled_tuple(60) + b"\x91.",
        b"}(" + b")" + b"\x85" * 200_000 + b"Ns.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + b")" + b"\x85" * 200_000 + b"NN)tR.",
        _equal_hashes(8000),
        # An object whose state is an object whose state is ...
        b"}" + b"cmodule\nKind\n)\x81" * 50_000 + b"b" * 49_999 + b"Ns.",
    ],
    ids=[
        "doubled key",
        "doubled element",
        "deep key",
        "deep builder",
        "equal hashes",
        "deep object",
    ],
)
def test_keys_that_are_dear_to_hash_or_to_write_out_are_not(tmp_path, torch_file, data):
    file = torch_file.save_pickle(tmp_path / "hostile.pth", data)
    started = time.process_time()
    with pytest.raises(CheckpointError) as error:
        open_torch_file(file)
    assert time.process_time() - started < 3
    assert len(str(error.value)) < 1000


def test_what_a_file_says_of_itself_has_one_limit():
    text = "x" * 10_000
    entries = {f"entry {i}": [text] * 5_000 for i in range(100)}
    started = time.process_time()
    summary = summarize(entries.items())
    assert time.process_time() - started < 3
    assert len(json.dumps(summary)) < 2_000_000
    assert summary["entry 0"][0] == text


def _doubling(levels):
    """A list of two references to a list of two references to ..."""
    return b"]" + b"".join(b"q%c0](h%ch%ce" % (i, i, i) for i in range(levels)) + b"."


_LONG_TEXT = b"X" + (300_000).to_bytes(4, "little") + b"x" * 300_000
_LONG_LIST = b"](" + b"N" * 30_000 + b"e"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_doubling(100), id="billion laughs"),
        pytest.param(b"]q\x00" + b"h\x00a" * 20_000 + b".", id="a list that holds itself"),
        pytest.param(b")" + b"\x85" * 30_000 + b".", id="deep tuple"),
        pytest.param(b"})" + b"\x85" * 30_000 + b"Ns.", id="deep tuple as key"),
        pytest.param(b"]" * 30_000 + b"a" * 29_999 + b".", id="deep list"),
        pytest.param(b"Nr\xff\xff\xff\xff.", id="memo bomb"),
        pytest.param(_LONG_TEXT + b"q\x00" + b"h\x00h\x00\x930" * 10_000 + b".", id="long names"),
        pytest.param(
            _LONG_LIST + b"q\x00" + b"ccollections\nOrderedDict\nh\x00\x85R0" * 5_000 + b".",
            id="a long list copied often",
        ),
        pytest.param(
            _LONG_LIST + b"q\x00" + b"cbuiltins\nset\nh\x00\x85R0" * 5_000 + b".",
            id="a long set made often",
        ),
        pytest.param(
            b"}(" + b"".join(b"I%d\nN" % (i * (2**61 - 1)) for i in range(20_000)) + b"u.",
            id="colliding keys",
        ),
        pytest.param(b"(" * 30_000 + b"t" * 30_000 + b".", id="open marks"),
    ],
)
def test_time_and_memory_stay_in_proportion(data):
    seconds, peak = _resources(data)
    assert seconds < 5
    assert peak < 50e6


def test_too_large_a_pickle_is_refused(monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_OPERATIONS", 1000)
    with pytest.raises(CheckpointError, match="more than 1000 operations"):
        torch_pickle.loads(b"]" + b"Na" * 1000 + b".")
    monkeypatch.setattr(torch_pickle, "MAX_BYTES", 1000)
    with pytest.raises(CheckpointError, match="at most 1000 are read"):
        torch_pickle.loads(pickle.dumps("x" * 1000))
