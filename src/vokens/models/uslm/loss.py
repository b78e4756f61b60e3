"""What USLM trains on: the next code of the first codebook, and each other codebook from those before it.

A stage of the second network is drawn for each batch, beside stage 1, which every batch trains: that is USLM's
difference from VALL-E (arXiv 2301.02111 §4.2).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vokens.models.uslm.model import USLM


def next_code_loss(
    model: USLM, text: Tensor, text_lengths: Tensor, codes: Tensor, lengths: Tensor
) -> tuple[Tensor, int]:
    """Cross-entropy (nats) of the first codebook, summed over targets, and their number.

    text (B, L) ids with text_lengths (B,), codes (B, T, K) with lengths (B,). Targets are a row's codes and the
    end. `published_targets` leaves out the first code, and counts an end for every padded frame in the sum.
    """
    published, end = model.config.published_targets, model.config.end
    frames = torch.arange(codes.shape[1], device=codes.device)
    first = codes[..., 0].masked_fill(frames >= lengths[:, None], end)  # (B, T)
    targets = F.pad(first, (0, 1), value=end)  # (B, T + 1): after the text, and after every code
    hidden = model.ar(text, text_lengths, first, lengths)  # (B, L + T, D)
    rows = torch.arange(len(text), device=text.device)
    starts = hidden[rows, text_lengths - 1][:, None]
    logits = model.ar.predict(torch.cat([starts, hidden[:, text.shape[1] :]], 1)).float()
    if published:
        logits, targets = logits[:, 1:], targets[:, 1:]
        counted = int(lengths.sum())
    else:
        beyond = torch.arange(targets.shape[1], device=codes.device) > lengths[:, None]
        targets = targets.masked_fill(beyond, -100)
        counted = int((lengths + 1).sum())
    loss = F.cross_entropy(logits.transpose(1, 2), targets, reduction="sum", ignore_index=-100)
    return loss, counted


def stage_loss(
    model: USLM, text: Tensor, text_lengths: Tensor, codes: Tensor, lengths: Tensor, stage: int
) -> tuple[Tensor, int]:
    """Cross-entropy (nats) of codebook `stage` (1 ... K - 1) from those before it, summed, and its targets' number.

    Shapes as in `next_code_loss`. The whole utterance is predicted, as in prefix mode 0.
    """
    beyond = torch.arange(codes.shape[1], device=codes.device) >= lengths[:, None]
    codes = codes.masked_fill(beyond[..., None], 0)
    speech = model.nar.embed(codes[..., 0], 0)
    for book in range(1, stage):
        speech = speech + model.nar.embed(codes[..., book], book)
    hidden = model.nar(text, text_lengths, speech, lengths, stage)[:, text.shape[1] :]
    logits = model.nar.logits(hidden, stage).float().transpose(1, 2)
    targets = codes[..., stage].masked_fill(beyond, -100)
    loss = F.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)
    return loss, int(lengths.sum())
