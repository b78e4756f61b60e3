"""Audio at the borders: reading and writing, resampling, log-mel spectrograms."""

from vokens.audio.io import duration, load, load_all, save
from vokens.audio.mel import LogMel, MelConfig, mel_filterbank
from vokens.audio.recording import Recording, recordings
from vokens.audio.resample import resample, sinc_resample
from vokens.audio.source import Source, is_source
from vokens.audio_suffixes import AUDIO_SUFFIXES

__all__ = [
    "AUDIO_SUFFIXES",
    "LogMel",
    "MelConfig",
    "Recording",
    "Source",
    "duration",
    "is_source",
    "load",
    "load_all",
    "mel_filterbank",
    "recordings",
    "resample",
    "save",
    "sinc_resample",
]
