"""Audio at the borders: reading and writing, resampling, log-mel spectrograms."""

from vokens.audio.mel import LogMel, MelConfig, mel_filterbank

__all__ = ["LogMel", "MelConfig", "mel_filterbank"]
