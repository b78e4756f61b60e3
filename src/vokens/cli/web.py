"""A page in the browser: record or upload speech, hear and see what codecs keep of it, codebook by codebook.

vokens web        then open http://127.0.0.1:7860. It works offline, with embedded and
trained models.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from vokens import registry
from vokens.cli.listen import answer, bound
from vokens.errors import ConfigError, MissingExtra


@dataclass(frozen=True, kw_only=True)
class Arguments:
    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = registry.offline()
    """Models to offer: names of `vokens models`, folders, files or hub ids; NAME=FOLDER gives a name."""
    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: Annotated[int, tyro.conf.arg(metavar="N")] = 7860
    """Port to listen on; 0 for any free one."""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "cpu"
    """cpu, cuda, cuda:1, mps."""
    max_seconds: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 60.0
    """The longest recording that the page takes."""


def run(arguments: Arguments) -> int:
    import os

    if not arguments.max_seconds > 0:
        raise ConfigError(f"--max-seconds {arguments.max_seconds:g}: give a number above 0, such as 60")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no data leaves this machine
    try:
        from vokens.web.page import create_app, no_use
    except ImportError as error:
        raise MissingExtra(error.name or "gradio", "web", "the page") from error
    from vokens.device import usable_device
    from vokens.models.named import load_named
    from vokens.models.pretrained import system_of

    device = usable_device(arguments.device)
    kinds = {name: system_of(name.rpartition("=")[2]) for name in arguments.models}
    if useless := [name for name, kind in kinds.items() if not getattr(kind, "decodes", True)]:
        raise no_use(useless)  # before any download
    with bound(arguments.host, arguments.port) as place:
        models = load_named(arguments.models, device)
        return answer(create_app(models, arguments.max_seconds), place, ", ".join(models), patience=5)
