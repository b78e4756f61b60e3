"""Downloads against a real server on this machine: resumed, verified, whole or absent; and the names."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import refused

import vokens
from vokens import download as download_module
from vokens import registry
from vokens.download import download
from vokens.errors import CheckpointError, ConfigError, DownloadError

DATA = bytes(range(256)) * 4096  # 1 MiB
SHA = hashlib.sha256(DATA).hexdigest()


@dataclass
class Site:
    """Files to serve and ways to serve them badly; `requests` says what was asked and sent."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)  # send this many bytes, then close, one per request
    statuses: list[int] = field(default_factory=list)  # answer with these first
    redirects: dict[str, str] = field(default_factory=dict)
    linked_etag: str = ""
    other: str = "-"  # another host, where redirects may lead
    ranges: bool = True
    pretended_length: int = 0
    requests: list[dict] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    url: str = ""

    def sent(self) -> list[int]:
        return [request["sent"] for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        """As the hub answers: which commit, which hash, how long; and where large files are."""
        site = self.server.site
        site.heads.append(self.path)
        found = site.redirects.get(self.path)
        content = site.files.get(self.path if found is None else found.removeprefix(site.other), None)
        if content is None:
            return self.answer(404, **{"X-Error-Code": "EntryNotFound"})
        revision = self.path.split("/")[4]
        facts = {"X-Repo-Commit": hashlib.sha1(revision.encode()).hexdigest()}
        etag = f'"{site.linked_etag or hashlib.sha256(content).hexdigest()}"'
        if found is None:
            return self.answer(200, length=len(content), ETag=etag, **facts)
        facts |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        return self.answer(302, Location=found, **facts)

    def do_GET(self) -> None:
        site = self.server.site
        if self.path.startswith("/api/"):  # questions of huggingface_hub's own
            return self.answer(404)
        asked = self.headers.get("Range", "")
        request = {"path": self.path, "range": asked, "token": self.headers.get("Authorization"), "sent": 0}
        site.requests.append(request)
        if site.statuses:
            return self.answer(site.statuses.pop(0))
        if self.path in site.redirects:
            return self.answer(302, Location=site.redirects[self.path])
        if self.path not in site.files:
            return self.answer(404)
        content = site.files[self.path]
        start = int(asked[6:-1]) if asked and site.ranges else 0
        if asked and start >= len(content):
            return self.answer(416, **{"Content-Range": f"bytes */{len(content)}"})
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(site.pretended_length or len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        body = body[: site.cuts.pop(0)] if site.cuts else body
        request["sent"] = len(body)
        self.wfile.write(body)

    def answer(self, status: int, length: int = 0, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.site = Site(url=f"http://127.0.0.1:{self.server_port}")


@pytest.fixture
def site(monkeypatch) -> Iterator[Site]:
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "VOKENS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download_module, "BACKOFF", 0.01)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.site.files["/x.bin"] = DATA
    yield server.site
    server.shutdown()
    thread.join()
    server.server_close()


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# One file


def test_fetched_once_verified_and_renamed(site, tmp_path):
    target = tmp_path / "new folder" / "x.bin"
    for _ in range(2):
        assert download(f"{site.url}/x.bin", target, sha256=SHA) == target
    assert target.read_bytes() == DATA
    assert site.sent() == [len(DATA)]  # the second call asked for nothing
    assert visible(target.parent) == ["x.bin"]


def test_cut_connections_are_continued_where_they_broke(site, tmp_path):
    site.cuts = [100_000, 1, 300_000]
    download(f"{site.url}/x.bin", tmp_path / "x.bin", sha256=SHA)
    assert (tmp_path / "x.bin").read_bytes() == DATA
    assert site.sent() == [100_000, 1, 300_000, len(DATA) - 400_001]  # no byte was sent twice
    assert [request["range"] for request in site.requests] == [
        "",
        "bytes=100000-",
        "bytes=100001-",
        "bytes=400001-",
    ]


def test_a_later_run_continues_an_earlier_one(site, tmp_path):
    site.cuts = [500_000] + [0] * download_module.ATTEMPTS
    with pytest.raises(DownloadError, match=r"500000 of 1048576 bytes.*0\.5 MB are kept"):
        download(f"{site.url}/x.bin", tmp_path / "x.bin", sha256=SHA)
    assert visible(tmp_path) == ["x.bin.part"]
    site.requests.clear()
    download(f"{site.url}/x.bin", tmp_path / "x.bin", sha256=SHA)
    assert site.sent() == [len(DATA) - 500_000]
    assert (tmp_path / "x.bin").read_bytes() == DATA


def test_a_server_without_ranges_starts_again(site, tmp_path):
    site.ranges, site.cuts = False, [600_000]
    download(f"{site.url}/x.bin", tmp_path / "x.bin", sha256=SHA)
    assert site.sent() == [600_000, len(DATA)]
    assert (tmp_path / "x.bin").read_bytes() == DATA


def test_a_whole_unfinished_file_is_verified_and_kept(site, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(DATA)  # killed between the last byte and the renaming
    download(f"{site.url}/x.bin", tmp_path / "x.bin", sha256=SHA)
    assert site.sent() == [0]
    assert visible(tmp_path) == ["x.bin"]


def test_an_unfinished_file_longer_than_the_real_one_is_dropped(site, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(DATA + b"more")
    download(f"{site.url}/x.bin", tmp_path / "x.bin", sha256=SHA)
    assert site.sent() == [0, len(DATA)]
    assert (tmp_path / "x.bin").read_bytes() == DATA


def test_wrong_content_is_removed_and_the_next_try_is_clean(site, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(b"of another file")
    refused(DownloadError, f"instead of {SHA}", download, f"{site.url}/x.bin", tmp_path / "x.bin", sha256=SHA)
    assert visible(tmp_path) == []
    download(f"{site.url}/x.bin", tmp_path / "x.bin", sha256=SHA)


def test_passing_faults_are_tried_again(site, tmp_path):
    site.statuses = [503, 429, 500]
    download(f"{site.url}/x.bin", tmp_path / "x.bin", sha256=SHA)
    assert len(site.requests) == 4
    site.statuses = [503] * 10
    refused(DownloadError, r"503.*try again", download, f"{site.url}/x.bin", tmp_path / "y.bin")
    assert len(site.statuses) == 10 - download_module.ATTEMPTS


@pytest.mark.parametrize(
    ("status", "message"), [(404, "revision"), (401, "hf auth login"), (403, "gated"), (400, "400")]
)
def test_lasting_faults_are_told_at_once(site, tmp_path, status, message):
    site.statuses = [status] * 5
    refused(DownloadError, message, download, f"{site.url}/x.bin", tmp_path / "x.bin")
    assert len(site.requests) == 1
    assert visible(tmp_path) == []


def test_no_server_and_no_address(site, tmp_path):
    with pytest.raises(DownloadError, match=r"refused.*[Cc]heck the network"):
        download("http://127.0.0.1:9/x.bin", tmp_path / "x.bin")
    refused(DownloadError, "https", download, "file:///etc/hostname", tmp_path / "x.bin")


def test_a_fetch_that_fails_is_told_leaves_nothing_and_chains_nothing(tmp_path, capsys):
    target = tmp_path / "cache/model/weights.bin"
    with pytest.raises(DownloadError) as caught:
        download("http://127.0.0.1:9/weights.bin", target)
    assert caught.value.__suppress_context__
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "vokens: fetching http://127.0.0.1:9/weights.bin"
    assert all("trying again in" in line for line in said[1:])
    assert len(said) == download_module.ATTEMPTS


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_says_what_is_missing(site, tmp_path, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match=rf"x\.bin is missing .*{site.url}/x\.bin"):
        download(f"{site.url}/x.bin", tmp_path / "x.bin", local_files_only=how == "argument")
    assert site.requests == []
    (tmp_path / "x.bin").write_bytes(b"there")
    assert download(f"{site.url}/x.bin", tmp_path / "x.bin", local_files_only=True).read_bytes() == b"there"


def test_a_full_disk_is_told_before_and_while(site, tmp_path):
    site.pretended_length = 10**18
    with pytest.raises(DownloadError, match=r"1000000000000\.0 MB are needed"):
        download(f"{site.url}/x.bin", tmp_path / "x.bin")
    site.pretended_length = 0
    if Path("/dev/full").exists():
        (tmp_path / "y.bin.part").symlink_to("/dev/full")
        with pytest.raises(DownloadError, match=r"No space left.*VOKENS_CACHE"):
            download(f"{site.url}/x.bin", tmp_path / "y.bin")
    (tmp_path / "file").write_bytes(b"")
    refused(DownloadError, "VOKENS_CACHE", download, f"{site.url}/x.bin", tmp_path / "file" / "x.bin")


def test_two_processes_fetch_one_file_once(site, tmp_path):
    code = "import sys; from vokens.download import download; download(*sys.argv[1:3], sha256=sys.argv[3])"
    command = [sys.executable, "-c", code, f"{site.url}/x.bin", str(tmp_path / "x.bin"), SHA]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "x.bin").read_bytes() == DATA
    assert site.sent() == [len(DATA)]


# The hub


@pytest.fixture
def hub(site, monkeypatch, tmp_path) -> Site:
    monkeypatch.setenv("HF_ENDPOINT", site.url + "/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setenv("VOKENS_CACHE", str(tmp_path / "cache"))
    del site.files["/x.bin"]
    return site


def test_hub_snapshot_keeps_revisions_apart(hub, tmp_path):
    for revision, content in (("main", b"{}"), ("refs%2Fpr%2F1", b"[]")):
        hub.files[f"/org/name/resolve/{revision}/config.json"] = content
        hub.files[f"/org/name/resolve/{revision}/model.safetensors"] = DATA
    folder = registry.hub_snapshot("org/name")
    assert folder == tmp_path / "cache" / "hub" / "org--name" / "main"
    assert visible(folder) == ["config.json", "model.safetensors"]
    assert (registry.hub_snapshot("org/name", revision="refs/pr/1") / "config.json").read_bytes() == b"[]"
    assert registry.hub_snapshot("org/name", local_files_only=True) == folder
    assert len(hub.requests) == 3  # the weights of both are one file
    blobs = tmp_path / "huggingface/models--org--name/blobs"  # where every program of the hub looks
    assert (folder / "model.safetensors").resolve() == blobs / SHA
    assert len(list(blobs.iterdir())) == 3


def test_without_links_files_are_copied_and_a_folder_of_ones_own_keeps_all(hub, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    served(hub, "org/name", ["config.json", "model.safetensors"])
    monkeypatch.setattr(Path, "symlink_to", refuse)
    folder = registry.hub_snapshot("org/name", cache_dir=tmp_path / "own")
    assert not (folder / "config.json").is_symlink()
    assert visible(folder) == ["config.json", "model.safetensors"]
    assert (tmp_path / "own/models--org--name/blobs").is_dir()
    assert not (tmp_path / "huggingface").exists()
    (tmp_path / "file").touch()
    refused(DownloadError, "set HF_HOME", registry.hub_snapshot, "org/name", cache_dir=tmp_path / "file")


def test_a_hub_that_does_not_answer_is_told(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface_hub waits before it asks again
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        DownloadError, match=r"9/org/name.*could not be fetched.*[Cc]heck the network"
    ) as caught:
        registry.hub_snapshot("org/name")
    assert "\n" not in str(caught.value)


def test_the_token_stays_with_the_hub(hub):
    other = hub.url.replace("127.0.0.1", "localhost")  # another host to a browser, and to us
    hub.other = other
    hub.redirects = {"/org/name/resolve/main/model.safetensors": f"{other}/cdn/weights"}
    hub.files = {"/org/name/resolve/main/config.json": b"{}", "/cdn/weights": DATA}
    registry.hub_snapshot("org/name")
    tokens = [request["token"] for request in hub.requests]
    assert tokens == ["Bearer hf_secret", None]


def test_the_hash_that_the_hub_announces_is_checked(hub):
    hub.files = {"/org/name/resolve/main/config.json": b"{}"}
    folder = registry.hub_snapshot("org/name", files=["config.json"])
    hub.files["/org/name/resolve/main/model.safetensors"] = DATA
    hub.linked_etag = "0" * 64
    refused(DownloadError, f"{SHA} instead of {'0' * 64}", registry.hub_snapshot, "org/name")
    assert visible(folder) == ["config.json"]
    hub.linked_etag = SHA
    assert (registry.hub_snapshot("org/name") / "model.safetensors").read_bytes() == DATA


def test_a_repository_without_a_codec_is_explained(hub, tmp_path):
    hub.files["/org/name/resolve/main/config.json"] = b"{}"
    with pytest.raises(DownloadError, match=r"404.*config\.json and model\.safetensors.*save_pretrained"):
        registry.hub_snapshot("org/name")
    for wrong in ("name", "../name", "org/..", "org/name/x", "org/na me"):
        refused(DownloadError, "org/name", registry.hub_snapshot, wrong)


def test_an_entry_is_fetched_file_by_file(hub, tmp_path):
    entry = registry.Entry("small", "mini", "", 16000, 50.0, 8, 1024, "MIT", "org/name", files=(
        registry.File("config.json", "org/name", "deep/config.json"),
        registry.File("weights.pt", "org/name", "deep/weights.pt", sha256=SHA, size=len(DATA)),
    ))  # fmt: skip
    hub.files = {"/org/name/resolve/main/deep/config.json": b"{}"}
    refused(DownloadError, "404", registry.fetch, entry)
    assert not registry.is_cached(entry)
    refused(DownloadError, r"weights\.pt is missing", registry.fetch, entry, local_files_only=True)
    hub.files["/org/name/resolve/main/deep/weights.pt"] = DATA
    folder = registry.fetch(entry)
    assert folder == tmp_path / "cache" / "small"
    assert registry.is_cached(entry)
    assert not registry.is_cached(entry, cache_dir=tmp_path / "elsewhere")
    assert visible(folder) == ["config.json", "weights.pt"]
    assert len(hub.requests) == 2  # the config was not fetched twice


def served(hub: Site, repo: str, names: list[str], revision: str = "main") -> None:
    hub.files |= {f"/{repo}/resolve/{revision}/{name}": name.encode() for name in names}


COSYVOICE2 = ["flow.pt", "hift.pt", "campplus.onnx", "speech_tokenizer_v2.onnx"]
SOCODEC = ["socodec_16384x4_120ms_16khz_chinese.safetensors", "mel_vocoder_80dim_10ms_16khz.safetensors"]
SPEECHTOKENIZER = ["speechtokenizer_hubert_avg/config.json", "speechtokenizer_hubert_avg/SpeechTokenizer.pt"]


@pytest.mark.parametrize(
    ("repo", "needed", "others"),
    [
        ("ResembleAI/chatterbox", ["s3gen.safetensors"], ["s3gen_v3.safetensors", "s3gen.pt", "ve.pt"]),
        ("ResembleAI/chatterbox-nano", ["s3gen_meanflow.safetensors"], ["s3gen.safetensors", "vocab.json"]),
        ("FunAudioLLM/CosyVoice2-0.5B", COSYVOICE2, ["llm.pt", "speech_tokenizer_v2.batch.onnx"]),
        ("OpenMOSS-Team/SpeechTokenizer", SPEECHTOKENIZER, ["README.md"]),
        ("hhguo/SoCodec", SOCODEC, ["README.md"]),
    ],
)
def test_a_repository_of_the_authors_gives_what_its_model_needs(hub, monkeypatch, repo, needed, others):
    name = registry.PUBLISHED[repo]
    entry = registry.get(name)
    small = tuple(replace(file, sha256=None) for file in entry.files)  # the files served here are a few bytes
    monkeypatch.setitem(registry.MODELS, name, replace(entry, files=small))
    served(hub, repo, needed + others)
    hubert = "chinese-hubert-large-fairseq-ckpt.pt"
    served(hub, "TencentGameMate/chinese-hubert-large", [hubert])
    folder = registry.fetch(registry.published(repo))
    parts = [hubert] if repo == "hhguo/SoCodec" else []
    assert visible(folder) == sorted([Path(file).name for file in needed] + parts)
    assert len(hub.requests) == len(needed + parts)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert registry.fetch(registry.published(repo)) == registry.fetch(registry.get(name)) == folder
    refused(DownloadError, "HF_HUB_OFFLINE", lambda: registry.fetch(registry.published(repo, revision="v2")))


def s3gen_of(name: str) -> bytes:
    """A file that the error of opening it names, by a tensor that no S3Gen has."""
    import torch
    from safetensors.torch import save

    names = ("flow.input_embedding.weight", "mel2wav.conv_pre.bias", f"{name}_alone.x")
    return save({name: torch.zeros(1) for name in names})


def test_of_several_s3gens_the_publishers_choice_opens_or_the_variant(hub, tmp_path):
    served(hub, "ResembleAI/chatterbox", ["s3gen.safetensors"])
    hub.files["/ResembleAI/chatterbox/resolve/main/s3gen_v3.safetensors"] = s3gen_of("s3gen_v3")
    refused(CheckpointError, "s3gen_v3_alone", vokens.load, "ResembleAI/chatterbox", variant="s3gen_v3")
    assert [request["path"][-20:] for request in hub.requests] == ["s3gen_v3.safetensors"]
    names = ["s3gen_meanflow", "s3gen", "s3gen_v3"]
    for name in (*names, "t3"):
        (tmp_path / f"{name}.safetensors").write_bytes(s3gen_of(name))
    refused(CheckpointError, "s3gen_alone", vokens.load, tmp_path, variant="s3gen")
    with pytest.raises(ConfigError, match=r"variants here: s3gen, s3gen_meanflow, s3gen_v3, t3"):
        vokens.load(tmp_path, variant="s3gen_v4")
    refused(ConfigError, "leave it out", vokens.load, "hhguo/SoCodec", variant="s3gen")
    for name in names:
        refused(CheckpointError, f"{name}_alone", vokens.load, tmp_path)
        (tmp_path / f"{name}.safetensors").unlink()


def test_a_variant_is_the_file_that_was_named(hub):
    """Whatever files of the repository lie beside it since earlier calls."""
    for revision, names in (("main", ("s3gen", "s3gen_v3")), ("v1", ("s3gen_meanflow", "s3gen"))):
        for name in names:
            hub.files[f"/ResembleAI/chatterbox-turbo/resolve/{revision}/{name}.safetensors"] = s3gen_of(name)
    for revision, variant, opened in (
        (None, "s3gen", "s3gen"),
        (None, "s3gen_v3", "s3gen_v3"),
        ("v1", None, "s3gen_meanflow"),
        ("v1", "s3gen", "s3gen"),
    ):
        with pytest.raises(CheckpointError, match=f"{opened}_alone"):
            vokens.load("ResembleAI/chatterbox-turbo", revision=revision, variant=variant)
    for name in ("chatterbox_s3gen", "mini", __file__):
        refused(ConfigError, r"there are none; leave it out", vokens.load, name, revision="v1")


@pytest.mark.parametrize("release", ["cosyvoice2", "cosyvoice3"])
def test_cosyvoices_id_speaks_from_the_hub_alone(hub, tmp_path, monkeypatch, release):
    """Reduced files in the published layout; then without a network, from the cache that others share."""
    import soundfile
    from conftest import speechlike
    from test_say import published_folder

    from vokens.cli import main

    repo = {"cosyvoice2": "FunAudioLLM/CosyVoice2-0.5B", "cosyvoice3": "FunAudioLLM/Fun-CosyVoice3-0.5B-2512"}
    folder, needed = published_folder(tmp_path / "CosyVoice", release), set()
    for name in (f"{release}_s3gen", f"{release}_lm"):
        entry = registry.get(name)
        small = tuple(replace(file, sha256=None) for file in entry.files)
        monkeypatch.setitem(registry.MODELS, name, replace(entry, files=small))
        needed |= {file.path for file in small}
    start = f"/{repo[release]}/resolve/main/"
    for file in folder.rglob("*.*"):
        hub.files[start + file.relative_to(folder).as_posix()] = file.read_bytes()
    monkeypatch.chdir(tmp_path)
    soundfile.write("ref.wav", speechlike(16000), 16000)
    line = ["say", "Hi.", "--model", repo[release], "--voice", "ref.wav", "--steps", "1", "-o"]
    assert main([*line, "one.wav"]) == 0
    assert {request["path"].removeprefix(start) for request in hub.requests} == needed
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VOKENS_CACHE", str(tmp_path / "another"))
    assert main([*line, "two.wav"]) == 0
    assert Path("one.wav").read_bytes() == Path("two.wav").read_bytes()


def test_s3gens_open_by_their_authors_ids(hub):
    """Chatterbox's one file, and a folder as transformers writes one, reduced."""
    from s3gen_model import SETTINGS, published
    from safetensors.torch import save

    from vokens.models.s3gen import S3GenModel

    content = save(published("chatterbox"))
    hub.files["/ResembleAI/chatterbox/resolve/v1/s3gen.safetensors"] = content
    hub.files["/ResembleAI/s3gen/resolve/main/model.safetensors"] = content
    hub.files["/ResembleAI/s3gen/resolve/main/config.json"] = b'{"model_type": "s3gen", "vocab_size": 6561}'
    for repo, revision in (("ResembleAI/chatterbox", "v1"), ("ResembleAI/s3gen", None)):
        model = S3GenModel.from_pretrained(repo, revision=revision, config=SETTINGS)
        assert model.config.flow.source == "v1"
        assert model.config.tokens == "speech_tokenizer_v2_25hz"


def test_what_the_shared_cache_of_the_hub_holds_is_not_fetched(hub, tmp_path, monkeypatch):
    shared = tmp_path / "huggingface"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(shared))
    place = shared / "models--org--name"
    commit = hashlib.sha1(b"main").hexdigest()
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (place / folder).mkdir(parents=True)
    (place / "refs/main").write_text(commit)
    (place / "blobs" / SHA).write_bytes(DATA)
    (place / f"snapshots/{commit}/model.safetensors").symlink_to(place / "blobs" / SHA)
    hub.files["/org/name/resolve/main/config.json"] = b"{}"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    weights = registry.hub_snapshot("org/name", files=["model.safetensors"]) / "model.safetensors"
    assert weights.read_bytes() == DATA
    weights.unlink()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.files["/org/name/resolve/main/model.safetensors"] = DATA
    folder = registry.hub_snapshot("org/name")
    assert (folder / "model.safetensors").read_bytes() == DATA
    assert [request["path"] for request in hub.requests] == ["/org/name/resolve/main/config.json"]
    (place / "blobs" / SHA).unlink()  # the cache was cleaned: fetched as if it had never been there
    assert (registry.hub_snapshot("org/name") / "model.safetensors").read_bytes() == DATA
    assert (folder / "model.safetensors").is_file()


# Names


def test_every_entry_is_complete():
    for entry in registry.entries():
        assert registry.get(entry.name) is entry
        assert entry.licence
        assert entry.source
        assert entry.embedded or (
            (entry.size_bytes is None or entry.size_bytes > 1e6)
            and entry.source in str(entry.files[0].url)  # parts may be another's
        )
        for file in entry.files:
            assert file.sha256 is None or (len(file.sha256) == 64 and file.sha256 == file.sha256.lower())
            assert file.size is None or file.size % 10_000, "a rounded size is none"
    assert registry.MODELS["mini"].embedded
    assert registry.folder(registry.MODELS["mini"]).parts[-3:] == ("vokens", "weights", "mini")


def test_a_size_that_is_not_known_is_not_counted():
    known, unknown = registry.File("a.pt", size=2_000_000), registry.File("b.pt")
    config = registry.File("config.json")
    facts = ("n", "mini", "", 16000, 50.0, 8, 1024, "MIT", "org/name")
    assert registry.Entry(*facts, files=(known, config)).size == "2 MB"
    whole = registry.Entry(*facts, files=(known, unknown))
    assert whole.size_bytes is None
    assert whole.size == "size not known"
    sizes = {file.path: file.size for file in registry.get("cosyvoice2_s3gen").files}
    assert sizes == {
        "flow.pt": 450_575_567,
        "hift.pt": 83_390_254,
        "campplus.onnx": 28_303_423,
        "speech_tokenizer_v2.onnx": 496_082_973,
    }


def test_published_files_are_where_their_publishers_put_them(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    urls = [file.url for file in registry.get("speechtokenizer_hubert_avg").files]
    base = "https://huggingface.co/fnlp/SpeechTokenizer/resolve/main/speechtokenizer_hubert_avg"
    assert urls == [f"{base}/config.json", f"{base}/SpeechTokenizer.pt"]


def test_an_unknown_name_lists_its_neighbours():
    with pytest.raises(ConfigError, match=r"did you mean .*speechtokenizer_hubert_avg"):
        registry.get("speechtokenizer_huber_avg")
    refused(ConfigError, r"no model is called 'zzz'.*vokens models lists the names", registry.get, "zzz")


def test_an_unknown_path_names_the_nearest_file_and_no_models(tmp_path):
    (tmp_path / "s3gen.safetensors").touch()
    for name, meant in (
        (f"{tmp_path}/s3gn.safetensors", "did you mean s3gen.safetensors"),
        (f"{tmp_path}/other.pt", "check the path"),
        (f"{tmp_path}/none/other.pt", "there is no folder"),
        ("nothere.safetensors", "check the path"),
    ):
        with pytest.raises(ConfigError, match=f"there is no file or folder '{name}'.*{meant}") as caught:
            vokens.load(name)
        assert not set(registry.MODELS) & set(str(caught.value).replace(",", "").split())


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.delenv("VOKENS_CACHE", raising=False)
    assert registry.cache_folder() == Path.home() / ".cache" / "vokens"
    monkeypatch.setenv("VOKENS_CACHE", str(tmp_path))
    assert registry.cache_folder() == tmp_path
    assert registry.cache_folder("~/x") == Path.home() / "x"


def test_names_are_known_without_torch():
    code = "import sys, vokens.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Released files, told by their sizes


def safetensors_bytes(state: dict) -> int:
    """Bytes of a file that holds these tensors: a length, names and places in order of type and name, numbers."""
    import json

    header, end = {}, 0
    for name, tensor in sorted(state.items(), key=lambda item: (item[1].is_floating_point(), item[0])):
        places, end = [end, end + tensor.nbytes], end + tensor.nbytes
        kind = "F32" if tensor.is_floating_point() else "I64"
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": places}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + -length % 8 + end


@pytest.mark.parametrize(
    ("release", "tensors", "buffers"),
    [("chatterbox", 2489, ["_mel_filters"]), ("chatterbox-turbo", 2491, ["_mel_filters", "window"])],
)
def test_chatterboxs_files_are_our_names_to_the_byte(release, tensors, buffers):
    """Every name, type and shape of the released files follows from their sizes, but for a swap of equal ones."""
    import torch

    from vokens.models.s3gen import S3GenModel
    from vokens.models.s3gen.checkpoint import flow_to_published, hift_to_published
    from vokens.models.s3gen.config import DIALECTS

    with torch.device("meta"):
        model = S3GenModel(DIALECTS[release])
        kept = {"_mel_filters": torch.zeros(128, 201), "window": torch.zeros(400)}
        parts = {
            "tokenizer": model.tokenizer.to_published() | {name: kept[name] for name in buffers},
            "speaker_encoder": model.speaker_encoder.state_dict(),
            "flow": flow_to_published(model.flow.state_dict()),
            "mel2wav": hift_to_published(model.mel2wav.state_dict()),
        }
    state = {f"{part}.{name}": tensor for part, names in parts.items() for name, tensor in names.items()}
    assert len(state) == tensors
    assert safetensors_bytes(state) == registry.get(f"{release.replace('-', '_')}_s3gen").files[0].size


@pytest.mark.parametrize(
    ("name", "file", "tensors"),
    [
        ("speechtokenizer_hubert_avg", "SpeechTokenizer.pt", 166),
        ("cosyvoice2_s3gen", "flow.pt", 1121),
        ("cosyvoice2_s3gen", "hift.pt", 328),
        ("cosyvoice2_lm", "llm.pt", 295),
        ("cosyvoice3_s3gen", "flow.pt", 330),
        ("cosyvoice3_s3gen", "hift.pt", 328),
        ("cosyvoice3_lm", "llm.pt", 293),
        ("speech_tokenizer_v3_25hz", "speech_tokenizer_v3.onnx", 198),
    ],
)
def test_released_files_have_our_counts_and_sizes(name, file, tensors):
    """torch writes 200 to 400 bytes beside each tensor, a graph of 198 weights some 1.4 MB of nodes."""
    state = published_state(name, file)
    assert len(state) == tensors
    if name == "cosyvoice3_lm":
        assert sum(tensor.numel() for tensor in state.values()) == 642_283_136  # its size is not known
    size = next(one.size for one in registry.get(name).files if one.path == file)
    numbers = {k: v for k, v in state.items() if not k.endswith("lm_head.weight")}  # tied: once in the file
    beside = None if size is None else size - sum(4 * tensor.numel() for tensor in numbers.values())
    if beside is not None:
        assert (
            (0 if file.endswith(".onnx") else 200 * tensors)
            < beside
            < (2e6 if file.endswith(".onnx") else 400 * tensors)
        )


def published_state(name: str, file: str) -> dict:
    """The tensors of a released file by our tables, without values."""
    import torch

    from vokens.models.s3gen.checkpoint import flow_to_published, hift_to_published
    from vokens.models.s3gen.config import DIALECTS, S3GenModelConfig
    from vokens.models.s3gen.flow import TokenToMel
    from vokens.models.s3gen.hift import HiFTNetModel
    from vokens.models.s3tokenizer import RELEASES, S3Tokenizer
    from vokens.models.speechtokenizer import SpeechTokenizer, SpeechTokenizerConfig

    with torch.device("meta"):
        if file == "llm.pt":
            from vokens.models.learnable import LearnableLM, LearnableLMConfig

            return LearnableLM(
                LearnableLMConfig(speaker=None, release=name.removesuffix("_lm"))
            ).to_published()
        if name in RELEASES:
            return S3Tokenizer(RELEASES[name]).to_published()
        if file == "SpeechTokenizer.pt":
            return SpeechTokenizer(SpeechTokenizerConfig()).to_published()
        config = DIALECTS[name.removesuffix("_s3gen")]
        if file == "flow.pt":
            return flow_to_published(TokenToMel(config).state_dict())
        return hift_to_published(HiFTNetModel(S3GenModelConfig.of_flow(config).mel2wav).state_dict())
