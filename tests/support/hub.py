"""A stand-in for the Hugging Face Hub: a real HTTP server in a thread that speaks its REST shapes.

    with StandInHub() as hub:
        hub.url                                   # for HF_ENDPOINT
        hub.add_token("hf_...", "lab")
        hub.fail("POST", "/commit/", status=503, times=1)
        hub.repo("dataset", "lab/cbt-qa").is_private

Large files go through Git LFS (basic, and in parts above `part_bytes`) when the client runs with
HF_HUB_DISABLE_XET=1. Without it the client asks for a Xet token; `xet_url` is what it is told:
`memory://` takes the bytes and keeps none, which is enough to see the default way of uploading.
Every request is kept in `requests`; `on_request` is called before and after each is served.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import yaml
from aiohttp import web

Kind = Literal["dataset", "model"]
LARGE = re.compile(r"\.(parquet|safetensors|model|bin|arrow)$")


@dataclass(frozen=True)
class Blob:
    """One file of a commit."""

    size: int
    git_sha1: str
    sha256: str | None
    """Set for files in large storage."""
    data: bytes | None
    """None where the bytes went to Xet and were not kept."""


@dataclass
class Repo:
    """One repository."""

    kind: Kind
    id: str
    is_private: bool
    gated: Any = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return self.order[-1]

    @property
    def files(self) -> dict[str, Blob]:
        return self.commits[self.head]

    def commit_of(self, revision: str) -> str | None:
        if revision in ("main", "HEAD"):
            return self.head
        return self.tags.get(revision, revision if revision in self.commits else None)


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    method: str
    path: str
    n_bytes: int

    @property
    def is_write(self) -> bool:
        return self.method not in ("GET", "HEAD")


@dataclass
class Fault:
    """Something that goes wrong, for some requests."""

    method: str
    path: str
    status: int | None
    """None drops the connection: before the request is served, or after it when `is_late`."""
    headers: dict[str, str]
    times: int
    is_late: bool


Watcher = Callable[[Literal["before", "after"], Request], None]


class StandInHub:
    """The server, for one `with` block."""

    def __init__(self, *, part_bytes: int | None = None, xet_url: str = "memory://") -> None:
        self.requests: list[Request] = []
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.became_public: list[str] = []
        """Ids of repositories at each moment that one was seen public."""
        self.part_bytes, self.xet_url = part_bytes, xet_url
        self.on_request: Watcher = lambda when, request: None
        self._tokens: dict[str, dict[str, Any]] = {}
        self._faults: list[Fault] = []
        self._parts: dict[str, dict[int, bytes]] = {}
        self._numbers = itertools.count(1)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    def __enter__(self) -> StandInHub:
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the stand-in Hub did not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    # --- for tests -------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def repo(self, kind: Kind, repo_id: str) -> Repo:
        return self.repos[kind, repo_id]

    def add_token(
        self,
        token: str,
        name: str,
        *,
        role: str = "write",
        orgs: dict[str, str] | None = None,
        scopes: list[dict[str, Any]] | None = None,
    ) -> str:
        access: dict[str, Any] = {"displayName": "t", "role": role}
        if scopes is not None:
            access["fineGrained"] = {"global": [], "scoped": scopes}
        self._tokens[token] = {
            "type": "user",
            "name": name,
            "orgs": [{"name": org, "roleInOrg": r} for org, r in (orgs or {}).items()],
            "auth": {"type": "access_token", "accessToken": access},
        }
        return token

    def add_repo(
        self, kind: Kind, repo_id: str, *, is_private: bool = True, **files: bytes
    ) -> Repo:
        repo = Repo(kind, repo_id, is_private)
        self.repos[kind, repo_id] = repo
        self._add_commit(repo, {".gitattributes": _small(b"*.parquet filter=lfs\n")})
        if files:
            self._add_commit(repo, {**repo.files, **{k: _small(v) for k, v in files.items()}})
        return repo

    def fail(
        self,
        method: str,
        path: str,
        *,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        times: int = 1,
        is_late: bool = False,
    ) -> None:
        """Lets requests of this method whose path holds this text fail, so many times."""
        self._faults.append(Fault(method, path, status, headers or {}, times, is_late))

    def heal(self) -> None:
        """Takes all faults back."""
        self._faults.clear()

    def writes(self, pattern: str = "") -> list[Request]:
        """Requests that changed something, or tried to."""
        return [r for r in self.requests if r.is_write and re.search(pattern, r.path)]

    # --- the server ------------------------------------------------------------------------------

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{tail:.*}", self._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=128)
        await site.start()
        self._port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.read()
        except ConnectionError:
            return web.Response(status=400)
        seen = Request(request.method, request.path, len(body))
        self.requests.append(seen)
        self.on_request("before", seen)
        fault = next(
            (
                f
                for f in self._faults
                if f.times and f.method == seen.method and f.path in seen.path
            ),
            None,
        )
        if fault is not None:
            fault.times -= 1
            if fault.status is not None:
                return web.json_response(
                    {"error": "made to fail"}, status=fault.status, headers=fault.headers
                )
            if not fault.is_late:
                return self._cut(request)
        response = self._answer(request, body)
        self.became_public += [repo.id for repo in self.repos.values() if not repo.is_private]
        self.on_request("after", seen)
        return self._cut(request) if fault is not None else response

    def _cut(self, request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)

    def _answer(self, request: web.Request, body: bytes) -> web.Response:
        for method, pattern, handler in self._routes():
            found = re.fullmatch(pattern, request.path)
            if found and request.method in method.split("|"):
                try:
                    return handler(request, body, **found.groupdict())
                except _RefusedError as refused:
                    return refused.response
        return _error(404, "NotFound", f"no route {request.method} {request.path}")

    def _routes(self) -> list[tuple[str, str, Callable[..., web.Response]]]:
        repo = r"/api/(?P<kind>models|datasets)/(?P<repo_id>[^/]+/[^/]+)"
        plain = r"/(?P<kind>datasets/|)(?P<repo_id>[^/]+/[^/]+)"
        return [
            ("GET", "/api/whoami-v2", self._whoami),
            ("POST", "/api/repos/create", self._create),
            ("POST", "/api/validate-yaml", self._validate),
            ("PUT", r"/lfs/(?P<oid>\w{64})", self._put_object),
            ("PUT", r"/lfs/(?P<oid>\w{64})/(?P<part>\d+)", self._put_part),
            ("POST", r"/lfs/(?P<oid>\w{64})/complete", self._complete),
            ("POST", r"/lfs/verify", self._verify),
            ("POST", plain + r"\.git/info/lfs/objects/batch", self._batch),
            ("GET|HEAD", plain + r"/resolve/(?P<rev>[^/]+)/(?P<path>.+)", self._resolve),
            ("POST", repo + r"/preupload/(?P<rev>[^/]+)", self._preupload),
            ("GET", repo + r"/xet-(?:write|read)-token/(?P<rev>[^/]+)", self._xet_token),
            ("POST", repo + r"/commit/(?P<rev>[^/]+)", self._commit),
            ("GET", repo + r"/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", self._tree),
            ("POST", repo + r"/paths-info/(?P<rev>[^/]+)", self._paths_info),
            ("PUT", repo + r"/settings", self._settings),
            ("POST", repo + r"/tag/(?P<rev>[^/]+)", self._tag),
            ("GET", repo + r"/refs", self._refs),
            ("GET", repo + r"(?:/revision/(?P<rev>[^/]+))?", self._info),
        ]

    # --- accounts and repositories ---------------------------------------------------------------

    def _account(self, request: web.Request) -> dict[str, Any] | None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return self._tokens.get(given)

    def _whoami(self, request: web.Request, body: bytes) -> web.Response:
        account = self._account(request)
        if account is None:
            return _error(401, None, "Invalid credentials in Authorization header")
        return web.json_response(account)

    def _may(self, account: dict[str, Any] | None, repo_id: str, *, to_write: bool) -> bool:
        if account is None:
            return False
        access, owner = account["auth"]["accessToken"], repo_id.split("/")[0]
        roles = {org["name"]: org["roleInOrg"] for org in account["orgs"]}
        if owner != account["name"] and owner not in roles:
            return False
        if not to_write:
            return True
        if access["role"] == "fineGrained":
            names = {scope["entity"]["name"] for scope in access["fineGrained"]["scoped"]}
            return bool({owner, repo_id} & names)
        return access["role"] == "write" and roles.get(owner) != "read"

    def _opened(
        self, request: web.Request, kind: str, repo_id: str, *, to_write: bool = False
    ) -> Repo:
        repo = self.repos.get((_kind(kind), repo_id))
        account = self._account(request)
        hidden = (
            repo is not None and repo.is_private and not self._may(account, repo_id, to_write=False)
        )
        if repo is None or hidden:
            status = 401 if account is None else 404
            raise _RefusedError(_error(status, "RepoNotFound", "Repository not found"))
        if to_write and not self._may(account, repo_id, to_write=True):
            raise _RefusedError(_error(403, None, "you don't have the rights to write here"))
        return repo

    def _create(self, request: web.Request, body: bytes) -> web.Response:
        asked, account = json.loads(body), self._account(request)
        if account is None:
            return _error(401, None, "Invalid credentials in Authorization header")
        repo_id = f"{asked['organization'] or account['name']}/{asked['name']}"
        if not self._may(account, repo_id, to_write=True):
            return _error(403, None, "you don't have the rights to create this repository")
        kind = asked.get("type", "model")
        path = f"datasets/{repo_id}" if kind == "dataset" else repo_id
        if (kind, repo_id) in self.repos:
            return _error(409, None, "You already created this repo", url=f"{self.url}/{path}")
        self.add_repo(kind, repo_id, is_private=asked.get("visibility") == "private")
        return web.json_response({"url": f"{self.url}/{path}", "name": repo_id})

    def _settings(self, request: web.Request, body: bytes, kind: str, repo_id: str) -> web.Response:
        repo = self._opened(request, kind, repo_id, to_write=True)
        asked = json.loads(body)
        repo.gated = asked.get("gated", repo.gated)
        if "visibility" in asked:
            repo.is_private = asked["visibility"] == "private"
        return web.json_response({"private": repo.is_private, "gated": repo.gated})

    def _info(
        self,
        request: web.Request,
        body: bytes,
        kind: str,
        repo_id: str,
        rev: str | None = None,
    ) -> web.Response:
        repo = self._opened(request, kind, repo_id)
        commit = _known(repo, rev or "main")
        return web.json_response(
            {
                "_id": "0" * 24,
                "id": repo_id,
                "author": repo_id.split("/")[0],
                "sha": commit,
                "private": repo.is_private,
                "gated": repo.gated,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "lastModified": "2026-11-21T00:00:00.000Z",
                "createdAt": "2026-11-21T00:00:00.000Z",
                "siblings": [{"rfilename": path} for path in sorted(repo.commits[commit])],
            }
        )

    def _validate(self, request: web.Request, body: bytes) -> web.Response:
        content = json.loads(body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        if found is None:
            message = "empty or missing yaml metadata in repo card"
            return web.json_response({"warnings": [{"message": message}], "errors": []})
        try:
            front = yaml.safe_load(found[1])
        except yaml.YAMLError as error:
            return web.json_response({"errors": [{"message": str(error)}]}, status=400)
        if front.get("license") == "other" and not front.get("license_name"):
            return web.json_response({"errors": [{"message": "license_name"}]}, status=400)
        return web.json_response({"warnings": [], "errors": []})

    # --- uploading -------------------------------------------------------------------------------

    def _preupload(
        self,
        request: web.Request,
        body: bytes,
        kind: str,
        repo_id: str,
        rev: str,
    ) -> web.Response:
        repo = self._opened(request, kind, repo_id, to_write=True)
        files = []
        for asked in json.loads(body)["files"]:
            known = repo.files.get(asked["path"])
            is_large = bool(LARGE.search(asked["path"])) or asked["size"] > 10 << 20
            files.append(
                {
                    "path": asked["path"],
                    "uploadMode": "lfs" if is_large else "regular",
                    "shouldIgnore": False,
                    "oid": None if known is None else known.sha256 or known.git_sha1,
                }
            )
        return web.json_response({"files": files})

    def _xet_token(
        self,
        request: web.Request,
        body: bytes,
        kind: str,
        repo_id: str,
        rev: str,
    ) -> web.Response:
        self._opened(request, kind, repo_id, to_write=True)
        expires = int(time.time()) + 3600
        told = {"casUrl": self.xet_url, "exp": expires, "accessToken": "xet"}
        headers = {
            "X-Xet-Cas-Url": self.xet_url,
            "X-Xet-Access-Token": "xet",
            "X-Xet-Token-Expiration": str(expires),
        }
        return web.json_response(told, headers=headers)

    def _batch(self, request: web.Request, body: bytes, kind: str, repo_id: str) -> web.Response:
        self._opened(request, kind or "models", repo_id, to_write=True)
        objects = []
        for asked in json.loads(body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.objects:
                upload: dict[str, Any] = {"href": f"{self.url}/lfs/{oid}"}
                if self.part_bytes and size > self.part_bytes:
                    n_parts = -(-size // self.part_bytes)
                    parts = {str(n): f"{self.url}/lfs/{oid}/{n}" for n in range(1, n_parts + 1)}
                    upload = {
                        "href": f"{self.url}/lfs/{oid}/complete",
                        "header": {"chunk_size": str(self.part_bytes), **parts},
                    }
                verify = {"href": f"{self.url}/lfs/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        return web.json_response(
            {"transfer": "basic", "objects": objects},
            content_type="application/vnd.git-lfs+json",
        )

    def _put_object(self, request: web.Request, body: bytes, oid: str) -> web.Response:
        if hashlib.sha256(body).hexdigest() != oid:
            return _error(400, None, "the content does not have this hash")
        self.objects[oid] = body
        return web.Response()

    def _put_part(self, request: web.Request, body: bytes, oid: str, part: str) -> web.Response:
        self._parts.setdefault(oid, {})[int(part)] = body
        return web.Response(headers={"ETag": hashlib.md5(body).hexdigest()})

    def _complete(self, request: web.Request, body: bytes, oid: str) -> web.Response:
        numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
        whole = b"".join(self._parts[oid][number] for number in numbers)
        return self._put_object(request, whole, oid)

    def _verify(self, request: web.Request, body: bytes) -> web.Response:
        asked = json.loads(body)
        held = self.objects.get(asked["oid"])
        is_good = held is not None and len(held) == asked["size"]
        return web.Response() if is_good else _error(404, None, "no such object")

    def _commit(
        self,
        request: web.Request,
        body: bytes,
        kind: str,
        repo_id: str,
        rev: str,
    ) -> web.Response:
        repo = self._opened(request, kind, repo_id, to_write=True)
        files = dict(repo.files)
        for line in body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header" and value.get("parentCommit", repo.head) != repo.head:
                return _error(
                    412, None, "A commit has happened since. Please refresh and try again."
                )
            if key == "file":
                files[value["path"]] = _small(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                data = self.objects.get(value["oid"])
                if data is None and not any("xet-write" in r.path for r in self.requests):
                    return _error(400, None, f"large file {value['path']} was not uploaded")
                files[value["path"]] = _large(value["oid"], value["size"], data)
            elif key == "deletedFile":
                del files[value["path"]]
        commit = self._add_commit(repo, files)
        url = f"{self.url}/{repo_id}/commit/{commit}"
        return web.json_response({"success": True, "commitOid": commit, "commitUrl": url})

    def _add_commit(self, repo: Repo, files: dict[str, Blob]) -> str:
        oid = hashlib.sha1(f"{repo.id} {next(self._numbers)}".encode()).hexdigest()
        repo.commits[oid] = files
        repo.order.append(oid)
        return oid

    def _tag(
        self,
        request: web.Request,
        body: bytes,
        kind: str,
        repo_id: str,
        rev: str,
    ) -> web.Response:
        repo = self._opened(request, kind, repo_id, to_write=True)
        name, commit = json.loads(body)["tag"], _known(repo, rev)
        if name in repo.tags:
            return _error(409, None, "Tag reference exists already")
        repo.tags[name] = commit
        return web.json_response({})

    # --- reading ---------------------------------------------------------------------------------

    def _refs(self, request: web.Request, body: bytes, kind: str, repo_id: str) -> web.Response:
        repo = self._opened(request, kind, repo_id)
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head}]
        tags = [
            {"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit}
            for name, commit in repo.tags.items()
        ]
        return web.json_response({"branches": branches, "tags": tags, "converts": []})

    def _tree(
        self,
        request: web.Request,
        body: bytes,
        kind: str,
        repo_id: str,
        rev: str,
        path: str | None = None,
    ) -> web.Response:
        repo = self._opened(request, kind, repo_id)
        commit = _known(repo, rev)
        prefix = f"{path}/" if path else ""
        is_deep = request.query.get("recursive", "").lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for name, blob in sorted(repo.commits[commit].items()):
            if not name.startswith(prefix):
                continue
            parts = name[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                folder = prefix + "/".join(parts[:depth])
                if is_deep or depth == 1:
                    entries[folder] = {
                        "type": "directory",
                        "path": folder,
                        "oid": "0" * 40,
                        "size": 0,
                    }
            if is_deep or len(parts) == 1:
                entries[name] = _entry(name, blob)
        if path and not entries:
            return _error(404, "EntryNotFound", f"{path} does not exist")
        return web.json_response(list(entries.values()))

    def _paths_info(
        self,
        request: web.Request,
        body: bytes,
        kind: str,
        repo_id: str,
        rev: str,
    ) -> web.Response:
        repo = self._opened(request, kind, repo_id)
        commit = _known(repo, rev)
        files, told = repo.commits[commit], []
        for path in _form_values(body, "paths"):
            if path in files:
                told.append(_entry(path, files[path]))
            elif any(name.startswith(f"{path}/") for name in files):
                told.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        return web.json_response(told)

    def _resolve(
        self,
        request: web.Request,
        body: bytes,
        kind: str,
        repo_id: str,
        rev: str,
        path: str,
    ) -> web.Response:
        repo = self._opened(request, "datasets" if kind else "models", repo_id)
        if repo.gated and not self._may(self._account(request), repo_id, to_write=False):
            return _error(403, "GatedRepo", f"Access to {repo_id} is restricted")
        commit = _known(repo, rev)
        blob = repo.commits[commit].get(path)
        if blob is None:
            return _error(404, "EntryNotFound", f"{path} does not exist")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.git_sha1}"', "Accept-Ranges": "bytes"}
        if blob.sha256 is not None:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        if blob.data is None:
            return _error(404, "EntryNotFound", "its bytes went to Xet")
        data, status = blob.data, 200
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if found:
            start, end = int(found[1]), int(found[2] or blob.size - 1)
            data, status = data[start : end + 1], 206
            headers["Content-Range"] = f"bytes {start}-{end}/{blob.size}"
        return web.Response(body=data, status=status, headers=headers)


class _RefusedError(Exception):
    """The answer to a request that may not go on."""

    def __init__(self, response: web.Response) -> None:
        super().__init__(response.status)
        self.response = response


def _known(repo: Repo, revision: str) -> str:
    commit = repo.commit_of(revision)
    if commit is None:
        raise _RefusedError(_error(404, "RevisionNotFound", f"Invalid rev id: {revision}"))
    return commit


def _kind(plural: str) -> str:
    return plural.rstrip("/").rstrip("s")


def _error(status: int, code: str | None, message: str, **more: Any) -> web.Response:
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return web.json_response({"error": message, **more}, status=status, headers=headers)


def _small(data: bytes) -> Blob:
    sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return Blob(len(data), sha1, None, data)


def _large(sha256: str, size: int, data: bytes | None) -> Blob:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return Blob(size, _small(pointer.encode()).git_sha1, sha256, data)


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": blob.git_sha1, "size": blob.size}
    if blob.sha256 is not None:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
    return entry


def _form_values(body: bytes, name: str) -> list[str]:
    if body[:1] == b"{":
        value = json.loads(body)[name]
        return value if isinstance(value, list) else [value]
    from urllib.parse import parse_qsl

    return [value for key, value in parse_qsl(body.decode()) if key == name]
