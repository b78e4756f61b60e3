"""The table of audio files by suffix, apart from `vokens.audio` so that listing a folder needs no torch.

Suffixes say what counts as audio inside folders, lists and archives; what a named file is, its content says.
"""

# What `vokens.audio.save` writes: container and encoding, as libsndfile calls them.
ENCODINGS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
WRITTEN_SUFFIXES = tuple(ENCODINGS)
_LIBSNDFILE = (".oga", ".aiff", ".aif", ".aifc", ".au", ".snd", ".w64", ".rf64", ".caf", ".sph")
_PYAV = (".m4a", ".mp4", ".aac", ".webm", ".wma")  # the extra `media`
AUDIO_SUFFIXES = WRITTEN_SUFFIXES + _LIBSNDFILE + _PYAV

__all__ = ["AUDIO_SUFFIXES", "ENCODINGS", "WRITTEN_SUFFIXES"]
