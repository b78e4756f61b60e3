"""DNSMOS and Distill-MOS: their windows and scales, on small graphs; the published packages' numbers, on theirs."""

import numpy as np
import pytest
import torch
from conftest import refused, speechlike

from vokens.bench.evaluators import distill_mos, mos
from vokens.bench.evaluators.distill_mos import DistillMOS
from vokens.bench.evaluators.mos import DNSMOS
from vokens.errors import CheckpointError, NotInstalled
from vokens.evaluator_files import find_evaluator

# Of PyPI's speechmos 0.0.1.1 (dnsmos.run, rate 16000): the seconds of `signal` below -> overall, speech, noise.
PUBLISHED = {
    0.7: (1.3191539, 1.8532455, 1.3633441),
    4.0: (1.1443581, 1.2038143, 1.0882852),
    12.5: (1.2873816, 1.6375486, 1.2420014),
}
# Of PyPI's distillmos 0.9.1 (ConvTransformerSQAModel): the seconds of `signal` -> rating.
DISTILLED = {0.7: 1.9865202, 4.0: 1.4238923, 12.5: 1.4574303}


def signal(seconds: float) -> np.ndarray:
    return speechlike(round(seconds * 16000))


def test_windows_of_dnsmos(tmp_path) -> None:
    """Every second of a long recording, a short one repeated, each after the released polynomials."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from evaluator_graphs import write_dnsmos

    small = DNSMOS(write_dnsmos(tmp_path))
    ramp = np.linspace(0, 1, round(12.5 * 16000)).astype(np.float32)
    # 3 of 12 whole seconds
    windows = [ramp[second * 16000 :][: mos.WINDOW].mean(dtype=np.float64) for second in range(3)]
    overall = [-0.06766283 * (x + 2) ** 2 + 1.11546468 * (x + 2) + 0.04602535 for x in windows]
    assert small.rate(ramp)["dnsmos"] == pytest.approx(np.mean(overall), abs=1e-4)
    level = np.full(16000, 0.25, np.float32)
    signal = -0.08397278 * 0.25**2 + 1.22083953 * 0.25 + 0.0052439
    assert small.rate(level)["dnsmos-sig"] == pytest.approx(signal, abs=1e-4)


def test_windows_of_distill_mos(monkeypatch) -> None:
    """Spread evenly from the first to the last sample, at most a second apart; silence after a short recording."""
    decoded: list[torch.Tensor] = []
    evaluator = DistillMOS.__new__(DistillMOS)
    torch.nn.Module.__init__(evaluator)
    monkeypatch.setattr(DistillMOS, "_rate", lambda self, x: (decoded.append(x), x[:, 0])[1])
    length = distill_mos.WINDOW + 32000
    wave = np.arange(length, dtype=np.float32)
    assert evaluator.rate(wave)["distill-mos"] == 16000  # the mean of the starts: 0, 16000 and 32000
    assert torch.cat(decoded)[:, -1].tolist() == [length - 32001, length - 16001, length - 1]
    evaluator.rate(wave[:1000])
    assert decoded[-1].shape == (1, distill_mos.WINDOW)
    assert not decoded[-1][0, 1000:].any()


def test_damaged_and_missing_files_are_named(tmp_path) -> None:
    for evaluator, name in ((DNSMOS, "sig_bak_ovr.onnx"), (DistillMOS, "distill_mos_v7.pt")):
        refused(NotInstalled, name, evaluator, tmp_path)
        (tmp_path / name).write_bytes(b"damaged")
        refused(CheckpointError, name, evaluator, tmp_path)


@pytest.fixture(scope="module")
def evaluators() -> tuple[DNSMOS, DistillMOS]:
    return DNSMOS(find_evaluator("dnsmos")), DistillMOS(find_evaluator("distillmos"))


@pytest.mark.evaluators
@pytest.mark.parametrize("seconds", PUBLISHED)
def test_published_numbers(evaluators, seconds) -> None:
    dnsmos, distilled = (evaluator.rate(signal(seconds)) for evaluator in evaluators)
    names = ("dnsmos", "dnsmos-sig", "dnsmos-bak")
    np.testing.assert_allclose([dnsmos[name] for name in names], PUBLISHED[seconds], atol=1e-4)
    assert distilled["distill-mos"] == pytest.approx(DISTILLED[seconds], abs=1e-4)
    assert evaluators[1].rate(signal(seconds) / 8)["distill-mos"] == pytest.approx(
        DISTILLED[seconds], abs=1e-4
    )


@pytest.mark.evaluators
def test_noise_is_rated_lower(evaluators) -> None:
    noise = np.random.default_rng(0).standard_normal(16000 * 4).astype(np.float32)
    rated = [evaluators[0].rate(signal(4) + level * noise)["dnsmos"] for level in (0.0, 0.02, 0.2)]
    assert rated[0] > rated[1] > rated[2]


@pytest.mark.evaluators
def test_distill_mos_hears_long_recordings_in_parts(evaluators) -> None:
    wave = np.tile(signal(7.68), 12)  # 85 windows over 92 s, those on the tile's grid alike
    long, short = (evaluators[1].rate(sound)["distill-mos"] for sound in (wave, signal(7.68)))
    assert abs(long - short) < 0.5
