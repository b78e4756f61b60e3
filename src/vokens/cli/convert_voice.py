"""Voice conversion: the semantic tokens of a recording, spoken in another voice.

-o names a file, a folder or - (standard output). Words, rate and pauses stay.

vokens convert-voice in.wav --voice ref.wav -o out.wav    vokens convert-voice speech/ --voice ref.wav -o converted/
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vokens import registry
from vokens.audio_suffixes import AUDIO_SUFFIXES
from vokens.cli.convert import Loaded, convert, group_seconds
from vokens.cli.encode import read_audio
from vokens.cli.jobs import Job
from vokens.cli.options import Compute, Inputs, Output
from vokens.cli.speak import Speech, in_voice, load_speaker, loaded_ids, sound_jobs
from vokens.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


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
    speech = arguments.speech
    jobs = sound_jobs(arguments.inputs, arguments.output, speech, AUDIO_SUFFIXES)
    model, voice = load_speaker(speech, arguments.compute, registry.converter())

    def read(job: Job) -> "Loaded[Tensor]":
        return loaded_ids(job, model.tokenize(*read_audio(job).value), model)

    work, finish = in_voice(model, voice, speech)
    return convert(jobs, read, work, finish, group_seconds(speech.batch_seconds))
