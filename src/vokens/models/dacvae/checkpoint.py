"""DAC-VAE's published weights: a training checkpoint whose "generator" is 244 (64-d) or 300 (80-d) tensors.

Behind every plain convolution the published names have `.0`, because it sits in a Sequential with a leaky ReLU:
that tells the published networks from clean ones.
"""

from vokens.checkpoint import NameTable, State, count_of, fold_weight_norm, unfold_weight_norm
from vokens.errors import CheckpointError
from vokens.models.dacvae.config import DACVAEConfig

_UNIT = {"0": "snake1", "1.0": "conv1", "2": "snake2", "3.0": "conv2"}


def configure(state: State) -> DACVAEConfig:
    """The sizes, from the shapes: the published networks differ in nothing else. Raises CheckpointError."""
    state = fold_weight_norm(state)
    encoder, decoder = (
        tuple(state[name.format(n + 1)].shape[2] // 2 for n in range(count_of(state, name, first=1)))
        for name in ("encoder.block.{}.block.4.0.weight", "decoder.model.{}.block.1.weight")
    )
    if not encoder or not decoder:
        raise CheckpointError("no stages of a DAC-VAE among the tensors: it is damaged or another model's")
    return DACVAEConfig(
        encoder_dim=state["encoder.block.0.0.weight"].shape[0],
        encoder_rates=encoder,
        latent_dim=state["de_conv_pre.0.weight"].shape[0],
        decoder_dim=state["decoder.model.0.0.weight"].shape[0],
        decoder_rates=decoder,
        conv_slope=0.1,
    )


def to_ours(state: State, config: DACVAEConfig) -> State:
    """Published names to ours, weight norm folded."""
    return _table(config).to_ours(fold_weight_norm(state))


def to_published(state: State, config: DACVAEConfig) -> State:
    """Our names to the published ones, with weight norm in torch's older spelling."""
    published = _table(config).to_published(state)
    return unfold_weight_norm(published, [name[:-7] for name in published if name.endswith(".weight")])


def _table(config: DACVAEConfig) -> NameTable:
    """Stages are counted from 1 in the published names, from 0 in ours."""
    down, up = len(config.encoder_rates), len(config.decoder_rates)
    rows = {
        "encoder.block.0.0": "encoder.first",
        f"encoder.block.{down + 1}": "encoder.snake",
        f"encoder.block.{down + 2}.0": "encoder.last",
        "en_conv_post.0": "posterior",
        "de_conv_pre.0": "decoder.project",
        "decoder.model.0.0": "decoder.first",
        f"decoder.model.{up + 1}": "decoder.snake",
        f"decoder.model.{up + 2}.0": "decoder.last",
    }
    for stage in range(down):
        there, ours = f"encoder.block.{stage + 1}.block", f"encoder.stages.{stage}"
        rows |= _units(there, ours, first=0) | {f"{there}.3": f"{ours}.snake", f"{there}.4.0": f"{ours}.down"}
    for stage in range(up):
        there, ours = f"decoder.model.{stage + 1}.block", f"decoder.stages.{stage}"
        rows |= _units(there, ours, first=2) | {f"{there}.0": f"{ours}.snake", f"{there}.1": f"{ours}.up"}
    return NameTable(
        [
            (f"{there}.{leaf}", f"{ours}.{leaf}")
            for there, ours in rows.items()
            for leaf in (("alpha",) if "snake" in ours.rsplit(".", 1)[-1] else ("weight", "bias"))
        ]
    )


def _units(there: str, ours: str, first: int) -> dict[str, str]:
    return {
        f"{there}.{first + unit}.block.{part}": f"{ours}.units.{unit}.{name}"
        for unit in range(3)
        for part, name in _UNIT.items()
    }
