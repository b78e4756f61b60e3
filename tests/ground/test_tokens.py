"""Tokens: what is accepted, parts and wholes, and files that come back equal or not at all."""

import json
import math
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Trap, refused
from safetensors.numpy import save_file

from vokens.atomic import atomic_write
from vokens.errors import TokensError
from vokens.tokens import Tokens

FIELDS = ("model", "fingerprint", "sample_rate", "frame_rate", "codebook_sizes", "first_codebook")
FORMATS = ("save", "to_json", "to_npz", "to_pt")


def make(lengths=(7, 12, 0), sizes=(1024, 1024, 1024), vector=None, first_codebook=0, seed=0) -> Tokens:
    rng = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths, default=0))
    codes = torch.stack([torch.randint(0, size, shape, generator=rng) for size in sizes], dim=1)
    lengths = torch.tensor(lengths, dtype=torch.int64)
    vectors = None if vector is None else torch.randn(len(lengths), vector, generator=rng)
    facts = ("mini", "0123456789abcdef", 16000, 50.0, sizes)
    more = {"first_codebook": first_codebook, "global_vector": vectors}
    return Tokens(codes, lengths, (lengths * 320 - 5).clamp(min=0), *facts, **more)


def assert_equal(a: Tokens, b: Tokens) -> None:
    for name in ("codes", "lengths", "num_samples"):
        assert getattr(a, name).dtype == getattr(b, name).dtype == torch.int64
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert (a.global_vector is None) == (b.global_vector is None)
    if a.global_vector is not None:
        assert torch.equal(a.global_vector, b.global_vector)
    assert [getattr(a, name) for name in FIELDS] == [getattr(b, name) for name in FIELDS]


def test_padding_is_zeroed_and_integers_become_int64():
    codes = torch.full((2, 1, 4), 9, dtype=torch.int32)
    codes[1, 0, 2:] = -1  # padding may hold anything
    tokens = replace(make((1,), (10,)), codes=codes, lengths=torch.tensor([4, 2], dtype=torch.int16),
                     num_samples=torch.tensor([9, 9]))  # fmt: skip
    assert tokens.codes.tolist() == [[[9, 9, 9, 9]], [[9, 9, 0, 0]]]
    assert tokens.codes.dtype == tokens.lengths.dtype == torch.int64
    assert codes[1, 0, 2] == -1  # the caller's tensor is left alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.zeros(3, 12, dtype=torch.int64)}, r"\(B, K, T\)"),
        ({"codes": torch.zeros(3, 3, 12)}, "float32"),
        ({"codes": torch.zeros(3, 3, 12, dtype=torch.bool)}, "bool"),
        ({"codes": [[[1]]]}, "list"),
        ({"codes": torch.full((3, 3, 12), 1024)}, r"1024.*0 to 1023"),
        ({"codes": torch.full((3, 3, 12), -1)}, r"holds -1"),
        ({"lengths": torch.tensor([7, 13, 0])}, "13 frames"),
        ({"lengths": torch.tensor([7, -1, 0])}, "-1"),
        ({"lengths": torch.tensor([7, 12])}, "2 entries for 3"),
        ({"lengths": torch.tensor([7.0, 12.0, 0.0])}, "float32"),
        ({"num_samples": torch.tensor([1, 2, -3])}, "-3"),
        ({"codebook_sizes": (1024, 1024)}, "3 codebooks"),
        ({"codebook_sizes": (1024, 1024, 0)}, "codebook_sizes is 0"),
        ({"frame_rate": math.nan}, "frame_rate"),
        ({"frame_rate": 0.0}, "frame_rate"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"sample_rate": 16000.5}, "sample_rate"),
        ({"first_codebook": -1}, "first_codebook"),
        ({"model": None}, "model"),
        ({"global_vector": torch.ones(2, 4)}, "2 rows for 3"),
        ({"global_vector": torch.ones(3)}, r"\(B, D\)"),
        ({"global_vector": torch.full((3, 4), math.nan)}, "NaN"),
    ],
)
def test_refuses_what_cannot_be_decoded(change, message):
    refused(TokensError, message, lambda: replace(make(), **change))


def test_items_are_unpadded_and_join_again():
    tokens = make(vector=4)
    items = list(tokens)
    assert [item.codes.shape for item in items] == [(1, 3, 7), (1, 3, 12), (1, 3, 0)]
    assert_equal(Tokens.cat(items), tokens)
    assert_equal(tokens[-1], items[2])
    assert_equal(tokens[1:], Tokens.cat(items[1:]))
    assert len(tokens[3:]) == 0
    with pytest.raises(IndexError):
        tokens[3]


def test_cat_refuses_other_codecs():
    tokens = make()
    for name, other in (("model", "other"), ("fingerprint", ""), ("frame_rate", 25.0), ("first_codebook", 1)):
        refused(TokensError, f"differ in {name}", Tokens.cat, [tokens, replace(tokens, **{name: other})])
    refused(TokensError, "global_vector", lambda: Tokens.cat([tokens, make(vector=4)]))
    refused(TokensError, "at least one", Tokens.cat, [])


def test_select_keeps_the_place_in_the_codec():
    tokens = make(sizes=(8, 16, 32, 64))
    middle = tokens.select(1, 3)
    assert torch.equal(middle.codes, tokens.codes[:, 1:3])
    assert (middle.codebook_sizes, middle.first_codebook) == ((16, 32), 1)
    assert middle.select(1).first_codebook == 2
    for start, stop in ((0, 5), (2, 2), (-1, 2)):
        refused(TokensError, "stop <= 4 is needed", tokens.select, start, stop)


def test_bitrate_duration_and_text():
    tokens = make(lengths=(50, 25), sizes=(1024,) * 8)
    assert tokens.bitrate == 4000
    assert tokens.select(0, 1).bitrate == 500
    assert tokens.duration.tolist() == [15995 / 16000, 7995 / 16000]
    assert repr(tokens) == "Tokens('mini', 2 items, 1.50 s, 75 frames of 8 x 1024, 50 Hz, 4 kbit/s)"
    assert "3 x" not in repr(make(sizes=(8, 16, 32)))
    assert "8 + 16 + 32" in repr(make(sizes=(8, 16, 32)))


def test_entropy_counts_valid_frames_only():
    codes = torch.tensor([[[0, 1, 2, 3], [5, 5, 5, 5]], [[3, 2, 0, 0], [5, 5, 0, 0]]])
    tokens = replace(make((4, 2), (8, 8)), codes=codes, lengths=torch.tensor([4, 2]))
    share = torch.tensor([1, 1, 2, 2]).double() / 6  # 0, 1 once; 2, 3 twice
    assert torch.allclose(tokens.entropy(), torch.stack([-(share * share.log2()).sum(), torch.tensor(0.0)]))
    assert make((0, 0)).entropy().tolist() == [0, 0, 0]
    uniform = replace(make((256,), (256,)), codes=torch.arange(256)[None, None])
    assert uniform.entropy().tolist() == [8.0]


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize(
    "made",
    [
        {},
        {"sizes": (256,)},  # uint8
        {"sizes": (65536, 5), "vector": 3, "first_codebook": 2},  # uint16
        {"sizes": (70000,)},  # int32
        {"lengths": (0,)},
        {"lengths": ()},
    ],
    ids=str,
)
def test_every_format_comes_back_equal_under_any_name(tmp_path, write, made):
    tokens = make(**made)
    path = tmp_path / "anything.bin"
    getattr(tokens, write)(path)
    assert_equal(Tokens.load(path), tokens)
    assert Tokens.from_json is Tokens.from_npz is Tokens.from_pt is Tokens.load
    assert os.listdir(tmp_path) == ["anything.bin"]  # no temporary file stays


def test_vok_is_small_and_the_same_bytes_each_time(tmp_path):
    for size, bytes_per_code in ((256, 1), (257, 2), (65536, 2), (65537, 4)):
        tokens = make(lengths=(20000,), sizes=(size,))
        tokens.save(tmp_path / "a.vok")
        tokens.save(tmp_path / "b.vok")
        content = (tmp_path / "a.vok").read_bytes()
        assert content == (tmp_path / "b.vok").read_bytes()
        assert 20000 * bytes_per_code < len(content) < 20000 * bytes_per_code + 1000


def test_a_flipped_bit_in_any_byte_of_a_vok_is_found(tmp_path):
    path = tmp_path / "x.vok"
    make(lengths=(3, 5), sizes=(300, 4), vector=2).save(path)
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8  # one bit of each byte, header and tensors
        path.write_bytes(damaged)
        refused(TokensError, ".", Tokens.load, path)


@pytest.mark.parametrize("write", FORMATS)
def test_every_truncation_is_found(tmp_path, write):
    path = tmp_path / "x"
    getattr(make(lengths=(3, 5)), write)(path)
    content = path.read_bytes().rstrip()
    for keep in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:keep])
        refused(TokensError, ".", Tokens.load, path)


def test_a_newer_version_asks_for_an_upgrade(tmp_path):
    path = tmp_path / "x.json"
    make().to_json(path)
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    refused(TokensError, r"format 2.*upgrade", Tokens.load, path)


def test_other_files_are_refused_by_content(tmp_path):
    path = tmp_path / "x.vok"
    save_file({"encoder.weight": np.zeros(3, np.float32)}, path)
    refused(TokensError, r"without tokens .*encoder.weight.*vokens.load", Tokens.load, path)
    path.write_bytes(b"RIFF....WAVE")
    refused(TokensError, "not a token file", Tokens.load, path)
    path.write_text('{"codes": [[1, 2]]}')
    refused(TokensError, r"holds ids without their codec.*--model.*codec\.tokens", Tokens.load, path)
    path.write_text('{"codecs": [[1, 2]]}')
    refused(TokensError, "format", Tokens.load, path)
    torch.save({"code": torch.zeros(3)}, path)
    refused(TokensError, "other torch data", Tokens.load, path)
    np.savez(tmp_path / "x.npz", codes=np.array([{}], dtype=object))
    refused(TokensError, ".", Tokens.load, tmp_path / "x.npz")
    for missing in (tmp_path / "none.vok", tmp_path):
        refused(TokensError, "cannot read", Tokens.load, missing)
    refused(TokensError, "cannot write", lambda: make().save(tmp_path / "no folder" / "x.vok"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"num_samples": 955', '"num_samples": 955.5'),
        ('"codebook_sizes": [2, 2]', '"codebook_sizes": [2]'),
        ('"codebook_sizes": [2, 2]', '"codebook_sizes": [2, 1]'),
        ('"frame_rate": 50.0', '"frame_rate": "fast"'),
        ('"model": "mini",', ""),
        ("[1, ", "[1.5, "),
        ("[1, ", "["),
    ],
)
def test_wrong_json_says_where(tmp_path, old, new):
    path = tmp_path / "x.json"
    replace(make((3,), (2, 2)), codes=torch.ones(1, 2, 3, dtype=torch.int64)).to_json(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    refused(TokensError, r"x\.json", Tokens.load, path)


def test_json_is_for_people(tmp_path):
    path = tmp_path / "x.json"
    make(lengths=(3, 2)).to_json(path)
    content = json.loads(path.read_text())
    assert [len(item["codes"][0]) for item in content["items"]] == [3, 2]
    assert max(map(len, path.read_text().splitlines())) < 60


def test_pt_runs_nothing(tmp_path):
    torch.save({"header": Trap(tmp_path / "executed")}, tmp_path / "x.pt")
    refused(TokensError, "not opened", Tokens.load, tmp_path / "x.pt")
    assert not (tmp_path / "executed").exists()


def test_tokens_cross_processes():
    tokens = make(vector=2)
    assert_equal(pickle.loads(pickle.dumps(tokens)), tokens)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.vok"
    make().save(path)
    before = path.read_bytes()

    with pytest.raises(KeyboardInterrupt), atomic_write(path):
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.vok"]
    (tmp_path / "folder.vok").mkdir()
    refused(TokensError, "cannot write", lambda: make().save(tmp_path / "folder.vok"))
    assert sorted(os.listdir(tmp_path)) == ["folder.vok", "x.vok"]
