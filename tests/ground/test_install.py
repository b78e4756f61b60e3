"""The install line is one that works: from a clone, a wheel, a repository, an index; and all errors take it."""

import json
import re
from importlib import metadata
from pathlib import Path

import pytest

import vokens
from vokens import install
from vokens.errors import MissingExtra
from vokens.install import install_line

ROOT = Path(__file__).parents[2]


class Installed:
    """What pip notes beside a package."""

    def __init__(self, facts: dict | None) -> None:
        self.facts = facts

    def read_text(self, name: str) -> str | None:
        return None if self.facts is None else json.dumps(self.facts)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as in site-packages, no pyproject.toml above it."""
    monkeypatch.setattr(install, "__file__", str(tmp_path / "lib/site-packages/vokens/install.py"))
    return tmp_path


def test_a_clone_is_installed_where_it_is() -> None:
    assert install_line("web") == f"pip install -e '{ROOT}[web]'"
    assert install_line(options="--no-deps") == f"pip install --no-deps -e '{ROOT}'"
    assert install_line("web") in str(MissingExtra("gradio", "web", "the page"))


def test_every_other_origin(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = elsewhere / "a folder/vokens-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    git = {"url": "https://example.org/vokens", "vcs_info": {"vcs": "git", "commit_id": "abc"}}
    for facts, line in (
        (None, "pip install 'vokens[web]'"),
        ({"url": wheel.as_uri(), "archive_info": {}}, f"pip install 'vokens[web] @ {wheel.as_uri()}'"),
        (git, "pip install 'vokens[web] @ git+https://example.org/vokens@abc'"),
    ):
        monkeypatch.setattr(metadata, "distribution", lambda name, facts=facts: Installed(facts))
        assert install_line("web") == line
    gone = Installed({"url": (elsewhere / "gone.whl").as_uri(), "archive_info": {}})
    monkeypatch.setattr(metadata, "distribution", lambda name: gone)
    monkeypatch.setattr(
        metadata, "requires", lambda name: ["torch>=2", 'gradio>=5; extra == "web"', "av; extra == 'media'"]
    )
    assert install_line("web") == "pip install 'gradio>=5'"
    assert install_line("media,web") == "pip install 'av' 'gradio>=5'"


def test_nothing_else_says_how_vokens_is_installed() -> None:
    """vokens is on no index yet: `pip install vokens` and 'vokens[extra]' cannot work as they stand."""
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*"), *ROOT.glob("recipes/**/*.toml")]
    pages += [path for path in Path(vokens.__file__).parent.rglob("*.py") if path.name != "install.py"]
    for path in filter(Path.is_file, pages):
        for line in path.read_text().splitlines():
            assert not re.search(r"pip install( -\S+)* ['\"]?vokens(\[|['\"` )]|$)", line), f"{path}: {line}"
