"""The embedded Redis: private, shared by commands, durable, gone at the end."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from service.redis_server import running_redis, socket_path
from service.settings import Settings
from tricks import TricksmithError


def test_it_answers_keeps_its_data_and_stops(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    with running_redis(settings) as url:
        client = redis.Redis.from_url(url, decode_responses=True)
        client.set("kept", "yes")
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("port") == {"port": "0"}
        pid = client.info("server")["process_id"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with running_redis(settings) as url:
        assert redis.Redis.from_url(url, decode_responses=True).get("kept") == "yes"


def test_only_the_user_can_reach_the_socket(tmp_path: Path) -> None:
    with running_redis(Settings(data=tmp_path)):
        socket = socket_path(tmp_path)
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700


def test_a_second_command_shares_it_and_the_last_one_stops_it(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    first = running_redis(settings)
    url = first.__enter__()
    pid = redis.Redis.from_url(url).info("server")["process_id"]
    code = (
        "import sys, redis; from pathlib import Path;"
        "from service.settings import Settings; from service.redis_server import running_redis\n"
        "with running_redis(Settings(data=Path(sys.argv[1]))) as url:\n"
        "    print(redis.Redis.from_url(url).info('server')['process_id'], flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as second:
        assert second.stdin
        assert second.stdout
        assert int(second.stdout.readline()) == pid
        first.__exit__(None, None, None)
        assert redis.Redis.from_url(url).ping()
        second.stdin.close()
        assert second.wait(20) == 0
    with pytest.raises(redis.ConnectionError):
        redis.Redis.from_url(url).ping()


def test_a_server_left_by_a_killed_command_is_used_again(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path;"
        "from service.settings import Settings; from service.redis_server import running_redis\n"
        "with running_redis(Settings(data=Path(sys.argv[1]))): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    with running_redis(Settings(data=tmp_path)) as url:
        assert redis.Redis.from_url(url).ping()
    with pytest.raises(redis.ConnectionError):
        redis.Redis.from_url(url).ping()


def test_a_data_folder_too_deep_for_a_socket(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a-rather-long-folder-name"] * 6)
    with running_redis(Settings(data=deep)) as url:
        assert redis.Redis.from_url(url).ping()
        assert (deep / "redis" / "appendonly.aof").exists()


def test_redis_url_wins_and_its_password_is_not_told(tmp_path: Path) -> None:
    with running_redis(Settings(data=tmp_path / "a")) as url:
        with running_redis(Settings(data=tmp_path / "b", redis_url=url)) as used:
            assert used == url
        assert not (tmp_path / "b").exists()
    gone = "redis://:hunter2@127.0.0.1:1/0"
    with (
        pytest.raises(TricksmithError, match="REDIS_URL") as error,
        running_redis(Settings(data=tmp_path, redis_url=gone)),
    ):
        pass
    assert "hunter2" not in str(error.value)


def server_pid(url: str) -> int:
    pid: int = redis.Redis.from_url(url).info("server")["process_id"]
    return pid


def answers(url: str) -> bool:
    try:
        return bool(redis.Redis.from_url(url, socket_timeout=1).ping())
    except redis.RedisError:
        return False


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_server_runs_again_with_all_that_it_had_accepted(tmp_path: Path) -> None:
    with running_redis(Settings(data=tmp_path)) as url:
        client = redis.Redis.from_url(url, decode_responses=True)
        for number in range(500):
            client.rpush("accepted", number)
        client.xadd("told", {"kind": "state"})
        told = client.xrange("told")
        os.kill(server_pid(url), signal.SIGKILL)
        wait_until(lambda: answers(url))
        assert client.lrange("accepted", 0, -1) == [str(number) for number in range(500)]
        assert client.xrange("told") == told


def test_a_server_that_is_stopped_for_a_while_gets_no_twin(tmp_path: Path) -> None:
    with running_redis(Settings(data=tmp_path)) as url:
        pid = server_pid(url)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: answers(url))
        assert server_pid(url) == pid


def test_two_users_of_a_killed_server_agree_on_one(tmp_path: Path) -> None:
    with running_redis(Settings(data=tmp_path)) as url, running_redis(Settings(data=tmp_path)):
        os.kill(server_pid(url), signal.SIGKILL)
        wait_until(lambda: answers(url))
        pid = server_pid(url)
        time.sleep(1.5)
        assert server_pid(url) == pid
    assert not answers(url)
