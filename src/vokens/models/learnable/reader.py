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


def build_backbone(sizes: Qwen2Sizes) -> Any:
    """transformers' Qwen2Model. Raises MissingExtra."""
    try:
        from transformers import Qwen2Config, Qwen2Model
    except ImportError as error:
        raise MissingExtra("transformers", "hf", "Learnable-Speech's language model") from error
    return Qwen2Model(
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


class Reader:
    """Reads embeddings of B rows, first all their prefixes, then n places of each at a time."""

    def __init__(self, backbone: Any, head: nn.Module) -> None:
        self.backbone, self.head = backbone, head
        self.memory: Any = None
        self.filling = torch.zeros(0, dtype=torch.long)
        self.read_so_far = 0

    def start(self, prefixes: list[Tensor]) -> Tensor:
        """Scores (B, V) float32 behind prefixes (n, W) of any lengths."""
        longest = max(len(prefix) for prefix in prefixes)
        self.filling = torch.tensor([longest - len(prefix) for prefix in prefixes], device=prefixes[0].device)
        return self.read(pad_sequence(prefixes, batch_first=True, padding_side="left"))

    def read(self, x: Tensor) -> Tensor:
        """Scores (B, V) float32 behind x (B, n, W), which follows what was read."""
        total = self.read_so_far + x.shape[1]
        places = torch.arange(total, device=x.device)
        mask = None
        if bool(self.filling.any()):
            mask = places >= self.filling[:, None]
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
