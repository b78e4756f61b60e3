"""The command that installs an extra from the origin of this vokens: a clone, a wheel, a repository or an index.

All errors and `vokens doctor` use it, so that their remedy can be typed as shown.
"""

import json
import re
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname


def install_line(extra: str = "", options: str = "") -> str:
    """The `pip install` line for vokens with an extra, or several ("train,plot"); options are pip's own.

    Where the wheel or folder no longer exists, the line lists the packages of the extra.
    """
    clone, url = Path(__file__).parents[2], _origin()
    suffix = f"[{extra}]" if extra else ""
    what = f"'vokens{suffix}'" if extra else "vokens"
    if (clone / "pyproject.toml").is_file():
        what = f"-e '{clone}{suffix}'"
    elif url.startswith("file:") and not Path(url2pathname(urlsplit(url).path)).exists():
        names = (name for one in extra.split(",") if one for name in requirements().get(one, []))
        what = " ".join(f"'{name}'" for name in names) or what
    elif url:
        what = f"'vokens{suffix} @ {url}'"
    return " ".join(filter(None, ("pip install", options, what)))


def _origin() -> str:
    """The address that pip recorded for this installation; "" for one from an index."""
    try:
        facts = json.loads(metadata.distribution("vokens").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return ""
    vcs = facts.get("vcs_info")
    return f"{vcs['vcs']}+{facts['url']}@{vcs['commit_id']}" if vcs else facts.get("url", "")


def requirements() -> dict[str, list[str]]:
    """Requirements of the installed vokens by extra, "" for the core."""
    extras: dict[str, list[str]] = {}
    for line in metadata.requires("vokens") or []:
        what, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*[\"']([\w-]+)[\"']", marker)
        extras.setdefault(extra[1] if extra else "", []).append(what.strip())
    return extras
