"""Downloads against a real server on this machine: resumed, verified, whole or absent; and the names."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import refused
from hub_server import Server, Site

import vokens
from vokens import download as download_module
from vokens import registry
from vokens.download import download
from vokens.errors import CheckpointError, ConfigError, DownloadError

DATA = bytes(range(256)) * 4096  # 1 MiB
SHA = hashlib.sha256(DATA).hexdigest()


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


@pytest.mark.parametrize(
    ("there", "cuts", "ranges", "sent"),
    [
        (b"", [100_000, 1, 300_000], True, [100_000, 1, 300_000, len(DATA) - 400_001]),  # no byte twice
        (b"", [600_000], False, [600_000, len(DATA)]),  # a server without ranges starts again
        (DATA, [], True, [0]),  # killed between the last byte and the renaming
        (DATA + b"more", [], True, [0, len(DATA)]),  # longer than the real one: dropped
    ],
)
def test_what_is_there_is_continued(site, tmp_path, there, cuts, ranges, sent):
    if there:
        (tmp_path / "x.bin.part").write_bytes(there)
    site.cuts, site.ranges = cuts, ranges
    download(f"{site.url}/x.bin", tmp_path / "x.bin", sha256=SHA)
    assert (tmp_path / "x.bin").read_bytes() == DATA
    assert site.sent() == sent
    assert visible(tmp_path) == ["x.bin"]


def test_a_later_run_continues_an_earlier_one(site, tmp_path):
    site.cuts = [500_000] + [0] * download_module.ATTEMPTS
    with pytest.raises(DownloadError, match=r"500000 of 1048576 bytes.*0\.5 MB are kept"):
        download(f"{site.url}/x.bin", tmp_path / "x.bin", sha256=SHA)
    assert visible(tmp_path) == ["x.bin.part"]
    site.requests.clear()
    download(f"{site.url}/x.bin", tmp_path / "x.bin", sha256=SHA)
    assert site.sent() == [len(DATA) - 500_000]
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
    refused(DownloadError, r"503.*it resumes there", download, f"{site.url}/x.bin", tmp_path / "y.bin")
    assert len(site.statuses) == 10 - download_module.ATTEMPTS


@pytest.mark.parametrize(
    ("status", "message"), [(404, "revision"), (401, "hf auth login"), (403, "gated"), (400, "400")]
)
def test_lasting_faults_are_told_at_once(site, tmp_path, status, message):
    site.statuses = [status] * 5
    refused(DownloadError, message, download, f"{site.url}/x.bin", tmp_path / "x.bin")
    assert len(site.requests) == 1
    assert visible(tmp_path) == []


def test_a_fetch_that_fails_is_told_leaves_nothing_and_chains_nothing(site, tmp_path, capsys):
    target = tmp_path / "cache/model/weights.bin"
    refused(DownloadError, "https", download, "file:///etc/hostname", target)
    with pytest.raises(DownloadError, match=r"refused.*[Cc]heck the network") as caught:
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
    url = f"{site.url}/x.bin"
    refused(DownloadError, r"1000000000000\.0 MB are needed", download, url, tmp_path / "x.bin")
    site.pretended_length = 0
    if Path("/dev/full").exists():
        (tmp_path / "y.bin.part").symlink_to("/dev/full")
        refused(DownloadError, r"No space left.*VOKENS_CACHE", download, url, tmp_path / "y.bin")
    (tmp_path / "file").write_bytes(b"")
    refused(DownloadError, "VOKENS_CACHE", download, url, tmp_path / "file" / "x.bin")


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
    refused(DownloadError, r"9/org/name.*fetched.*[Cc]heck the network", registry.hub_snapshot, "org/name")


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
    said = r"404.*config\.json and model\.safetensors.*save_pretrained"
    refused(DownloadError, said, registry.hub_snapshot, "org/name")
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


def unhashed(name: str, monkeypatch) -> registry.Entry:
    """An entry whose files, which are a few bytes here, may have any content."""
    entry = registry.get(name)
    files = tuple(replace(file, sha256=None) for file in entry.files)
    monkeypatch.setitem(registry.MODELS, name, replace(entry, files=files))
    return registry.get(name)


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
    entry = unhashed(registry.PUBLISHED[repo], monkeypatch)
    served(hub, repo, needed + others)
    hubert = "chinese-hubert-large-fairseq-ckpt.pt"
    served(hub, "TencentGameMate/chinese-hubert-large", [hubert])
    folder = registry.fetch(registry.published(repo))
    parts = [hubert] if repo == "hhguo/SoCodec" else []
    assert visible(folder) == sorted([Path(file).name for file in needed] + parts)
    assert len(hub.requests) == len(needed + parts)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert registry.fetch(registry.published(repo)) == registry.fetch(entry) == folder
    refused(DownloadError, "HF_HUB_OFFLINE", lambda: registry.fetch(registry.published(repo, revision="v2")))


def s3gen_of(name: str) -> bytes:
    """A file that the error of opening it names, by a tensor that no S3Gen has."""
    import torch
    from safetensors.torch import save

    names = ("flow.input_embedding.weight", "mel2wav.conv_pre.bias", f"{name}_alone.x")
    return save({name: torch.zeros(1) for name in names})


def test_of_several_s3gens_the_publishers_choice_opens_or_the_variant(tmp_path):
    names = ["s3gen_meanflow", "s3gen", "s3gen_v3"]
    for name in (*names, "t3"):
        (tmp_path / f"{name}.safetensors").write_bytes(s3gen_of(name))
    refused(CheckpointError, "s3gen_alone", vokens.load, tmp_path, variant="s3gen")
    here = r"variants here: s3gen, s3gen_meanflow, s3gen_v3, t3"
    refused(ConfigError, here, vokens.load, tmp_path, variant="s3gen_v4")
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
        options, before = {"revision": revision, "variant": variant}, len(hub.requests)
        refused(CheckpointError, f"{opened}_alone", vokens.load, "ResembleAI/chatterbox-turbo", **options)
        fetched = {request["path"].split("/")[-1] for request in hub.requests[before:]}
        assert fetched <= {f"{opened}.safetensors"}  # none where an earlier one had the same content
    for name in ("chatterbox_s3gen", "mini", __file__):
        refused(ConfigError, r"there are none; leave it out", vokens.load, name, revision="v1")


@pytest.mark.parametrize("release", ["cosyvoice2", "cosyvoice3"])
def test_cosyvoices_id_speaks_from_the_hub_alone(hub, tmp_path, monkeypatch, release):
    """Reduced files in the published layout; then without a network, from the cache that others share."""
    import soundfile
    from conftest import speechlike
    from speakers import published_folder

    from vokens.cli import main

    repo = {"cosyvoice2": "FunAudioLLM/CosyVoice2-0.5B", "cosyvoice3": "FunAudioLLM/Fun-CosyVoice3-0.5B-2512"}
    folder, names = published_folder(tmp_path / "CosyVoice", release), (f"{release}_s3gen", f"{release}_lm")
    needed = {file.path for name in names for file in unhashed(name, monkeypatch).files}
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
    place = tmp_path / "huggingface/models--org--name"
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


def test_an_unknown_name_lists_its_neighbours():
    near = r"did you mean .*speechtokenizer_hubert_avg"
    refused(ConfigError, near, registry.get, "speechtokenizer_huber_avg")
    refused(ConfigError, r"no model is called 'zzz'.*vokens models lists the names", registry.get, "zzz")


def test_an_unknown_path_names_the_nearest_file_and_no_models(tmp_path):
    (tmp_path / "s3gen.safetensors").touch()
    for name, meant in {
        f"{tmp_path}/s3gn.safetensors": "did you mean s3gen.safetensors",
        f"{tmp_path}/other.pt": "check the path",
        f"{tmp_path}/none/other.pt": "there is no folder",
        "nothere.safetensors": "check the path",
    }.items():
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
