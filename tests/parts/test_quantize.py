"""Residual quantizer against recorded training steps of speechtokenizer 1.0.1, and where ours differs on purpose."""

from pathlib import Path

import pytest
import torch
from conftest import refused, seeded
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from vokens.quantize import EuclideanCodebook, ResidualVectorQuantizer
from vokens.quantize.rvq import kmeans, smallest

GOLDEN = Path(__file__).parents[1] / "golden" / "speechtokenizer" / "vq_train.safetensors"
BUFFERS = ("cluster_size", "embed", "embed_avg")
CODES, DIM = 10, 6


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def set_books(books: list[EuclideanCodebook], golden: dict[str, Tensor], prefixes: list[str]) -> None:
    for book, prefix in zip(books, prefixes, strict=True):
        book.inited.fill_(1.0)
        for name in BUFFERS:
            getattr(book, name).copy_(golden[f"{prefix}.{name}"])


def published_rvq(golden: dict[str, Tensor]) -> ResidualVectorQuantizer:
    rvq = ResidualVectorQuantizer(DIM, CODES, 3, published=True).train()
    set_books(rvq.codebooks, golden, [f"rvq.before.{i}" for i in range(3)])
    return rvq


def test_one_step_of_one_codebook(golden: dict[str, Tensor]) -> None:
    """The output uses the entries before the update; entries under the published threshold are not revived."""
    rvq = ResidualVectorQuantizer(DIM, CODES, 1, published=True).train()
    set_books(rvq.codebooks, golden, ["ema.before"])
    assert (golden["ema.before.cluster_size"] < 2).any()
    actual = rvq(golden["ema.x"])
    assert torch.equal(actual.codes[:, 0], golden["ema.codes"].long())
    assert_close(actual.latent, golden["ema.quantized"], rtol=1e-6, atol=1e-6)
    for name in BUFFERS:
        assert_close(getattr(rvq.codebooks[0], name), golden[f"ema.after.{name}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["km_enough", "km_few"])
def test_kmeans(golden: dict[str, Tensor], case: str) -> None:
    x = golden[f"{case}.x"]
    means, counts = kmeans(x, x[golden[f"{case}.init_index"].long()], 50)
    assert_close(means, golden[f"{case}.means"], rtol=1e-5, atol=1e-6)
    # Which of equal means is near is open.
    same = torch.isclose(means[:, None], means, atol=1e-5).all(2).float()
    assert torch.equal(same @ counts, same @ golden[f"{case}.bins"].float())


def test_three_codebooks_learn_as_published(golden: dict[str, Tensor]) -> None:
    rvq = published_rvq(golden)
    actual = rvq(golden["rvq.x"].transpose(1, 2))
    assert torch.equal(actual.codes.transpose(0, 1), golden["rvq.codes"].long())
    assert_close(actual.latent.transpose(1, 2), golden["rvq.quantized"], rtol=1e-5, atol=1e-6)
    assert_close(actual.commit, golden["rvq.losses"], rtol=1e-5, atol=1e-7)
    assert_close(actual.commit.mean(), golden["rvq.commit"], rtol=1e-5, atol=1e-7)
    parts = torch.stack([actual.parts[0], actual.parts[2]]).transpose(2, 3)
    assert_close(parts, golden["rvq.list02"], rtol=1e-5, atol=1e-6)
    for i, book in enumerate(rvq.codebooks):
        for name in BUFFERS:
            assert_close(getattr(book, name), golden[f"rvq.after.{i}.{name}"], rtol=1e-5, atol=1e-6)
    commit = published_rvq(golden)(golden["rvq.x"].transpose(1, 2), 2).commit
    assert_close(commit.mean(), golden["rvq.nq2.commit"])


def test_published_gradients(golden: dict[str, Tensor]) -> None:
    """The commitment of codebooks after the first does not reach the input; the straight-through step is 1."""
    x = golden["rvq.x"].clone().requires_grad_()
    actual = published_rvq(golden)(x.transpose(1, 2))

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, x, retain_graph=True)[0]

    for i in range(3):
        assert_close(gradient(actual.commit[i]), golden[f"rvq.grad_loss.{i}"], rtol=1e-4, atol=1e-7)
    weighed = golden["rvq.w"].transpose(1, 2)
    found = gradient((actual.latent * weighed).sum())
    assert_close(found, golden["rvq.grad_quantized"], rtol=1e-4, atol=1e-6)
    assert_close(gradient((actual.first * weighed).sum()), golden["rvq.grad_first"], rtol=1e-4, atol=1e-6)


def test_every_commitment_loss_reaches_the_input(golden: dict[str, Tensor]) -> None:
    rvq = ResidualVectorQuantizer(DIM, CODES, 3).train()
    set_books(rvq.codebooks, golden, [f"rvq.before.{i}" for i in range(3)])
    x = golden["rvq.x"].transpose(1, 2).clone().requires_grad_()
    actual = rvq(x)
    for loss in actual.commit:
        assert torch.autograd.grad(loss, x, retain_graph=True)[0].abs().max() > 1e-4
    assert torch.equal(torch.autograd.grad(actual.latent.sum(), x)[0], torch.ones_like(x))


def test_dead_entries_are_revived_and_stay() -> None:
    """An entry far from all data is moved onto data and chosen there; published, it never is."""
    data = torch.randn(256, DIM, generator=seeded(0))
    used = {}
    for published in (False, True):
        book = EuclideanCodebook(DIM, CODES, published=published)
        book.init_from(data, seeded(1))
        book.embed[3] = book.embed_avg[3] = 1e3
        book.cluster_size[3] = 0.0
        generator = seeded(2)
        for _ in range(20):
            book.learn(data, book.encode(data), generator)
        used[published] = int((book.encode(data) == 3).sum())
    assert used[False] > 0
    assert used[True] == 0


def test_residual_shrinks_and_prefixes_agree() -> None:
    generator = seeded(0)
    x = torch.randn(4, 100, DIM, generator=generator)
    rvq = ResidualVectorQuantizer(DIM, CODES, 4).eval()
    rvq.fit(x.flatten(0, 1), generator)
    codes = rvq.encode(x)
    errors = [(x - rvq.decode(codes[:, :k])).square().mean().item() for k in range(1, 5)]
    assert errors == sorted(errors, reverse=True)
    assert torch.equal(rvq.encode(x, 2), codes[:, :2])
    assert_close(rvq.decode(codes[:, 1:3], 1) + rvq.decode(codes[:, :1]), rvq.decode(codes[:, :3]))


def test_a_beam_search_leaves_less_error() -> None:
    greedy, search = (ResidualVectorQuantizer(DIM, CODES, 4, beam=beam).eval() for beam in (1, 8))
    latents = torch.randn(2, 700, DIM, generator=seeded(5))
    greedy.fit(latents.flatten(0, 1), seeded(6))
    search.load_state_dict(greedy.state_dict())

    def error(codes: Tensor) -> Tensor:
        return (latents - search.decode(codes)).square().sum(-1)

    plain, found = greedy.encode(latents), search.encode(latents)
    assert torch.equal(found[:, 0], plain[:, 0])
    assert error(found).mean() < 0.9 * error(plain).mean()
    assert torch.equal(search.encode(latents, 2), found[:, :2])
    assert torch.equal(search.encode(latents[1:, 30:90]), found[1:, :, 30:90])
    assert torch.equal(search.encode(latents, 3, 1), search.encode(latents, None, 1)[:, :2])
    assert search.encode(latents[:, :0]).shape == (2, 4, 0)


@pytest.mark.parametrize("width", [100, 1024, 8192])
def test_the_smallest_are_those_of_all(width: int) -> None:
    x = torch.randn(50, width, generator=seeded(width))
    assert torch.equal(smallest(x, 8), x.topk(8, 1, largest=False).indices)


def test_keep_drops_later_codebooks() -> None:
    """Quantizer dropout: an item with keep=k sounds as its first k codebooks, and all codebooks still learn."""
    generator = seeded(0)
    x = torch.randn(3, 50, DIM, generator=generator)
    rvq = ResidualVectorQuantizer(DIM, CODES, 3)
    rvq.fit(x.flatten(0, 1), generator)
    actual = rvq.eval()(x, keep=torch.tensor([1, 2, 3]))
    for row, keep in enumerate((1, 2, 3)):
        expected = rvq.decode(actual.codes[row : row + 1, :keep])[0]
        assert_close(actual.latent[row], expected, rtol=1e-5, atol=1e-5)


def test_more_codes_than_codebooks_are_refused() -> None:
    rvq = ResidualVectorQuantizer(DIM, CODES, 3)
    refused(IndexError, "there are 3", lambda: rvq.decode(torch.zeros(1, 3, 5, dtype=torch.int64), 1))
