"""The setting `endpoint`: the URL of a server that speaks the OpenAI protocol."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import SplitResult, urlsplit

from qwchat.errors import UsageError
from qwchat.settings.value_types import SettingValue

KEY_VARIABLE = "QWCHAT_ENDPOINT_KEY"
_MAX_URL_LENGTH = 2000
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_VERSION = re.compile(r"(^|/)v\d+[a-z]*\d*(/|$)")
_OPERATIONS = ("/chat/completions", "/completions", "/models")


@dataclass(frozen=True)
class Endpoint:
    """A server that speaks the OpenAI protocol.

    Attributes:
        scheme: `http` or `https`.
        host: name or address, without brackets.
        port: TCP port.
        path: path of the protocol, such as `/v1`, without a slash at its end.
    """

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str, where: str) -> Endpoint:
        """Return the endpoint of a URL. The path `/v1` is added unless the URL has a version.

        Raises:
            UsageError: `text` is not such a URL; the message begins with `where` and repeats no password.
        """
        parts = _split(text, where)
        try:
            port, host = parts.port or _PORTS[parts.scheme], parts.hostname or ""
        except ValueError:
            raise UsageError(f"{where}: the port must be a number from 1 to 65535") from None
        if not _HOST.fullmatch(host):
            raise UsageError(f"{where} must name a host, such as http://localhost:8000")
        path = parts.path.rstrip("/")
        for operation in _OPERATIONS:
            path = path.removesuffix(operation).rstrip("/")
        return cls(parts.scheme, host.lower(), port, path if _VERSION.search(path) else f"{path}/v1")

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{self.scheme}://{self.name}"

    @property
    def url(self) -> str:
        """The URL that paths such as `/chat/completions` follow."""
        return f"{self.origin}{self.path}"

    @property
    def root(self) -> str:
        """The URL of paths outside the protocol, such as `/tokenize`."""
        return f"{self.origin}{_VERSION.split(self.path)[0]}"

    @property
    def name(self) -> str:
        """Host, with the port if it is not the usual one, for messages and sessions."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine, so that nothing travels over a network."""
        import ipaddress

        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_encrypted(self) -> bool:
        """Whether what is sent cannot be read on its way."""
        return self.scheme == "https" or self.is_loopback


def _split(text: str, where: str) -> SplitResult:
    """Return the parts of a URL without user, query and fragment. Raises UsageError."""
    example = "such as http://localhost:8000"
    try:
        parts = urlsplit(text)
    except ValueError:
        raise UsageError(f"{where} is not a valid URL: give one {example}") from None
    if "@" in parts.netloc:
        raise UsageError(
            f"{where} must not contain a user or a password: remove them, and put a key into {KEY_VARIABLE} or a file"
        )
    if not text.isascii() or not text.isprintable() or " " in text or len(text) > _MAX_URL_LENGTH:
        raise UsageError(f"{where} is not a valid URL: give one {example}")
    if parts.scheme not in _PORTS or not parts.netloc:
        raise UsageError(f"{where} must be a URL that begins with http:// or https://, {example}")
    if parts.query or parts.fragment:
        raise UsageError(f"{where} must not contain ? or #: leave out what follows")
    return parts


@dataclass(frozen=True)
class EndpointUrl:
    """A URL of a server."""

    accepts: ClassVar[str] = "a URL that begins with http:// or https://"
    range_text: ClassVar[str] = ""
    metavar: ClassVar[str] = "URL"
    choices: ClassVar[tuple[str, ...]] = ()

    def parse(self, text: str, where: str) -> str:
        """Parse a user's `text`."""
        return Endpoint.parse(text, where).url

    def check(self, value: object, where: str) -> str:
        """Check a value from a TOML file."""
        if not isinstance(value, str):
            raise UsageError(f"{where} must be {self.accepts}, not {type(value).__name__}")
        return self.parse(value, where)

    def to_text(self, value: SettingValue) -> str:
        """Format `value` for the user."""
        return str(value)

    def to_toml(self, value: SettingValue) -> SettingValue:
        """Format `value` for a TOML file."""
        return value
