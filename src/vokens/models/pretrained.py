"""What every model offers that can be saved and loaded: one folder of config.json, model.safetensors and a card.

Codecs, autoencoders, token-to-wave models and language models are all `Pretrained`; `vokens.load` opens any of them.
"""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar, Self, cast, get_args, get_type_hints

import torch
from torch import Tensor, nn

from vokens import checkpoint
from vokens.atomic import atomic_write
from vokens.errors import CheckpointError, ConfigError
from vokens.nn.product import warn_where_slow
from vokens.packed import pack


class Pretrained(nn.Module):
    """A network with a frozen config, a name and a fingerprint.

    Attributes:
        system: name of the implementation, e.g. "speechtokenizer"; config.json carries it.
        Config: its frozen dataclass of sizes. name: model id, e.g. "speechtokenizer_hubert_avg".
    """

    system: ClassVar[str]
    Config: ClassVar[type]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.name = self.system
        self._fingerprint = ""

    # What a system implements ------------------------------------------------------------------------------

    @classmethod
    def recognises(cls, keys: Collection[str]) -> bool:
        """Whether these state-dict keys are a published checkpoint of this system."""
        return False

    @classmethod
    def owns_config(cls, settings: Any) -> bool:
        """Whether the content of a config.json is surely of this system, and so of no other beside it."""
        return isinstance(settings, dict) and settings.get("system") == cls.system

    @classmethod
    def settings_beside(cls, path: Path) -> dict[str, Any]:
        """What other files in the folder of a published file say of its config; empty where they say nothing."""
        return {}

    @classmethod
    def from_published(cls, state: dict[str, Tensor], config: Any) -> Self:
        """The model with published weights.

        config: this system's Config, the content of a published config file, or None, which is enough for weights of
        exactly a release's sizes. What neither says is asked for (CheckpointError), never guessed.
        """
        raise NotImplementedError

    @classmethod
    def from_folder(cls, folder: Path, config: Any) -> Self | None:
        """The model of a folder, for systems published as several files; None where it holds none of them."""
        return None

    @classmethod
    def fold(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A training state dict as the inference network has it (weight norm folded); the same where nothing folds."""
        return state

    def card(self) -> str:
        """The model card that `save_pretrained` writes where none is given."""
        return (
            f"---\nlibrary_name: vokens\ntags: [audio, {self.system}]\n---\n# {self.name}\n\n"
            f'A `{self.system}` model.\n\n```python\nimport vokens\nmodel = vokens.load("THIS_FOLDER")\n```\n'
        )

    # What users call ---------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name these weights; tokens carry them."""
        if not self._fingerprint:
            self._fingerprint = checkpoint.fingerprint(self.state_dict(), checkpoint.settings(self.config))
        return self._fingerprint

    def set_dtype(self, dtype: torch.dtype) -> Self:
        """Compute in this floating-point type. Tokens keep the name of the float32 weights and decode under any."""
        _ = self.fingerprint
        warn_where_slow(dtype, self.device)
        return self.to(dtype=dtype)

    def description(self) -> dict[str, Any]:
        """The content of config.json: what the weights alone do not say."""
        return {
            "system": self.system,
            "model_type": self.system,  # where transformers looks for the kind of a model
            "name": self.name,
            "config": dataclasses.asdict(self.config),
        }

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None, card: str = ""
    ) -> Path:
        """Write config.json, model.safetensors and README.md, which `vokens.load` and `from_pretrained` open.

        dtype: of the stored weights, such as torch.float16; torch.int8 stores matrices at 8 bits with a scale for each
            row (`vokens.packed`). They are computed with in float32, and have a fingerprint of their own.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        if dtype == torch.int8:
            state = pack(state)
        elif dtype is not None:
            state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
        checkpoint.save_safetensors(folder / "model.safetensors", state)
        for name, text in (
            ("config.json", json.dumps(self.description(), indent=2) + "\n"),
            ("README.md", card or self.card()),
        ):
            with atomic_write(folder / name) as partial:
                partial.write_text(text)
        return folder

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """As `vokens.load`, and an error where the source holds another system."""
        from vokens.models import load

        model = load(source, **options)
        if not isinstance(model, cls):
            raise CheckpointError(
                f"{source} holds the system {model.system!r}, not {cls.system!r}: use vokens.load"
            )
        return model

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub; returns the commit's address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder))


def build_config(config_type: type, values: dict[str, Any], where: str) -> Any:
    """A frozen config dataclass from plain values; unknown names are an error.

    Lists become tuples, and dicts become the config dataclass that the field is declared as, alone or with None.
    """
    known = {field.name for field in dataclasses.fields(config_type)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where}: unknown settings {unknown}; {config_type.__name__} has {sorted(known)}")
    types = get_type_hints(config_type)
    return config_type(**{k: _plain_to_config(types[k], v, f"{where}: {k}") for k, v in values.items()})


def _plain_to_config(declared: Any, value: Any, where: str) -> Any:
    if isinstance(value, dict):
        inner = [kind for kind in (declared, *get_args(declared)) if dataclasses.is_dataclass(kind)]
        return build_config(cast(type, inner[0]), value, where) if inner else value
    return tuple(value) if isinstance(value, list) else value


__all__ = ["Pretrained", "build_config"]
