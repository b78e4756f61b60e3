"""Published weights of Learnable-Speech's second stage: CosyVoice 2's flow.pt with the speaker encoder beside it.

Shapes tell all sizes but the number of heads, which must be given where they are not the release's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vokens.checkpoint import NameTable, State, read_state_dict
from vokens.errors import CheckpointError
from vokens.models.learnable.checkpoint import SPEAKER_ROWS, speaker_sizes
from vokens.models.learnable.flow_config import LearnableFlowConfig, latent_flow
from vokens.models.s3gen.checkpoint import flow_from_published, flow_sizes, flow_to_published

_SPEAKER, _NETWORK = "speaker_encoder.", "network."
_TABLE = NameTable(SPEAKER_ROWS)


def configure(
    state: Mapping[str, Tensor], config: LearnableFlowConfig | Mapping[str, Any] | None = None
) -> LearnableFlowConfig:
    """Sizes of published weights. config: a LearnableFlowConfig, or settings of the flow that shapes
    leave open, and "speaker_heads".

    Raises CheckpointError where heads are neither given nor those of the release.
    """
    if isinstance(config, LearnableFlowConfig):
        return config
    settings = dict(config or {})
    heads = settings.pop("speaker_heads", None)
    sizes = flow_sizes(state, settings)
    speaker = speaker_sizes(state, heads) if "speaker_encoder.init.weight" in state else None
    return LearnableFlowConfig(flow=latent_flow(**sizes | settings), speaker=speaker)


def to_ours(state: Mapping[str, Tensor]) -> State:
    """Published names to ours. Raises CheckpointError for names that are not of this layout."""
    speaker = _below(_SPEAKER, state)
    flow = flow_from_published({name: value for name, value in state.items() if name not in speaker})
    return _TABLE.to_ours(speaker) | {f"{_NETWORK}{name}": value for name, value in flow.items()}


def to_published(state: Mapping[str, Tensor]) -> State:
    """Our names to the published ones."""
    flow = {name.removeprefix(_NETWORK): value for name, value in _below(_NETWORK, state).items()}
    return flow_to_published(flow) | _TABLE.to_published(_below(_SPEAKER, state))


def _below(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {name: value for name, value in state.items() if name.startswith(prefix)}


def read_start(source: str | Path) -> State:
    """The network's weights to start training from, under our names without prefix: CosyVoice 2's flow.pt or a
    published stage 2, or a folder of ours that holds a flow.

    Raises CheckpointError for other files.
    """
    path = Path(source).expanduser()
    state = read_state_dict(path / "model.safetensors" if path.is_dir() else path)
    if "input_embedding.weight" in state:
        state = to_ours(state)
    if "network.embedding.weight" in state:
        return {name.removeprefix(_NETWORK): value for name, value in _below(_NETWORK, state).items()}
    if "embedding.weight" in state and "estimator.out.weight" in state:
        return state
    raise CheckpointError(
        f"{source} is no start for a flow: CosyVoice 2's flow.pt, or a folder of a trained flow is accepted"
    )
