"""SpeechTokenizer's published weights: one flat state dict of 166 tensors (ELU) or 192 (Snake), weight norm unfolded.

The layers have the published numbers, so the table only drops wrappers. Both forms of our network are written:
the folded one of inference and the one with weight norm that trains.
"""

from vokens.checkpoint import NameTable, State, unfold_weight_norm

_CONVOLUTIONS = {  # published -> ours
    "encoder.model.{i}.conv.conv": "encoder.layers.{i}",
    "encoder.model.{i}.block.{j}.conv.conv": "encoder.layers.{i}.block.{j}",
    "encoder.model.{i}.shortcut.conv.conv": "encoder.layers.{i}.shortcut",
    "decoder.model.{i}.conv.conv": "decoder.layers.{i}",
    "decoder.model.{i}.convtr.convtr": "decoder.layers.{i}.up",
    "decoder.model.{i}.block.{j}.conv.conv": "decoder.layers.{i}.block.{j}",
    "decoder.model.{i}.shortcut.conv.conv": "decoder.layers.{i}.shortcut",
}
_LEAVES = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
    "weight": "weight",
    "bias": "bias",
}
_TABLE = NameTable(
    [
        (f"{published}.{leaf}", f"{ours}.{our_leaf}")
        for published, ours in _CONVOLUTIONS.items()
        for leaf, our_leaf in _LEAVES.items()
    ]
    + [
        (f"{part}.model.{{i}}.{rest}", f"{part}.layers.{{i}}.{rest}")
        for part in ("encoder", "decoder")
        for rest in ("alpha", "block.{j}.alpha", "lstm.*")
    ]
    + [
        ("quantizer.vq.layers.{i}._codebook.*", "quantizer.layers.{i}.*"),
        ("transform.*", "semantic.*"),
    ]
)


def to_ours(published: State) -> State:
    """Published names to ours; convolutions keep the form they have, with weight norm or folded."""
    renamed = {}
    for name, tensor in published.items():
        for old, new in (("weight_g", _LEAVES["weight_g"]), ("weight_v", _LEAVES["weight_v"])):
            name = name.replace(new, old)  # torch's newer spelling of weight norm
        renamed[name] = tensor
    return _TABLE.to_ours(renamed)


def to_published(ours: State) -> State:
    """Our names to the published ones, every convolution with weight norm as there."""
    published = _TABLE.to_published(ours)
    folded = [
        name.removesuffix(".weight")
        for name in published
        if name.endswith((".conv.weight", ".convtr.weight"))
    ]
    return unfold_weight_norm(published, folded)
