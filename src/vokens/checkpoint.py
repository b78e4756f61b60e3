"""Weights on disk and their names: safe reading, two-way name tables, weight norm, strict loading.

Files are recognised by content (safetensors or torch), and nothing in them is executed: torch files are read
with `weights_only=True`. One `NameTable` per published layout serves both directions, so they cannot drift.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vokens.atomic import atomic_write
from vokens.errors import CheckpointError, file_errors
from vokens.packed import unpack

PathLike = str | os.PathLike[str]
State = dict[str, Tensor]
_WRAPPERS = ("state_dict", "model", "generator")  # keys of the weights in training checkpoints
_CONFIG = "vokens.json"  # record name inside a torch file
_COUNTS = ("epoch", "step", "global_step")  # counters that trainers save next to the weights


# Reading and writing


def read_state_dict(path: PathLike) -> State:
    """Tensors by name from a safetensors or torch file, on the CPU.

    Weights inside a training checkpoint (under "state_dict", "model" or "generator") are extracted, and the
    "module." prefix of distributed training is removed. Raises CheckpointError for a missing,
    truncated or foreign file, and for a pickle with more than tensors and plain data.
    """
    path = Path(path)
    with file_errors(CheckpointError, f"cannot read weights {path}"), open(path, "rb") as file:
        head = file.read(128)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer, not weights: run `git lfs pull` in its folder")
    if head[8:9] == b"{":  # safetensors: 8 bytes of header length, then a json header
        return _read_safetensors(path)
    if head.startswith((b"PK\x03\x04", b"\x80")):  # torch: a zip since 1.6, bare pickles before
        return _unwrap(_read_torch(path), path)
    raise CheckpointError(
        f"{path} ({path.stat().st_size} bytes) is neither a safetensors nor a torch file: give one of these, "
        "or download it again if it should be one"
    )


def save_safetensors(
    path: PathLike, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name as one safetensors file, atomically; tied tensors are written twice."""
    tensors, seen = {}, set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in seen else tensor  # safetensors refuses shared memory
        seen.add(storage)
    try:
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, {"format": "pt", **(metadata or {})})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}; check the folder, rights and space") from error


def save_torch(path: PathLike, content: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Write a torch file atomically, with a config record that `read_config` reads and torch.load ignores."""
    with atomic_write(path) as temporary:
        torch.save(content, temporary)
        with zipfile.ZipFile(temporary, "a") as archive:  # torch ignores unknown records
            root = archive.namelist()[0].split("/")[0]
            archive.writestr(f"{root}/{_CONFIG}", json.dumps(config))


def read_config(path: PathLike) -> dict[str, Any] | None:
    """The config that `save_torch` put into a file; None where there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = [name for name in archive.namelist() if name.endswith("/" + _CONFIG)]
            return json.loads(archive.read(records[0])) if records else None
    except (OSError, zipfile.BadZipFile):  # safetensors, an older torch file, or a damaged one
        return None


def _read_safetensors(path: Path) -> State:
    try:
        state = load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise damaged(path, error) from error
    return unpack(_strip_module(state), path)


def _read_torch(path: Path) -> Any:
    try:
        with open(path, "rb") as file:  # an open file, since torch.load trusts some suffixes
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        called = re.search(r"nsupported (?:global: )?GLOBAL (\w+\.[\w.]+)", str(error))
        if called is None:
            raise damaged(path, error) from error
        raise CheckpointError(
            f"{path} would run {called[1]} on loading, or is damaged, and is not opened: "
            "ask its author for safetensors, or convert it yourself if you trust it"
        ) from error
    except Exception as error:  # damaged pickles and archives raise almost any type
        if "TorchScript" in str(error):
            raise CheckpointError(f"{path} is a TorchScript program: give the state dict") from error
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error of a file that a reader fails on with `error`."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return CheckpointError(f"{path} is truncated or damaged ({reason}): download or copy it again")


def _unwrap(content: Any, path: Path) -> State:
    if isinstance(content, Mapping):
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        held = f"the keys {_some(content)}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise CheckpointError(f"{path} holds {held}, no weights: give a state dict, or one under {_WRAPPERS}")
    counts = {name for name in _COUNTS if isinstance(content.get(name), int | float)}
    content = {name: value for name, value in content.items() if name not in counts}
    other = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if other:
        raise CheckpointError(f"{path} holds more than tensors, {_some(other)}: save the state dict alone")
    return _strip_module(dict(content))


def count_of(state: Mapping[str, Tensor], pattern: str, first: int = 0) -> int:
    """Number of layers in a state dict: of tensors `pattern.format(n)`, n from `first` on without a gap."""
    return next(n for n in itertools.count() if pattern.format(first + n) not in state)


def _strip_module(state: State) -> State:
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _some(names: Iterable[Any]) -> str:
    """The first four names, and the number of the others."""
    names = [str(name) for name in names]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


# Names


class NameTable:
    """A two-way table of tensor names: each row is (published pattern, our pattern).

    In a pattern `{i}` (any word) stands for a whole number, and `*` at the end for the rest of the name; both
    sides of a row have the same fields:

        NameTable([("encoder.model.{i}.lstm.*", "encoder.layers.{i}.*")], dropped={"vq.inited": "the reason"})

    `dropped`: published tensors that are not kept, with the reason. Both directions are strict: every
    name must fit exactly one row and come back as itself, else CheckpointError.
    """

    def __init__(self, rows: Sequence[tuple[str, str]], dropped: Mapping[str, str] | None = None) -> None:
        self.dropped = dict(dropped or {})
        for published, ours in rows:
            if _fields(published) != _fields(ours):
                raise ValueError(f"the fields of {published!r} and {ours!r} differ")
        self._to_ours = [(_compile(published), _template(ours)) for published, ours in rows]
        self._to_published = [(_compile(ours), _template(published)) for published, ours in rows]
        self._dropped = [_compile(pattern) for pattern in self.dropped]

    def to_ours(self, state: Mapping[str, Tensor]) -> State:
        """Published names to ours, without the dropped tensors."""
        dropped = {name for name in state if any(pattern.fullmatch(name) for pattern in self._dropped)}
        kept = {name: tensor for name, tensor in state.items() if name not in dropped}
        return _rename(kept, self._to_ours, self._to_published, "the published layout")

    def to_published(self, state: Mapping[str, Tensor]) -> State:
        """Our names to the published ones, without the dropped tensors, which the caller adds if needed."""
        return _rename(state, self._to_published, self._to_ours, "our layout")


_Rows = list[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]]
_FIELD = re.compile(r"\{(\w+)\}|\*$")


def _fields(pattern: str) -> list[str]:
    fields = sorted(match[0] for match in _FIELD.finditer(pattern))
    if len(set(fields)) < len(fields):
        raise ValueError(f"a field occurs twice in {pattern!r}")
    return fields


def _compile(pattern: str) -> re.Pattern[str]:
    """Compile a pattern; numbers match without leading zeros, so that 01 and 1 cannot collide."""
    parts, end = [], 0
    for field in _FIELD.finditer(pattern):
        group = f"(?P<{field[1]}>0|[1-9][0-9]*)" if field[1] else "(?P<_rest>.+)"
        parts += [re.escape(pattern[end : field.start()]), group]
        end = field.end()
    return re.compile("".join(parts) + re.escape(pattern[end:]))


def _template(pattern: str) -> Callable[[re.Match[str]], str]:
    return lambda match: _FIELD.sub(lambda field: match[field[1] or "_rest"], pattern)


def _translate(name: str, rows: _Rows) -> list[str]:
    return [template(match) for pattern, template in rows if (match := pattern.fullmatch(name))]


def _rename(state: Mapping[str, Tensor], rows: _Rows, inverse: _Rows, layout: str) -> State:
    renamed: State = {}
    unknown = []
    for name, tensor in state.items():
        names = _translate(name, rows)
        if not names:
            unknown.append(name)
            continue
        if len(names) > 1 or _translate(names[0], inverse) != [name] or names[0] in renamed:
            raise CheckpointError(
                f"{name} of {layout} has no unique counterpart ({_some(names)}): the name table is wrong"
            )
        renamed[names[0]] = tensor
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} of {len(state)} tensors do not belong to {layout}: {_some(unknown)}; "
            "the file is of another model or version"
        )
    return renamed


# Weight norm: weight = g * v / ||v||, the norm over all axes but the first. For a transposed convolution the
# first axis is the input channel, so there g is (in, 1, 1).

_PARAMETRIZED = ".parametrizations.weight.original"
_SPELLINGS = ((".weight_g", ".weight_v"), (f"{_PARAMETRIZED}0", f"{_PARAMETRIZED}1"))


def fold_weight_norm(state: Mapping[str, Tensor]) -> State:
    """Remove weight norm, in either of torch's layouts: plain `weight`; other tensors stay."""
    folded = dict(state)
    for g_end, v_end in _SPELLINGS:
        for g_name in [name for name in folded if name.endswith(g_end)]:
            module = g_name.removesuffix(g_end)
            if module + v_end not in folded or module + ".weight" in folded:
                raise CheckpointError(f"{g_name} needs {module + v_end} and no {module}.weight: damaged file")
            g, v = folded.pop(g_name), folded.pop(module + v_end)
            if g.shape != (v.shape[0], *(1,) * (v.dim() - 1)):
                raise CheckpointError(f"{g_name} {tuple(g.shape)} does not scale rows of {tuple(v.shape)}")
            folded[module + ".weight"] = torch._weight_norm(v, g, 0)  # torch's own kernel: bit-identical
    orphans = [name for name in folded if name.endswith((_SPELLINGS[0][1], _SPELLINGS[1][1]))]
    if orphans:
        raise CheckpointError(f"weight norm without its g: {_some(orphans)}; damaged file")
    return folded


def unfold_weight_norm(state: Mapping[str, Tensor], modules: Iterable[str]) -> State:
    """Inverse of `fold_weight_norm`, for published layouts: `weight` of the named modules as `weight_g` and `weight_v`.

    v is the weight and g its norm; rows that are all zero get v = 1 and g = 0, since 0 / 0 would be NaN.
    """
    unfolded = dict(state)
    for module in modules:
        if module + ".weight" not in unfolded:
            raise CheckpointError(f"no {module}.weight to write with weight norm: it is another model's")
        weight = unfolded.pop(module + ".weight")
        g = torch.norm_except_dim(weight, 2, 0)
        unfolded[module + ".weight_g"] = g
        unfolded[module + ".weight_v"] = torch.where(g == 0, torch.ones_like(weight), weight)
    return unfolded


def check_publishable(**settings: tuple[Any, Any]) -> None:
    """Raise CheckpointError for settings that the published code does not have and would ignore.

    settings: (value, value of the published code) by name.
    """
    other = [f"{name} = {value!r}" for name, (value, published) in settings.items() if value != published]
    if other:
        raise CheckpointError(
            f"the published layout cannot store {', '.join(other)}: save this model with save_pretrained"
        )


# Into the network


_DRAWS = (Tensor.uniform_, Tensor.normal_, nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_)


class ZeroWeights(TorchFunctionMode):
    """A context in which new networks have zeros for random weights, since a file's follow.

    Drawing 124 million numbers took 1.0 of the 1.3 s in which S3Tokenizer v2 opens.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        weight = args[0] if args else named.get("tensor")
        drawn = func in _DRAWS and isinstance(weight, nn.Parameter)
        if not drawn:
            return func(*args, **named)
        weight.data.zero_()
        return weight


def load_strict(module: nn.Module, state: Mapping[str, Tensor], where: PathLike) -> None:
    """Copy weights into a network with exactly these names and shapes. `where` names the file in the error."""
    expected = module.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    if any(faults.values()):
        report = "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in faults.items() if names)
        raise CheckpointError(
            f"the weights {where} do not fit this {type(module).__name__} ({len(expected)} tensors): {report}. "
            "Check that the configuration belongs to them"
        )
    module.load_state_dict(dict(state))


def later(default: Any) -> Any:
    """Config field added after models were saved: left out of the fingerprint at its default, so that that stays."""
    return dataclasses.field(default=default, metadata={"later": True})


def settings(config: Any) -> dict[str, Any]:
    """Values of a config dataclass for the fingerprint."""
    values = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if not (each.metadata.get("later") and value == each.default):
            nested = dataclasses.is_dataclass(value) and not isinstance(value, type)
            values[each.name] = settings(value) if nested else value
    return values


def fingerprint(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """16 hex digits that change with any weight or setting: sha256 of the config's json and all tensors.

    Tensors count in float32 and by sorted name, so that order, device and memory layout do not matter.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"\n{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)  # without a copy
    return digest.hexdigest()[:16]
