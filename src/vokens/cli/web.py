"""A page in the browser: record or upload speech, hear and see what codecs keep of it, codebook by codebook.

vokens web        then open http://127.0.0.1:7860. It works offline, with embedded and
trained models.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from vokens.cli.listen import Listening, Port, answer, bound
from vokens.errors import ConfigError, needs_extra


@dataclass(frozen=True, kw_only=True)
class Arguments(Listening):
    port: Port = 7860
    max_seconds: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 60.0
    """The longest recording that the page takes."""


def run(arguments: Arguments) -> int:
    import os

    if not arguments.max_seconds > 0:
        raise ConfigError(f"--max-seconds {arguments.max_seconds:g}: give a number above 0, such as 60")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no data leaves this machine
    with needs_extra("gradio", "web", "the page"):
        from vokens.web.page import create_app, no_use
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
