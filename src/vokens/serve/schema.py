"""Bodies of requests and replies, which FastAPI validates and documents."""

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from vokens.errors import TokensError
from vokens.tokens import Tokens

Format = Literal["wav", "pcm", "opus", "flac", "mp3"]
Code = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
_FACTS = ("model", "fingerprint", "sample_rate", "frame_rate", "first_codebook")  # as in tokens


class Body(BaseModel):
    """A JSON body; null means an omitted field, as OpenAI's clients send it."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else given


class TokensBody(Body):
    """Tokens of one recording."""

    model: Name
    fingerprint: str = Field("", max_length=64, description="of the codec's weights; empty: not checked")
    sample_rate: int = Field(gt=0, lt=2**31, description="Hz")
    frame_rate: float = Field(gt=0, lt=1e6, allow_inf_nan=False, description="frames per second")
    codebook_sizes: list[Annotated[int, Field(ge=1, lt=2**31)]] = Field(min_length=1, max_length=256)
    first_codebook: int = Field(0, ge=0, lt=256)
    num_samples: int = Field(
        ge=0, lt=2**40, description="of the recording, at sample_rate; output is cut to it"
    )
    codes: list[list[Code]] = Field(min_length=1, max_length=256, description="one row for each codebook")
    global_vector: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(None, max_length=65536)

    def tokens(self) -> Tokens:
        """The tokens as a batch of one. Raises TokensError."""
        frames = {len(row) for row in self.codes}
        if len(frames) != 1:
            raise TokensError(f"codes have rows of {sorted(frames)} frames: all must have the same number")
        for row, size in zip(self.codes, self.codebook_sizes, strict=False):  # other counts are refused below
            if max(row, default=0) >= size:
                raise TokensError(f"codes have {max(row)} in a codebook of {size}: give 0 to {size - 1}")
        vector = None if self.global_vector is None else torch.tensor([self.global_vector])
        return Tokens(
            codes=torch.tensor([self.codes], dtype=torch.int64),
            lengths=torch.tensor([frames.pop()]),
            num_samples=torch.tensor([self.num_samples]),
            codebook_sizes=tuple(self.codebook_sizes),
            global_vector=vector,
            **{name: getattr(self, name) for name in _FACTS},
        )

    @classmethod
    def of(cls, tokens: Tokens) -> "TokensBody":
        """The only item of `tokens`."""
        vector = None if tokens.global_vector is None else tokens.global_vector[0].tolist()
        return cls(
            codebook_sizes=list(tokens.codebook_sizes),
            num_samples=int(tokens.num_samples[0]),
            codes=tokens.codes[0, :, : int(tokens.lengths[0])].tolist(),
            global_vector=vector,
            **{name: getattr(tokens, name) for name in _FACTS},
        )


class VoiceId(BaseModel):
    """A voice, as OpenAI names custom ones."""

    id: str


class Speech(Body):
    """OpenAI's speech request; `input` may also be tokens."""

    model_config = ConfigDict(extra="allow")  # to list ignored fields

    model: Name
    input: Annotated[
        Annotated[str, Tag("text"), Field(min_length=1)] | Annotated[TokensBody, Tag("tokens")],
        Discriminator(lambda given: "tokens" if isinstance(given, (dict, TokensBody)) else "text"),
    ]
    voice: str | VoiceId = Field("", description="a name of /v1/voices")
    response_format: Format = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4.0, description="2 is twice as fast, where the model can")
    seed: int = Field(0, ge=0, lt=2**63)
    stream: bool = Field(False, description="stream the sound")
    stream_format: Literal["audio", "sse"] | None = Field(
        None, description="stream the sound, as a file or as events"
    )

    @property
    def voice_name(self) -> str:
        return self.voice if isinstance(self.voice, str) else self.voice.id

    @property
    def ignored(self) -> list[str]:
        """Ignored fields of the request, such as OpenAI's `instructions`."""
        return [name for name in self.model_extra or () if name.isascii() and name.isidentifier()]


class ModelCard(BaseModel):
    """One model in OpenAI's format, with vokens' own fields."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "vokens"
    system: str
    licence: str
    sample_rate: int
    frame_rate: float | None
    codebook_sizes: list[int]
    can: list[str] = Field(description="of encode, decode, say (texts), speak (tokens in a voice)")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class VoiceNames(BaseModel):
    data: list[str]


class VoiceCard(BaseModel):
    """A voice in Open WebUI's format."""

    id: str
    name: str
    object: Literal["voice"] = "voice"


class VoiceList(BaseModel):
    voices: list[VoiceCard]


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    version: str
    models: list[str]


class Problem(BaseModel):
    """An error in OpenAI's format."""

    message: str
    type: str
    code: str | None = None
    param: str | None = None


class Failure(BaseModel):
    error: Problem
