"""CosyVoice's data preparation beside ours: speech tokens and speaker embeddings of a folder, over the same graphs.

Theirs is the published loop, written from its description: a pool of --threads threads, each of which reads a
recording, computes its features and runs a session of ONNX Runtime of one thread on it alone. Ours is
`vokens.compat.cosyvoice`, and the whole of `vokens extract --format cosyvoice`, which writes the parquet files too;
torch has the same --threads. Decoding is a process of its own in ours: --cpu-time counts it in theirs alone. Both
count from the opening of the weights on. Weights are random, of the released sizes, exported by our own exporter;
recordings are cut as in s3tokenizer.py.

    python benchmarks/cosyvoice_prep.py [--data CORPUS] [--count 64] [--threads 2] [--quick]
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
import torch
from measure import Report, best, options
from s3tokenizer import RATE, recordings

sys.path.insert(0, str(Path(__file__).parent))  # which that script takes away, and decoding processes need

from vokens import checkpoint
from vokens.audio import LogMel, load
from vokens.audio.fbank import kaldi_fbank
from vokens.audio.mel import WHISPER_128
from vokens.compat.cosyvoice.__main__ import main as command
from vokens.corpus.engine.local import Worker, extract
from vokens.corpus.run import Settings
from vokens.data.outputs.pt_map import read_pt_map
from vokens.models.s3tokenizer import RELEASES, S3Tokenizer
from vokens.models.s3tokenizer.export import export_onnx
from vokens.nn.campplus import CAMPPlus

Job = Callable[[Path], np.ndarray]
NAME = "speech_tokenizer_v2_25hz"
LONGEST = 30  # seconds, beyond which the published loop leaves an empty list


def main() -> None:
    parser = options(__doc__, repeats=1)
    parser.add_argument("--data", type=Path, default=files("vokens") / "samples", help="folder of speech")
    parser.add_argument("--count", type=int, default=64, help="recordings of 1 to 25 s, 64 are 7 minutes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        waves = recordings(args.data, 4 if args.quick else args.count)
        write_data(data, waves)
        codec, speaker = models(Path(folder), args.quick)
        seconds = sum(map(len, waves)) / RATE
        threads = f"{args.threads} threads of a session of one thread each"
        report = Report(args, f"the published loop over ONNX Runtime, {len(waves)} recordings, {threads}")
        compare(report, args, Path(folder), codec, speaker, seconds)


def compare(
    report: Report,
    args: argparse.Namespace,
    folder: Path,
    codec: S3Tokenizer,
    speaker: CAMPPlus,
    seconds: float,
) -> None:
    """The table's rows: tokens, embeddings, and all of it."""
    data, threads = folder / "data", ["--num_thread", str(args.threads)]
    sides = {
        "tokens": (lambda: tokens_of(folder / "tokens.onnx"), "extract_speech_token", folder / "codec"),
        "embeddings": (
            lambda: embedding_of(folder / "campplus.onnx"),
            "extract_embedding",
            folder / "campplus.safetensors",
        ),
    }
    total = 0.0
    for case, (job, name, weights) in sides.items():
        target, theirs = best(lambda job=job: published(data, job(), args.threads), report.repeats)
        flags = [name, "--dir", str(data), "--onnx_path", str(weights), *threads]
        failed, ours = best(lambda flags=flags: command(flags), report.repeats)
        if failed:
            raise SystemExit(f"{name} failed")
        found = read_pt_map(data / f"utt2{'speech_token' if case == 'tokens' else 'embedding'}.pt")
        report.add(f"{NAME}: {case}", ours, theirs, audio=seconds, note=agreement(case, found, target))
        total += theirs
    settings = Settings(
        str(data), folder / "out", format="cosyvoice", speaker=folder / "campplus.safetensors", sinc=True
    )
    _, ours = best(lambda: extract(settings, codec, Worker(workers=0)), 1)
    report.add("both, and parquet files by ours alone", ours, total, audio=seconds)


def published(data: Path, job: Job, threads: int) -> dict[str, np.ndarray]:
    """What a job gives of each recording of wav.scp."""
    lines = [line.split() for line in (data / "wav.scp").read_text().splitlines()]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # of the features in each thread
    try:
        with ThreadPoolExecutor(threads) as pool:
            jobs = {key: pool.submit(job, Path(path)) for key, path in lines}
            return {key: done.result() for key, done in jobs.items()}
    finally:
        torch.set_num_threads(before)


def tokens_of(graph: Path) -> Job:
    """The ids (T,) of a recording."""
    running, log_mel = session(graph), LogMel(WHISPER_128)
    names = [node.name for node in running.get_inputs()]

    def job(path: Path) -> np.ndarray:
        wave = torch.from_numpy(load(path, RATE)[0])
        if len(wave) > LONGEST * RATE:
            return np.zeros(0, np.int64)
        mel = log_mel(wave[None]).numpy()
        return running.run(None, {names[0]: mel, names[1]: np.array([mel.shape[2]], np.int32)})[0].reshape(-1)

    return job


def embedding_of(graph: Path) -> Job:
    """The embedding (192,) of a recording."""
    running = session(graph)

    def job(path: Path) -> np.ndarray:
        features = kaldi_fbank(torch.from_numpy(load(path, RATE)[0]))
        features = (features - features.mean(0))[None].numpy()
        return running.run(None, {running.get_inputs()[0].name: features})[0].reshape(-1)

    return job


def session(graph: Path) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


def agreement(case: str, found: dict[str, list], target: dict[str, np.ndarray]) -> str:
    if case == "tokens":
        pairs = [np.array(found[key]) != ids for key, ids in target.items() if len(ids)]
        return f"{sum(int(pair.sum()) for pair in pairs)} of {sum(map(len, pairs))} ids differ"
    far = max(np.abs(np.array(found[key]) - row).max() / np.abs(row).max() for key, row in target.items())
    return f"within {far:.0e} of the largest number"


@torch.no_grad()
def models(folder: Path, quick: bool) -> tuple[S3Tokenizer, CAMPPlus]:
    """Both networks with random weights that keep the variance, saved and exported into the folder."""
    torch.manual_seed(0)
    config = RELEASES[NAME]
    codec = S3Tokenizer(replace(config, width=64, heads=1, layers=1) if quick else config).eval()
    for weight in codec.parameters():
        if weight.dim() > 1:
            weight.normal_(0.0, weight[0].numel() ** -0.5)
    codec.name, speaker = NAME, CAMPPlus().eval()
    codec.requires_grad_(False).save_pretrained(folder / "codec")
    export_onnx(codec, folder / "tokens.onnx")
    checkpoint.save_safetensors(folder / "campplus.safetensors", speaker.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes that are constants of the trace
        torch.onnx.export(
            speaker,
            (torch.randn(1, 60, 80),),
            folder / "campplus.onnx",
            dynamo=False,
            input_names=["input"],
            dynamic_axes={"input": {1: "frames"}},
        )
    return codec, speaker


def write_data(data: Path, waves: list[np.ndarray]) -> None:
    """wav.scp, text and utt2spk of recordings, of four speakers."""
    data.mkdir()
    lines: dict[str, list[str]] = {"wav.scp": [], "text": [], "utt2spk": []}
    for number, wave in enumerate(waves):
        path = data / f"{number:04d}.wav"
        soundfile.write(path, wave, RATE)
        for name, rest in (("wav.scp", path), ("text", "words"), ("utt2spk", f"s{number % 4}")):
            lines[name].append(f"u{number:04d} {rest}\n")
    for name, content in lines.items():
        (data / name).write_text("".join(content))


if __name__ == "__main__":
    main()
