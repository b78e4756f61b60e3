"""S3Gen's velocity networks and their solvers against recorded outputs; `TokenToMel` streams them."""

from functools import partial
from typing import Any

import pytest
import torch
from s3gen_weights import build_flow, close, golden, golden3, reduced, reduced_flow, watched
from torch import Tensor

from vokens.flow.guidance import guidance_schedule, guide
from vokens.flow.solver import evaluation_times, integrate, time_grid
from vokens.models.s3gen.config import DIALECTS
from vokens.models.s3gen.estimator import DiT, first_head_turn
from vokens.nn.streaming import Chunks, Context

FULL = "estimator_reduced_chatterbox"


@torch.inference_mode()
def velocity(model: Any, case: dict[str, Tensor], chunks: Chunks | None = None) -> Tensor:
    """One evaluation in the layout of the files, (B, C, T)."""
    mask, mu, prompt, x = (case[name].transpose(1, 2) for name in ("mask", "mu", "cond", "x"))
    lengths = mask[..., 0].sum(1).long()
    context = Context.of(x, lengths=None if bool(mask.all()) else lengths, chunks=chunks)
    conditions = model.conditions(mu * mask, case["spks"], prompt * mask)
    return model(x, model.shifts(case["t"], case.get("r")), conditions, context).transpose(1, 2)


@pytest.mark.parametrize("name", ["T1", "T2", "single", "ragged"])
def test_recorded_full_attention(name: str) -> None:
    case = golden(FULL, name)
    model = reduced_flow("chatterbox").estimator
    close(velocity(model, case), case.get("out", case.get("stage/out")), 2e-5)


@pytest.mark.parametrize("name", ["T10", "T11", "ragged"])
def test_recorded_chunks(name: str) -> None:
    case = golden("estimator_reduced_cosyvoice2", name)
    close(velocity(reduced_flow("chatterbox").estimator, case, Chunks(10)), case["out"], 2e-5)


@pytest.mark.parametrize("name", ["T1", "ragged"])
def test_recorded_meanflow(name: str) -> None:
    case, model = golden("estimator_reduced_meanflow", name), reduced_flow("chatterbox-turbo").estimator
    with torch.inference_mode():
        close(model.time(case["t"], case["r"]), case["time_embed_mixer"], 2e-5)
    close(velocity(model, case), case["out"], 2e-5)


@pytest.mark.parametrize("name", ["T1", "single", "ragged", "T10", "T11", "T23", "chunked ragged"])
def test_recorded_cosyvoice3(name: str) -> None:
    chunks = None if name in ("T1", "single", "ragged") else Chunks(10)
    case = golden3("estimator_reduced" if chunks is None else "estimator_reduced_chunk", name.split()[-1])
    close(velocity(reduced_flow("cosyvoice3").estimator, case, chunks), case["out"], 2e-5)


def stages_of(model: Any) -> dict[str, Any]:
    """Modules by the names under which their outputs are recorded."""
    if isinstance(model, DiT):
        block = model.blocks[0]
        stages = {"transformer_blocks.0.attn": block.attention, "transformer_blocks.0": block}
        stages |= {"transformer_blocks.0.ff": block.down, "input_embed.conv_pos_embed": model.conv2}
        return stages | {"time_embed": model.time}
    down, middle = model.first.blocks[0], model.middle
    stages = {"down.conv": model.first_conv, "down.attn0": down.attention, "down.tfm0": down}
    stages |= {"mid.0.resnet": middle[0].resnet, "mid.last.tfm": middle[-1].blocks[-1]}
    stages |= {"up.resnet": model.last.resnet, "up.conv": model.last_conv, "final_block": model.final}
    return stages | {"time_mlp": model.time}


@pytest.mark.parametrize("dialect", ["chatterbox", "cosyvoice3"])
def test_recorded_stages(dialect: str) -> None:
    read = partial(golden3, "estimator_reduced") if dialect == "cosyvoice3" else partial(golden, FULL)
    case, model = read("single"), build_flow(reduced(dialect)).estimator
    seen = watched(stages_of(model))
    velocity(model, case)
    for name, value in seen.items():
        expected = case[f"stage/{name}"]
        close(value if value.shape == expected.shape else value.transpose(1, 2), expected, 2e-5)


def test_rotation_turns_the_first_head_only() -> None:
    recorded = golden3("estimator_reduced", "rope")
    q = recorded["q"].unflatten(2, (3, 16)).transpose(1, 2)
    turned = first_head_turn(0, 13, 16, q.device)(q)
    close(turned.transpose(1, 2).flatten(2), recorded["q_rotated"], 2e-6)
    later = first_head_turn(5, 8, 16, q.device)(q[:, :, 5:])
    assert torch.equal(later, turned[:, :, 5:])


def test_grids_and_solvers() -> None:
    recorded = golden("cfm_reduced_chatterbox")
    close(time_grid(10, "cosine"), recorded["t_span_cosine"], 1e-7)
    close(time_grid(2, "linear"), recorded["t_span_linear2"], 0)
    grid = time_grid(40, "linear")
    for solver, error in (("euler", 4e-2), ("midpoint", 3e-4)):  # dx/dt = x: first and second order
        times = evaluation_times(grid, solver)
        end = integrate(lambda x, number: x, torch.ones(1, dtype=torch.float64), grid, solver)
        assert 0.1 * error < abs(float(end) - torch.e) < error
        middle = integrate(lambda x, number, t=times: t[number].double(), torch.zeros(1), grid, solver)
        assert abs(float(middle) - 0.5) < (0.013 if solver == "euler" else 1e-6)


def test_guidance() -> None:
    assert guidance_schedule(torch.tensor([0.0, 0.5, 0.9]), 0.5, end=0.9) == [0.5, 0.5, 0.0]
    both = torch.tensor([[2.0, 2.0], [1.0, 1.0]])
    close(guide(both, 0.5), torch.tensor([[2.5, 2.5]]), 0)
    close(guide(both, 0.5, first=1), torch.tensor([[2.0, 2.5]]), 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    case, half = golden(FULL, "ragged"), build_flow(reduced("chatterbox"))
    half = half.estimator.to(dtype)
    kept = {k: v for k, v in case.items() if not v.is_floating_point() or k in ("t", "x")}
    rounded = {k: v.to(dtype) for k, v in case.items()} | kept
    found = velocity(half, rounded)
    assert found.dtype == dtype
    assert half.time(case["t"]).dtype == torch.float32
    assert (found.float() - case["out"]).std() < 0.03 * case["out"].std()


@pytest.mark.slow
@pytest.mark.parametrize(("dialect", "name"), [("chatterbox", "full"), ("chatterbox-turbo", "meanflow")])
def test_recorded_full_size(dialect: str, name: str) -> None:
    case = golden("estimator_full", name)
    close(velocity(build_flow(DIALECTS[dialect]).estimator, case), case["out"], 2e-5)
