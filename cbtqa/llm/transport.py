"""How a request is sent: over aiohttp, or over the openai SDK. Neither retries.

Both post the same body to the same address with the same headers, and both give the same
`Received` or raise the same errors; retries are in `asking`. aiohttp is the default because the
SDK's transports cost 1.3-2.8 CPU seconds per 1,000 replies and stop scaling near 1,000
connections; the SDK is for servers that need what only the SDK does.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from cbtqa.errors import EndpointError, EndpointTimeoutError
from cbtqa.llm.chat import Reply
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.protocol import described, error_of, parse_completion

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CONNECT_TIMEOUT_S = 15.0
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Received:
    """A reply and the headers it came with."""

    reply: Reply
    headers: Mapping[str, str]
    """Looked up without regard to letter case."""


def open_transport(endpoint: Endpoint, n_connections: int) -> Transport:
    """The transport that the endpoint names, with room for so many connections at once.

    Raises:
        EndpointAuthError: a remote endpoint, and no key for it.
    """
    endpoint.check_key()
    _allow_open_files(n_connections + 256)
    if endpoint.transport == "sdk":
        return SdkTransport(endpoint)
    return HttpTransport(endpoint)


def open_sdk(endpoint: Endpoint, *, max_retries: int) -> AsyncOpenAI:
    """The openai SDK's client for an endpoint, under the same rules as aiohttp's."""
    import openai

    return openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=endpoint.key or "none",
        max_retries=max_retries,
        http_client=openai.DefaultAsyncHttpxClient(
            follow_redirects=False, trust_env=not endpoint.is_local
        ),
    )


@contextmanager
def mapped_errors(unexpected: str) -> Iterator[None]:
    """Raises the SDK's errors as ours; `unexpected` begins the message of an odd one."""
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        answer = error.response
        raise error_of(answer.status_code, answer.headers, answer.content) from None
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        raise EndpointTimeoutError(f"the connection broke: {described(cause)}") from None
    except openai.APIError as error:
        raise EndpointError(f"{unexpected}: {described(error)}") from None


def _allow_open_files(wanted: int) -> None:
    """Raises the soft limit on open files as far as the hard one lets it; Windows has none."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class HttpTransport:
    """aiohttp, one session, no pool limit (the engine holds the limit)."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._url = f"{endpoint.base_url}/chat/completions"

    async def __aenter__(self) -> Self:
        import aiohttp

        self._aiohttp = aiohttp
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
            headers=self._endpoint.headers(),
            cookie_jar=aiohttp.DummyCookieJar(),
            # a proxy named in the environment would carry local text off this machine
            trust_env=not self._endpoint.is_local,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(self, body: dict[str, Any], timeout_s: float) -> Received:
        """One request, one reply; raises an `EndpointError` as `protocol.error_of` maps it."""
        aiohttp = self._aiohttp
        data = _ENCODER.encode(body).encode()
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        start = time.perf_counter()
        try:
            # a redirect is an error: it would carry the text and the key to an unchecked host
            async with self._session.post(
                self._url, data=data, timeout=timeout, allow_redirects=False
            ) as response:
                answer = await response.read()
        except TimeoutError:
            raise EndpointTimeoutError(f"no whole answer within {timeout_s:g} s") from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise EndpointError(f"no secure connection: {described(error)}") from None
        except aiohttp.ClientConnectorError as error:
            place = f"{error.host}:{error.port}"
            raise EndpointTimeoutError(f"cannot connect to {place}: {error.strerror}") from None
        except aiohttp.ClientError as error:
            raise EndpointTimeoutError(f"the connection broke: {described(error)}") from None
        if response.status != 200:
            raise error_of(response.status, response.headers, answer)
        return Received(parse_completion(answer, time.perf_counter() - start), response.headers)


class SdkTransport:
    """The openai SDK: it builds address, headers and key; its pool ends at 1,000 connections."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __aenter__(self) -> Self:
        import openai

        self._timeout_error = openai.APITimeoutError
        self._headers: Any = {} if self._endpoint.key else {"Authorization": openai.Omit()}
        self._client = open_sdk(self._endpoint, max_retries=0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def send(self, body: dict[str, Any], timeout_s: float) -> Received:
        """As `HttpTransport.send`."""
        fields = {name: value for name, value in body.items() if name not in ("model", "messages")}
        start = time.perf_counter()
        with mapped_errors("gave an unusable answer"):
            try:
                # the SDK's own limit is per read, not in all
                async with asyncio.timeout(timeout_s):
                    raw = await self._client.chat.completions.with_raw_response.create(
                        model=body["model"],
                        messages=body["messages"],
                        extra_body=fields,
                        extra_headers=self._headers,
                        timeout=timeout_s,
                    )
            except (TimeoutError, self._timeout_error):
                raise EndpointTimeoutError(f"no whole answer within {timeout_s:g} s") from None
        latency_s = time.perf_counter() - start
        return Received(parse_completion(raw.content, latency_s), raw.headers)


Transport = HttpTransport | SdkTransport
