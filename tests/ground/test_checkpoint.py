"""Checkpoints: safe reading by content, names that go both ways, weight norm to the bit, strict loading."""

import os
import pickle
import re
from dataclasses import asdict, dataclass

import pytest
import torch
from conftest import Trap, refused
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations

from vokens.checkpoint import (
    NameTable,
    ZeroWeights,
    fingerprint,
    fold_weight_norm,
    later,
    load_strict,
    read_state_dict,
    save_safetensors,
    settings,
    unfold_weight_norm,
)
from vokens.errors import CheckpointError
from vokens.packed import pack

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "steps": torch.tensor(7)}


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


# Reading


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "generator"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_in_every_wrapping(tmp_path, wrapper, prefix, legacy):
    path = tmp_path / "x.safetensors"  # the suffix is not believed
    state = {prefix + name: tensor for name, tensor in STATE.items()}
    content = {wrapper: state, "epoch": 3, "optimizer": {"lr": 0.1}} if wrapper else state
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert_equal(read_state_dict(path), STATE)


def test_safetensors_under_any_name_and_counts_that_trainers_put_beside_weights(tmp_path):
    save_file(STATE, tmp_path / "x.pt")
    assert_equal(read_state_dict(tmp_path / "x.pt"), STATE)
    torch.save({**STATE, "epoch": 3, "step": 1200}, tmp_path / "x.pt")
    assert_equal(read_state_dict(tmp_path / "x.pt"), STATE)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_runs_nothing(tmp_path, legacy):
    path, trap = tmp_path / "x.pt", Trap(tmp_path / "executed")
    torch.save({"model": STATE, "x": trap}, path, _use_new_zipfile_serialization=not legacy)
    refused(CheckpointError, r"posix\.mkdir .*not opened", read_state_dict, path)
    path.write_bytes(pickle.dumps(trap, protocol=2))
    refused(CheckpointError, ".", read_state_dict, path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_every_truncation_is_a_clear_error(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    for keep in range(0, len(content), max(1, len(content) // 50)):
        path.write_bytes(content[:keep])
        refused(CheckpointError, r"damaged|neither", read_state_dict, path)


def test_foreign_files_say_what_they_are(tmp_path):
    path = tmp_path / "x"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    refused(CheckpointError, "git lfs pull", read_state_dict, path)
    path.write_text("<!doctype html>")
    refused(CheckpointError, "15 bytes", read_state_dict, path)
    torch.save([1, 2], path)
    refused(CheckpointError, "a list", read_state_dict, path)
    torch.save({"config": {"n": 1}}, path)
    refused(CheckpointError, "keys config", read_state_dict, path)
    torch.save({**STATE, "rate": 3}, path)
    refused(CheckpointError, "more than tensors, rate", read_state_dict, path)
    for missing in (tmp_path / "none", tmp_path):
        refused(CheckpointError, "cannot read", read_state_dict, missing)


def test_save_is_whole_or_nothing(tmp_path):
    path = tmp_path / "x.safetensors"
    tied = torch.randn(4, 3)
    state = {"embed": tied, "head": tied, "view": tied[1:], "turned": tied.T}
    save_safetensors(path, state, {"system": "mini"})
    assert_equal(read_state_dict(path), state)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "system": "mini"}
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_safetensors(path, STATE, {"system": 3})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.safetensors"]
    refused(CheckpointError, "cannot write", save_safetensors, tmp_path / "no folder" / "x", STATE)


# Names

ROWS = [
    ("encoder.model.0.conv.conv.*", "encoder.stem.*"),
    ("encoder.model.{i}.block.{j}.conv.weight", "encoder.blocks.{i}.convs.{j}.weight"),
    ("quantizer.{i}.embed", "codebooks.{i}"),
]


def test_names_go_both_ways():
    table = NameTable(ROWS, dropped={"quantizer.{i}.inited": "only training asks for it"})
    published = {
        "encoder.model.0.conv.conv.weight_g": torch.ones(1),
        "encoder.model.0.conv.conv.bias": torch.ones(2),
        "encoder.model.10.block.3.conv.weight": torch.ones(3),
        "quantizer.7.embed": torch.ones(4),
    }
    ours = table.to_ours({**published, "quantizer.7.inited": torch.ones(1)})
    names = ["encoder.stem.weight_g", "encoder.stem.bias", "encoder.blocks.10.convs.3.weight", "codebooks.7"]
    assert list(ours) == names
    assert_equal(table.to_published(ours), published)


@pytest.mark.parametrize(
    "name", ["quantizer.x.embed", "quantizer.07.embed", "quantizer.7.embed.x", "xquantizer.7.embed"]
)
def test_a_name_outside_the_table_is_an_error(name):
    refused(CheckpointError, re.escape(name), lambda: NameTable(ROWS).to_ours({name: torch.ones(1)}))


def test_many_unknown_names_are_counted_not_listed():
    state = {f"other.{i}": torch.ones(1) for i in range(100)}
    with pytest.raises(CheckpointError, match=r"100 of 100 .*other\.3 and 96 more") as error:
        NameTable(ROWS).to_ours(state)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([("a.{i}", "x.{i}"), ("a.0", "y")], ["a.0"]),  # one name, two rows
        ([("a.0", "x.0"), ("b.{i}", "x.{i}")], ["a.0"]),  # two names, one counterpart
        ([("a.*", "x.*"), ("b", "x.b")], ["a.0", "a.b"]),
    ],
)
def test_a_table_that_is_not_one_to_one_is_found(rows, names):
    refused(CheckpointError, "unique", NameTable(rows).to_ours, dict.fromkeys(names, torch.ones(1)))


def test_rows_with_different_fields_are_refused():
    for row in (("a.{i}", "b.{j}"), ("a.*", "b"), ("a.{i}.{i}", "b.{i}.{i}")):
        refused(ValueError, "field", NameTable, [row])


# Weight norm

CONVS = {
    nn.Conv1d: ((3, 5, 7), (2, 3, 9)),
    nn.ConvTranspose1d: ((3, 5, 7), (2, 3, 9)),
    nn.Conv2d: ((1, 8, (3, 2)), (2, 1, 9, 9)),
    nn.Linear: ((6, 4), (2, 6)),
}


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, parametrizations.weight_norm], ids=["g and v", "new"])
@pytest.mark.filterwarnings("ignore")
def test_folded_weight_is_the_same_to_the_bit(conv, norm):
    torch.manual_seed(0)
    sizes, shape = CONVS[conv]
    normed = norm(conv(*sizes))
    for parameter in normed.parameters():
        nn.init.normal_(parameter)
    normed(torch.randn(shape))  # computes `weight`
    folded = fold_weight_norm({f"net.{name}": tensor for name, tensor in normed.state_dict().items()})
    assert folded.keys() == {"net.weight", "net.bias"}
    assert torch.equal(folded["net.weight"], normed.weight)


def test_plain_weights_pass_and_unfolding_goes_back():
    torch.manual_seed(0)
    state = {"up.weight": torch.randn(4, 6, 8), "up.bias": torch.randn(6), "out.weight": torch.randn(3, 2)}
    state["up.weight"][2] = 0
    assert_equal(fold_weight_norm(state), state)
    unfolded = unfold_weight_norm(state, ["up"])
    assert unfolded.keys() == {"up.weight_g", "up.weight_v", "up.bias", "out.weight"}
    assert unfolded["up.weight_g"].shape == (4, 1, 1)
    again = fold_weight_norm(unfolded)
    assert torch.allclose(again["up.weight"], state["up.weight"], rtol=1e-6, atol=0)
    refused(CheckpointError, r"nothing\.weight", unfold_weight_norm, state, ["nothing"])


@pytest.mark.parametrize(
    "state",
    [
        {"a.weight_g": torch.ones(2, 1, 1)},
        {"a.weight_v": torch.ones(2, 3, 4)},
        {"a.weight_g": torch.ones(1, 1, 4), "a.weight_v": torch.ones(2, 3, 4)},
        {"a.weight_g": torch.ones(2, 1), "a.weight_v": torch.ones(2, 3), "a.weight": torch.ones(2, 3)},
    ],
)
def test_half_a_weight_norm_is_an_error(state):
    refused(CheckpointError, r"a\.weight", fold_weight_norm, state)


# Loading


def test_load_strict_reports_every_kind():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    good = {name: torch.randn_like(tensor) for name, tensor in net.state_dict().items()}
    load_strict(net, good, "x.pt")
    assert_equal(dict(net.state_dict()), good)
    bad = {**good, "0.weight": torch.ones(5, 3), "extra": torch.ones(1)}
    del bad["1.bias"]
    with pytest.raises(CheckpointError) as error:
        load_strict(net, bad, "x.pt")
    for part in ("x.pt", "1 missing (1.bias)", "1 unexpected (extra)", "0.weight (5, 3) instead of (2, 3)"):
        assert part in str(error.value)
    assert_equal(dict(net.state_dict()), good)  # nothing was half loaded


def test_networks_that_a_file_fills_draw_no_weights():
    state = torch.get_rng_state()
    with ZeroWeights():
        made = [nn.Linear(8, 8), nn.Conv1d(8, 8, 3), nn.Embedding(8, 8)]
        table = torch.ones(3).uniform_(2, 3, generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.weight.any() for module in made)
    assert (table >= 2).all()
    assert nn.Linear(8, 8).weight.any()


def test_fingerprint_sees_weights_and_config_only():
    config = {"width": 4, "rates": [2, 3]}
    base = fingerprint(STATE, config)
    assert re.fullmatch("[0-9a-f]{16}", base)
    assert base == fingerprint(dict(reversed(STATE.items())), {"rates": [2, 3], "width": 4})
    strided = {**STATE, "a.weight": STATE["a.weight"].T.contiguous().T}
    assert base == fingerprint(strided, config)
    changed = {**STATE, "a.bias": torch.tensor([1.0, 1.0 + 2**-23])}
    renamed = {("b.bias" if name == "a.bias" else name): tensor for name, tensor in STATE.items()}
    reshaped = {**STATE, "a.weight": STATE["a.weight"].reshape(3, 2)}
    others = [fingerprint(state, config) for state in (changed, renamed, reshaped)]
    others.append(fingerprint(STATE, {**config, "width": 5}))
    assert len({base, *others}) == 5
    assert fingerprint({"empty": torch.zeros(0, 3)}, {}) != fingerprint({}, {})


def test_a_setting_that_came_later_leaves_old_fingerprints():
    @dataclass(frozen=True)
    class Old:
        width: int = 4
        sizes: tuple[int, ...] = (1, 2)

    @dataclass(frozen=True)
    class New(Old):
        merge: int = later(1)

    @dataclass(frozen=True)
    class Whole:
        part: Old
        name: str = "x"

    def named(config) -> str:
        return fingerprint(STATE, settings(config))

    assert settings(Whole(Old())) == asdict(Whole(Old()))
    assert named(Whole(New())) == named(Whole(Old())) == fingerprint(STATE, asdict(Whole(Old())))
    assert named(Whole(New(merge=2))) != named(Whole(Old()))


# Eight bits


def packed_state() -> dict:
    rows = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1e-6, 3e-7, -1e-6]])
    conv = torch.linspace(-1, 1, 24).view(2, 3, 4)
    return {"a.weight": rows, "conv": conv, "bias": torch.ones(3), "steps": torch.tensor(7)}


def test_weights_at_eight_bits_are_read_as_float32(tmp_path):
    state = packed_state()
    save_safetensors(tmp_path / "x.safetensors", pack(state))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.get_tensor("a.weight").dtype == file.get_tensor("conv").dtype == torch.int8
        assert file.get_tensor("bias").dtype == torch.float32
    actual = read_state_dict(tmp_path / "x.safetensors")
    assert actual.keys() == state.keys()
    for name, weight in actual.items():
        assert weight.dtype == state[name].dtype
        weight = state[name]
        rows = weight.float().view(len(weight), -1) if weight.dim() else weight[None, None]
        step = rows.abs().amax(1).view(-1, *[1] * (state[name].dim() - 1)) / 127
        assert ((weight - state[name]).abs() <= 0.51 * step).all(), name  # each row has a scale of its own
    assert_equal(read_state_dict(tmp_path / "x.safetensors"), actual)
    assert_equal(pack(actual), pack(state))  # so that a model keeps its fingerprint when it is saved again


@pytest.mark.parametrize(
    "fault",
    [
        {"conv:scale": None},
        {"conv": None},
        {"conv:scale": torch.ones(3)},
        {"conv": torch.ones(2, 3, 4)},
        {"conv:scale": torch.tensor([torch.nan, 1.0])},
    ],
    ids=["no scale", "no weight", "rows", "float", "nan"],
)
def test_scales_that_do_not_belong_to_their_weights(tmp_path, fault):
    state = {name: value for name, value in (pack(packed_state()) | fault).items() if value is not None}
    save_safetensors(tmp_path / "x.safetensors", state)
    refused(CheckpointError, r"conv.*again", read_state_dict, tmp_path / "x.safetensors")


def test_what_eight_bits_cannot_hold_is_refused():
    refused(CheckpointError, r"a\.weight holds NaN", pack, {"a.weight": torch.tensor([[1.0, torch.nan]])})
