"""People who attack: others' private jobs, addresses for names, secrets that get out, open queues."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from service.api import Service
from service.doctor import Level, examine
from service.jobs import JobStore, State
from service.logs import blot
from service.redis_server import running_redis, socket_path
from service.settings import Settings
from tests.hub_server import HubServer
from tricks import BadInput


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(Settings(data=tmp_path / "data")) as service:
        yield service


def test_nobody_sees_or_changes_anothers_private_job(
    service: Service, small_llama: Path, tmp_path: Path
) -> None:
    mine = service.submit(str(small_llama), ["flashnorm"], str(tmp_path / "a"), user="ann", private=True)
    for ask in (
        service.job,
        service.events,
        service.card,
        service.evidence,
        service.job_plan,
        service.place,
        service.cancel,
        service.retry,
    ):
        for viewer in ("bob", ""):
            with pytest.raises(BadInput, match="there is no job"):
                ask(mine.id, viewer=viewer)
    assert service.jobs(viewer="bob") == []
    assert [job.id for job in service.jobs(viewer="ann")] == [mine.id]
    # Asking for the very same thing does not tell that it is there.
    theirs = service.submit(str(small_llama), ["flashnorm"], str(tmp_path / "a"), user="bob", private=True)
    assert theirs.id != mine.id
    assert service.cancel(mine.id, viewer="ann").state is State.CANCELLED


def test_anothers_public_job_may_be_seen_and_not_changed(
    service: Service, small_llama: Path, tmp_path: Path
) -> None:
    job = service.submit(str(small_llama), ["flashnorm"], str(tmp_path / "a"), user="ann")
    assert service.job(job.id, viewer="bob") == job
    for change in (service.cancel, service.retry):
        with pytest.raises(BadInput, match="somebody else's"):
            change(job.id, viewer="bob")
    assert service.job(job.id).state is State.QUEUED


@pytest.mark.parametrize("user", ["a:b", "a/b", "a b", "a\nb", "", "x" * 97, "tricks\0mith"])
def test_a_user_name_cannot_name_another_key(
    service: Service, small_llama: Path, tmp_path: Path, user: str
) -> None:
    with pytest.raises(BadInput, match="no user name"):
        service.submit(str(small_llama), ["flashnorm"], str(tmp_path / "a"), user=user)


@pytest.mark.parametrize(
    "model",
    [
        "http://127.0.0.1:{port}/a/b",
        "//127.0.0.1:{port}/b",
        "127.0.0.1:{port}/b",
        "a/b@http://127.0.0.1:{port}/",
        "a/b@..%2f..%2f127.0.0.1:{port}",
        "file:///etc/passwd",
        "a/b?x=http://127.0.0.1:{port}",
        "a\r\nHost: 127.0.0.1:{port}/b",
    ],
)
def test_no_name_makes_the_service_ask_another_address(service: Service, hub: HubServer, model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        name = model.format(port=trap.getsockname()[1])
        for ask in (lambda: service.plan(name), lambda: service.submit(name, ["flashnorm"], "smith/x")):
            with pytest.raises(BadInput):
                ask()
        for to in (name, f"smith/{name}"):
            with suppress(BadInput):
                service.submit("forge/none", ["flashnorm"], to)
        with pytest.raises(TimeoutError):
            trap.accept()


def test_no_token_or_password_gets_into_a_text() -> None:
    text = "401 for hf_abcdefghijkl at rediss://user:pa%20ss@host:6379/0, redis://:hunter2@h"
    assert blot(text) == "401 for hf_*** at rediss://***@host:6379/0, redis://***@h"


def test_a_password_from_a_file_is_not_shown(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hun/ter@2\n")
    env = {"REDIS_URL": "redis://host:1/0", "REDIS_PASSWORD_FILE": str(secret)}
    settings = Settings.from_env(env)
    assert settings.redis_url == "redis://:hun%2Fter%402@host:1/0"
    assert "hun" not in repr(settings)


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[str, Path, Settings]]:
    """An embedded Redis with a password, behind TLS: its address, the certificate, its settings."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    settings = Settings(data=tmp_path / "redis")
    with running_redis(settings) as plain, socket.create_server(("127.0.0.1", 0)) as listener:
        client = redis.Redis.from_url(plain)
        client.config_set("requirepass", "hunter2")
        threading.Thread(
            target=forward, args=[listener, context, socket_path(settings.data)], daemon=True
        ).start()
        yield f"localhost:{listener.getsockname()[1]}/0", certificate, settings
        client.config_set("requirepass", "")
        client.close()


def forward(listener: socket.socket, context: ssl.SSLContext, target: Path) -> None:
    """TLS in, the Unix socket out."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with suppress(OSError):
                client = context.wrap_socket(connection, server_side=True)
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(target))
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()


def test_redis_with_a_password_and_tls_by_configuration(
    tls: tuple[str, Path, Settings], small_llama: Path, tmp_path: Path
) -> None:
    address, certificate, _ = tls
    url = f"rediss://:hunter2@{address}?ssl_ca_certs={certificate}&ssl_cert_reqs=required"
    with Service(Settings(data=tmp_path / "data", redis_url=url)) as service:
        job = service.submit(str(small_llama), ["flashnorm"], str(tmp_path / "out"))
        store = JobStore(url)
        assert store.get(job.id).state is State.QUEUED
        assert store.messages("tricksmith:celery:cpu") == 1  # Celery went the same way
        store.close()


def test_a_redis_that_cannot_prove_itself_is_not_spoken_to(
    tls: tuple[str, Path, Settings], tmp_path: Path
) -> None:
    address, _, _ = tls
    from tricks import TricksmithError

    settings = Settings(data=tmp_path / "data", redis_url=f"rediss://:hunter2@{address}")
    with pytest.raises(TricksmithError, match="does not answer") as error, running_redis(settings):
        pass
    assert "hunter2" not in str(error.value)
    with (
        pytest.raises(TricksmithError),
        running_redis(replace(settings, redis_url=f"rediss://{address}?ssl_cert_reqs=none")) as url,
    ):
        JobStore(url, patience=0).waiting()


@pytest.mark.parametrize(("more", "level"), [("", Level.GOOD), ("&ssl_cert_reqs=none", Level.BAD)])
def test_the_doctor_says_how_safe_the_way_to_redis_is(
    tls: tuple[str, Path, Settings], tmp_path: Path, more: str, level: Level
) -> None:
    address, certificate, _ = tls
    url = f"rediss://:hunter2@{address}?ssl_ca_certs={certificate}{more}"
    told = {found.what: found for found in examine(Settings(data=tmp_path / "data", redis_url=url))}
    assert told["Redis"].level is Level.GOOD, told["Redis"].text
    assert told["Redis TLS"].level is level
    assert "hunter2" not in str(told)
