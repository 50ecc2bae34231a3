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
        """Does what one opcode asks for; the commonest come first."""
        match name:
            case _ if name in _PUSH_ARGUMENT:
                self.push(argument)
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                self.push(self.memo[argument])
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.push(tuple(self.take(int(name[-1]))))
            case "TUPLE":
                self.push(tuple(self.since_mark()))
            case _ if name in _PUSH_NEW:
                self.push(_PUSH_NEW[name]())
            case "REDUCE":
                self.push(values.call(*self.take(2)))
            case "BINPERSID":
                self.push(values.storage(self.stack.pop()))
            case "SETITEM":
                self.set_items(self.take(2))
            case "SETITEMS":
                self.set_items(self.since_mark())
            case "APPEND":
                self.extend(self.take(1))
            case "APPENDS":
                self.extend(self.since_mark())
            case "LIST":
                self.push(self.since_mark())
            case "DICT":
                pairs = self.since_mark()
                self.push({})
                self.set_items(pairs)
            case "FROZENSET":
                self.push(frozenset(map(values.key, self.since_mark())))
            case "ADDITEMS":
                elements = self.since_mark()
                if not isinstance(self.stack[-1], set):
                    raise CheckpointError("the pickle adds elements to what is not a set")
                self.stack[-1].update(map(values.key, elements))
            case "BUILD":
                target, state = self.take(2)
                # Attributes of dicts and tensors (`_metadata` of a state dict) say nothing about
                # weights.
                if isinstance(target, values.Opaque):
                    target.state = state
                self.push(target)
            case "GLOBAL":
                self.push(values.named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self.push(values.named(*self.take(2)))
            case "INST":
                args = tuple(self.since_mark())
                self.push(values.call(values.named(*argument.split(" ", 1)), args))
            case "OBJ":
                callee, *elements = self.since_mark()
                self.push(values.call(callee, tuple(elements)))
            case "NEWOBJ":
                self.push(values.allocate(*self.take(2)))
            case "NEWOBJ_EX":
                callee, *args_and_keywords = self.take(3)
                self.push(values.allocate(callee, tuple(args_and_keywords)))
            case "DUP":
                self.push(self.stack[-1])
            case "POP" if self.stack:
                self.stack.pop()
            case "POP" | "POP_MARK":
                self.since_mark()
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise CheckpointError(f"the pickle uses {name}, which PyTorch never writes")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def take(self, count: int) -> list[Any]:
        """Removes the topmost values; returns them in the order in which they were pushed."""
        if count > len(self.stack):
            raise IndexError("its stack is empty")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def since_mark(self) -> list[Any]:
        """Removes the values above the last mark, and the mark."""
        top = self.stack
        self.stack = self.below.pop()
        return top

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        target = target.items if isinstance(target, values.Opaque) else target
        if not isinstance(target, dict) or len(pairs) % 2:
            raise CheckpointError("the pickle sets items of what is not a dictionary")
        target.update(zip(map(values.key, pairs[::2]), pairs[1::2], strict=True))

    def extend(self, elements: list[Any]) -> None:
        target = self.stack[-1]
        target = target.elements if isinstance(target, values.Opaque) else target
        if not isinstance(target, list):
            raise CheckpointError("the pickle appends to what is not a list")
        target.extend(elements)


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
