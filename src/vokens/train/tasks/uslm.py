"""Training USLM (SpeechTokenizer, arXiv 2308.16692 §3.3): an autoregressive network from text to the first codebook,
and a non-autoregressive one to the remaining codebooks, one per stage.

The two networks share nothing, so they may be trained in one run or in two, the second started from the first. A batch
trains the AR network, stage 1, and a random stage of the NAR network.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vokens.config import build_config
from vokens.errors import ConfigError
from vokens.models.uslm.config import USLMConfig
from vokens.models.uslm.loss import IGNORE, entropy, next_code, next_code_loss, stage_codes, stage_loss
from vokens.models.uslm.model import USLM
from vokens.text import front_end
from vokens.train.config import RunConfig, among, refuse
from vokens.train.log import Board
from vokens.train.loop import Trainer
from vokens.train.text_tokens import (
    SpokenTexts,
    TextBatch,
    TextBatches,
    TextDataConfig,
    check_same_codec,
    dropout_mask,
    open_texts,
)

DERIVED = ("pace", "codebook_size", "num_codebooks", "sample_rate", "hop_length", "codec", "fingerprint")


@dataclass(frozen=True)
class USLMRunConfig(RunConfig):
    """One run. model: settings that differ from USLMConfig; the tokenizer's sizes come from the data."""

    task: str = "uslm"
    system: str = "uslm"
    out: str = "runs/uslm"
    data: TextDataConfig = field(default_factory=TextDataConfig)
    # Share of input codes that are masked in the AR network (word dropout, arXiv 1511.06349 §3.1).
    token_dropout: float = 0.0
    # "ar" (first codebook), "nar" (the remaining ones) or "both" are trained. The other one keeps the weights of
    # `init`, a trained folder.
    networks: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        among("networks", self.networks, ("both", "ar", "nar"))
        refuse(self.model, DERIVED)


class USLMLearner(nn.Module):
    """A USLM whose forward pass returns its losses, for DDP."""

    def __init__(self, lm: USLM, networks: str) -> None:
        super().__init__()
        self.lm, self.networks = lm, networks
        lm.ar.requires_grad_(networks != "nar")
        lm.nar.requires_grad_(networks != "ar")
        lm.nar.text_positions.requires_grad_(False)  # their scales stay 1
        lm.nar.speech_positions.requires_grad_(False)

    def forward(self, batch: TextBatch, stage: int, dropout_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Nats per target of the first codebook, of the second, and of codebook `stage`; dropout_mask (B, T)
        masks input codes of the AR network."""
        inputs = _inputs(batch)
        losses: dict[str, Tensor] = {}
        if self.networks != "nar":
            total, count = next_code_loss(self.lm, inputs, dropout_mask)
            losses["first"] = total / count
        if self.networks != "ar":
            for name, number in {"stage_1": 1, "stage_drawn": stage}.items():
                total, count = stage_loss(self.lm, inputs, number)
                losses[name] = total / count
        return losses


class USLMTrainer(Trainer[USLMRunConfig, USLMLearner]):
    """Trains a USLM."""

    Config = USLMRunConfig
    exported = inside = "lm"
    unused_parameters = True  # embeddings of the codebooks from the sampled stage on

    def build_model(self) -> USLMLearner:
        config = self.config
        data = config.data
        self.corpus = open_texts(data, data.train, data.train_split, self.device, with_text=True)
        facts, sizes = self.corpus.facts, set(self.corpus.facts.codebook_sizes)
        if len(sizes) != 1:
            raise ConfigError(f"codebooks of {sorted(sizes)} codes: USLM takes codebooks of one size")
        of_the_tokens: dict[str, Any] = {
            "codebook_size": sizes.pop(),
            "num_codebooks": len(facts.codebook_sizes),
            "sample_rate": facts.sample_rate,
            "hop_length": round(facts.sample_rate / facts.frame_rate),
            "codec": facts.model,
            "fingerprint": facts.fingerprint,
        }
        self.train = self._batches(self.corpus)
        if config.model.get("positions") == "progress":
            of_the_tokens["pace"] = self.train.pace
        lm = USLM(build_config(USLMConfig, config.model | of_the_tokens, "model"))
        return USLMLearner(self.started(lm), config.networks)

    def load_data(self) -> None:
        data = self.config.data
        if data.valid:
            held_out = open_texts(data, data.valid, data.valid_split, self.device, with_text=True)
            check_same_codec(data, self.corpus.facts, held_out.facts)
            self.valid = self._batches(held_out)

    def _batches(self, corpus: SpokenTexts) -> TextBatches:
        spell = front_end(self.config.model.get("front_end", USLMConfig.front_end)).ids
        return TextBatches(corpus, spell, self.config.data, self.config.seed)

    def micro_step(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        number = self.number(part)
        last = self.model.lm.config.num_codebooks - 1
        stage = int(torch.randint(min(2, last), last + 1, (), generator=self.generator(number)))
        batch = self.batch(number)
        draws = self.row_draws(number, len(batch.rows))
        unread = dropout_mask(batch, self.config.token_dropout, draws)
        batch, unread = batch.to(self.device), None if unread is None else unread.to(self.device)
        with self.accelerator.autocast():
            losses = self.module(batch, stage, unread)
        return sum(losses.values(), torch.zeros((), device=self.device)), losses

    @torch.inference_mode()
    def validate(self, board: Board | None = None) -> dict[str, float]:
        """On held-out texts, at most 24 batches of all lengths: nats per code and accuracy of each codebook, perplexity
        of the first; nats of the first with another utterance's text, and of the unigram of the training data."""
        lm = self.final_model()
        books = {f"stage_{stage}": stage for stage in range(1, lm.config.num_codebooks)}
        totals = {name: torch.zeros(3) for name in ("first", *books, "first_other_text", "first_unigram")}
        shares = self.train.unigram()
        for batch in self.valid.fixed():
            inputs = _inputs(batch.to(self.device))
            logits, targets = next_code(lm, inputs)
            totals["first"] += _sums(logits, targets)
            totals["first_other_text"] += _sums(*next_code(lm, _inputs(batch.swapped().to(self.device))))
            known = shares[targets[targets != IGNORE].cpu()]
            totals["first_unigram"] += torch.tensor([-float(known.sum()), 0, len(known)])
            for name, stage in books.items():
                totals[name] += _sums(*stage_codes(lm, inputs, stage))
        nats = {f"valid/{name}": float(total[0] / total[2]) for name, total in totals.items()}
        right = {
            f"valid/{name}_accuracy": float(totals[name][1] / totals[name][2]) for name in ("first", *books)
        }
        return {**nats, **right, "valid/perplexity": float(np.exp(nats["valid/first"]))}


def _inputs(batch: TextBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return batch.text, batch.text_lengths, batch.codes, batch.lengths


def _sums(logits: Tensor, targets: Tensor) -> Tensor:
    """Sums of nats, correct predictions and targets: (3,)."""
    loss_mask = targets != IGNORE
    right = (logits.argmax(-1) == targets)[loss_mask].sum()
    return torch.stack([entropy(logits, targets), right, loss_mask.sum()]).float().cpu()
