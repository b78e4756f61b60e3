"""S3Gen's velocity network and its solvers against recorded outputs; `TokenToMel` streams it."""

from pathlib import Path

import pytest
import torch
from s3gen_weights import close, fill, part, reduced
from safetensors.torch import load_file

from vokens.flow.guidance import guidance_schedule, guide
from vokens.flow.solver import evaluation_times, integrate, time_grid
from vokens.models.s3gen.config import DIALECTS
from vokens.models.s3gen.estimator import Estimator
from vokens.nn.streaming import Chunks, Context

HERE = Path(__file__).parents[2] / "golden/s3gen"
FULL = load_file(HERE / "estimator_reduced_chatterbox.safetensors")
CHUNKED = load_file(HERE / "estimator_reduced_cosyvoice2.safetensors")
MEANFLOW = load_file(HERE / "estimator_reduced_meanflow.safetensors")


@pytest.fixture(scope="module")
def model():
    return fill(Estimator(reduced("chatterbox")), "estimator.")


@pytest.fixture(scope="module")
def meanflow():
    return fill(Estimator(reduced("chatterbox-turbo")), "estimator.")


def velocity(model, case, chunks=None):
    """One evaluation in the layout of the files, (B, C, T)."""
    mask, mu, prompt, x = (case[name].transpose(1, 2) for name in ("mask", "mu", "cond", "x"))
    lengths = mask[..., 0].sum(1).long()
    context = Context.of(x, lengths=None if bool(mask.all()) else lengths, chunks=chunks)
    conditions = model.conditions(mu * mask, case["spks"], prompt * mask)
    return model(x, model.shifts(case["t"], case.get("r")), conditions, context).transpose(1, 2)


@pytest.mark.parametrize("name", ["T1", "T2", "single", "ragged"])
@torch.inference_mode()
def test_recorded_full_attention(model, name):
    case = part(FULL, name)
    close(velocity(model, case), case.get("out", case.get("stage/out")), 2e-5)


@pytest.mark.parametrize("name", ["T10", "T11", "ragged"])
@torch.inference_mode()
def test_recorded_chunks(model, name):
    case = part(CHUNKED, name)
    close(velocity(model, case, Chunks(10)), case["out"], 2e-5)


@pytest.mark.parametrize("name", ["T1", "ragged"])
@torch.inference_mode()
def test_recorded_meanflow(meanflow, name):
    case = part(MEANFLOW, name)
    close(meanflow.time(case["t"], case["r"]), case["time_embed_mixer"], 2e-5)
    close(velocity(meanflow, case), case["out"], 2e-5)


@torch.inference_mode()
def test_recorded_stages(model):
    case, seen = part(FULL, "single"), {}
    down, middle = model.first.blocks[0], model.middle
    stages = {"down.conv": model.first_conv, "down.attn0": down.attention, "down.tfm0": down}
    stages |= {"mid.0.resnet": middle[0].resnet, "mid.last.tfm": middle[-1].blocks[-1]}
    stages |= {"up.resnet": model.last.resnet, "up.conv": model.last_conv, "final_block": model.final}
    hooks = [
        stage.register_forward_hook(lambda module, args, output, name=name: seen.update({name: output}))
        for name, stage in stages.items()
    ]
    close(model.time(case["t"]), case["stage/time_mlp"], 2e-5)
    velocity(model, case)
    for hook in hooks:
        hook.remove()
    for name, value in seen.items():
        expected = case[f"stage/{name}"]
        close(value if value.shape == expected.shape else value.transpose(1, 2), expected, 2e-5)


def test_grids_and_solvers():
    golden = load_file(HERE / "cfm_reduced_chatterbox.safetensors")
    close(time_grid(10, "cosine"), golden["t_span_cosine"], 1e-7)
    close(time_grid(2, "linear"), golden["t_span_linear2"].float(), 0)
    grid = time_grid(40, "linear")
    for solver, error in (("euler", 4e-2), ("midpoint", 3e-4)):  # dx/dt = x: first and second order
        times = evaluation_times(grid, solver)
        end = integrate(lambda x, number: x, torch.ones(1, dtype=torch.float64), grid, solver)
        assert 0.1 * error < abs(float(end) - torch.e) < error
        middle = integrate(lambda x, number, t=times: t[number].double(), torch.zeros(1), grid, solver)
        assert abs(float(middle) - 0.5) < (0.013 if solver == "euler" else 1e-6)


def test_guidance():
    assert guidance_schedule(torch.tensor([0.0, 0.5, 0.9]), 0.5, end=0.9) == [0.5, 0.5, 0.0]
    close(guide(torch.tensor([2.0, 1.0]), 0.5), torch.tensor([2.5]), 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_is_close(model, dtype):
    case = part(FULL, "ragged")
    half = fill(Estimator(reduced("chatterbox")), "estimator.").to(dtype)
    kept = {k: v for k, v in case.items() if not v.is_floating_point() or k in ("t", "x")}
    rounded = {k: v.to(dtype) for k, v in case.items()} | kept
    found = velocity(half, rounded)
    assert found.dtype == dtype
    assert half.time(case["t"]).dtype == torch.float32
    assert (found.float() - case["out"]).std() < 0.03 * case["out"].std()


@pytest.mark.slow
@torch.inference_mode()
def test_recorded_full_size():
    golden = load_file(HERE / "estimator_full.safetensors")
    case = part(golden, "full")
    close(velocity(fill(Estimator(DIALECTS["chatterbox"]), "estimator."), case), case["out"], 2e-5)
    case = part(golden, "meanflow")
    close(velocity(fill(Estimator(DIALECTS["chatterbox-turbo"]), "estimator."), case), case["out"], 2e-5)
