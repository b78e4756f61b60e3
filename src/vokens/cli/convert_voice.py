"""Voice conversion: the semantic tokens of a recording, spoken in another voice.

-o names a file, a folder or - (standard output). Words, rate and pauses stay.

vokens convert-voice in.wav --voice ref.wav -o out.wav    vokens convert-voice speech/ --voice ref.wav -o converted/
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vokens import registry
from vokens.audio_suffixes import AUDIO_SUFFIXES
from vokens.cli.convert import Loaded
from vokens.cli.encode import read_audio
from vokens.cli.options import Compute, Inputs, Output
from vokens.cli.speak import Speech, load_speaker, sound_jobs, speak_all
from vokens.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from vokens.tokens import Tokens


@dataclass(frozen=True)
class Arguments:
    inputs: Inputs
    """Recordings, folders, quoted globs, or - for standard input."""
    speech: Speech
    output: Output = None
    """File, folder or - for standard output; required."""
    compute: Compute = field(default_factory=Compute)


def run(arguments: Arguments) -> int:
    """Convert all inputs; returns the exit code."""
    if arguments.output is None:
        raise ConfigError(
            "-o is missing: next to the input the output would have its name, so give another file or a folder"
        )
    jobs = sound_jobs(arguments.inputs, arguments.output, arguments.speech, AUDIO_SUFFIXES)
    model, voice = load_speaker(arguments.speech, arguments.compute, registry.converter())

    def tokens_of(item: "Loaded[np.ndarray]") -> "Tokens":
        return model.tokenize(item.value, item.kind)

    return speak_all(jobs, read_audio, tokens_of, model, voice, arguments.speech)
