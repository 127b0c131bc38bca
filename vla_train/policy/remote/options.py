"""What `remote` is told: where the server is, what it speaks, how long it may take."""

from dataclasses import dataclass, fields
from typing import Literal, cast
from urllib.parse import urlsplit

from vla_train.config import PolicyConfig

ProtocolName = Literal["vla-eval", "openpi"]
_TAKEN = ("factory", "url", "kwargs", "chunk_size")
"""Options of the policy that have a meaning here."""


@dataclass(frozen=True, kw_only=True)
class RemoteOptions:
    """What `policy.url` and `policy.kwargs` say."""

    url: str
    """ws://HOST:PORT, or wss://..."""
    protocol: ProtocolName = "vla-eval"
    """What the server speaks."""
    timeout_s: float = 120.0
    """Seconds that an answer may take; the first one often waits for a compiler."""
    connect_s: float = 30.0
    """Seconds that a server may take to be there, at the start and after it went away."""
    image_size: int | None = None
    """Pixels of a side of the images that are sent; 0: as they were drawn. None: as the server or its protocol has it."""

    @classmethod
    def of(cls, config: PolicyConfig) -> "RemoteOptions":
        """Of a policy's options.

        Raises:
            ValueError: The address is none, a name or value is unknown, or an option speaks of a model that is here.
        """
        for option in fields(config):
            if option.name not in _TAKEN and getattr(config, option.name) != option.default:
                raise ValueError(f"policy.{option.name} says nothing to policy.factory remote: the model is the server's")
        assert config.url is not None
        _check_url(config.url)
        names = ("protocol", "timeout_s", "connect_s", "image_size")
        unknown = sorted(config.kwargs.keys() - set(names))
        if unknown:
            raise ValueError(f"policy.kwargs with policy.factory remote are {', '.join(names)}, got {unknown[0]}")
        protocol = config.kwargs.get("protocol", cls.protocol)
        if protocol not in ("vla-eval", "openpi"):
            raise ValueError(f"policy.kwargs protocol must be vla-eval or openpi, got {protocol!r}")
        size = config.kwargs.get("image_size")
        if size is not None and not size.isdecimal():
            raise ValueError(f"policy.kwargs image_size must be a number of pixels, or 0 for images as they are, got {size!r}")
        return cls(
            url=config.url,
            protocol=cast(ProtocolName, protocol),
            timeout_s=_seconds(config.kwargs, "timeout_s", cls.timeout_s),
            connect_s=_seconds(config.kwargs, "connect_s", cls.connect_s),
            image_size=None if size is None else int(size),
        )


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    try:
        fits = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        fits = False
    if not fits:
        raise ValueError(f"policy.url must be ws://HOST:PORT or wss://HOST:PORT, got {url!r}")


def _seconds(kwargs: dict[str, str], name: str, default: float) -> float:
    try:
        value = float(kwargs.get(name, default))
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"policy.kwargs {name} must be a number of seconds above 0, got {kwargs[name]!r}")
    return value
