"""Drop-in interface of SoCodec's release (example.py of hhguo/SoCodec), with its faults, so that results are identical.

    python -m vokens.compat.socodec -i ground_truth.wav -o synthesis.wav   # also: -o features.pt, -i features.pt
    from vokens.compat.socodec import SoCodec

Differences to `vokens.load`: recordings of shape (1, T) always get 1919 zeros, the items of a list get the zeros that
the longest needs, speaker vectors include the padding, and synthesis is not cut to the length of the input. Files are
read from ./ckpts where that folder exists. The release crashes on -i features.pt; here it works.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

import vokens
from vokens import audio
from vokens.atomic import atomic_write
from vokens.cli import exit_code
from vokens.errors import AudioError, ConfigError, TokensError
from vokens.models.socodec import SoCodec as Codec

RELEASE = "socodec_16384x4_120ms_16khz_chinese"
CHECKPOINTS = "ckpts"  # folder of the release's three files
SILENCE = 8000  # zeros that the command puts before a recording, for the causal convolutions

Features = dict[str, Tensor]


class SoCodec:
    """Published calling convention of a codec.

    Args:
        codec: from `vokens.load`.
        hubert_dtype: of HuBERT; the release uses float16.
    """

    def __init__(self, codec: Codec, hubert_dtype: torch.dtype = torch.float16) -> None:
        self.codec = codec
        if codec.hubert is not None:
            codec.hubert.to(hubert_dtype)

    def analysis_synthesis(self, audio: Tensor | Sequence[Tensor]) -> tuple[Any, Any]:
        """Features and synthesis of 16 kHz recordings, by `analysis` and `synthesis`."""
        features = self.analysis(audio)
        return features, self.synthesis(features)

    @torch.inference_mode()
    def analysis(self, audio: Tensor | Sequence[Tensor]) -> Features | list[Features]:
        """Features of a recording (T,) or (1, T) at 16 kHz, or of a list of recordings (T,).

        Returns:
            {"token": (T', K) int64, "speaker": (width,) float32}; a list of these for more than one recording.
        """
        waves = list(audio) if isinstance(audio, (tuple, list)) else [cast(Tensor, audio)]
        lengths = [wave.shape[-1] for wave in waves]
        if len(waves) == 1 and waves[0].dim() == 2 and len(waves[0]) == 1:
            waves, extra = [waves[0][0]], self.codec.hop_length - 1
        elif waves and all(wave.dim() == 1 for wave in waves):
            extra = -max(lengths) % self.codec.hop_length
        else:
            shapes = [tuple(wave.shape) for wave in waves]
            raise AudioError(f"recordings of shapes {shapes} were given: give one (1, T), or (T,) each")
        device = self.codec.device
        batch = F.pad(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), (0, extra)).to(device)
        codes = self.codec.tokenize([row[: size + extra] for row, size in zip(batch, lengths, strict=True)])
        features = [
            {"token": token.T.cpu().clone(), "speaker": self.codec.voice(row)[0].float().cpu()}
            for token, row in zip(codes, batch, strict=True)
        ]
        return features[0] if len(features) == 1 else features

    @torch.inference_mode()
    def synthesis(self, features: Features | Sequence[Features]) -> Tensor | list[Tensor]:
        """Waves (N,) at 16 kHz, N that of the longest, one for each of the features; no list for a single one.

        Raises TokensError for malformed features.
        """
        items = [features] if isinstance(features, dict) else list(features)
        for item in items:
            _check_features(item, self.codec)
        tokens = torch.nn.utils.rnn.pad_sequence([item["token"].long() for item in items], batch_first=True)
        voices = torch.stack([item["speaker"].float() for item in items]).to(self.codec.device)
        lengths = torch.full((len(items),), tokens.shape[1])
        codes = tokens.transpose(1, 2).to(self.codec.device)
        waves = list(self.codec.decode_global_batch(codes, lengths, 0, voices).float().cpu())
        return waves[0] if len(waves) == 1 else waves


def _check_features(item: Any, codec: Codec) -> None:
    if not isinstance(item, dict) or not isinstance(item.get("token"), Tensor):
        raise TokensError('features must be a dict of "token" (T, K) and "speaker" (D,), or a list of such')
    token, speaker = item["token"], item.get("speaker")
    if token.dim() != 2 or not 1 <= token.shape[1] <= codec.num_codebooks or not len(token):
        raise TokensError(f"token {tuple(token.shape)}: (T, 1 to {codec.num_codebooks}) is accepted")
    if int(token.min()) < 0 or int(token.max()) >= codec.codebook_sizes[0]:
        raise TokensError(f"token holds {int(token.max())}: 0 to {codec.codebook_sizes[0] - 1} is accepted")
    if not isinstance(speaker, Tensor) or tuple(speaker.shape) != (codec.config.width,):
        raise TokensError(f"speaker must be a tensor ({codec.config.width},)")


def init_codec() -> SoCodec:
    """The release, from ./ckpts where that folder exists, else downloaded."""
    source = CHECKPOINTS if Path(CHECKPOINTS).is_dir() else RELEASE
    codec = vokens.load(source)
    if not isinstance(codec, Codec):
        raise ConfigError(f"{source} holds the system {codec.system!r}, not SoCodec's release")
    return SoCodec(codec.to("cuda") if torch.cuda.is_available() else codec)


def convert(codec: SoCodec, source: str, target: str) -> None:
    """The published command: convert a .wav or a features .pt to either.

    Raises:
        ConfigError: other suffixes, or a .pt into a .pt. AudioError, TokensError: unusable input.
    """
    if not target.endswith((".wav", ".pt")) or not source.endswith((".wav", ".pt")):
        raise ConfigError(f"-i {source} -o {target}: .wav and .pt are accepted")
    if source.endswith(".pt") and target.endswith(".pt"):
        raise ConfigError(f"-i {source} -o {target}: the input already has features, give a .wav as output")
    features = _load_features(source) if source.endswith(".pt") else _analysis(codec, source)
    with atomic_write(target) as partial:
        if target.endswith(".pt"):
            torch.save(features, partial)
            return
        waves = codec.synthesis(features)
        if not isinstance(waves, Tensor):
            raise ConfigError(f"{source} holds {len(waves)} recordings, a .wav takes one: call synthesis")
        # float samples, as torchaudio writes them
        soundfile.write(partial, waves.numpy().astype(np.float32), 16000, subtype="FLOAT")


def _analysis(codec: SoCodec, source: str) -> Any:
    wave, rate = audio.load(source)
    sound = audio.resample(torch.from_numpy(wave), rate, 16000)
    return codec.analysis(F.pad(sound, (SILENCE, 0)).unsqueeze(0))


def _load_features(path: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise almost any type
        raise TokensError(f"{path} is no features file that can be read safely: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m vokens.compat.socodec", description=about)
    for name in ("input", "output"):
        parser.add_argument(f"-{name[0]}", f"--{name}", required=True, help=".wav, or features .pt")
    parsed = parser.parse_args(arguments)

    def work() -> int:
        convert(init_codec(), parsed.input, parsed.output)
        return 0

    return exit_code("socodec", work)


if __name__ == "__main__":
    sys.exit(main())
