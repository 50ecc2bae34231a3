"""What a PyTorch pickle is read into: plain data, tensor descriptions and inert objects.

`call` is the only place where a pickle's wish to call something is answered. Every answer takes
constant time and memory, however large the arguments, so that no pickle costs more than its length.

Source: the call signatures of `torch._utils` and `torch._tensor` (PyTorch 1.6 to 2.13).
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from internvideo_jax.convert.files.checkpoint import CheckpointError, UnsafePickleError

_MAX_NAME = 500
_MAX_DIMS = 32


class Global(NamedTuple):
    """A name that the pickle refers to; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Storage(NamedTuple):
    """A block of numbers in its own record: `length` elements of `dtype` ("bytes": untyped)."""

    dtype: str
    key: str
    length: int


# What a pickle built may hold itself, or the same again and again: texts of these say only what
# they are.
@dataclasses.dataclass(eq=False, frozen=True, slots=True, repr=False)
class Tensor:
    """A strided view of a `Storage`; offset and strides count elements of `dtype`."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __repr__(self) -> str:
        return f"<tensor of shape {self.shape}>"


@dataclasses.dataclass(eq=False, slots=True, repr=False)
class Opaque:
    """An object of a class that we do not know: its state, its items, its elements."""

    kind: Global
    state: Any = None
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)
    elements: list[Any] = dataclasses.field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def named(module: Any, name: Any) -> Global:
    """Returns the `Global` of a module and a name given by the pickle."""
    if not (isinstance(module, str) and isinstance(name, str)):
        raise CheckpointError("the pickle names something by what is not a string")
    if len(module) + len(name) > _MAX_NAME:
        raise CheckpointError(f"the pickle uses a name of over {_MAX_NAME} characters")
    return Global(module, name)


def key(value: Any) -> Any:
    """Returns `value` as something that is cheap to hash, and unlike others in its hash.

    Tuples are hashed with all that they hold; frozensets of integers that are equal modulo
    2^61 - 1 have one hash in any number.
    """
    if isinstance(value, (tuple, frozenset)) and not isinstance(value, (Global, Storage)):
        return Opaque(Global("builtins", type(value).__name__))
    if not isinstance(value, _KEY_TYPES):
        raise CheckpointError(f"the pickle has a {type(value).__name__} as dictionary key")
    if isinstance(value, int) and value.bit_length() > 64:
        raise CheckpointError("the pickle has an integer of more than 64 bits as dictionary key")
    return value


def storage(identity: Any) -> Storage:
    """Reads a persistent id: ("storage", class, record key, device, number of elements)."""
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        raise CheckpointError("the pickle refers to an outside object that is not a storage")
    _, kind, record, _, length = identity
    if not isinstance(kind, Global) or not isinstance(record, str):
        raise CheckpointError("the pickle describes a storage by something else than its class")
    return Storage(_STORAGE_DTYPES.get(kind.name, kind.name), record, _whole(length))


def call(callee: Any, args: Any) -> Any:
    """Answers a call: known names give plain data, classes something inert, the rest an error."""
    if not isinstance(args, tuple):
        raise CheckpointError("the pickle calls something with what is not a tuple of arguments")
    if not isinstance(callee, Global):
        raise UnsafePickleError(f"the pickle calls an object that it built itself; {_DISTRUST}")
    if callee in _CALLS:
        return _CALLS[callee](*args)
    package = callee.module.partition(".")[0]
    if package in _STANDARD_LIBRARY and callee not in _INERT_STANDARD_CLASSES:
        raise UnsafePickleError(f"the pickle asks to call {callee}; {_DISTRUST}")
    return Opaque(callee)


def allocate(callee: Any, args: Any) -> Any:
    """Answers the creation of an object without its initialiser, which runs no code of a class."""
    if not (isinstance(callee, Global) and isinstance(args, tuple)):
        raise CheckpointError("the pickle makes an instance of what is not a class")
    return _CALLS[callee](*args) if callee in _CALLS else Opaque(callee)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise CheckpointError("a tensor's size, stride or offset is not a whole number >= 0")
    return value


def _wholes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > _MAX_DIMS:
        raise CheckpointError(f"a tensor's sizes are not a list of up to {_MAX_DIMS} numbers")
    return tuple(map(_whole, values))


def _tensor(block: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    if not isinstance(block, Storage):
        raise CheckpointError("a tensor is built from something that is not a storage")
    shape, strides = _wholes(shape), _wholes(strides)
    if len(shape) != len(strides):
        raise CheckpointError(f"a tensor of shape {shape} has strides {strides}")
    return Tensor(block, block.dtype, _whole(offset), shape, strides)


def _tensor_v2(
    block: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, flags: Any = None
) -> Tensor:
    if isinstance(flags, dict) and (flags.get("conj") or flags.get("neg")):
        raise CheckpointError(
            "a tensor is stored as a lazy conjugate or negative view; "
            "save it again after tensor.resolve_conj().resolve_neg()"
        )
    return _tensor(block, offset, shape, strides)


def _tensor_v3(
    block: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    flags: Any = None,
) -> Tensor:
    if not isinstance(dtype, Global):
        raise CheckpointError("a tensor's dtype is not a name")
    tensor = _tensor_v2(block, offset, shape, strides, grad, hooks, flags)
    return dataclasses.replace(tensor, dtype=dtype.name)


def _tensor_with_attributes(build: Any, _kind: Any, args: Any, _state: Any) -> Any:
    is_known = isinstance(build, Global) and build in _TENSOR_CALLS
    if not is_known or not isinstance(args, tuple):
        raise CheckpointError("a tensor is rebuilt by something that does not build tensors")
    return _TENSOR_CALLS[build](*args)


def _attribute(owner: Any, name: Any) -> Global:
    # How protocols below 4 refer to a nested class: getattr(Outer, "Inner").
    if not isinstance(owner, Global):
        raise UnsafePickleError(f"the pickle asks for an attribute of an object; {_DISTRUST}")
    return named(f"{owner.module}.{owner.name}", name)


def _names(module: str, names: str) -> set[Global]:
    return {Global(module, name) for name in names.split()}


_DISTRUST = "nothing was run. Weights have no need of that: do not trust this file"

_KEY_TYPES = (str, bytes, int, float, type(None), Global, Storage, Tensor, Opaque)

_STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "bytes",
}

_TENSOR_CALLS: Mapping[Global, Callable[..., Any]] = {
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    Global("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    Global("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    Global("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
}

_CALLS: Mapping[Global, Callable[..., Any]] = {
    **_TENSOR_CALLS,
    Global("torch._tensor", "_rebuild_from_type_v2"): _tensor_with_attributes,
    Global("torch", "Size"): _wholes,
    Global("collections", "OrderedDict"): lambda: {},
    Global("builtins", "getattr"): _attribute,
    Global("__builtin__", "getattr"): _attribute,
}

_STANDARD_LIBRARY = sys.stdlib_module_names | {"__builtin__", "commands", "copy_reg", "nt", "posix"}

# Values of the standard library that training scripts keep in their arguments, and the call by
# which protocol 2 writes bytes (_codecs.encode).
_INERT_STANDARD_CLASSES = (
    _names("_codecs", "encode")
    | _names("argparse", "Namespace")
    | _names("builtins", "bool bytearray complex dict float frozenset int list object range set")
    | _names("builtins", "slice str tuple")
    | _names("__builtin__", "bytearray complex dict frozenset list object set slice xrange")
    | _names("collections", "Counter defaultdict deque")
    | _names("datetime", "date datetime time timedelta timezone")
    | _names("decimal", "Decimal")
    | _names("fractions", "Fraction")
    | _names("functools", "partial")
    | _names("pathlib", "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath")
    | _names("pathlib._local", "PosixPath PurePosixPath PureWindowsPath WindowsPath")
    | _names("types", "SimpleNamespace")
    | _names("uuid", "UUID")
)
