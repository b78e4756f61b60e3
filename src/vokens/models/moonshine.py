"""English speech recognition with Moonshine (Jeffries et al. 2024), by onnxruntime: text and features.

Greedy decoding with the merged decoder graph, whose keys and values travel from call to call. The graphs are
quantised dynamically, per tensor, so padding would change results: one utterance at a time, never a batch.
"""

from pathlib import Path

import numpy as np

from vokens.errors import AudioError
from vokens.evaluator_files import check_files, open_graph, open_tokenizer

SAMPLE_RATE = 16000
HOP = 384  # samples between two encoder frames: three convolutions with strides 64, 3 and 2
SHORTEST = 895  # samples: the receptive field of one encoder frame, kernels 127, 7 and 3 at those strides
_START, _END = 1, 2  # token ids
_TOKENS_PER_SECOND = 6.5  # the model's own bound: more than this is a repetition loop


class Moonshine:
    """A recogniser, from the folder of its two graphs and its tokenizer.

    folder holds encoder_model.onnx, decoder_model_merged.onnx and tokenizer.json; threads is the number of
    CPU threads of each graph. Raises MissingExtra without onnxruntime or tokenizers, NotInstalled without
    the files.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        home, purpose = check_files(folder, "moonshine-tiny-en"), "Moonshine speech recognition"
        self._tokenizer = open_tokenizer(home / "tokenizer.json", purpose)
        self._encoder, self._decoder = (
            open_graph(home / name, threads, purpose)
            for name in ("encoder_model.onnx", "decoder_model_merged.onnx")
        )
        self._cache = {  # name -> shape (heads, head width) of every key and value that the decoder keeps
            put.name: (put.shape[1], put.shape[3])
            for put in self._decoder.get_inputs()
            if put.name.startswith("past_key_values.")
        }
        self._outputs = [put.name for put in self._decoder.get_outputs()]

    def encode(self, wave: np.ndarray) -> np.ndarray:
        """Encoder hidden states (T', D) float32 of a 16 kHz wave (T,) in [-1, 1]; tiny has D = 288.

        Frame i sees samples 384 i to 384 i + 894 through the convolutions and, through attention, the whole
        wave; T' = (T - 895) // 384 + 1, so 41.67 frames a second. Raises AudioError below 895 samples.
        """
        wave = np.asarray(wave, dtype=np.float32)
        if wave.ndim != 1 or len(wave) < SHORTEST:
            raise AudioError(
                f"Moonshine needs a mono wave (T,) of at least {SHORTEST} samples at 16 kHz, got {wave.shape}"
            )
        return np.asarray(self._encoder.run(None, {"input_values": wave[None]})[0])[0]

    def transcribe(self, wave: np.ndarray) -> str:
        """Transcript of a 16 kHz wave (T,), cased and punctuated; greedy, so deterministic."""
        states = self.encode(wave)[None]
        cache = {name: np.zeros((1, h, 0, d), np.float32) for name, (h, d) in self._cache.items()}
        tokens = [_START]
        for step in range(int(len(wave) / SAMPLE_RATE * _TOKENS_PER_SECOND) + 2):
            feeds = {
                "input_ids": np.array([tokens[-1:]], np.int64),
                "encoder_hidden_states": states,
                "use_cache_branch": np.array([step > 0]),
            }
            values = [np.asarray(value) for value in self._decoder.run(None, feeds | cache)]
            results = dict(zip(self._outputs, values, strict=True))
            tokens.append(int(results["logits"][0, -1].argmax()))
            if tokens[-1] == _END:
                break
            for name in cache:  # the encoder's keys and values are computed in the first call only
                if step == 0 or ".decoder." in name:
                    cache[name] = results[name.replace("past_key_values", "present")]
        return self._tokenizer.decode(tokens, skip_special_tokens=True).strip()
