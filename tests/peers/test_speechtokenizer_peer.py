"""Side by side with the published package: same random weights, same audio, same codes and waves."""

from pathlib import Path
from typing import Any

import published_speechtokenizer as peer
import pytest
import torch

from vokens.compat.speechtokenizer import SpeechTokenizer
from vokens.models.speechtokenizer import SpeechTokenizer as Codec

pytestmark = pytest.mark.peers
SMALL = {"n_filters": 8, "dimension": 64, "semantic_dimension": 48, "codebook_size": 64}
CASES: dict[str, dict[str, Any]] = {
    "elu": SMALL,
    "snake": SMALL | {"activation": "Snake"},
    "one direction, deeper stages": SMALL
    | {"bidirectional": False, "n_residual_layers": 2, "lstm_layers": 1},
    "other strides": SMALL | {"strides": [5, 3, 2], "dilation_base": 3, "n_residual_layers": 3},
    "no projection": SMALL | {"semantic_dimension": 64},
    "released": {},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
@torch.no_grad()
def test_same_codes_and_waves(settings: dict[str, Any]) -> None:
    theirs = peer.build(seed=3, **settings)
    codec = Codec.from_published(theirs.state_dict(), peer.RELEASED | settings)
    ours = SpeechTokenizer(codec)
    for seconds in (0.013, 0.4, 1.7001):
        x = peer.audio(seconds)
        codes = theirs.encode(x)
        assert torch.equal(ours.encode(x), codes)
        assert torch.equal(ours.encode(x, n_q=5, st=2), theirs.encode(x, n_q=5, st=2))
        for first, last in ((0, 8), (0, 1), (1, 8), (2, 5)):
            wanted = theirs.decode(codes[first:last], st=first)
            assert (
                ours.decode(codes[first:last], st=first) - wanted
            ).abs().max() <= 1e-5 * wanted.abs().max()
        for a, b in zip(ours(x), theirs(x), strict=True):
            assert a.shape == b.shape
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()
        for a, b in zip(ours.forward_feature(x, [4, 1]), theirs.forward_feature(x, [4, 1]), strict=True):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_the_package_loads_what_we_write(tmp_path: Path) -> None:
    theirs = peer.build(seed=4, **SMALL)
    codec = Codec.from_published(theirs.state_dict(), peer.RELEASED | SMALL)
    torch.save(codec.to_published(), tmp_path / "SpeechTokenizer.pt")
    again = peer.build(seed=5, **SMALL)
    again.load_state_dict(torch.load(tmp_path / "SpeechTokenizer.pt", weights_only=True), strict=True)
    x = peer.audio(1.0)
    with torch.no_grad():
        assert torch.equal(again.encode(x), theirs.encode(x))
