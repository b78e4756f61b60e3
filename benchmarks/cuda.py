"""Every path that runs on a GPU, measured at one call in under eight minutes: one JSON file and one Markdown table.

    python benchmarks/cuda.py [--out build/cuda] [--sections s3tokenizer s3gen ...]
    python benchmarks/cuda.py --dry          (the same on the CPU with tiny networks: does it run?)

Weights are random and made in memory, of the released sizes; speech is the shipped sample over and over. A section is
a process of its own with a budget of seconds: one that fails, hangs or runs out of memory leaves a line in the table,
and what it had measured stays. Precisions are float32 (TF32 off), tf32 and bfloat16. "changed" counts ids, or bounds
samples, against our own float32 on the CPU.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib.resources import files
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cuda_training
import numpy as np
import soundfile
import torch
from cuda_training import TINY_FLOW, TINY_VAE, TRAINING
from measure import processor

sys.path.pop(0)  # this file's folder, where the name cuda would find this file
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # looking for a GPU must not open it before sections fork

import vokens
from vokens import audio, checkpoint
from vokens.corpus.decode import open_decoder
from vokens.corpus.engine.local import Worker, extract
from vokens.corpus.run import Settings
from vokens.data.items import Utterance
from vokens.models.codec import Codec
from vokens.models.dacvae import DACVAE, DACVAEConfig
from vokens.models.s3gen import S3GenModel
from vokens.models.s3gen.config import DIALECTS, S3GEN_24K, S3GenModelConfig
from vokens.models.s3tokenizer import RELEASES, S3Tokenizer, S3TokenizerConfig
from vokens.models.socodec import SoCodecConfig
from vokens.models.socodec.hubert import Hubert
from vokens.models.speechtokenizer import SpeechTokenizer
from vokens.models.speechtokenizer.config import SpeechTokenizerConfig
from vokens.nn.campplus import CAMPPlus
from vokens.train.config import trainer_of

MODES = ("float32", "tf32", "bfloat16")
COLUMNS = ("section", "case", "precision", "ms", "x real time", "peak MB", "changed", "note")
TINY_S3 = {"width": 64, "heads": 2, "layers": 1}
TEXTS = ("a bird sat on the wall", "two men walked into the town", "seven ships went out to sea")


class Bench:
    """What a section measures with: the device, sizes, a folder shared by all, and where rows go."""

    def __init__(self, name: str, folder: Path, dry: bool, send: Callable[[dict[str, Any]], None]) -> None:
        self.name, self.folder, self.dry, self.send = name, folder, dry, send
        self.device = "cpu" if dry else "cuda"
        self.repeats = 1 if dry else 5

    def row(self, case: str, mode: str = "", **values: Any) -> None:
        self.send({"section": self.name, "case": case, "precision": mode, **values})

    def time(self, case: str, mode: str, call: Callable[[], Any], seconds: float, **values: Any) -> Any:
        """One row, the least of `repeats` times after a call to warm up; `seconds` of audio. The last result."""
        result = None if self.dry else call()
        self.forget_peak()
        least, spent = float("inf"), 0.0
        for _ in range(self.repeats):
            self.wait()
            start = time.perf_counter()
            result = call()
            self.wait()
            taken = time.perf_counter() - start
            least, spent = min(least, taken), spent + taken
            if spent > 3.0:
                break
        changed = values.pop("changed", lambda _: "")(result)
        speed = seconds / least if seconds else None
        self.row(
            case, mode, ms=1000 * least, x_real_time=speed, peak_mb=self.peak(), changed=changed, **values
        )
        return result

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def forget_peak(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float | None:
        """MB that tensors took at most."""
        return torch.cuda.max_memory_allocated() / 1e6 if self.device == "cuda" else None

    def speech(self, rate: int, seconds: float, start: float = 0.0) -> np.ndarray:
        """Samples (N,) of the English sample, begun `start` seconds in and repeated."""
        wave = audio.load(str(files("vokens") / "samples/english.flac"), rate)[0]
        return np.resize(np.roll(wave, -round(start * rate)), round(seconds * rate))


@contextlib.contextmanager
def precision(mode: str) -> Iterator[torch.dtype]:
    """Within, products follow the mode; the type of the network."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mode == "tf32"
    yield torch.bfloat16 if mode == "bfloat16" else torch.float32


def varied(codec: Any) -> Any:
    """Ready for use, with variance one through every matrix, so that ids vary."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in codec.named_parameters():
            if value.dim() > 1 and "codebook" not in name:
                value.normal_(0.0, value[0].numel() ** -0.5, generator=draw)
    return codec.eval().requires_grad_(False)


# Sections ----------------------------------------------------------------------------------------------------------


def facts(bench: Bench) -> None:
    """Rates of a large product, beside which all others stand; what the machine is goes into the JSON file."""
    place = torch.cuda.get_device_properties(0) if bench.device == "cuda" else None
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "processor": processor()}
    if place:
        nvidia = Path("/proc/driver/nvidia/version")
        found |= {
            "gpu": place.name,
            "gpu_mb": place.total_memory / 1e6,
            "cudnn": torch.backends.cudnn.version(),
        }
        found["driver"] = nvidia.read_text().splitlines()[0] if nvidia.exists() else ""
    bench.send({"facts": found | {"cores": os.cpu_count(), "threads": torch.get_num_threads()}})
    size = 64 if bench.dry else 8192
    for mode in MODES:
        with precision(mode) as dtype:
            x = torch.randn(size, size, device=bench.device, dtype=dtype)
            start = time.perf_counter()
            for turn in range(13):
                if turn == 3:  # warm
                    bench.wait()
                    start = time.perf_counter()
                x @ x
            bench.wait()
            taken = (time.perf_counter() - start) / 10
            bench.row(f"product {size}", mode, ms=1000 * taken, note=f"{2e-12 * size**3 / taken:.1f} TFLOP/s")


def corpus(bench: Bench) -> None:
    """Speech in FLAC with texts, and the models that trainings ask for, for the sections that follow."""
    folder, dry = bench.folder, bench.dry
    (folder / "speech").mkdir()
    lines = []
    for i in range(4 if dry else 24):  # batches are drawn with repetition
        seconds = 0.8 if dry else 3.0 + i % 5
        soundfile.write(folder / f"speech/{i}.flac", bench.speech(24000, seconds, 0.3 * i), 24000)
        text, voice = TEXTS[i % 3][: 9 if dry else None], f"voice{i % 4}"
        lines.append(
            {"id": str(i), "path": f"speech/{i}.flac", "text": text, "speaker": voice, "language": "en"}
        )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    torch.manual_seed(0)
    varied(S3Tokenizer(S3TokenizerConfig(**TINY_S3))).save_pretrained(folder / "tokenizer")
    checkpoint.save_safetensors(folder / "campplus.safetensors", CAMPPlus().state_dict())
    DACVAE(DACVAEConfig(**(TINY_VAE if dry else {}))).save_pretrained(folder / "latents")
    if not dry:
        Hubert(SoCodecConfig()).model.save_pretrained(folder / "hubert")
    settings = Settings(str(folder / "manifest.jsonl"), folder / "tokens", format="npy")
    extract(settings, vokens.load("mini"), Worker(workers=0))


def flac(bench: Bench) -> None:
    """S3Tokenizer v2 from FLAC files to a folder of tokens, as `vokens extract` does it, the decode workers warm."""
    folder = bench.folder / "recordings"
    folder.mkdir()
    count, seconds = (3, 0.5) if bench.dry else (256, 20.0)
    paths = [folder / f"{i}.flac" for i in range(count)]
    for i, path in enumerate(paths):
        soundfile.write(path, bench.speech(16000, seconds, 0.1 * i), 16000)
    some = [Utterance(path.name, str(path)) for path in paths[:32]]
    codec = varied(S3Tokenizer(S3TokenizerConfig(**(TINY_S3 if bench.dry else {})))).to(bench.device)
    for mode, exactness in (("float32", "guarded"), ("bfloat16", "plain")):
        with precision(mode) as dtype:
            codec.set_dtype(dtype, exactness)
            codec.encode(bench.speech(16000, 0.5), 16000)  # warm
            for workers in (1,) if bench.dry else (4, 12):
                settings = Settings(
                    str(folder), bench.folder / f"{mode}-{workers}", shard_size=64, dtype=mode
                )
                with closing(open_decoder(16000, workers)) as decoder:
                    decoder.expect(count, some)  # a shard that the run does not have
                    list(decoder.take(count))
                    bench.forget_peak()
                    start = time.perf_counter()
                    extract(settings, codec, Worker(workers=workers), decoder)
                    taken = time.perf_counter() - start
                speed, case = count * seconds / taken, f"{count} FLAC of {seconds:g} s"
                note = f"{workers} decode workers, {exactness}"
                bench.row(case, mode, ms=1000 * taken, x_real_time=speed, peak_mb=bench.peak(), note=note)


def codec_rows(
    bench: Bench, codec: Codec, lengths: tuple[tuple[int, float], ...], settings: tuple[tuple, ...]
) -> None:
    """Encoding, and decoding where the codec can, of batches (rows, seconds) in each precision with its settings."""
    rate = codec.sample_rate
    batches = [[bench.speech(rate, n, 0.7 * i) for i in range(rows)] for rows, n in lengths]
    wanted = [codec.encode(waves[:8], rate) for waves in batches]  # all rows would take a CPU too long
    codec.to(bench.device)
    for mode, *rest in settings:
        with precision(mode) as dtype:
            codec.set_dtype(dtype, *rest)
            for (rows, n), waves, reference in zip(lengths, batches, wanted, strict=True):

                def changed(found: Any, codes: torch.Tensor = reference.codes) -> str:
                    other = int((found.codes[: len(codes)].cpu() != codes).sum())
                    return f"{other} of {codes.numel()}"

                case, total = f"{rows} x {n:g} s", rows * n
                said = {"changed": changed, "note": " ".join(rest)}
                tokens = bench.time(
                    f"encode {case}", mode, lambda w=waves: codec.encode(w, rate), total, **said
                )
                if codec.decodes:
                    bench.time(f"decode {case}", mode, lambda t=tokens: codec.decode(t), total)


def s3tokenizer(bench: Bench) -> None:
    guarded = tuple((mode, "guarded" if mode == "float32" else "plain") for mode in MODES)
    guarded += (("bfloat16", "guarded"),)
    lengths = ((1, 0.5), (2, 0.4)) if bench.dry else ((1, 10.0), (8, 10.0), (32, 10.0))
    for name in ("speech_tokenizer_v2_25hz",) if bench.dry else RELEASES:
        config = replace(RELEASES[name], **TINY_S3) if bench.dry else RELEASES[name]
        only = guarded if config.quantizer == "fsq" and "v2" in name else guarded[:1]
        codec_rows(bench, varied(S3Tokenizer(config)), lengths if len(only) > 1 else lengths[1:2], only)


def mini(bench: Bench) -> None:
    lengths = ((2, 0.5),) if bench.dry else ((1, 10.0), (32, 10.0), (1, 600.0))
    codec_rows(bench, vokens.load("mini"), lengths, tuple((mode,) for mode in MODES))


def speechtokenizer(bench: Bench) -> None:
    sizes = {"n_filters": 4, "dimension": 16, "semantic_dim": 8, "codebook_size": 16} if bench.dry else {}
    codec = varied(SpeechTokenizer(SpeechTokenizerConfig(**sizes)))
    scale = codec.latent(torch.from_numpy(bench.speech(16000, 1.0))[None]).std()
    for depth, layer in enumerate(codec.quantizer.layers):  # Gaussian at the scale of each residual
        layer.embed.normal_(generator=torch.Generator().manual_seed(depth)).mul_(scale * 0.6**depth)
    lengths = ((2, 0.3),) if bench.dry else ((1, 10.0), (8, 10.0), (32, 10.0))
    codec_rows(bench, codec, lengths, tuple((mode,) for mode in MODES))


def s3gen(bench: Bench) -> None:
    """Batches and streams of Chatterbox and of Chatterbox Turbo (two steps)."""
    dialects = ("chatterbox-turbo",) if bench.dry else ("chatterbox", "chatterbox-turbo")
    prompt, target = (0.5, 0.4) if bench.dry else (4.0, 10.0)
    rows = list(torch.randint(6561, (32, round(25 * target)), generator=torch.Generator().manual_seed(1)))
    for dialect in dialects:
        flow = replace(DIALECTS[dialect], **(TINY_FLOW if bench.dry else {}))
        small = {"base_channels": 32, "f0_predictor_cond_channels": 32} if bench.dry else {}
        tokenizer = S3TokenizerConfig(**(TINY_S3 if bench.dry else {}))
        config = S3GenModelConfig(flow=flow, mel2wav=replace(S3GEN_24K, **small), tokenizer=tokenizer)
        torch.manual_seed(0)
        model = S3GenModel(config).named(dialect)
        voice = model.embed_ref(bench.speech(24000, prompt), 24000)

        def batch(size: int, model: S3GenModel = model, voice: Any = voice) -> list[np.ndarray]:
            return model.speak(rows[:size], voice, seed=list(range(size)), batch_seconds=600.0)

        reference = batch(1)[0]

        def apart(found: list[np.ndarray], reference: np.ndarray = reference) -> str:
            return f"{np.abs(found[0] - reference).max() / np.abs(reference).max():.1e}"

        model.to(bench.device)
        for mode in MODES:
            with precision(mode) as dtype:
                model.set_dtype(dtype)
                for size in (1, 2) if bench.dry else (1, 8, 32):
                    case = f"{dialect}, {prompt:g} + {target:g} s, batch {size}"
                    bench.time(case, mode, lambda s=size: batch(s), size * target, changed=apart)
                stream(bench, model, voice, rows[0], mode, target)


def stream(bench: Bench, model: S3GenModel, voice: Any, row: torch.Tensor, mode: str, target: float) -> None:
    """One stream, warm: the time to its first sound and to its end."""
    list(model.stream(row, voice))
    bench.wait()
    bench.forget_peak()
    start, first = time.perf_counter(), 0.0
    for _ in model.stream(row, voice):
        first = first or time.perf_counter() - start
    taken = time.perf_counter() - start
    bench.row(
        f"{model.name}, stream of {target:g} s",
        mode,
        ms=1000 * taken,
        x_real_time=target / taken,
        peak_mb=bench.peak(),
        note=f"first sound after {1000 * first:.0f} ms",
    )


def training(task: str) -> Callable[[Bench], None]:
    """The section of a task: steps at its recipe's batch, in each precision."""

    def section(bench: Bench) -> None:
        from accelerate.state import AcceleratorState

        for mode in MODES[::2] if bench.dry else MODES:
            AcceleratorState._reset_state(reset_partial_state=True)  # one process, several precisions
            half = "bf16" if mode == "bfloat16" else "no"
            config = cuda_training.run_of(task, bench.folder, bench.dry, half)
            with precision(mode):
                trainer = trainer_of(task)(config)
                bench.time("one step", mode, trainer.train_step, 0.0, note=cuda_training.batch_of(config))
                del trainer

    return section


# Processes ---------------------------------------------------------------------------------------------------------

# Name -> seconds that it may take, and what it does; corpus makes what flac and the trainings need.
SECTIONS: dict[str, tuple[float, Callable[[Bench], None]]] = {
    "facts": (20, facts),
    "corpus": (40, corpus),
    "flac": (60, flac),
    "s3tokenizer": (45, s3tokenizer),
    "s3gen": (75, s3gen),
    "mini": (20, mini),
    "speechtokenizer": (40, speechtokenizer),
    **{f"train {task}": (25, training(task)) for task in TRAINING},
}
TOTAL = 460.0  # seconds in all: under eight minutes, the table included


def child(name: str, folder: Path, dry: bool, pipe: Connection) -> None:
    """A section in its own process and session; what it prints goes beside the tables."""
    os.setsid()
    vars(sys.modules["__main__"]).pop(
        "__file__", None
    )  # else every decode worker would run this script's imports
    if dry:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        torch.set_num_threads(1)
    with open(folder / "log", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        SECTIONS[name][1](Bench(name, folder, dry, pipe.send))
    except BaseException as error:
        traceback.print_exc()
        first = str(error).partition("\n")[0]
        pipe.send({"section": name, "case": "failed", "note": f"{type(error).__name__}: {first}"[:200]})
        raise SystemExit(1) from None


def run(name: str, folder: Path, dry: bool, budget: float) -> Iterator[dict[str, Any]]:
    """Rows of a section, as they come; a last one if it was stopped or died."""
    context = multiprocessing.get_context("fork")  # nothing here has touched CUDA or started threads before
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(name, folder, dry, theirs))
    process.start()
    theirs.close()
    end, failed = time.perf_counter() + budget, False
    while (left := end - time.perf_counter()) > 0 and ours.poll(left):
        try:
            row = ours.recv()
        except EOFError:
            break
        failed |= row.get("case") == "failed"
        yield row
    else:
        os.killpg(process.pid, signal.SIGKILL)  # with the decode workers that it started
        yield {"section": name, "case": "stopped", "note": f"after {budget:.0f} s"}
        failed = True
    process.join()
    if process.exitcode and not failed:
        yield {"section": name, "case": "failed", "note": f"the process ended with {process.exitcode}"}


def line(row: dict[str, Any]) -> str:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    cells = [row["section"], row["case"], row.get("precision", "")]
    cells += [number(row.get(name)) for name in ("ms", "x_real_time", "peak_mb")]
    cells += [row.get("changed", ""), row.get("note", "")]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def main() -> int:
    """0 if every section gave what it should."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="on the CPU, tiny networks")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument(
        "--out", type=Path, default=Path("build/cuda"), help="folder of cuda.json and cuda.md"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    begun, rows, known = time.perf_counter(), [], {}
    names = [name for name in SECTIONS if name in args.sections]
    if "corpus" not in names and any(name.startswith("train") for name in names):
        names.insert(0, "corpus")
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
    if args.dry:
        import torch._dynamo  # noqa: F401  every optimizer imports it, 1.3 s: once, instead of in every section
    print(head, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            left = TOTAL - (time.perf_counter() - begun)
            budget = 4 * SECTIONS[name][0] if args.dry else max(1.0, min(SECTIONS[name][0], left))
            for row in run(name, Path(folder), args.dry, budget):
                if "facts" in row:
                    known = row["facts"]
                    continue
                rows.append(row)
                print(line(row), flush=True)
            known["seconds"] = time.perf_counter() - begun
            (args.out / "cuda.json").write_text(json.dumps({"facts": known, "rows": rows}, indent=2) + "\n")
            (args.out / "cuda.md").write_text("\n".join([head, *map(line, rows)]) + "\n")
        log = Path(folder, "log")
        (args.out / "cuda.log").write_text(log.read_text(errors="replace") if log.exists() else "")
    bad = [row for row in rows if row["case"] in ("failed", "stopped")]
    print(
        f"\n{len(rows)} rows, {len(bad)} sections failed, {known['seconds']:.0f} s: {args.out}/cuda.json, .md, .log"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
