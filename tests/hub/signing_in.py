"""The OpenID provider of a Hub of our own: a page that asks whoever it is, codes, tokens, keys."""

from __future__ import annotations

import html
import secrets
import time
from base64 import b64decode
from datetime import UTC, datetime
from functools import cache
from urllib.parse import parse_qs, unquote, urlencode

from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.hub.base import BaseHandler, Reply
from tests.hub.world import Answer, User

_PAGE = """<!doctype html><html lang="en"><title>Sign in</title><h1>{client} asks: {scope}</h1>
<form>{hidden}<label>Who are you? <input name="who"></label><button>Authorize</button></form></html>"""


@cache
def _key() -> RSAKey:
    return RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256", "kid": "hub"})


class SigningIn(BaseHandler):
    """The routes of OpenID Connect, as far as Gradio's client walks them."""

    def openid(self) -> Reply:
        at = self.world.endpoint
        return self.json(
            {
                "issuer": at,
                "authorization_endpoint": f"{at}/oauth/authorize",
                "token_endpoint": f"{at}/oauth/token",
                "userinfo_endpoint": f"{at}/oauth/userinfo",
                "jwks_uri": f"{at}/oauth/jwks",
                "id_token_signing_alg_values_supported": ["RS256"],
                "response_types_supported": ["code"],
            }
        )

    def jwks(self) -> Reply:
        return self.json({"keys": [_key().as_dict(private=False)]})

    def authorize(self) -> Reply:
        """Ask who it is; whoever answered goes back to the app with a code."""
        asked = {name: values[0] for name, values in self.query.items()}
        who = asked.pop("who", None)
        if who is None:
            hidden = "".join(
                f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">'
                for name, value in asked.items()
            )
            page = _PAGE.format(client=asked["client_id"], scope=html.escape(asked["scope"]), hidden=hidden)
            return lambda: self.send(200, page.encode(), {"Content-Type": "text/html"})
        code = secrets.token_hex(8)
        self.world.codes[code] = {**asked, "who": who}
        back = asked["redirect_uri"]
        back += ("&" if "?" in back else "?") + urlencode({"code": code, "state": asked["state"]})
        return lambda: self.send(302, b"", {"Location": back})

    def token(self) -> Reply:
        """A code for a token, once, and to the app alone that knows its secret."""
        form = {name: values[0] for name, values in parse_qs(self.body.decode()).items()}
        said = self.headers.get("Authorization", "").removeprefix("Basic ")
        client, _, secret = b64decode(said).decode().partition(":")
        asked = self.world.codes.pop(form["code"], None)
        known = unquote(client) == self.world.client[0] and unquote(secret) == self.world.client[1]
        if asked is None or not known or asked["redirect_uri"] != form["redirect_uri"]:
            raise Answer(400, "no such code")
        scope = self.world.granted_scopes or asked["scope"]
        lives = self.world.sign_in_s
        token = f"hf_oauth_{asked['who']}_{secrets.token_hex(4)}"
        ends = datetime.fromtimestamp(time.time() + lives, UTC).isoformat().replace("+00:00", "Z")
        self.world.users[token] = User(asked["who"], expires=ends)
        return self.json(
            {
                "access_token": token,
                "token_type": "bearer",
                "expires_in": lives,
                "scope": scope,
                "id_token": self._id_token(asked, lives),
            }
        )

    def userinfo(self) -> Reply:
        return self.json(_profile(self.someone().name, self.world.endpoint))

    def _id_token(self, asked: dict[str, str], lives: int) -> str:
        now = int(time.time())
        claims = {
            **_profile(asked["who"], self.world.endpoint),
            "iss": self.world.endpoint,
            "aud": asked["client_id"],
            "iat": now,
            "exp": now + lives,
            "nonce": asked.get("nonce"),
        }
        return jwt.encode({"alg": "RS256", "kid": "hub"}, claims, _key())


def _profile(name: str, at: str) -> dict[str, str]:
    about = {"sub": name, "name": name.title(), "preferred_username": name}
    return {**about, "profile": f"{at}/{name}", "picture": f"{at}/{name}.png"}
