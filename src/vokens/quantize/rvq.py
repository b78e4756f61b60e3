"""Residual vector quantization (SoundStream, arXiv 2107.03312 §3.3) with EMA codebooks.

Codebooks follow the encoder by exponential moving averages (VQ-VAE, arXiv 1711.00937 appendix A.1), start
from k-means on their first batch, and move unused (dead) entries onto random batch vectors.
Under torch.distributed every process sees the gathered batch, so n processes learn what one would.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vokens.nn.float32 import Float32
from vokens.nn.product import linear

DECAY = 0.99  # of the moving averages
EPSILON = 1e-5  # counts that every entry has in addition, as shares of all
KMEANS_ITERATIONS = 50
SEARCHED = 1000  # frames that a beam search takes at once: 33 MB of distances with 8 chains and 1024 entries


@dataclass(frozen=True)
class Quantized:
    """Output of the residual quantizer in training."""

    latent: Tensor  # (B, T, D) sum over codebooks, straight-through
    parts: tuple[Tensor, ...]  # K of (B, T, D), the entries of each codebook, straight-through
    codes: Tensor  # (B, K, T) int64
    commit: Tensor  # (K,) mean squared distance of each residual to its entry

    @property
    def first(self) -> Tensor:
        """(B, T, D) entries of the first codebook, which carries the content."""
        return self.parts[0]


class EuclideanCodebook(Float32):
    """One codebook of `codebook_size` vectors of width `dim`, nearest by Euclidean distance, always in float32.

    dead_share: an entry is dead when its EMA count falls below this fraction of the uniform count.
    published: reproduce speechtokenizer 1.0.1, whose revival has no effect: it writes `embed`, which the EMA
        overwrites in the same step, and with 900 vectors for 1024 entries its threshold of 2 counts marks nearly the
        whole codebook as dead.
    """

    inited: Tensor
    cluster_size: Tensor
    embed: Tensor
    embed_avg: Tensor

    def __init__(
        self, dim: int, codebook_size: int, *, dead_share: float = 0.1, published: bool = False
    ) -> None:
        super().__init__()
        self.dead_share, self.published = dead_share, published
        self.register_buffer("inited", torch.zeros(1))
        self.register_buffer("cluster_size", torch.zeros(codebook_size))
        self.register_buffer("embed", torch.zeros(codebook_size, dim))
        self.register_buffer("embed_avg", torch.zeros(codebook_size, dim))

    def encode(self, x: Tensor) -> Tensor:
        """Nearest entries of x (..., D) as int64 (...). Operations in the published order: ties resolve alike."""
        flat = x.reshape(-1, x.shape[-1]).to(self.embed.dtype)  # bf16 distances select other entries
        cross = linear(2 * flat, self.embed)
        distance = flat.pow(2).sum(1, keepdim=True) - cross + self.embed.t().pow(2).sum(0, keepdim=True)
        return (-distance).max(dim=-1).indices.view(x.shape[:-1])

    def decode(self, codes: Tensor) -> Tensor:
        """Entries (..., D) of codes (...)."""
        return F.embedding(codes, self.embed)

    @torch.no_grad()
    def learn(self, x: Tensor, codes: Tensor, generator: torch.Generator | None = None) -> None:
        """One EMA update from vectors x (N, D) and their nearest entries (N,)."""
        size = len(self.embed)
        counts = torch.bincount(codes, minlength=size).to(x.dtype)
        sums = torch.zeros_like(self.embed).index_add_(0, codes, x)
        self.cluster_size.lerp_(counts, 1 - DECAY)
        self.embed_avg.lerp_(sums, 1 - DECAY)
        if not self.published:
            self._revive(x, generator)
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + EPSILON) / (total + size * EPSILON) * total  # Laplace
        self.embed.copy_(self.embed_avg / smoothed.unsqueeze(1))

    def _revive(self, x: Tensor, generator: torch.Generator | None) -> None:
        """Move dead entries, with their EMA sum and count, onto batch vectors.

        The new count is uniform, so an entry is not dead again for log(dead_share)/log(DECAY) steps.
        """
        share = self.cluster_size.mean()
        dead = self.cluster_size < self.dead_share * share
        if dead.any():
            rows = x[sample_rows(len(x), int(dead.sum()), x.device, generator)]
            self.embed_avg[dead] = rows * share
            self.cluster_size[dead] = share

    @torch.no_grad()
    def init_from(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Initialise by k-means on x (N, D)."""
        start = x[sample_rows(len(x), len(self.embed), x.device, generator)]
        means, counts = kmeans(x, start, KMEANS_ITERATIONS)
        self.embed.copy_(means)
        self.embed_avg.copy_(means if self.published else means * counts.unsqueeze(1))
        self.cluster_size.copy_(counts)
        self.inited.fill_(1.0)


class ResidualVectorQuantizer(nn.Module):
    """A chain of codebooks, each quantizing the residual of those before. Latents are (B, T, D).

    published: train like speechtokenizer 1.0.1: the residual keeps the straight-through gradient, which cancels, so
        the commitment of codebooks after the first does not reach the encoder; revival has no effect (see
        EuclideanCodebook). False lets every commitment term reach the encoder.
    beam: chains of entries that `encode` keeps from the second codebook on. The nearest sum is not made of the nearest
        entries: 8 chains leave a fifth less error than 1, the published way. The first codebook's entry is the nearest.
    """

    def __init__(
        self, dim: int, codebook_size: int, num_codebooks: int, *, published: bool = False, beam: int = 1
    ) -> None:
        super().__init__()
        self.published, self.beam = published, beam
        self.layers = nn.ModuleList(
            EuclideanCodebook(dim, codebook_size, published=published) for _ in range(num_codebooks)
        )

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def codebooks(self) -> list[EuclideanCodebook]:
        return cast("list[EuclideanCodebook]", list(self.layers))

    def encode(self, latent: Tensor, num_codebooks: int | None = None, first_codebook: int = 0) -> Tensor:
        """Codes (B, K, T) of latent (B, T, D) from codebooks first_codebook .. num_codebooks-1.

        With first_codebook > 0 that codebook quantizes the latent itself, as published (`st` of SpeechTokenizer).
        """
        if self.beam > 1:  # over all codebooks, so that fewer are the first of all
            chains = [self._search(frames, first_codebook) for frames in latent.flatten(0, 1).split(SEARCHED)]
            codes = torch.cat(chains).unflatten(0, latent.shape[:2]).mT
            return codes[:, : None if num_codebooks is None else num_codebooks - first_codebook]
        residual, each = latent.float(), []
        for layer in self.codebooks[first_codebook:num_codebooks]:
            each.append(layer.encode(residual))
            residual = residual - layer.decode(each[-1])
        return torch.stack(each, 1)

    def _search(self, frames: Tensor, first_codebook: int) -> Tensor:
        """Codes (N, K) of frames (N, D) by a beam search over the codebooks from `first_codebook` on."""
        layers = self.codebooks[first_codebook:]
        residual = frames.float()[:, None]  # (N, chains, D)
        codes = torch.zeros(len(frames), 1, 0, dtype=torch.int64, device=frames.device)
        for k, layer in enumerate(layers):
            entries = layer.embed
            distances = linear(residual, -2 * entries, entries.square().sum(1))
            distances.add_(residual.square().sum(2, keepdim=True))
            kept = 1 if k in (0, len(layers) - 1) else min(self.beam, distances.shape[1] * len(entries))
            nearest = smallest(distances.flatten(1), kept)
            chain, code = nearest // len(entries), nearest % len(entries)
            before = codes.gather(1, chain[..., None].expand(-1, -1, k))
            codes = torch.cat([before, code[..., None]], 2)
            from_chain = residual.gather(1, chain[..., None].expand(-1, -1, frames.shape[1]))
            residual = from_chain - layer.decode(code)
        return codes[:, 0]

    def decode(self, codes: Tensor, first_codebook: int = 0) -> Tensor:
        """Latent (B, T, D): the sum of the entries of codes (B, K, T)."""
        layers = self.codebooks[first_codebook : first_codebook + codes.shape[1]]
        if len(layers) < codes.shape[1]:
            raise IndexError(
                f"{codes.shape[1]} codebooks from number {first_codebook} on were given, but there are {len(self)}"
            )
        return torch.stack([layer.decode(codes[:, k]) for k, layer in enumerate(layers)]).sum(0)

    def fit(self, latents: Tensor, generator: torch.Generator | None = None) -> None:
        """Initialise every codebook by k-means on latents (N, D) of a trained encoder, each on its residual."""
        residual = latents
        for layer in self.codebooks:
            layer.init_from(residual, generator)
            residual = residual - layer.decode(layer.encode(residual))

    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def forward(
        self,
        latent: Tensor,
        num_codebooks: int | None = None,
        *,
        keep: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """Quantize latent (B, T, D) with a straight-through gradient; in training mode codebooks learn.

        keep: (B,) codebooks that each item's output uses (quantizer dropout, SoundStream §3.4); all learn.
        generator: for k-means and revival; the same on every process.
        """
        latent = latent.float()  # bf16 distances select other entries
        residual, total = latent, torch.zeros_like(latent)
        parts, codes, commit = [], [], []
        for k, layer in enumerate(self.codebooks[:num_codebooks]):
            gathered = gather_rows(residual.detach().flatten(0, 1)) if self.training else None
            if gathered is not None and not layer.inited:
                layer.init_from(gathered, generator)
            chosen = layer.encode(residual.detach())
            entry = layer.decode(chosen)
            if gathered is not None:
                layer.learn(gathered, layer.encode(gathered), generator)
            commit.append(F.mse_loss(residual, entry) if self.training else residual.new_zeros(()))
            through = residual + (entry - residual).detach()
            residual = residual - (through if self.published else entry)
            parts.append(through)
            total = total + (through if keep is None else through * (keep > k).view(-1, 1, 1))
            codes.append(chosen)
        if not self.published:  # one straight-through step over the sum: d latent / d input = 1 for any depth
            total = latent + (total - latent).detach()
        return Quantized(total, tuple(parts), torch.stack(codes, 1), torch.stack(commit))


def smallest(x: Tensor, count: int, group: int = 32) -> Tensor:
    """Indices (N, count) of the smallest of each row of x (N, M), which lie in the groups with the smallest minima: two
    thirds of the time of `topk` over all 8192 of 8 chains."""
    if x.shape[1] % group or x.shape[1] < 4 * count * group:
        return x.topk(count, 1, largest=False).indices
    groups = x.unflatten(1, (-1, group))
    nearest = groups.amin(2).topk(count, 1, largest=False).indices
    candidates = groups.gather(1, nearest[..., None].expand(-1, -1, group)).flatten(1)
    place = candidates.topk(count, 1, largest=False).indices
    return nearest.gather(1, place // group) * group + place % group


def gather_rows(x: Tensor) -> Tensor:
    """Rows (N, D) of all processes, in rank order; N may differ between them."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    longest = max(int(count) for count in counts)
    parts = [x.new_empty(longest, x.shape[1]) for _ in counts]
    dist.all_gather(parts, F.pad(x, (0, 0, 0, longest - len(x))))
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def sample_rows(total: int, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Random row numbers (count,), without replacement where total >= count."""
    place = generator.device if generator is not None else device
    if total >= count:
        return torch.randperm(total, generator=generator, device=place)[:count].to(device)
    return torch.randint(0, total, (count,), generator=generator, device=place).to(device)


def kmeans(x: Tensor, means: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm on x (N, D) from means (K, D): new means and counts (K,). Empty clusters stay put."""
    means = means.clone()
    counts = x.new_zeros(len(means))
    for _ in range(iterations):
        nearest = torch.cat([_nearest(part, means) for part in x.split(4096)])  # 16 MB of distances at a time
        counts = torch.bincount(nearest, minlength=len(means)).to(x.dtype)
        sums = torch.zeros_like(means).index_add_(0, nearest, x)
        means = torch.where(counts.unsqueeze(1) > 0, sums / counts.clamp(min=1).unsqueeze(1), means)
    return means, counts


def _nearest(x: Tensor, means: Tensor) -> Tensor:
    """Row numbers (N,) of the means (K, D) nearest to x (N, D)."""
    return torch.addmm(means.square().sum(1), x, means.t(), alpha=-2).argmin(1)
