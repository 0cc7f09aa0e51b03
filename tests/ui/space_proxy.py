"""What stands before a Space: HTTPS at its own name, handed on to its port with the headers of a proxy."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

_OWN = {"connection", "transfer-encoding", "content-length"}


@contextmanager
def https(name: str, target: str, port: int, folder: Path) -> Iterator[None]:
    """`https://name` on `port` of this machine, for as long as the block runs; `target` is the Space."""
    key, certificate = _certificate(name, folder)
    client = httpx.AsyncClient(base_url=target, timeout=None)

    async def hand_on(request: Request) -> Response:
        headers = [(k, v) for k, v in request.headers.items() if k not in _OWN]
        headers += [
            ("x-forwarded-proto", "https"),
            ("x-forwarded-for", "203.0.113.7"),
            ("x-forwarded-host", name),
        ]
        url = httpx.URL(path=request.url.path, query=request.url.query.encode())
        asked = client.build_request(request.method, url, headers=headers, content=await request.body())
        answer = await client.send(asked, stream=True)
        body = StreamingResponse(answer.aiter_raw(), answer.status_code)
        body.raw_headers = [
            (k.lower(), v) for k, v in answer.headers.raw if k.lower() != b"transfer-encoding"
        ]
        return body

    methods = ["GET", "HEAD", "POST", "PUT", "DELETE"]
    app = Starlette(routes=[Route("/{path:path}", hand_on, methods=methods)])
    config = uvicorn.Config(
        app, "127.0.0.1", port, ssl_keyfile=key, ssl_certfile=certificate, log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def _certificate(name: str, folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths = folder / "key.pem", folder / "certificate.pem"
    paths[0].write_bytes(private)
    paths[1].write_bytes(signed.public_bytes(pem))
    return paths
