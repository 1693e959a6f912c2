"""Where requests go: presets by name, the key from the environment, and what counts as local.

Endpoint.parse("deepseek", "deepseek-chat")
Endpoint.parse("http://127.0.0.1:8000/v1", "qwen3-8b").is_local     # True
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from cbtqa.errors import ConfigError, EndpointAuthError, LicenceGateError
from cbtqa.manifest import now
from cbtqa.plain_values import parse_yaml
from cbtqa.records import Record
from cbtqa.secrets import remember

ResponseFormat = Literal["json_schema", "json_object", "text"]
TransportName = Literal["http", "sdk", "batch-api", "batch-files"]
"""The two of `transport`, and the two kinds of batch of `openai_batch`."""
BATCH_FILES = "batch-files:"
BATCH_PRICE = 0.5
"""Source: OpenAI, "Batch API": 50 % of the price of synchronous requests."""
OWN_KEY = "CBTQA_API_KEY"
"""Environment variable for the key of an endpoint given by URL."""
KEY_SUFFIX = "_API_KEY"
OWN_VARIABLES = "CBTQA_KEY_VARIABLES"
"""Environment variable in which a user lists further variables, by commas, that may hold keys."""


class Preset(Record):
    """One row of presets.yaml."""

    base_url: str
    key_env: str
    format: ResponseFormat
    max_tokens_field: str = "max_tokens"


class PresetFile(Record):
    """presets.yaml as a whole."""

    as_of: object
    presets: dict[str, Preset]


@cache
def preset_file() -> PresetFile:
    """The shipped presets."""
    text = files("cbtqa.llm").joinpath("presets.yaml").read_text(encoding="utf-8")
    return PresetFile.model_validate(parse_yaml(text))


class AddressError(ConfigError):
    """`--endpoint` names no address."""

    exit_code = 2


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server and the model to ask there."""

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)
    """Never printed, logged or written; masked wherever this process writes (`secrets`)."""
    format: ResponseFormat = "json_schema"
    """The highest rung of structured output worth trying."""
    max_tokens_field: str = "max_tokens"
    transport: TransportName = "http"
    key_env: str = OWN_KEY
    """Environment variable that the key was looked for in."""
    allows_plain_http: bool = False
    """True when a remote host may be asked without encryption."""

    def __post_init__(self) -> None:
        remember(self.key)

    def __setstate__(self, state: dict[str, object]) -> None:
        # pickled to another process, such as an actor of a cluster, which is to mask it too
        self.__dict__.update(state)
        remember(self.key)

    @classmethod
    def parse(
        cls,
        endpoint: str,
        model: str,
        *,
        transport: TransportName = "http",
        environ: Mapping[str, str] | None = None,
        allows_plain_http: bool = False,
    ) -> Endpoint:
        """An endpoint from the words `--endpoint URL|PRESET|batch-files:FOLDER --model NAME`.

        The key comes from the preset's own variable, or from CBTQA_API_KEY for a URL: a provider's
        key is never sent to another host. `check_key` demands one: an estimate needs none.

        Raises:
            AddressError: no such preset, or a URL that is none.
            ConfigError: a URL that carries a secret, or an unusable key.
        """
        environ = os.environ if environ is None else environ
        if not model.strip():
            raise ConfigError("no model is named", hint="add --model NAME")
        if endpoint.startswith(BATCH_FILES):
            return cls(endpoint, model, transport="batch-files")
        presets = preset_file().presets
        preset = presets.get(endpoint)
        if preset is None and "://" not in endpoint:
            known = ", ".join(presets)
            raise AddressError(
                f"'{_without_secrets(endpoint)}' is neither a preset nor a URL",
                hint=f"presets: {known}; a URL starts with http:// or https://; "
                f"{BATCH_FILES}FOLDER writes the requests to files",
            )
        base_url = checked_url(preset.base_url if preset else endpoint)
        if preset is None:
            preset = _preset_of_host(base_url)
        variable = preset.key_env if preset else OWN_KEY
        key = (environ.get(variable) or environ.get(OWN_KEY) or "").strip() or None
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError(
                f"{variable} holds no key: a key is one word of ASCII letters, digits and signs"
            )
        given: dict[str, Any] = {"transport": transport, "allows_plain_http": allows_plain_http}
        made = cls(base_url, model, key, key_env=variable, **given)
        if preset is None:
            return made
        return replace(made, format=preset.format, max_tokens_field=preset.max_tokens_field)

    def check_key(self) -> None:
        """Checks that a remote endpoint may be asked.

        Raises:
            ConfigError: it would be asked without encryption, and that was not allowed.
            EndpointAuthError: there is no key for it.
        """
        if self.is_local:
            return
        if self.base_url.lower().startswith("http:") and not self.allows_plain_http:
            told = f"http://{self.host} is not local"
            if "." not in self.host or self.host.endswith(_PRIVATE_SUFFIXES):
                told = f"{self.host} resolves to no local address here"
            raise ConfigError(
                f"{told}: over http://, key and text could be read on the way",
                hint="use https://, or a tunnel to a local port; --allow-plain-http where the "
                "network in between is your own",
            )
        if self.key is None:
            raise EndpointAuthError(f"no key for {self.host}", hint=f"export {self.key_env}=...")

    @property
    def host(self) -> str:
        """Host name only, as provenance keeps it; `batch-files` when nobody knows who answers."""
        return "batch-files" if self.folder else urlsplit(self.base_url).hostname or ""

    @property
    def folder(self) -> Path | None:
        """Where requests and results are files; None for a server."""
        is_folder = self.base_url.startswith(BATCH_FILES)
        return Path(self.base_url.removeprefix(BATCH_FILES)) if is_folder else None

    @property
    def is_local(self) -> bool:
        """True when what is sent stays on this machine or in its private network."""
        return self.folder is not None or is_local(self.base_url)

    @property
    def is_this_machine(self) -> bool:
        """True when the address is a loopback one."""
        with suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host == "localhost"

    @property
    def is_batch(self) -> bool:
        """True when requests are handed in as files and answered later."""
        return self.transport in ("batch-api", "batch-files")

    @property
    def price_factor(self) -> float:
        """What a request costs here by the price of one that is answered at once."""
        return BATCH_PRICE if self.transport == "batch-api" else 1.0

    def headers(self) -> dict[str, str]:
        """Headers of every request; without `Authorization` when there is no key."""
        common = {"Content-Type": "application/json", "Accept": "application/json"}
        return common | ({"Authorization": f"Bearer {self.key}"} if self.key else {})


def _preset_of_host(base_url: str) -> Preset | None:
    """The preset of the same remote host: a URL with another path is still that provider."""
    host = urlsplit(base_url).hostname
    if host in (None, "127.0.0.1"):
        return None
    presets = preset_file().presets.values()
    return next((one for one in presets if urlsplit(one.base_url).hostname == host), None)


def check_key_variable(name: str, environ: Mapping[str, str] | None = None) -> None:
    """Raises ConfigError unless a name ends in `_API_KEY` or CBTQA_KEY_VARIABLES lists it.

    A file may come from somebody else: it must not be able to send any secret of the environment.
    """
    environ = os.environ if environ is None else environ
    own = {one.strip() for one in environ.get(OWN_VARIABLES, "").split(",")}
    if not name.endswith(KEY_SUFFIX) and name not in own:
        raise ConfigError(
            f"key_env: '{name}' is no variable for a key: its name does not end in {KEY_SUFFIX} "
            f"and {OWN_VARIABLES} does not list it"
        )


def checked_url(url: str) -> str:
    """The base address of an endpoint.

    Raises:
        AddressError: no HTTP URL.
        ConfigError: one with a user, query or fragment, which is not repeated.
    """
    url = url.strip().rstrip("/").removesuffix("/chat/completions")
    try:
        parts = urlsplit(url)
    except ValueError:  # its words would repeat all of it
        raise AddressError(
            f"'{_without_secrets(url)}' is no HTTP URL",
            hint="a bracket is left open, or a sign only looks like one of :/?#@",
        ) from None
    # what an address carries beside a place is a secret, refused as it is
    held = [parts.username, parts.password, parts.fragment]
    held += [value for _, value in parse_qsl(parts.query, keep_blank_values=True)]
    for one in filter(None, held):
        remember(one)
        remember(unquote(one))
    try:
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        has_port = False
    is_odd = any(sign.isspace() or not sign.isprintable() for sign in parts.netloc)
    is_http = parts.scheme in ("http", "https")
    if not is_http or not parts.hostname or not has_port or is_odd:
        place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        raise AddressError(f"{place!r} is no HTTP URL", hint="such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            f"the URL of {parts.hostname} carries a user, a query or a fragment",
            hint=f"give the bare address; a key goes into the environment, such as {OWN_KEY}",
        )
    return url


def _without_secrets(url: str) -> str:
    """The beginning of what is no URL, without what may be a user, a password or a query."""
    scheme, sign, rest = url.rpartition("://")
    place = re.split("[?#？＃]", re.split("[@＠]", rest)[-1])[0]
    return (re.split("[@＠]", scheme)[-1] + sign + place)[:80]


_LOCAL_RANGES = (
    "127.0.0.0/8 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 169.254.0.0/16 0.0.0.0/32 "
    "::/128 ::1/128 fc00::/7 fe80::/10"
)
_LOCAL_NETWORKS = tuple(map(ipaddress.ip_network, _LOCAL_RANGES.split()))
"""Loopback, RFC 1918, link-local, unique local. Not `is_private`: that also counts ranges which
are merely reserved, and 100.64.0.0/10 belongs to the internet provider."""
_PRIVATE_SUFFIXES = (".internal", ".home.arpa", ".lan", ".local", ".localhost")
"""Names that public DNS does not hand out, or that nobody can register there. A resolver may still
send them anywhere, so the addresses decide."""


def is_local(url: str) -> bool:
    """True when the host is this machine or a private address; a public name never is.

    A dotted name is public even when it resolves to a private address today: its owner can point
    it elsewhere tomorrow. A bare name (`gpu-box`, a container) and the private suffixes are local
    when every address they resolve to is.
    """
    try:
        host = (urlsplit(url).hostname or "").rstrip(".").lower()
    except ValueError:
        return False
    if not host:
        return False
    with suppress(ValueError):
        return _is_local_address(host)
    if host == "localhost":
        return True
    if "." in host and not host.endswith(_PRIVATE_SUFFIXES):
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return bool(found) and all(_is_local_address(str(entry[4][0])) for entry in found)
    except (OSError, ValueError):  # no such name, or an answer that is no address
        return False


def _is_local_address(text: str) -> bool:
    """Raises ValueError when the text is no address."""
    address = ipaddress.ip_address(text.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in _LOCAL_NETWORKS)


def pass_disclosure_gates(
    endpoints: Iterable[Endpoint], what: str, *, is_acknowledged: bool
) -> dict[str, str]:
    """What the manifest records about text that is sent away; empty when nothing is disclosed.

    Args:
        what: would be sent, such as `the questions`.

    Raises:
        LicenceGateError: a non-local endpoint and no acknowledgement of PsyQA's user agreement.
    """
    hosts = dict.fromkeys(endpoint.host for endpoint in endpoints if not endpoint.is_local)
    if not hosts:
        return {}
    named = ", ".join(hosts)
    if not is_acknowledged:
        raise LicenceGateError(
            f"{what} would be sent to {named}. PsyQA's user agreement forbids passing its "
            "text on to third parties, and a hosted model is one",
            hint="use a local endpoint (--endpoint vllm, ollama, llama.cpp), or, if you have "
            "permission or the data is yours, add --acknowledge-disclosure to this command "
            "(recorded in the manifest; a settings file cannot say it)",
        )
    return {"disclosure": f"text sent to {named}; acknowledged {now()}"}
