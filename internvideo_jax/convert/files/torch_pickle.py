"""A pickle reader that cannot execute anything, for the `data.pkl` inside PyTorch files.

Python's unpickler imports what a pickle names and calls it. This one runs the same stack machine
over values of its own (`pickle_values`): a name stays a name, a call gives plain data or an inert
object. Nothing is imported, no attribute of a real object is read or set, and time and memory are
linear in the pickle's length, which is limited.

Source: opcodes and their arguments come from the standard library's `pickletools`.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from internvideo_jax.convert.files import pickle_values as values
from internvideo_jax.convert.files.checkpoint import CheckpointError

# A state dict takes about 25 operations and 250 bytes a tensor: room for 80,000 tensors.
MAX_BYTES = 64 << 20
MAX_OPERATIONS = 2_000_000


def loads(data: bytes) -> Any:
    """Reads one pickle into dicts, lists, tuples, sets, scalars and `pickle_values` classes.

    Raises:
      UnsafePickleError: it asks to call a function that state dicts have no use for.
      CheckpointError: damaged, or larger than any state dict has reason to be.
    """
    if len(data) > MAX_BYTES:
        raise CheckpointError(
            f"the pickle has {len(data)} bytes; at most {MAX_BYTES} are read, far more than the "
            "names and shapes of any model take"
        )
    machine = _Machine()
    count = 0
    try:
        for opcode, argument, _ in pickletools.genops(data):
            count += 1
            if count > MAX_OPERATIONS:
                raise CheckpointError(
                    f"the pickle has more than {MAX_OPERATIONS} operations, far more than the "
                    "names and shapes of any model take"
                )
            machine.step(opcode.name, argument)
        (result,) = machine.stack
    except CheckpointError:
        raise
    # A cut-off argument, an empty stack, an unknown memo entry, a call with too few arguments.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"the pickle is damaged at operation {count}: {error}") from None
    return result


class _Machine:
    """The stack machine of the pickle protocols 0 to 5."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each open mark
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSH_ARGUMENT:
            self.stack.append(argument)
        elif name in _PUSH_NEW:
            self.stack.append(_PUSH_NEW[name]())
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        elif name not in _NOTHING_TO_DO:
            raise CheckpointError(f"the pickle uses {name}, which PyTorch never writes")

    def since_mark(self) -> list[Any]:
        top = self.stack
        self.stack = self.below.pop()
        return top

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def pop_mark(self, _: Any) -> None:
        self.since_mark()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.put(len(self.memo))

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def tuple1(self, _: Any) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def tuple2(self, _: Any) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def tuple3(self, _: Any) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def tuple_since_mark(self, _: Any) -> None:
        elements = self.since_mark()
        self.stack.append(tuple(elements))

    def list_since_mark(self, _: Any) -> None:
        elements = self.since_mark()
        self.stack.append(elements)

    def dict_since_mark(self, _: Any) -> None:
        pairs = self.since_mark()
        self.stack.append({})
        self.update(pairs)

    def frozenset_since_mark(self, _: Any) -> None:
        elements = self.since_mark()
        self.stack.append(frozenset(map(values.key, elements)))

    def update(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        target = target.items if isinstance(target, values.Opaque) else target
        if not isinstance(target, dict) or len(pairs) % 2:
            raise CheckpointError("the pickle sets items of what is not a dictionary")
        target.update(zip(map(values.key, pairs[::2]), pairs[1::2], strict=True))

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def set_items(self, _: Any) -> None:
        self.update(self.since_mark())

    def extend(self, elements: list[Any]) -> None:
        target = self.stack[-1]
        target = target.elements if isinstance(target, values.Opaque) else target
        if not isinstance(target, list):
            raise CheckpointError("the pickle appends to what is not a list")
        target.extend(elements)

    def append(self, _: Any) -> None:
        self.extend([self.stack.pop()])

    def appends(self, _: Any) -> None:
        self.extend(self.since_mark())

    def add_items(self, _: Any) -> None:
        elements = self.since_mark()
        if not isinstance(self.stack[-1], set):
            raise CheckpointError("the pickle adds elements to what is not a set")
        self.stack[-1].update(map(values.key, elements))

    def set_state(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        # Attributes of dicts and tensors (`_metadata` of a state dict) say nothing about weights.
        if isinstance(target, values.Opaque):
            target.state = state

    def refer(self, name: str) -> None:
        self.stack.append(values.named(*name.split(" ", 1)))

    def refer_from_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(values.named(module, name))

    def call(self, _: Any) -> None:
        args, callee = self.stack.pop(), self.stack.pop()
        self.stack.append(values.call(callee, args))

    def call_named(self, name: str) -> None:
        args = self.since_mark()
        self.stack.append(values.call(values.named(*name.split(" ", 1)), tuple(args)))

    def call_since_mark(self, _: Any) -> None:
        callee, *args = self.since_mark()
        self.stack.append(values.call(callee, tuple(args)))

    def allocate(self, _: Any) -> None:
        args, callee = self.stack.pop(), self.stack.pop()
        self.stack.append(values.allocate(callee, args))

    def allocate_with_keywords(self, _: Any) -> None:
        keywords, args, callee = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(values.allocate(callee, (args, keywords)))

    def persistent(self, _: Any) -> None:
        self.stack.append(values.storage(self.stack.pop()))


_NOTHING_TO_DO = frozenset({"PROTO", "FRAME", "STOP"})
_PUSH_ARGUMENT = frozenset(
    {
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "BINUNICODE8",
        "SHORT_BINUNICODE", "BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "BYTEARRAY8",
    }
)  # fmt: skip
_PUSH_NEW: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_HANDLERS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE1": _Machine.tuple1,
    "TUPLE2": _Machine.tuple2,
    "TUPLE3": _Machine.tuple3,
    "TUPLE": _Machine.tuple_since_mark,
    "LIST": _Machine.list_since_mark,
    "DICT": _Machine.dict_since_mark,
    "FROZENSET": _Machine.frozenset_since_mark,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.add_items,
    "BUILD": _Machine.set_state,
    "GLOBAL": _Machine.refer,
    "STACK_GLOBAL": _Machine.refer_from_stack,
    "REDUCE": _Machine.call,
    "INST": _Machine.call_named,
    "OBJ": _Machine.call_since_mark,
    "NEWOBJ": _Machine.allocate,
    "NEWOBJ_EX": _Machine.allocate_with_keywords,
    "BINPERSID": _Machine.persistent,
}
