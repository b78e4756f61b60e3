"""A voice as users keep it: made once of a recording, with the state of streams after its prompt.

Published code hands voices around as a dict of tensors, `ref_dict`; both directions stand here.
"""

from collections.abc import Hashable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vokens.errors import AudioError, ConfigError, TokensError
from vokens.models.s3gen.flow import TokenToMel, Voice
from vokens.models.s3gen.reference import RefDict
from vokens.models.s3gen.stream_flow import MelState, MelStream

_KEYS = ("prompt_token", "prompt_feat", "embedding")


class ReferenceVoice:
    """A voice that remembers its prompt: the second stream of one plan starts without computing it again.

    The memory is of states, each as large as a stream's (`MelState.nbytes`); `forget` frees it.

    Attributes:
        tokens: name of the tokenizer of the prompt's tokens, "" where unknown.
    """

    def __init__(self, voice: Voice, tokens: str = "") -> None:
        self.voice, self.tokens = voice, tokens
        # A state's keys are layers: a voice shall not hold a model that nobody else does.
        self._starts: WeakKeyDictionary[TokenToMel, dict[Hashable, MelState]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type, tuple[Voice, str]]:
        return type(self), (self.voice, self.tokens)

    @property
    def seconds(self) -> float:
        """Length of the prompt, at 50 mel frames a second."""
        return len(self.voice.mel) / 50

    @property
    def ref_dict(self) -> RefDict:
        """The published form, a batch of one."""
        return {
            "prompt_token": self.voice.tokens[None],
            "prompt_token_len": torch.tensor([len(self.voice.tokens)]),
            "prompt_feat": self.voice.mel[None],
            "prompt_feat_len": torch.tensor([len(self.voice.mel)]),
            "embedding": self.voice.speaker[None],
            "tokenizer": self.tokens,
        }

    def start(self, stream: MelStream) -> MelState:
        """The state after this prompt for streams of this plan; computed once."""
        flow, plan = stream.flow, stream.schedule
        grid = tuple(plan.grid.tolist()), plan.solver, tuple(plan.guidance)
        key = (flow.dtype, flow.device, stream.chunks, stream.noise, grid)
        starts = self._starts.setdefault(flow, {})
        if key not in starts:
            starts[key] = stream.start(self.voice)
        return starts[key]

    def forget(self) -> None:
        """Free the states; also needed after training changed the weights."""
        self._starts.clear()


VoiceLike = ReferenceVoice | Voice | Mapping[str, Any]


def voices_of(given: VoiceLike, spoken: str = "") -> list[ReferenceVoice]:
    """The voices of a ref_dict, one for each row; numpy arrays are accepted in it.

    Raises:
        AudioError: entries that are missing, of other shapes, or of different counts of rows.
        TokensError: a voice whose prompt is known to be of other tokens than those spoken.
    """
    if isinstance(given, Voice):
        return [ReferenceVoice(given)]
    voices = [given] if isinstance(given, ReferenceVoice) else _of_dict(given)
    name = voices[0].tokens if voices else ""
    if name and spoken and name != spoken:
        raise TokensError(
            f"a voice in tokens of {name!r} was given to a model that speaks those of {spoken!r}: hear the recording "
            "again with this model's voice()"
        )
    return voices


def _of_dict(given: Mapping[str, Any]) -> list[ReferenceVoice]:
    """Each row of a ref_dict; where it names a tokenizer, as those of `embed_ref` do, so does each voice."""
    if not isinstance(given, Mapping) or any(given.get(key) is None for key in _KEYS):
        keys = sorted(given) if isinstance(given, Mapping) else type(given).__name__
        raise AudioError(f"a voice of {keys} was given: embed_ref makes ref_dict, which has {list(_KEYS)}")
    tokens, mel, speaker = (_tensor(given, key) for key in _KEYS)
    if (tokens.dim(), mel.dim(), speaker.dim()) != (2, 3, 2) or not len(tokens) == len(mel) == len(speaker):
        raise AudioError(
            f"prompt_token {tuple(tokens.shape)}, prompt_feat {tuple(mel.shape)} and embedding "
            f"{tuple(speaker.shape)} were given: (B, P), (B, F, bands) and (B, width) are accepted"
        )
    if tokens.is_floating_point() and bool((tokens != tokens.round()).any()):
        raise AudioError("prompt_token holds fractions: token ids are whole numbers")
    sizes = []
    for key, whole in (("prompt_token_len", tokens.shape[1]), ("prompt_feat_len", mel.shape[1])):
        counts = [whole] * len(tokens) if given.get(key) is None else _tensor(given, key).flatten().tolist()
        if len(counts) != len(tokens) or not all(0 <= n <= whole for n in counts):
            raise AudioError(f"{key} is {counts}: one for each of {len(tokens)} rows, at most {whole}")
        sizes.append([int(n) for n in counts])
    return [
        ReferenceVoice(
            Voice(tokens[row, :n].long(), mel[row, :frames], speaker[row]), given.get("tokenizer") or ""
        )
        for row, (n, frames) in enumerate(zip(*sizes, strict=True))
    ]


def one_voice(given: VoiceLike, spoken: str = "") -> ReferenceVoice:
    """The only voice of what was given."""
    voices = voices_of(given, spoken)
    if len(voices) != 1:
        raise AudioError(f"{len(voices)} voices were given: a stream has one")
    return voices[0]


def matched(voices: list[ReferenceVoice], count: int) -> list[ReferenceVoice]:
    """One voice for each of count utterances."""
    if len(voices) not in (1, count):
        raise ConfigError(
            f"{len(voices)} voices were given for {count} utterances: one for all, or one for each"
        )
    return voices * count if len(voices) == 1 else voices


def stacked(voices: list[ReferenceVoice]) -> RefDict:
    """One ref_dict of all voices."""
    parts = [voice.voice for voice in voices]
    return {
        "prompt_token": pad_sequence([part.tokens for part in parts], batch_first=True),
        "prompt_token_len": torch.tensor([len(part.tokens) for part in parts]),
        "prompt_feat": pad_sequence([part.mel for part in parts], batch_first=True),
        "prompt_feat_len": torch.tensor([len(part.mel) for part in parts]),
        "embedding": torch.stack([part.speaker for part in parts]),
    }


def _tensor(given: Mapping[str, Any], key: str) -> Tensor:
    value = given[key]
    if not isinstance(value, Tensor | np.ndarray):
        raise AudioError(f"{key} is a {type(value).__name__}: a tensor or an array is accepted")
    return torch.as_tensor(value)
