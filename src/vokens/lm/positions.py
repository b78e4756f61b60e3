"""Positions of speech beside its text: a speech token has the position of the text that is due (VoiceStar's progress
monitoring, arXiv 2505.19462; Deep Voice 3, arXiv 1710.07654, had positions that run at a rate).

A language model that reads a text and then speaks must learn which text each moment of speech belongs to. With
positions 0, 1, 2 … through both, a few hours of speech do not teach it. With these it knows from the start about where
to look, and the pace that is assumed when speaking sets the speed.
"""

from vokens.errors import ConfigError

POSITIONS = ("sequence", "progress")


def check_positions(positions: str, pace: float) -> None:
    """Raise ConfigError for a config of other positions, or whose pace (speech tokens of a text id) does not fit."""
    if positions not in POSITIONS or (positions == "progress") != (pace > 0):
        raise ConfigError(
            f'positions = {positions!r} with pace = {pace}: "sequence" is accepted without a pace, and "progress" with '
            "one above 0"
        )


def pace_of(config_pace: float, text: int, speech: int, speed: float) -> float:
    """Speech tokens per text id in generation: the prompt's, else the config's, divided by the speed.

    Raises ConfigError for a speed other than 1 of a model without a pace, or not above 0.
    """
    if speed <= 0 or (speed != 1 and not config_pace):
        raise ConfigError(
            f"speed = {speed}: numbers above 0 are accepted, other than 1 only for models with positions = "
            '"progress" or "aligned"'
        )
    return (speech / text if text and speech else config_pace or 1.0) / speed
