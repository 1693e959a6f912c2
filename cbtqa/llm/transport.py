"""How a request is sent: over aiohttp, or over the openai SDK. Neither retries.

Both post the same body to the same address with the same headers, and both give the same
`Received` or raise the same errors; retries are in `asking`. aiohttp is the default because the
SDK's transports cost 1.3-2.8 CPU seconds per 1,000 replies and stop scaling near 1,000
connections; the SDK is for servers that need what only the SDK does.
"""

from __future__ import annotations

import asyncio
import errno
import json
import time
import zlib
from asyncio import Lock
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from cbtqa.errors import (
    BadResponseError,
    EndpointError,
    EndpointTimeoutError,
    NotListeningError,
)
from cbtqa.llm.chat import ChatRequest, Reply
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.protocol import error_of, parse_completion, request_body
from cbtqa.llm.server_words import described

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CONNECT_TIMEOUT_S = 15.0
MOST_BYTES = 8 * 2**20
"""Of one answer, unpacked: a completion has some thousand. More is an error of the server or an
attack, such as a few packed megabytes that unpack to gigabytes."""
NOT_THERE = "is the server running, and is --endpoint right?"
MOST_RESULT_BYTES = 2**30
"""Of a file of results: 50,000 of them."""
LARGE_BYTES = 2**18
"""From here on an answer is larger than any completion of this program's requests."""
ENCODINGS = "gzip, deflate"
"""What an answer may be packed with: both can be unpacked by a bounded step at a time."""
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Received:
    """A reply and the headers it came with."""

    reply: Reply
    headers: Mapping[str, str]
    """Looked up without regard to letter case."""


async def unpacked(
    chunks: AsyncIterator[bytes], encoding: str, most: int = MOST_BYTES, large: Lock | None = None
) -> AsyncIterator[bytes]:
    """The bytes of an answer, unpacked; never more than `most` of them are held.

    Args:
        large: shared by the answers of a server, which are read one at a time once they are large:
            hundreds in flight would hold gigabytes.

    Raises:
        BadResponseError: more than that, or not packed as its header says.
    """
    async with AsyncExitStack() as stack:
        n_bytes = 0
        async for chunk in _unpacked(chunks, encoding.strip().lower(), most):
            if large and n_bytes <= LARGE_BYTES < n_bytes + len(chunk):
                await stack.enter_async_context(large)
            n_bytes += len(chunk)
            yield chunk


async def _unpacked(chunks: AsyncIterator[bytes], packing: str, most: int) -> AsyncIterator[bytes]:
    n_bytes, unpack = 0, None
    async for chunk in chunks:
        if packing not in ("", "identity"):
            unpack = unpack or _unpacker(packing, chunk)
            try:
                chunk = unpack.decompress(chunk, most - n_bytes + 1)
            except zlib.error as error:
                raise BadResponseError(f"the answer cannot be unpacked: {error}") from None
        n_bytes += len(chunk)
        if n_bytes > most:
            raise BadResponseError(f"the answer is larger than {most >> 20} MiB")
        yield chunk
    if unpack is not None and not unpack.eof:
        raise BadResponseError("the packed answer breaks off")


def _unpacker(packing: str, chunk: bytes) -> Any:
    if packing not in ("gzip", "x-gzip", "deflate"):
        name = packing[:20].encode("ascii", "replace").decode()
        raise BadResponseError(f"the answer is packed as '{name}', which nobody asked for")
    # some servers send "deflate" without the header of zlib, whose low four bits are 8
    is_bare = packing == "deflate" and chunk[:1] and chunk[0] & 0x0F != 8
    return zlib.decompressobj(-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS | 32)


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
        default_headers={"Accept-Encoding": ENCODINGS},
        http_client=openai.DefaultAsyncHttpxClient(
            follow_redirects=False,
            trust_env=not endpoint.is_local,
            event_hooks={"response": [partial(_bound, Lock())]},
        ),
    )


async def _bound(large: Lock, response: Any) -> None:
    """Bounds what the SDK reads and unpacks of a response, of an error as of an answer."""
    is_file = response.url.path.endswith("/content")
    packing = response.headers.pop("content-encoding", "")
    most = MOST_RESULT_BYTES if is_file else MOST_BYTES

    def bounded(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        del response.aiter_raw  # this stand-in; a response that held it would hold itself
        return unpacked(response.aiter_raw(), packing, most, large)

    response.aiter_raw = bounded


@contextmanager
def mapped_errors(unexpected: str, endpoint: Endpoint) -> Iterator[None]:
    """Raises the SDK's errors as ours; `unexpected` begins the message of an odd one."""
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        answer = error.response
        raise error_of(answer.status_code, answer.headers, answer.content, endpoint) from None
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        if isinstance(cause, EndpointError):
            raise cause from None
        _refuse_not_listening(error, endpoint)
        said = f"the connection broke: {described(cause)}"
        raise EndpointTimeoutError(said, hint=NOT_THERE) from None
    except (openai.APIError, ValueError, TypeError, AttributeError, RecursionError) as error:
        # the SDK builds its objects from whatever came, and stumbles over their fields
        raise BadResponseError(f"{unexpected}: {described(error)}") from None


def _too_slow(timeout_s: float) -> EndpointTimeoutError:
    said = f"no whole answer within {timeout_s:g} s"
    return EndpointTimeoutError(said, hint="give it more time, --timeout-s, or less at a time")


def _refuse_not_listening(error: BaseException, endpoint: Endpoint) -> None:
    """Raises NotListeningError where a refused connection to this machine is the cause."""
    if not endpoint.is_this_machine:
        return
    cause: BaseException | None = error
    while cause is not None:
        refused = getattr(cause, "os_error", cause)
        if isinstance(refused, OSError) and refused.errno == errno.ECONNREFUSED:
            place = urlsplit(endpoint.base_url).netloc
            said = f"cannot connect to {place}: nothing listens there"
            raise NotListeningError(said, hint=NOT_THERE) from None
        cause = cause.__cause__ or cause.__context__


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
        self._url, self._large = f"{endpoint.base_url}/chat/completions", Lock()

    async def __aenter__(self) -> Self:
        import aiohttp

        self._aiohttp = aiohttp
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
            headers=self._endpoint.headers() | {"Accept-Encoding": ENCODINGS},
            auto_decompress=False,
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
                packing = response.headers.get("Content-Encoding", "")
                raw = response.content.iter_chunked(2**16)
                chunks = unpacked(raw, packing, large=self._large)
                answer = b"".join([chunk async for chunk in chunks])
        except TimeoutError:
            raise _too_slow(timeout_s) from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise EndpointError(f"no secure connection: {described(error)}") from None
        except aiohttp.ClientConnectorError as error:
            _refuse_not_listening(error, self._endpoint)
            place = f"{error.host}:{error.port}"
            said = f"cannot connect to {place}: {error.strerror}"
            raise EndpointTimeoutError(said, hint=NOT_THERE) from None
        except (aiohttp.ClientError, OSError) as error:
            said = f"the connection broke: {described(error)}"
            raise EndpointTimeoutError(said, hint=NOT_THERE) from None
        if response.status != 200:
            raise error_of(response.status, response.headers, answer, self._endpoint)
        latency_s = time.perf_counter() - start
        return Received(parse_completion(answer, latency_s, self._endpoint), response.headers)


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
        with mapped_errors("gave an unusable answer", self._endpoint):
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
                raise _too_slow(timeout_s) from None
        latency_s = time.perf_counter() - start
        return Received(parse_completion(raw.content, latency_s, self._endpoint), raw.headers)


Transport = HttpTransport | SdkTransport


def ask_now(endpoint: Endpoint, request: ChatRequest, timeout_s: float) -> Reply:
    """The reply to one request, asked once and kept nowhere.

    Raises:
        EndpointError: no key, no connection, no whole answer in time, or none of the protocol.
    """
    return asyncio.run(_ask_now(endpoint, request, timeout_s))


async def _ask_now(endpoint: Endpoint, request: ChatRequest, timeout_s: float) -> Reply:
    async with open_transport(endpoint, 1) as transport:
        body = request_body(request, endpoint, "text", 1)
        return (await transport.send(body, timeout_s)).reply
