"""Training S3Tokenizer: recognition through its quantizer (CosyVoice, arXiv 2407.05407 §2.1; 2412.10117 §2.1).

Losses: CTC over characters, an attention decoder, distillation from a teacher. The export is the tokenizer alone; the
recogniser is saved beside it, to measure the recognition error of its tokens.
"""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from vokens import checkpoint
from vokens.audio import LogMel
from vokens.audio.mel import WHISPER_128
from vokens.config import build_config
from vokens.errors import ConfigError
from vokens.evaluator_files import find_model
from vokens.models.s3tokenizer import S3Tokenizer, S3TokenizerConfig
from vokens.models.s3tokenizer.checkpoint import from_whisper
from vokens.models.s3tokenizer.long import WINDOW
from vokens.models.s3tokenizer.recogniser import HeadConfig, Mode, Recogniser, Recognition
from vokens.nn.masks import padding_mask
from vokens.packed import pack, unpack
from vokens.quantize.vq import UnitVectorLearner
from vokens.text.transcripts import frames_needed, read, spell, word_edits
from vokens.tokens import codebook_use
from vokens.train import losses as L
from vokens.train.config import DataConfig, RunConfig, TeacherConfig, among
from vokens.train.data import pcm_rows, read_clips, wave_of
from vokens.train.grown import load_grown
from vokens.train.log import Board
from vokens.train.loop import Trainer
from vokens.train.rows import Rows, cached_rows
from vokens.train.teacher import RATE, load_teacher, standard, teacher_rows
from vokens.train.utterances import AugmentConfig, UtteranceBatch, Utterances, masked

LOSSES = ("ctc", "attention", "commit", "distill", "distill_before", "trunk")
FIT_VECTORS = 50  # for k-means, per codeword
FIT_CODEWORDS = 400  # FIT_VECTORS of each are enough for FSQ's principal components


@dataclass(frozen=True)
class UtteranceConfig(DataConfig):
    """Whole utterances with text."""

    test: str = ""  # evaluated once, at the end
    test_split: str | None = None
    seconds: float = 60.0  # of speech in a batch, per process and forward pass
    shortest: float = 0.5  # utterances kept, in seconds
    longest: float = 20.0


@dataclass(frozen=True)
class RecogniserConfig(RunConfig):
    """One run.

    Attributes:
        losses: weight of each loss by name: ctc; attention, with head.decoder_layers; commit, with VQ; distill and
            distill_before (from the states before the quantizer), with a teacher.
        fit_codebooks: until this step states bypass the quantizer, which is then initialised from them: a VQ codebook
            by k-means, FSQ's projection by principal components.
        trunk: a file of Whisper under OpenAI's names; its encoder is frozen below the merging convolution, with weights
            rounded to 8 bits as `vokens.packed` does. Its features of the corpus are computed once. The loss "trunk"
            reconstructs them from the states above the quantizer, which keeps languages without text.
        freeze_tokenizer: train only the layers above the quantizer, on the tokens of init, to measure these with a
            recogniser that is trained to the end. head.layers may be more than those of init.
    """

    task: str = "recogniser"
    system: str = "s3tokenizer"
    out: str = "runs/recogniser"
    data: UtteranceConfig = field(default_factory=UtteranceConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    losses: dict[str, float] = field(default_factory=lambda: {"ctc": 1.0})
    fit_codebooks: int = 0
    trunk: str = ""
    freeze_tokenizer: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        among("losses", self.losses, LOSSES)
        if not 0 < self.data.shortest < self.data.longest <= self.data.seconds:
            raise ConfigError(
                f"data.shortest {self.data.shortest}, longest {self.data.longest} and seconds "
                f"{self.data.seconds} must rise in this order"
            )


class RecogniserTrainer(Trainer[RecogniserConfig, Recogniser]):
    """Trains an S3Tokenizer of any size, with VQ or FSQ."""

    Config = RecogniserConfig
    network = ("system", "model", "head")

    def build_model(self) -> Recogniser:
        config = self.config
        sizes = build_config(S3TokenizerConfig, config.model, "model")
        self.teacher = load_teacher(config.teacher, self.device)
        self._check_losses(sizes)
        self.mel = LogMel(dataclasses.replace(WHISPER_128, n_mels=sizes.n_mels)).to(self.device)
        self.hop = WHISPER_128.hop_length * sizes.hop
        width = self.teacher.width if self.teacher else 0
        if config.trunk:
            width = sizes.width * sizes.merge
        model = Recogniser(sizes, dataclasses.replace(config.head, teacher_width=width))
        if config.init:
            load_grown(model, checkpoint.read_state_dict(config.init), config.init)
        if config.trunk:
            self._freeze_trunk(model)
        if config.freeze_tokenizer:
            for part in (model.encoder, model.quantizer):
                part.requires_grad_(False)
        return model

    def _freeze_trunk(self, model: Recogniser) -> None:
        """Load Whisper's encoder, rounded to 8 bits, as the frozen trunk; only the layers above it are trained."""
        path = find_model(self.config.trunk)
        weights = from_whisper(
            checkpoint.read_state_dict(path / "model.safetensors" if path.is_dir() else path)
        )
        trunk = unpack(pack(weights), path)
        self.trunk_name = f"trunk-{checkpoint.fingerprint(trunk, {})[:8]}"
        rest = {name: value for name, value in model.state_dict().items() if name not in trunk}
        checkpoint.load_strict(model, rest | trunk, self.config.trunk)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in trunk)

    def _check_losses(self, sizes: S3TokenizerConfig) -> None:
        has = {
            "ctc": True,
            "attention": self.config.head.decoder_layers > 0,
            "commit": sizes.quantizer == "vq",
            "distill": self.teacher is not None,
            "distill_before": self.teacher is not None,
            "trunk": bool(self.config.trunk),
        }
        if self.config.trunk and (self.teacher or self.config.head.decoder_layers or sizes.merge == 1):
            raise ConfigError(
                "a frozen trunk needs model.merge = 2, and neither a teacher nor head.decoder_layers"
            )
        losses = self.config.losses
        wrong = [
            name for name, there in has.items() if not (name in losses if there else not losses.get(name))
        ]
        if wrong:
            zeros = " ".join(f"--set losses.{name}=0" for name in wrong)
            raise ConfigError(
                f"losses {sorted(losses)}: {wrong} do not fit. ctc is always there, attention with "
                "head.decoder_layers, commit with the vq quantizer, distill and distill_before with a teacher; "
                f"a weight of 0 leaves one out: {zeros}"
            )

    def load_data(self) -> None:
        super().load_data()
        data = self.config.data
        if self.train.teacher is not None:
            self.mean, self.scale = standard(self.train.teacher)
        test = self.open_data(data.test, data.test_split, False) if data.test else None
        sets = {"valid": self.valid, "test": test}  # the second is measured at the end alone
        self.valid = {name: utterances for name, utterances in sets.items() if utterances is not None}

    def open_data(self, source: str, split: str | None, training: bool) -> Utterances:
        data = self.config.data
        labelled = not (training and self.config.trunk)
        clips = read_clips(source, split, data.language if labelled else None, with_text=labelled)
        pcm = pcm_rows(data, clips, RATE)
        speeds = self.config.augment.speeds if training else (1.0,)
        features = None
        if self.teacher is not None and training:
            features = teacher_rows(data, self.teacher, pcm)
        kept, texts, unspelled, unfit = [], [], 0, 0
        for number, clip in enumerate(clips):
            symbols, samples = spell(clip.text or "", self.config.head.alphabet), len(pcm[number])
            if symbols is None and labelled:
                unspelled += 1
            elif self._fits(symbols or [], samples, max(speeds)):
                kept.append(number)
                texts.append(symbols or [])
            else:
                unfit += 1
        if unspelled or unfit:
            tqdm.write(
                f"{source} {split or ''}: {len(kept)} of {len(clips)} utterances kept; {unspelled} need other "
                f"characters, {unfit} are too short or long, or spoken too fast"
            )
        return Utterances(
            pcm,
            kept,
            texts,
            sample_rate=RATE,
            hop=self.hop,
            seconds=data.seconds,
            seed=self.config.seed,
            speeds=speeds,
            teacher=features,
            grid=self.teacher.grid if self.teacher else (0.02, 0.01),
            trunk=self._trunk_rows(pcm) if self.config.trunk else None,
        )

    def _trunk_rows(self, pcm: Rows) -> Rows:
        """Features of the frozen trunk for all clips, (T', D) fp16."""
        encoder, hop = self.model.encoder.to(self.device).eval(), WHISPER_128.hop_length

        @torch.inference_mode()
        def compute(samples: np.ndarray) -> np.ndarray:
            wave = torch.from_numpy(wave_of(samples)).to(self.device)
            wave = F.pad(wave, (0, max(0, hop - len(wave))))
            mel = self.mel(wave[None])[:, :, :WINDOW]
            with self.accelerator.autocast():
                return encoder.trunk(mel)[0][0].half().cpu().numpy()

        name = f"{self.trunk_name}-{self.config.precision}"
        return cached_rows(self.config.data, name, pcm, compute, "states of the trunk")

    def _fits(self, symbols: list[int], samples: int, speed: float) -> bool:
        """Whether the duration is in the config's range, and CTC has frames enough for the text."""
        in_range = self.config.data.shortest <= samples / RATE <= self.config.data.longest
        tokens = int(samples / speed) // self.hop  # rounded down twice: resampling may lose a sample
        return in_range and frames_needed(symbols) <= tokens * self.config.head.emissions

    def begin_step(self) -> None:
        if self.config.fit_codebooks and self.step == self.config.fit_codebooks:
            codewords, most = FIT_CODEWORDS, self.train.batches_per_epoch(self.world)
            if isinstance(self.model.quantizer, UnitVectorLearner):
                codewords = self.model.config.codebook_size
            self.fit_quantizer(self.model.fit, self._latents, FIT_VECTORS * codewords, most)

    def _latents(self, batch: UtteranceBatch) -> Tensor:
        inputs = self._inputs(batch)
        states = self.model.states(*inputs)
        return states[padding_mask(-(-inputs[1] // self.model.config.hop), states.shape[1])].float()

    def micro_step(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        number = self.number(part)
        batch = self.train.batch(number, self.rank, self.world)
        mel, frames, trunk = self._inputs(batch)
        generators = self.row_generators(number, len(frames))
        if trunk is None:
            mel = masked(mel, frames, self.config.augment, generators)
        else:
            states = -(-frames // (2 * self.model.config.first_stride))
            trunk = masked(trunk.mT, states, self.config.augment, generators).mT
        texts = batch.texts.to(self.device)
        with self.accelerator.autocast():
            mode: Mode = "on" if self.step >= self.config.fit_codebooks else "off"
            output = self.module(
                mel, frames, texts, quantizer=mode, generator=self.generator(number), trunk=trunk
            )
        values = self._losses(batch, frames, texts, output)
        # A weight of 0 keeps its loss in the graph: DDP waits for every gradient.
        return torch.stack([self.config.losses[name] * value for name, value in values.items()]).sum(), values

    def _inputs(self, batch: UtteranceBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-mels (B, n_mels, F), their frames (B,), and features of a frozen trunk, with which mels are empty."""
        lengths = batch.lengths.to(self.device)
        frames = lengths // WHISPER_128.hop_length
        if batch.trunk is None:
            return self.mel(batch.wave.to(self.device), lengths), frames, None
        return lengths.new_empty(0), frames, batch.trunk.to(self.device)

    def _losses(
        self, batch: UtteranceBatch, frames: Tensor, texts: Tensor, output: Recognition
    ) -> dict[str, Tensor]:
        lengths = batch.text_lengths.to(self.device)
        values = {"ctc": ctc(output, texts, lengths)}
        if output.spelling is not None:
            values["attention"] = attention(output.spelling, texts, lengths)
        if self.config.losses.get("commit"):
            values["commit"] = output.commit
        if batch.trunk is not None and output.after is not None:
            target = batch.trunk.to(self.device)
            target = F.pad(target, (0, 0, 0, target.shape[1] % 2)).unflatten(1, (-1, 2)).flatten(2)
            values["trunk"] = L.t_axis(output.after.float(), target, -(-frames // self.model.config.hop))
        if batch.teacher is not None and output.before is not None and output.after is not None:
            distill = L.DISTILLATION[self.config.teacher.loss]
            target = (batch.teacher - self.mean) / self.scale
            target, tokens = target.to(self.device), -(-frames // self.model.config.hop)
            values["distill"] = distill(output.after.float(), target, tokens)
            values["distill_before"] = distill(output.before.float(), target, tokens)
        return values

    @torch.inference_mode()
    def validate(self, board: Board | None = None) -> dict[str, float]:
        """Character error rate with and without the quantizer, and codebook use, of the EMA weights."""
        model, measured = self.final_recogniser(), {}
        for name, utterances in self.valid.items():
            if name == "test" and self.step < self.config.steps:
                continue
            fitted = self.step > self.config.fit_codebooks
            measured[f"{name}/cer_unquantized"], _ = self._recognise(
                model, utterances, "soft" if fitted else "off"
            )
            if fitted:
                measured[f"{name}/cer"], codes = self._recognise(model, utterances, "on")
                use, bits = codebook_use(codes, model.config.codebook_size)
                measured |= {f"{name}/use": use, f"{name}/bits": bits}
        return measured

    def _recognise(self, model: Recogniser, utterances: Utterances, mode: Mode) -> tuple[float, np.ndarray]:
        """Character error rate of greedy CTC, and all codes."""
        alphabet, edits, total, codes = self.config.head.alphabet, 0, 0, []
        for rows, batch in utterances.fixed():
            mel, frames, trunk = self._inputs(batch)
            output = model(mel, frames, quantizer=mode, trunk=trunk)
            best_path = output.ctc.argmax(-1).cpu()
            tokens = (output.frames // model.head.emissions).tolist()
            for place, row in enumerate(rows):
                hypothesis = read(best_path[place, : tokens[place] * model.head.emissions].tolist(), alphabet)
                reference = [alphabet[symbol - 1] for symbol in utterances.texts[row]]
                edits, total = edits + word_edits(reference, list(hypothesis)), total + len(reference)
                codes.append(output.codes[place, : tokens[place]].cpu())
        return edits / total, torch.cat(codes).numpy()

    def final_recogniser(self) -> Recogniser:
        model = Recogniser(self.model.config, self.model.head)
        checkpoint.load_strict(model, self.final_state(), "training")
        return model.to(self.device).eval()

    def final_model(self) -> S3Tokenizer:
        return self.finished(S3Tokenizer(self.model.config), Recogniser.tokenizer_state(self.final_state()))

    def export(self) -> None:
        """Write the tokenizer to out/codec and the whole recogniser to out/recogniser.safetensors."""
        super().export()
        self.final_recogniser().save(self.out / "recogniser.safetensors")


def ctc(output: Recognition, texts: Tensor, lengths: Tensor) -> Tensor:
    """Mean over utterances with text of the CTC loss per character. texts (B, L) symbols, lengths (B,) of them."""
    log_probs = output.ctc.float().log_softmax(-1).transpose(0, 1)
    losses = F.ctc_loss(log_probs, texts, output.frames, lengths, reduction="none", zero_infinity=True)
    return (losses / lengths.clamp(min=1) * (lengths > 0)).sum() / (lengths > 0).sum().clamp(min=1)


def attention(logits: Tensor, texts: Tensor, lengths: Tensor, smoothing: float = 0.1) -> Tensor:
    """Mean cross entropy of the next character, the end (0) included. logits (B, L + 1, symbols)."""
    loss_mask = padding_mask(lengths + 1, logits.shape[1])
    target = F.pad(texts, (0, 1)).masked_fill(~loss_mask, -100)
    return F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), label_smoothing=smoothing)
