"""The cache of sources: fetched once, bounded, never trusted blindly, never kept where it is private."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import pytest

from service.cache import SourceCache
from service.source import Source, resolve
from tests.hub_server import HubServer
from tricks import silent


def never() -> None:
    raise AssertionError("nothing is to be waited for")


@pytest.fixture
def source(hub: HubServer, small_llama: Path) -> Source:
    hub.add_model("forge/small", small_llama)
    return resolve("forge/small")


def other(hub: HubServer, small_llama: Path, name: str) -> Source:
    hub.add_model(name, {path.name: path.read_bytes() for path in small_llama.iterdir()})
    return resolve(name)


def use(cache: SourceCache, source: Source) -> Path:
    with cache.held(source, silent, never) as files:
        assert (files / "model.safetensors").is_file()
        return files


def test_weights_are_fetched_once(hub: HubServer, source: Source, tmp_path: Path) -> None:
    cache = SourceCache(tmp_path, 10**9)
    assert cache.missing(source) == source.size_bytes
    use(cache, source)
    served = hub.served("model.safetensors")
    assert cache.missing(source) == 0
    use(cache, source)
    assert hub.served("model.safetensors") == served


def test_a_file_that_was_changed_here_is_fetched_again(source: Source, tmp_path: Path) -> None:
    cache = SourceCache(tmp_path, 10**9)
    weights = use(cache, source) / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    use(cache, source)
    assert weights.read_bytes() == good


def test_the_longest_unused_goes_first_and_none_in_use(
    hub: HubServer, source: Source, small_llama: Path, tmp_path: Path
) -> None:
    cache = SourceCache(tmp_path, int(2.5 * source.size_bytes))
    second, third = other(hub, small_llama, "forge/b"), other(hub, small_llama, "forge/c")
    use(cache, source)
    time.sleep(0.02)
    use(cache, second)
    time.sleep(0.02)
    use(cache, source)
    use(cache, third)
    assert [cache.missing(one) == 0 for one in (source, second, third)] == [True, False, True]
    with cache.held(source, silent, never):
        time.sleep(0.02)
        use(cache, third)
        use(cache, second)
        assert cache.missing(source) == 0


def test_what_not_everybody_may_read_is_not_kept(source: Source, tmp_path: Path) -> None:
    cache = SourceCache(tmp_path, 10**9)
    assert cache.keeps(source)
    for kind in ({"private": True}, {"gated": True}, {"folder": "/x", "commit": None}):
        assert not cache.keeps(dataclasses.replace(source, **kind))
    assert not SourceCache(tmp_path, source.size_bytes - 1).keeps(source)


def test_two_that_want_the_same_fetch_it_once(hub: HubServer, source: Source, tmp_path: Path) -> None:
    cache = SourceCache(tmp_path, 10**9)

    def fetch() -> None:
        with cache.held(source, silent, lambda: None):
            pass

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hub.calls(r"GET /cdn/.*/model.safetensors") <= 1
