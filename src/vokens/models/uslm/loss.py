"""Losses of USLM: the next code of the first codebook, and each other codebook from those before it.

A random stage of the NAR network is trained on each batch, beside stage 1, which every batch trains: that is USLM's
difference from VALL-E (arXiv 2301.02111 §4.2).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vokens.models.uslm.model import USLM

IGNORE = -100
# Text (B, L), its lengths (B,), codes (B, T, K), their lengths (B,)
Utterances = tuple[Tensor, Tensor, Tensor, Tensor]


def next_code(model: USLM, inputs: Utterances, dropout_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Logits (B, T + 1, V + 1) of the first codebook's codes and the end, and targets (B, T + 1), IGNORE beyond.

    dropout_mask (B, T): True where codes are masked in the input. `published_targets` leaves out the first code, so T
    of both, and the end is a target at every padded frame.
    """
    text, text_lengths, codes, lengths = inputs
    published, end = model.config.published_targets, model.config.end
    frames = torch.arange(codes.shape[1], device=codes.device)
    first = codes[..., 0].masked_fill(frames >= lengths[:, None], end)  # (B, T)
    targets = F.pad(first, (0, 1), value=end)  # (B, T + 1): after the text, and after every code
    pace = lengths / text_lengths if model.config.positions == "progress" else None
    hidden = model.ar(text, text_lengths, first, lengths, None, pace, dropout_mask)  # (B, L + T, D)
    rows = torch.arange(len(text), device=text.device)
    starts = hidden[rows, text_lengths - 1][:, None]
    logits = model.ar.predict(torch.cat([starts, hidden[:, text.shape[1] :]], 1)).float()
    if published:
        return logits[:, 1:], targets[:, 1:]
    beyond = torch.arange(targets.shape[1], device=codes.device) > lengths[:, None]
    return logits, targets.masked_fill(beyond, IGNORE)


def next_code_loss(model: USLM, inputs: Utterances, dropout_mask: Tensor | None = None) -> tuple[Tensor, int]:
    """Cross-entropy (nats) of the first codebook, summed over the targets of `next_code`, and their number.

    `published_targets` counts frames alone, whatever their padding adds to the sum.
    """
    ends = 0 if model.config.published_targets else 1
    return entropy(*next_code(model, inputs, dropout_mask)), int((inputs[3] + ends).sum())


def stage_codes(model: USLM, inputs: Utterances, stage: int) -> tuple[Tensor, Tensor]:
    """Logits (B, T, V) of codebook `stage` (1 ... K - 1) from those before it, and targets (B, T), IGNORE beyond.

    The whole utterance is predicted, as in prefix mode 0.
    """
    text, text_lengths, codes, lengths = inputs
    beyond = torch.arange(codes.shape[1], device=codes.device) >= lengths[:, None]
    codes = codes.masked_fill(beyond[..., None], 0)
    speech = model.nar.embed(codes[..., 0], 0)
    for book in range(1, stage):
        speech = speech + model.nar.embed(codes[..., book], book)
    hidden = model.nar(text, text_lengths, speech, lengths, stage)[:, text.shape[1] :]
    return model.nar.logits(hidden, stage).float(), codes[..., stage].masked_fill(beyond, IGNORE)


def stage_loss(model: USLM, inputs: Utterances, stage: int) -> tuple[Tensor, int]:
    """Cross-entropy (nats) of codebook `stage`, summed over the targets of `stage_codes`, and their number."""
    return entropy(*stage_codes(model, inputs, stage)), int(inputs[3].sum())


def entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (nats) of logits (B, T, V) summed over targets (B, T) that are not IGNORE."""
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="sum", ignore_index=IGNORE)
