"""S3Gen: from S3 tokens to a waveform in the voice of a reference (CosyVoice 2, Chatterbox)."""
