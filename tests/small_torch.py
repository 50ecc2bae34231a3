"""As much of PyTorch as a module needs that is run for a reference: the suite does without it."""

import contextlib
import types

import numpy as np


class Tensor:
    def __init__(self, array):
        self.array = np.asarray(array)
        self.shape = self.array.shape

    def detach(self):
        return self

    cpu = detach

    def float(self):
        return Tensor(self.array.astype(np.float32))

    def is_floating_point(self):
        return self.array.dtype.kind == "f"

    def numpy(self):
        return self.array


class Module:
    training = True

    def __init__(self):
        self._hooks = {}

    def named_modules(self, prefix=""):
        yield prefix, self
        for name, child in vars(self).items():
            if isinstance(child, Module):
                yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def _tensors(self):
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor):
                    yield f"{path}.{name}" if path else name, module, name

    def state_dict(self):
        return {path: getattr(module, name) for path, module, name in self._tensors()}

    def load_state_dict(self, state):
        for path, module, name in list(self._tensors()):
            setattr(module, name, state[path])

    def register_forward_hook(self, hook):
        self._hooks[hook] = hook
        return types.SimpleNamespace(remove=lambda: self._hooks.pop(hook))

    def float(self):
        return self

    def eval(self):
        self.training = False
        return self

    def __call__(self, *inputs):
        output = self.forward(*inputs)
        for hook in list(self._hooks.values()):
            hook(self, inputs, output)
        return output


def make_torch():
    """The module `torch`, for `sys.modules`."""
    torch = types.ModuleType("torch")
    torch.Tensor, torch.from_numpy, torch.no_grad = Tensor, Tensor, contextlib.nullcontext
    torch.is_tensor = lambda value: isinstance(value, Tensor)
    torch.nn = types.SimpleNamespace(Module=Module)
    return torch
