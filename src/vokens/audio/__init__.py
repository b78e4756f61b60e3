"""Audio at the borders: reading and writing, resampling, log-mel spectrograms."""

from vokens.audio.io import duration, load, save
from vokens.audio.mel import LogMel, MelConfig, mel_filterbank
from vokens.audio.resample import resample, sinc_resample
from vokens.audio_suffixes import AUDIO_SUFFIXES

__all__ = [
    "AUDIO_SUFFIXES",
    "LogMel",
    "MelConfig",
    "duration",
    "load",
    "mel_filterbank",
    "resample",
    "save",
    "sinc_resample",
]
