"""Learnable-Speech's scripts by their published flags (primepake/learnable-speech 2453af9), on our models."""
