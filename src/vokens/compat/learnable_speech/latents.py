"""`extract_dac_latents`: `X_latent2x.pt` next to each recording, by the published flags, on GPUs or a CPU.

As published, recordings are not padded to whole frames, and z is a sample of the posterior; here it is seeded by the
audio, so that extraction is deterministic, and long recordings are computed in windows.
"""

import argparse
import json
import shutil
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from vokens import audio
from vokens.atomic import atomic_write
from vokens.compat.learnable_speech.index import write_json
from vokens.compat.learnable_speech.settings import read_yaml
from vokens.corpus.engine.torchrun import Layout
from vokens.errors import AudioError, ConfigError, VokensError
from vokens.models.dacvae import DACVAE
from vokens.models.pretrained import load
from vokens.train.published_files import recordings

ENDING = "_latent2x.pt"


def main(argv: Sequence[str]) -> int:
    """Exit code: 0 done, 1 some recordings failed."""
    arguments = _parser().parse_args(argv)
    paths = _paths(arguments)
    if arguments.clean_tmp:
        for folder in Path(arguments.tmp_dir).glob("gpu_*"):  # written by runs; other files are the user's
            shutil.rmtree(folder)
    devices = torch.cuda.device_count()
    if arguments.num_gpus is not None and not 0 <= arguments.num_gpus <= devices:
        raise ConfigError(f"--num_gpus {arguments.num_gpus}: 0 (CPU) to {devices} are accepted here")
    gpus = devices if arguments.num_gpus is None else arguments.num_gpus
    launched = Layout.from_environment()
    world = launched.world if launched else max(1, gpus)
    share = (world, gpus, arguments, paths)
    Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
    if launched is None and world > 1:
        torch.multiprocessing.spawn(_extract, share, nprocs=world)
    else:  # under torchrun this process is one of them
        _extract(launched.rank if launched else 0, *share)
    # Under torchrun each process summarises at its end, so that the last one covers all.
    failed = _summarise(arguments, world, paths, whole=launched is None)
    return int(failed > 0 and launched is None)


def posterior(vae: DACVAE, wave: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-std (D, T) of a wave (N,), as in the published script.

    Raises AudioError for a recording that is too short for one frame.
    """
    if vae.config.network != "dac":  # the network on spectra needs whole frames
        mean, log_std = vae.encode_batch(wave[None], torch.tensor([len(wave)], device=wave.device))
        return mean[0], log_std[0]
    total = frames_of(len(wave), vae.config.encoder_rates)
    if total < 1:
        raise AudioError(f"{len(wave)} samples are too short for one frame of {vae.hop_length}")
    parts = []
    for w in vae.windows(total, vae.encoder.reach):
        posterior = vae.posterior_of(w.read(wave, vae.hop_length)[None, None])
        parts.append([w.cut(part[0]) for part in posterior])
    mean, log_std = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    return mean, log_std


def frames_of(samples: int, rates: Sequence[int]) -> int:
    """Frames of an unpadded recording: each stage has a kernel of two strides and pads half a stride."""
    for stride in rates:
        samples = (samples + 2 * -(-stride // 2) - 2 * stride) // stride + 1
    return samples


@torch.inference_mode()
def latents_of(vae: DACVAE, path: Path) -> dict[str, Any]:
    """The content of a file of latents: CPU tensors and plain values, by the published names."""
    wave, _ = audio.load(path, vae.sample_rate)
    wave = np.clip(wave, -1, 1)
    mean, log_std = (part.float().cpu() for part in posterior(vae, torch.from_numpy(wave).to(vae.device)))
    generator = torch.Generator().manual_seed(zlib.crc32(wave.tobytes()))
    z = mean + torch.randn(mean.shape, generator=generator) * log_std.exp()
    return {
        "z": z.clone(),
        "mu": mean.clone(),
        "logs": log_std.clone(),
        "sample_rate": vae.sample_rate,
        "compression_ratio": len(wave) // z.shape[1],
        "original_duration": len(wave) / vae.sample_rate,
        "original_samples": len(wave),
        "latent_shape": list(z.shape),
        "original_path": str(path),
    }


def _extract(rank: int, world: int, gpus: int, arguments: argparse.Namespace, paths: Sequence[Path]) -> None:
    """Write the latents of this process's share, and their metadata to `metadata_gpu<rank>.json`."""
    device = f"cuda:{rank % gpus}" if gpus else "cpu"
    vae = open_vae(arguments.checkpoint, arguments.config).to(device)
    mine = paths[rank::world]
    todo = [path for path in mine if not (arguments.skip_existing and _target(path).exists())]
    chosen = np.random.default_rng(rank).permutation(len(todo))[: arguments.num_decode_samples].tolist()
    done, decoded = [], []
    for number, path in enumerate(tqdm(todo, "latents", unit="file", disable=rank > 0)):
        try:
            content = latents_of(vae, path)
            with atomic_write(_target(path)) as partial:
                torch.save(content, partial)
            if number in chosen:
                decoded.append(_decode(vae, content, path, Path(arguments.tmp_dir) / f"gpu_{rank}"))
        except (VokensError, OSError) as error:
            tqdm.write(f"extract_dac_latents: {path} failed: {error}", file=sys.stderr)
            done.append({"path": str(path), "error": str(error), "status": "failed"})
            continue
        names = {"path": str(path), "output_path": str(_target(path))}
        done.append(names | _sizes(content) | {"duration": content["original_duration"]})
    write_json(_part(arguments, rank), {"files": done, "decoded": decoded})


def _sizes(content: dict[str, Any]) -> dict[str, Any]:
    return {name: content[name] for name in ("latent_shape", "compression_ratio")}


@torch.inference_mode()
def _decode(vae: DACVAE, content: dict[str, Any], path: Path, folder: Path) -> dict[str, Any]:
    """Write a recording and its resynthesis from z; returns their distance."""
    z = content["z"][None].to(vae.device)
    (decoded,) = vae.decode_batch(z, torch.tensor([z.shape[2]], device=vae.device))
    reconstructed = decoded.float().cpu().numpy()
    wave = np.clip(audio.load(path, vae.sample_rate)[0], -1, 1)
    folder = folder / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    for name, sound in (("original", wave), ("reconstructed", reconstructed)):
        soundfile.write(folder / f"{path.stem}_{name}.wav", sound, vae.sample_rate)
    shorter = min(len(wave), len(reconstructed))
    error = float(np.mean((wave[:shorter] - reconstructed[:shorter]) ** 2))
    snr = float(10 * np.log10(np.var(wave[:shorter]) / (error + 1e-10) + 1e-10))
    facts = {"original_path": str(path), "mse": error, "snr": snr, **_sizes(content)}
    write_json(folder / "info.json", facts)
    return facts


def open_vae(checkpoint: str, config: str | None) -> DACVAE:
    """The autoencoder of a published checkpoint or of a folder of ours.

    config: the published config.yml; only compared with the weights, which have their sizes.

    Raises ConfigError for other models, and for the config of another one.
    """
    vae = load(checkpoint)
    if not isinstance(vae, DACVAE):
        raise ConfigError(f"--checkpoint {checkpoint} holds {vae.system!r}: a DAC-VAE is accepted")
    if config:
        stated, sizes = read_yaml(config).get("vae", {}), asdict(vae.config)
        names = ("latent_dim", "encoder_dim", "encoder_rates", "decoder_dim", "decoder_rates", "sample_rate")
        wrong = {
            name: (stated[name], sizes[name])
            for name in names
            if name in stated and np.any(np.asarray(stated[name]) != np.asarray(sizes[name]))
        }
        if wrong:
            raise ConfigError(f"--config {config} is of another model; values of config and weights: {wrong}")
    return vae


def _paths(arguments: argparse.Namespace) -> list[Path]:
    source = arguments.file_list or arguments.root_path
    if not source:
        raise ConfigError("give --root_path, a folder, or --file_list, a recording in each line")
    paths = recordings(Path(source))
    # --tmp_dir may lie below --root_path, and another process, or an earlier run, may have written there.
    tmp = Path(arguments.tmp_dir).absolute()
    paths = [path for path in dict.fromkeys(paths) if not _resynthesised(path.absolute(), tmp)]
    if not paths:
        raise ConfigError(f"{source} names no recording")
    return paths


def _resynthesised(path: Path, tmp: Path) -> bool:
    """Whether a run wrote this file below --tmp_dir; other files there are the user's."""
    return path.is_relative_to(tmp) and path.relative_to(tmp).parts[0].startswith("gpu_")


def _summarise(arguments: argparse.Namespace, world: int, paths: Sequence[Path], whole: bool) -> int:
    """Merge the processes' parts into metadata.json, failed_files.json and summary.json; returns the number of
    failures.

    whole: all processes have ended, so the parts are removed.
    """
    folder = Path(arguments.output_dir)
    files = (_part(arguments, rank) for rank in range(world))
    parts = [json.loads(file.read_text()) for file in files if file.exists()]
    rows = {row["path"]: row for part in parts for row in part["files"]}
    if arguments.skip_existing and (folder / "metadata.json").exists():  # of earlier runs
        known = {row["path"]: row for row in json.loads((folder / "metadata.json").read_text())["files"]}
        rows = {str(path): known[str(path)] for path in paths if str(path) in known} | rows
    done = [row for row in rows.values() if "error" not in row]
    failed = [row for row in rows.values() if "error" in row]
    seconds = sum(row["duration"] for row in done)
    snr = [row["snr"] for part in parts for row in part["decoded"]]
    summary = {
        "total_duration_hours": seconds / 3600,
        "latent_dimensions": dict(Counter(str(row["latent_shape"]) for row in done)),
        "compression_ratios": dict(Counter(str(row["compression_ratio"]) for row in done)),
        "average_duration": seconds / len(done) if done else 0,
        "decode_samples": len(snr),
    } | ({"average_snr": float(np.mean(snr))} if snr else {})
    counts = {"total_files": len(done), "failed_files": len(failed)}
    write_json(folder / "metadata.json", {**counts, "files": done})
    write_json(folder / "summary.json", {**counts, **summary})
    (folder / "failed_files.json").unlink(missing_ok=True)
    if failed:
        write_json(folder / "failed_files.json", failed)
    if whole:
        for rank in range(world):
            _part(arguments, rank).unlink(missing_ok=True)
        told = f"{len(done)} recordings have latents, {seconds / 3600:.2f} h, {len(failed)} failed"
        print(f"{told}: {folder / 'summary.json'}")
    return len(failed)


def _part(arguments: argparse.Namespace, rank: int) -> Path:
    return Path(arguments.output_dir) / f"metadata_gpu{rank}.json"


def _target(path: Path) -> Path:
    return path.with_name(path.stem + ENDING)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="extract_dac_latents", description=__doc__)
    add = parser.add_argument
    add("--root_path", help="folder with recordings; latents are written next to them")
    add("--output_dir", required=True, help="folder for metadata.json, summary.json and failed_files.json")
    weights = "the published checkpoint.pt, a release's name, or a folder of ours"
    add("--checkpoint", required=True, help=weights)
    add("--config", help="the published config.yml, compared with the weights")
    add("--num_gpus", type=int, help="GPUs to use (all); 0 is the CPU. Under torchrun each process takes one")
    add("--file_list", help="a recording in each line, instead of --root_path; # begins a comment")
    add("--skip_existing", action="store_true", help=f"skip recordings that have X{ENDING}")
    add("--tmp_dir", default="./tmp", help="folder for resyntheses to listen to (./tmp)")
    add("--num_decode_samples", type=int, default=5, help="resyntheses per process (5)")
    add("--clean_tmp", action="store_true", help="first remove files of earlier runs in --tmp_dir")
    return parser
