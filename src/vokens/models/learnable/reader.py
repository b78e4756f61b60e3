"""What a language model has read so far: the backbone's keys and values, and the scores of what comes next.

Rows of a ragged batch are filled up on the left; the filling is masked and positions count without it, so that a
row gets the scores it has alone, and reading in pieces those of reading at once.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vokens.errors import MissingExtra
from vokens.models.learnable.config import Qwen2Sizes
from vokens.nn.product import use_in


def build_backbone(sizes: Qwen2Sizes) -> Any:
    """transformers' Qwen2Model. Raises MissingExtra."""
    try:
        from transformers import Qwen2Config, Qwen2Model
    except ImportError as error:
        raise MissingExtra("transformers", "hf", "Learnable-Speech's language model") from error
    model = Qwen2Model(
        Qwen2Config(
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.width,
            intermediate_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads,
            max_position_embeddings=sizes.max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
            rms_norm_eps=sizes.norm_eps,
        )
    )
    use_in(model)
    return model


class Reader:
    """Reads embeddings of B rows, first all their prefixes, then n places of each at a time."""

    def __init__(self, backbone: Any, head: nn.Module) -> None:
        self.backbone, self.head = backbone, head
        self.memory: Any = None
        self.filling = torch.zeros(0, dtype=torch.long)
        self.read_so_far = 0

    def start(self, prefixes: list[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Scores (B, V) float32 behind prefixes (n, W) of any lengths, at positions (n,) if they are not 0, 1, 2 …"""
        longest = max(len(x) for x, _ in prefixes)
        device = prefixes[0][0].device
        self.filling = torch.tensor([longest - len(x) for x, _ in prefixes], device=device)
        places = [at for _, at in prefixes if at is not None]
        at = pad_sequence(places, batch_first=True, padding_side="left") if places else None
        return self.read(pad_sequence([x for x, _ in prefixes], batch_first=True, padding_side="left"), at)

    def more(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """Scores (1, V) behind x (n, W) of a single utterance."""
        if not self.read_so_far:
            return self.start([(x, positions)])
        return self.read(x[None], None if positions is None else positions[None])

    def read(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Scores (B, V) float32 behind x (B, n, W), which follows what was read, at positions (B, n)."""
        total = self.read_so_far + x.shape[1]
        places = torch.arange(total, device=x.device)
        mask = None
        if positions is not None or bool(self.filling.any()):  # without a mask, jumps would part sequences
            mask = places >= self.filling[:, None]
        if positions is None:
            positions = (places[self.read_so_far :] - self.filling[:, None]).clamp(min=0)
        found = self.backbone(
            inputs_embeds=x,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.memory,
            use_cache=True,
        )
        self.memory, self.read_so_far = found.past_key_values, total
        return self.head(found.last_hidden_state[:, -1]).float()
