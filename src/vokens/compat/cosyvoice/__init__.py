"""CosyVoice's data preparation (`tools/*.py`) by its own flags: `python -m vokens.compat.cosyvoice COMMAND`."""
