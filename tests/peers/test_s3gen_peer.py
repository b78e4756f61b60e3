"""Side by side with the S3Gen of chatterbox-tts, of the released size with random weights: same voice, mel and wave."""

import published_s3gen as peer
import pytest
import torch

from vokens.models.s3gen import S3GenModel

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("meanflow", [False, True], ids=["base", "turbo"])
@torch.no_grad()
def test_same_voice_mel_and_wave(meanflow: bool) -> None:
    theirs = peer.build(meanflow=meanflow, seed=1)
    ours = S3GenModel.from_published(dict(theirs.state_dict()), None)
    assert ours.name == ("chatterbox-turbo" if meanflow else "chatterbox")
    generator = torch.Generator().manual_seed(2)
    recording = 0.1 * torch.randn(24000 * 399 // 1000, generator=generator)  # an odd count of mel frames
    tokens = torch.randint(6561, (1, 7), generator=generator)
    voice = theirs.embed_ref(recording, 24000)
    ref_dict = ours.embed_ref(recording, 24000)
    assert torch.equal(ref_dict["prompt_token"], voice["prompt_token"])
    for key, atol in (("prompt_feat", 1e-4), ("embedding", 1e-4)):
        torch.testing.assert_close(ref_dict[key], voice[key], atol=atol, rtol=1e-4)
    torch.manual_seed(3)
    mel = theirs.flow_inference(tokens, ref_dict=dict(voice), finalize=True)
    torch.manual_seed(3)
    torch.testing.assert_close(ours(tokens, ref_dict=voice), mel, atol=1e-4, rtol=0)
    torch.manual_seed(3)
    wave, source = theirs.inference(tokens, ref_dict=dict(voice))
    torch.manual_seed(3)
    found, driven = ours.inference(tokens, ref_dict=voice)
    assert found.shape == wave.shape == (1, 480 * mel.shape[2])
    torch.testing.assert_close(driven, source, atol=1e-3, rtol=0)
    torch.testing.assert_close(found, wave, atol=1e-3, rtol=0)
    assert wave.abs().max() > 0.01
