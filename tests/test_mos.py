"""DNSMOS and Distill-MOS: the published packages' numbers, and noise is rated lower; run only where the files lie."""

from pathlib import Path

import numpy as np
import pytest
from conftest import speechlike

from vokens.bench.distill_mos import DistillMOS
from vokens.bench.judges import find_judge
from vokens.bench.mos import DNSMOS
from vokens.errors import NotInstalled

# Of PyPI's speechmos 0.0.1.1 (dnsmos.run, rate 16000): the seconds of `signal` below -> overall, speech, noise.
PUBLISHED = {
    0.7: (1.3191539, 1.8532455, 1.3633441),
    4.0: (1.1443581, 1.2038143, 1.0882852),
    12.5: (1.2873816, 1.6375486, 1.2420014),
}


def signal(seconds: float) -> np.ndarray:
    return speechlike(round(seconds * 16000))


def folder_of(name: str) -> Path:
    try:
        return find_judge(name)
    except NotInstalled as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def judge() -> DNSMOS:
    return DNSMOS(folder_of("dnsmos"))


@pytest.mark.parametrize("seconds", PUBLISHED)
def test_published_numbers(judge: DNSMOS, seconds: float) -> None:
    found = judge.rate(signal(seconds))
    names = ("dnsmos", "dnsmos-sig", "dnsmos-bak")
    np.testing.assert_allclose([found[name] for name in names], PUBLISHED[seconds], atol=1e-4)


def test_noise_is_rated_lower(judge: DNSMOS) -> None:
    noise = np.random.default_rng(0).standard_normal(16000 * 4).astype(np.float32)
    rated = [judge.rate(signal(4) + level * noise)["dnsmos"] for level in (0.0, 0.02, 0.2)]
    assert rated[0] > rated[1] > rated[2]


# Of PyPI's distillmos 0.9.1 (ConvTransformerSQAModel): the seconds of `signal` -> rating.
DISTILLED = {0.7: 1.9865202, 4.0: 1.4238923, 12.5: 1.4574303}


@pytest.fixture(scope="module")
def distilled() -> DistillMOS:
    return DistillMOS(folder_of("distillmos"))


@pytest.mark.parametrize("seconds", DISTILLED)
def test_published_numbers_of_distill_mos(distilled: DistillMOS, seconds: float) -> None:
    assert distilled.rate(signal(seconds))["distill-mos"] == pytest.approx(DISTILLED[seconds], abs=1e-4)
    assert distilled.rate(signal(seconds) / 8)["distill-mos"] == pytest.approx(DISTILLED[seconds], abs=1e-4)


def test_distill_mos_hears_long_recordings_in_parts(distilled: DistillMOS) -> None:
    wave = np.tile(signal(7.68), 12)  # 85 windows over 92 s, those on the tile's grid alike
    assert abs(distilled.rate(wave)["distill-mos"] - distilled.rate(signal(7.68))["distill-mos"]) < 0.5
