"""Weights of fairseq training checkpoints, read without fairseq and without executing anything in the file.

Such a file pickles tensors among objects of fairseq, omegaconf and argparse. The constructors of tensors and plain
containers are on a list; every other name becomes an inert class.
"""

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch._utils
from torch import Tensor

from vokens.checkpoint import damaged
from vokens.errors import CheckpointError, file_errors

# Callables that a file may use. None of them runs anything from the file.
_BUILDERS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state")
_PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    # without its factory, which would be called on missing keys
    ("collections", "defaultdict"): lambda *_: {},
    ("torch", "Size"): torch.Size,
    **{("torch._utils", n): getattr(torch._utils, n) for n in _BUILDERS if hasattr(torch._utils, n)},
    **{("builtins", kind.__name__): kind for kind in (set, frozenset, bytearray, complex, slice)},
}


class Inert:
    """Inert stand-in for an object of an unknown class: takes any arguments, items and state, and keeps none."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def _ignore(self, *_: Any, **__: Any) -> None:
        pass

    __init__ = __setstate__ = __setitem__ = append = extend = add = _ignore


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Constructors of tensors, storages, dtypes and plain containers; an inert class for anything else."""
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module in ("torch", "torch.cuda", "torch.storage") and name.endswith("Storage"):
            return getattr(torch, name, None) or getattr(torch.storage, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type(name.rsplit(".", 1)[-1], (Inert,), {"__module__": module, "__qualname__": name})


class _Pickle:
    """The part of the module `pickle` that torch.load uses."""

    __name__ = "vokens.fairseq_file"
    Unpickler = _Unpickler

    @staticmethod
    def load(file: BinaryIO, **options: Any) -> Any:
        return _Unpickler(file, **options).load()

    @staticmethod
    def loads(data: bytes, **options: Any) -> Any:
        return _Unpickler(io.BytesIO(data), **options).load()


def _load(file: BinaryIO, path: Path) -> Any:
    if _is_program(file):
        raise CheckpointError(f"{path} is a TorchScript program, not weights: give the checkpoint")
    try:
        return torch.load(file, map_location="cpu", pickle_module=_Pickle, weights_only=False)
    except Exception as error:  # damaged pickles raise almost any type
        raise damaged(path, error) from error


def _is_program(file: BinaryIO) -> bool:
    """True if torch.load would open this file as TorchScript, which is code."""
    program = False
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            program = any(name.endswith("/constants.pkl") for name in archive.namelist())
    file.seek(0)
    return program


def read_fairseq_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors by name under "model" of a fairseq checkpoint, on the CPU.

    Raises CheckpointError for a file that is missing, damaged or not a pickled dict with weights.
    """
    path = Path(path)
    with file_errors(CheckpointError, f"cannot read weights {path}"), open(path, "rb") as file:
        content = _load(file, path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a fairseq checkpoint (a dict)")
    model = content.get("model")
    if not isinstance(model, dict) or not any(isinstance(value, Tensor) for value in model.values()):
        raise CheckpointError(f'{path} holds no weights under "model": give a fairseq checkpoint')
    return {name: value for name, value in model.items() if isinstance(value, Tensor)}
