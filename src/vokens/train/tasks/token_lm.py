"""Training a language model over the tokens of any codec, from a folder that `vokens extract` wrote.

It is trained on codes and, where the codec has them, global vectors.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vokens.config import build_config
from vokens.data.dataset import TokenBatch, TokenBatches, TokenDataset
from vokens.models.socodec.lm import TokenLM, TokenLMConfig
from vokens.train.config import DataConfig, RunConfig, refuse
from vokens.train.log import Board
from vokens.train.loop import Trainer
from vokens.train.text_tokens import check_same_codec

VALID_BATCHES = 8
OF_THE_TOKENS = ("codebook_sizes", "model", "fingerprint", "sample_rate", "frame_rate")


@dataclass(frozen=True)
class TokenDataConfig(DataConfig):
    """Extracted tokens: `train` and `valid` are output folders of `vokens extract`."""

    batch_frames: int = 4000  # padded frames of a batch, per process
    max_frames: int = 0  # longer utterances are left out; 0 keeps all


@dataclass(frozen=True)
class TokenLMRunConfig(RunConfig):
    """One run. model: settings that differ from TokenLMConfig; the codec's sizes come from the data."""

    task: str = "token_lm"
    system: str = "token_lm"
    out: str = "runs/token_lm"
    data: TokenDataConfig = field(default_factory=TokenDataConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.model, ("vector_width", *OF_THE_TOKENS))


class TokenLMLearner(nn.Module):
    """A TokenLM whose forward pass returns its losses, for DDP."""

    def __init__(self, lm: TokenLM) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, codes: Tensor, lengths: Tensor, vector: Tensor | None) -> Tensor:
        return self.lm.losses(codes, lengths, vector)


class TokenLMTrainer(Trainer[TokenLMRunConfig, TokenLMLearner]):
    """Trains a TokenLM."""

    Config = TokenLMRunConfig
    exported = inside = "lm"

    def build_model(self) -> TokenLMLearner:
        self.dataset = TokenDataset(self.config.data.train)
        row = self.dataset[0]
        facts = {name: getattr(self.dataset.facts, name) for name in OF_THE_TOKENS}
        facts["vector_width"] = 0 if row.global_vector is None else len(row.global_vector)
        lm = TokenLM(build_config(TokenLMConfig, self.config.model | facts, "model"))
        return TokenLMLearner(self.started(lm))

    def load_data(self) -> None:
        data = self.config.data
        self.batches = TokenBatches(
            self.dataset,
            data.batch_frames,
            self.config.seed,
            self.rank,
            self.world,
            max_frames=data.max_frames or None,
        )
        self.epochs = [0]  # the number of each epoch's first batch
        self.epoch: list[list[int]] = []  # the batches of the last epoch that was begun
        if data.valid:
            self.valid = TokenDataset(data.valid)
            check_same_codec(data, self.dataset.facts, self.valid.facts)

    def micro_step(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        with self.accelerator.autocast():
            losses = self.module(*self._moved(self._batch(self.number(part))))
        return losses.mean(), {"nats": losses.mean()} | _named("nats", losses)

    def _batch(self, number: int) -> TokenBatch:
        """Batch `number`, counted from the start of the run."""
        while number >= self.epochs[-1]:
            self.batches.set_epoch(len(self.epochs) - 1)
            self.epoch = list(self.batches)
            self.epochs.append(self.epochs[-1] + len(self.epoch))
        return self.dataset.collate([self.dataset[row] for row in self.epoch[number - self.epochs[-2]]])

    def _moved(self, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        tokens, vector = batch.tokens, batch.tokens.global_vector
        moved = None if vector is None else vector.to(self.device)
        return tokens.codes.to(self.device), tokens.lengths.to(self.device), moved

    @torch.inference_mode()
    def validate(self, board: Board | None = None) -> dict[str, float]:
        """Held-out nats per code of each stream, of the EMA weights, over at most 8 batches."""
        lm = self.final_model()
        longest = int(self.valid.frames.max())
        batches = TokenBatches(self.valid, max(self.config.data.batch_frames, longest), self.config.seed)
        losses = []
        for rows in list(batches)[:VALID_BATCHES]:
            losses.append(lm.losses(*self._moved(self.valid.collate([self.valid[row] for row in rows]))))
        mean = torch.stack(losses).mean(0)
        measured = {"valid/nats": mean.mean()} | _named("valid/nats", mean)
        return {name: float(value) for name, value in measured.items()}


def _named(name: str, losses: Tensor) -> dict[str, Tensor]:
    return {f"{name}_{stream + 1}": value for stream, value in enumerate(losses)}
