"""The zip directory reader against Python's zipfile, and against archives that lie."""

import struct
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internvideo_jax.convert.files.checkpoint import CheckpointError
from internvideo_jax.convert.files.torch_zip import read_records


def write(path, members, comment=b""):
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = comment
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def read_all(path):
    data = path.read_bytes()
    return {n: data[r.offset : r.offset + r.size] for n, r in read_records(path).items()}


@given(
    members=st.dictionaries(st.text("abc/é", min_size=1, max_size=8), st.binary(), max_size=6),
    comment=st.binary(max_size=30),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_records_are_those_of_zipfile(tmp_path, members, comment):
    path = write(tmp_path / "a.zip", members, comment)
    assert read_all(path) == members


def zip64(path, members):
    """Writes an archive whose every size and place is in zip64 fields, as PyTorch's writer does."""
    body, directory = b"", b""
    for name, data in members.items():
        label = name.encode()
        sizes = struct.pack("<HHQQ", 1, 16, len(data), len(data))
        place = struct.pack("<HHQQQ", 1, 24, len(data), len(data), len(body))
        directory += (
            b"PK\x01\x02" + struct.pack("<6H3L5H2L", 45, 45, 0x808, 0, 0, 0, 0, *[2**32 - 1] * 2,
                                        len(label), len(place), 0, 0, 0, 0, 2**32 - 1)
            + label + place
        )  # fmt: skip
        body += (
            b"PK\x03\x04" + struct.pack("<5H3L2H", 45, 0x808, 0, 0, 0, 0, *[2**32 - 1] * 2,
                                        len(label), len(sizes))
            + label + sizes + data
            + b"PK\x07\x08" + struct.pack("<LQQ", 0, len(data), len(data))
        )  # fmt: skip
    end64 = b"PK\x06\x06" + struct.pack(
        "<Q2H2L4Q", 44, 45, 45, 0, 0, len(members), len(members), len(directory), len(body)
    )
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, len(body) + len(directory), 1)
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, *[2**16 - 1] * 2, *[2**32 - 1] * 2, 0)
    path.write_bytes(body + directory + end64 + locator + end)
    return path


def test_zip64_fields_are_followed(tmp_path):
    members = {"a/data.pkl": b"x" * 10, "a/data/0": b"", "a/data/1": b"yz"}
    assert read_all(zip64(tmp_path / "a.zip", members)) == members


def tamper(path, *at, value, layout="<L", signature=b"PK\x01\x02", number=0):
    """Overwrites fields of the number-th header with a signature."""
    data = bytearray(path.read_bytes())
    start = -1
    for _ in range(number + 1):
        start = data.index(signature, start + 1)
    for place in at:
        struct.pack_into(layout, data, start + place, value)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("at", "field", "reason"),
    [
        ([10], {"value": 8, "layout": "<H"}, "compressed or encrypted"),
        ([8], {"value": 1, "layout": "<H"}, "compressed or encrypted"),
        ([24], {"value": 2**31}, r"2147483648\), which PyTorch never does"),
        ([42], {"value": 5}, "not where the directory says"),
        ([42], {"value": 2**31}, "not where"),
        ([42], {"value": 0, "number": 1}, "not where the directory says"),
        ([28], {"value": 1000, "layout": "<H"}, "damaged|not where"),
        ([0], {"value": 0}, "damaged"),
        ([12], {"value": 2**31, "signature": b"PK\x05\x06"}, "2147483648 bytes|damaged"),
        ([16], {"value": 2**31, "signature": b"PK\x05\x06"}, "damaged|not where"),
        ([0], {"value": 0, "signature": b"PK\x05\x06"}, "interrupted download"),
        ([20, 24], {"value": 1000, "number": 1}, "'two' of 1000 bytes reaches past"),
        # Records that share bytes are how an archive holds more than its own size.
        ([20, 24], {"value": 40}, "'two' overlaps"),
    ],
)
def test_lies_are_refused(tmp_path, at, field, reason):
    path = write(tmp_path / "a.zip", {"one": b"first data", "two": b"second"})
    tamper(path, *at, **field)
    with pytest.raises(CheckpointError, match=reason):
        read_records(path)


def test_repeated_names_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("one", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("one", b"2")
    with pytest.raises(CheckpointError, match="occurs twice"):
        read_records(tmp_path / "a.zip")


@given(data=st.binary(max_size=300).map(lambda tail: b"PK\x03\x04" + tail + b"PK\x05\x06" + tail))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_give_records_or_a_checkpoint_error(tmp_path, data):
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    try:
        records = read_records(path)
    except CheckpointError:
        return
    assert all(record.offset + record.size <= len(data) for record in records.values())
