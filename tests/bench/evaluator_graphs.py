"""Small graphs in the form of the evaluators' files, whose outputs are known: tests without a download."""

from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper, save

from vokens.bench.evaluators.mos import WINDOW
from vokens.nn.campplus import CAMPPlus

WORDS = ["<unk>", "<s>", "</s>", "the", "sea", "again"]
SENTENCE = {1: 3, 3: 4, 4: 2}  # token -> next: "the sea"
ENDLESS = {1: 5, 5: 5}
WIDTH = 8  # of hidden states


def write_dnsmos(folder: Path) -> Path:
    """Its three numbers are the mean of the window, and 1 and 2 more."""
    nodes = [
        helper.make_node("ReduceMean", ["input_1"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Add", ["mean", "more"], ["out"]),
    ]
    more = numpy_helper.from_array(np.array([[0, 1, 2]], np.float32), "more")
    return _write(folder / "sig_bak_ovr.onnx", nodes, {"input_1": [1, WINDOW]}, {"out": [1, 3]}, [more])


def write_moonshine(folder: Path, after: dict[int, int]) -> Path:
    """Says the words that follow each other in `after`, whatever it is given; its convolutions are as long as the
    published ones, and its decoder keeps keys as that does."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    draw = np.random.default_rng(0)
    nodes, weights, name = [helper.make_node("Unsqueeze", ["input_values", "axis"], ["x0"])], [], "x0"
    weights.append(numpy_helper.from_array(np.array([1]), "axis"))
    for i, (kernel, stride, into) in enumerate(((127, 64, 1), (7, 3, WIDTH), (3, 2, WIDTH))):
        weight = draw.standard_normal((WIDTH, into, kernel)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("Conv", [name, f"w{i}"], [f"x{i + 1}"], strides=[stride]))
        name = f"x{i + 1}"
    nodes.append(helper.make_node("Transpose", [name], ["out"], perm=[0, 2, 1]))
    states = [1, "frames", WIDTH]
    _write(folder / "encoder_model.onnx", nodes, {"input_values": [1, "T"]}, {"out": states}, weights)

    table = np.zeros((len(WORDS), len(WORDS)), np.float32)
    table[list(after), list(after.values())] = 1
    weights = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axis")]
    past = {f"past_key_values.0.{part}.key": [1, 2, f"{part}_past", WIDTH] for part in ("decoder", "encoder")}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["logits"]),
        helper.make_node("Unsqueeze", ["encoder_hidden_states", "axis"], ["one"]),
        helper.make_node("Concat", ["one", "one"], ["both"], axis=1),
    ] + [
        helper.make_node("Concat", [name, "both"], [name.replace("past_key_values", "present")], axis=2)
        for name in past
    ]
    given = {"input_ids": [1, 1], "encoder_hidden_states": states, "use_cache_branch": [1], **past}
    kept = {name.replace("past_key_values", "present"): [1, 2, f"{name}_kept", WIDTH] for name in past}
    _write(
        folder / "decoder_model_merged.onnx", nodes, given, {"logits": [1, 1, len(WORDS)], **kept}, weights
    )
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[1:3])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_campplus(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(CAMPPlus().state_dict(), folder / "campplus_cn_en_common.pt")
    return folder


def _write(path: Path, nodes: list, given: dict, found: dict, weights: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"input_ids": TensorProto.INT64, "use_cache_branch": TensorProto.BOOL}
    puts = [
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
            for name, shape in some.items()
        ]
        for some in (given, found)
    ]
    graph = helper.make_graph(nodes, path.stem, *puts, weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path.parent
