"""A small SpeechLLM that takes speech tokens from audio while it trains: no token files, and audio may be augmented.

A causal transformer reads a text and predicts the tokens of its speech. The frozen tokenizer is a part of the model,
so it lives on the training device, and mixed precision, DDP and torch.compile pass through it.

    python examples/speechllm_online.py CORPUS --tokenizer speech_tokenizer_v2_25hz --steps 1000
    torchrun --nproc-per-node 8 examples/speechllm_online.py CORPUS --tokenizer speech_tokenizer_v2_25hz

CORPUS is a folder with recordings up to 30 s, hello.wav, and their texts beside them, hello.txt.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from vokens import audio
from vokens.audio import LogMel
from vokens.audio.mel import WHISPER_128
from vokens.models.s3tokenizer import S3Tokenizer

Batch = tuple[Tensor, Tensor, Tensor]
IGNORED = -100  # targets that cross_entropy leaves out


class SpeechLLM(nn.Module):
    """Text bytes, then speech tokens, each predicted from what is before it."""

    def __init__(self, tokenizer: S3Tokenizer, width: int = 512, layers: int = 8, heads: int = 8) -> None:
        super().__init__()
        self.tokenizer = tokenizer.freeze()
        size = tokenizer.config.codebook_size
        self.start, self.end = size, size + 1
        self.text = nn.Embedding(257, width)  # bytes, and 256 before texts that are shorter than others
        self.speech = nn.Embedding(size + 2, width)
        self.positions = nn.Embedding(4096, width)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, size + 2)

    def forward(self, mel: Tensor, mel_lens: Tensor, text: Tensor) -> Tensor:
        """Mean cross entropy () of the speech tokens of log-mels (B, n_mels, F), given texts (B, S), left-padded."""
        codes, counts = self.tokenizer.quantize(mel, mel_lens)  # (B, T), (B,)
        targets = self.targets(codes, counts)  # (B, T + 1)
        speech = self.speech(F.pad(codes, (1, 0), value=self.start))
        x = torch.cat([self.text(text), speech], 1)  # (B, S + T + 1, D)
        places = torch.arange(x.shape[1], device=x.device)
        later = places[:, None] < places  # what each place may not see
        hidden = self.blocks(x + self.positions(places), mask=later, is_causal=True)[:, text.shape[1] :]
        return F.cross_entropy(
            self.head(hidden).flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED
        )

    def targets(self, codes: Tensor, counts: Tensor) -> Tensor:
        """Each row's tokens and the end after them (B, T + 1), then nothing."""
        place = torch.arange(codes.shape[1] + 1, device=codes.device)
        counts = counts.unsqueeze(1)
        targets = F.pad(codes, (0, 1)).masked_fill(place == counts, self.end)
        return targets.masked_fill(place > counts, IGNORED)

    def trained(self) -> dict[str, Tensor]:
        """The weights to save: all but the tokenizer's."""
        return {name: t for name, t in self.state_dict().items() if not name.startswith("tokenizer.")}


class Corpus(Dataset[tuple[Tensor, bytes]]):
    """Log-mel (n_mels, F) and text of each recording that has one, computed by the loader's workers."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(path for path in folder.rglob("*.wav") if path.with_suffix(".txt").exists())
        if not self.files:
            raise SystemExit(f"{folder} holds no .wav with a .txt beside it")
        self.log_mel = LogMel(WHISPER_128)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, bytes]:
        wave, _ = audio.load(self.files[index], WHISPER_128.sample_rate)
        mel = self.log_mel(torch.from_numpy(wave)[None])[0]  # noise or speed would change the wave before it
        return mel, self.files[index].with_suffix(".txt").read_bytes()


def collate(items: Sequence[tuple[Tensor, bytes]]) -> Batch:
    """Log-mels (B, n_mels, F), frames (B,), texts (B, S) padded on the left."""
    frames = torch.tensor([mel.shape[1] for mel, _ in items])
    mels = nn.utils.rnn.pad_sequence([mel.T for mel, _ in items], batch_first=True).transpose(1, 2)
    longest = max(len(text) for _, text in items)
    texts = [[256] * (longest - len(text)) + list(text) for _, text in items]
    return mels, frames, torch.tensor(texts, dtype=torch.int64)


def endless(loader: DataLoader) -> Iterator[Batch]:
    """Epoch after epoch, each in another order."""
    for epoch in count():
        if isinstance(loader.sampler, DistributedSampler):
            loader.sampler.set_epoch(epoch)
        yield from loader


def train(
    model: SpeechLLM, batches: Iterator[Batch], device: torch.device, compiled: bool = False, lr: float = 3e-4
) -> Iterator[float]:
    """The loss of each step."""
    model.to(device).train()
    network: nn.Module = model
    if torch.distributed.is_initialized():
        network = DistributedDataParallel(model)
    if compiled:
        network = torch.compile(network)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for batch in batches:
        mel, frames, text = (part.to(device, non_blocking=True) for part in batch)
        with torch.autocast(device.type, torch.bfloat16):
            loss = network(mel, frames, text)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--tokenizer", default="speech_tokenizer_v2_25hz", help="a release, or its weights")
    parser.add_argument("--output", type=Path, default=Path("speechllm.pt"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8, help="recordings per device")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4, help="processes that read audio")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args(argv)

    cuda = torch.cuda.is_available()
    rank = int(os.environ.get("RANK", 0))
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    distributed = "WORLD_SIZE" in os.environ
    if distributed:
        torch.distributed.init_process_group("nccl" if cuda else "gloo")
    torch.manual_seed(0)  # the same start on every process
    model = SpeechLLM(S3Tokenizer.from_pretrained(args.tokenizer), args.width, args.layers)
    corpus = Corpus(args.corpus)
    sampler = DistributedSampler(corpus) if distributed else None
    loader = DataLoader(
        corpus,
        args.batch,
        shuffle=sampler is None,
        sampler=sampler,
        collate_fn=collate,
        num_workers=args.workers,
    )
    for step, loss in enumerate(train(model, islice(endless(loader), args.steps), device, args.compile)):
        if rank == 0 and step % 10 == 0:
            print(f"step {step}: loss {loss:.3f}", flush=True)
    if rank == 0:
        torch.save(model.trained(), args.output)
    if distributed:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
