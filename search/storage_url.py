"""The address of a shared storage. Its password is in memory only: in no file, log or message."""

import os
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

VARIABLE = "LEANFRONT_STORAGE"
SCHEMES = ("postgresql", "grpc")
_EXAMPLES = "postgresql://user@host:5432/database or grpc://host:13000"


class StorageURLError(ValueError):
    """No address of a storage, or one with a password where none may be."""


@dataclass(frozen=True)
class StorageURL:
    """``text`` can be shown and written; ``secrets`` (name of a connection argument -> value) never."""

    text: str
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def scheme(self) -> str:
        """One of ``SCHEMES``."""
        return urlsplit(self.text).scheme

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Where a gRPC proxy listens; 13000 is Optuna's own default."""
        parts = urlsplit(self.text)
        return parts.hostname or "localhost", parts.port or 13000


def parse_url(url: str) -> StorageURL:
    """Take an address apart. The messages of its errors never have the address in them.

    Raises:
        StorageURLError: it is none, or not of a storage that is supported.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise StorageURLError(f"must be an address like {_EXAMPLES}")
    try:
        parts = urlsplit(url)
        user, host = parts.username, parts.hostname
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:  # its message may hold a piece of the password
        raise StorageURLError(
            f"must be an address like {_EXAMPLES}, special characters as %40 for @"
        ) from None
    if "@" in parts.path + parts.query or "#" in url:
        raise StorageURLError(
            "has special characters in a name or password: write %40 for @, %23 for #, %2F for /"
        )
    options = parse_qsl(parts.query, keep_blank_values=True)
    secrets = {name: value for name, value in options if "password" in name.lower()}
    if parts.password:
        secrets["password"] = unquote(parts.password)
    if scheme == "grpc" and (user or secrets or options or parts.path.strip("/") or not host):
        raise StorageURLError("of a gRPC proxy is grpc://host:port and nothing more")
    bracketed = f"[{host}]" if host and ":" in host else host or ""
    place = f"{user}@" if user else ""
    query = urlencode([(name, value) for name, value in options if name not in secrets])
    return StorageURL(
        f"{scheme}://{place}{bracketed}{port}{parts.path}{'?' if query else ''}{query}", secrets
    )


def without_password(url: str) -> str:
    """An address of a configuration or of the command line, where no password may be.

    Raises:
        StorageURLError: there is one, or it is no address of a storage.
    """
    parsed = parse_url(url)
    if parsed.secrets:
        raise StorageURLError(
            f"must not hold a password, which others could read: set PGPASSWORD or write it to ~/.pgpass,"
            f" or put the whole address into the environment variable {VARIABLE}"
        )
    return parsed.text


def storage_url(wanted: str | None) -> StorageURL | None:
    """The address to open: ``wanted``, or else that of LEANFRONT_STORAGE; None for the run's own journal.

    The variable's password serves ``wanted``, too, where they are otherwise the same.

    Raises:
        StorageURLError: one of them is no address of a storage.
    """
    text = os.environ.get(VARIABLE, "").strip()
    try:
        given = parse_url(text) if text else None
    except ValueError as error:
        raise StorageURLError(f"{VARIABLE} {error}") from None
    if wanted is None or (given is not None and given.text == wanted):
        return given
    return StorageURL(without_password(wanted))
