"""Voice conversion: the semantic tokens of a recording, spoken in another voice.

-o names a file, a folder or - (standard output). Words, rate and pauses stay.

vokens convert-voice in.wav --voice ref.wav -o out.wav    vokens convert-voice speech/ --voice ref.wav -o converted/
"""

from dataclasses import dataclass
from typing import Any

from vokens import registry
from vokens.audio_suffixes import AUDIO_SUFFIXES
from vokens.cli.encode import read_audio
from vokens.cli.jobs import Job
from vokens.cli.options import Output
from vokens.cli.speak import Speech, sound_jobs, speak
from vokens.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Arguments(Speech):
    output: Output = None
    """File, folder or - for standard output; required."""


def run(arguments: Arguments) -> int:
    if arguments.output is None:
        raise ConfigError(
            "-o is missing: next to the input the output would have its name, so give another file or a folder"
        )
    jobs = sound_jobs(arguments, AUDIO_SUFFIXES)

    def tokens_of(model: Any, job: Job) -> Any:
        return model.tokenize(*read_audio(job).value)

    return speak(jobs, arguments, registry.converter(), tokens_of)
