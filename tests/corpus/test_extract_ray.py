"""The Ray engine on a cluster of two raylets of this machine, one of which is killed while it works."""

import shutil
import time
from pathlib import Path
from threading import Thread

import pytest
from corpora import tree, write_clips

import vokens
from vokens.corpus.engine.local import Worker, extract
from vokens.corpus.engine.ray import Cluster, Slot, extract_on, room_of
from vokens.corpus.run import Settings, finished
from vokens.errors import ConfigError

ray = pytest.importorskip("ray")
CLIPS, SHARD = 60, 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_codec_folder: Path) -> tuple[Path, Path]:
    """A manifest of short pieces of real speech, one damaged and one missing, and a codec."""
    folder = tmp_path_factory.mktemp("corpus")
    manifest = write_clips(folder, CLIPS, 7)
    (folder / "clip31.wav").unlink()
    return manifest, shutil.copytree(tiny_codec_folder, folder / "codec")


def settings(corpus: tuple[Path, Path], out: Path) -> Settings:
    return Settings(source=str(corpus[0]), out=out, shard_size=SHARD, batch_seconds=1.0)


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster as Raylets

    sizes = {"num_cpus": 2, "object_store_memory": 80_000_000}
    quick = {"initial_delay_ms": 0, "period_ms": 300, "failure_threshold": 3}
    quick = {f"health_check_{name}": value for name, value in quick.items()}
    quick["worker_niceness"] = 0  # 15 by default
    head = {**sizes, "include_dashboard": False, "_system_config": quick}
    raylets = Raylets(initialize_head=True, head_node_args=head)
    second = raylets.add_node(**sizes)
    yield raylets, second
    ray.shutdown()
    raylets.shutdown()


def test_a_machine_dies_and_the_bytes_are_those_of_one_process(corpus, cluster, tmp_path):
    raylets, second = cluster
    extract(settings(corpus, tmp_path / "alone"), vokens.load(corpus[1]), Worker(workers=0))

    killed = []

    def kill() -> None:
        while len(finished(tmp_path / "ray")) < 3:
            time.sleep(0.05)
        raylets.remove_node(second, allow_graceful=False)
        killed.append(len(finished(tmp_path / "ray")))

    watcher = Thread(target=kill, daemon=True)
    watcher.start()
    expected = settings(corpus, tmp_path / "ray")
    summary = extract_on(expected, str(corpus[1]), "float32", Worker(), Cluster(raylets.address))
    watcher.join(10)
    assert killed
    assert summary["utterances"] == CLIPS - 2
    assert summary["failures"] == 2
    assert tree(tmp_path / "ray") == tree(tmp_path / "alone")

    other = Settings(source=str(corpus[0]), out=tmp_path / "ray", shard_size=SHARD + 1)
    with pytest.raises(ConfigError, match="mixing two"):  # an error of an encoder arrives as itself
        extract_on(other, str(corpus[1]), "float32", Worker(), Cluster(raylets.address))


def node(name: str, alive: bool = True, **resources: float) -> dict:
    return {"NodeID": name, "Alive": alive, "Resources": resources}


def test_what_a_cluster_has_room_for():
    room = room_of([node("a", CPU=16, GPU=2), node("b", CPU=64), node("c", alive=False, CPU=8, GPU=8)])
    assert room == ({"a/0": Slot("a", 0.0, 1.0), "a/1": Slot("a", 0.0, 1.0)}, 1.0)
    room = room_of([node("a", CPU=4), node("b", CPU=8)])
    assert room == ({"a": Slot("a", 3.0, 0.0), "b": Slot("b", 7.0, 0.0)}, 1.0)
    slots, decoder_cpus = room_of([node("a", CPU=1)])
    assert slots["a"].cpus + decoder_cpus <= 1
    assert len(room_of([node(name, CPU=4) for name in "abcde"], most=3)[0]) == 3


def test_no_cluster_there(corpus, tmp_path):
    ray.shutdown()
    with pytest.raises(ConfigError, match="no Ray cluster"):
        extract_on(settings(corpus, tmp_path), str(corpus[1]), "float32", Worker(), Cluster("127.0.0.1:1"))
