"""Audio suffixes, outside `vokens.audio` so that listing a folder needs no torch.

Suffixes decide what counts as audio in folders, lists and archives; a file given by name is opened by content.
"""

# Formats of `vokens.audio.save`: container and encoding in libsndfile's terms.
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
