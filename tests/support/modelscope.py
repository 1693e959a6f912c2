"""A stand-in for ModelScope: a real HTTP server that answers what modelscope_hub 0.5.1 asks.

    with StandInModelScope() as site:
        site.url                      # for MODELSCOPE_ENDPOINT
        site.repos["dataset", "lab/cbt-qa"].files

Its answers have the shapes that the client reads; the real site was never asked.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiohttp import web

TOKEN = "ms-" + "0a1b2c3d-" * 3 + "4e5f"


@dataclass
class Repo:
    """One repository with its branch and tags."""

    is_private: bool
    is_gated: bool
    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    """Paths that came as blobs."""
    messages: list[str] = field(default_factory=list)

    def at(self, revision: str) -> dict[str, bytes] | None:
        return self.files if revision == "master" else self.tags.get(revision)


class StandInModelScope:
    """The server, for one `with` block."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.fails: dict[str, int] = {}
        """Part of a path to the status that its next request gets."""
        self.tells_gate = True
        self.spoils = False
        """Whether what is stored is not what was sent."""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    def __enter__(self) -> StandInModelScope:
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the stand-in site did not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=1 << 30, middlewares=[self._checked])
        repo = r"{kind:models|datasets}/{owner}/{name}"
        for method, path, handler in (
            ("GET", "/openapi/v1/users/me", self._me),
            ("GET", f"/openapi/v1/{repo}", self._info),
            ("GET", f"/api/v1/{repo}", self._legacy_info),
            ("POST", "/api/v1/{kind:models|datasets}", self._create),
            ("GET", f"/api/v1/{repo}/repo/tree", self._list),
            ("GET", f"/api/v1/{repo}/repo/files", self._list),
            ("GET", f"/api/v1/{repo}/revisions", self._revisions),
            ("POST", f"/api/v1/{repo}/repo/tag", self._tag),
            ("GET", f"/api/v1/{repo}/repo", self._read),
            ("POST", f"/api/v1/repos/{repo}/info/lfs/objects/batch", self._batch),
            ("POST", f"/api/v1/repos/{repo}/commit/{{revision}}", self._commit),
            ("PUT", "/blobs/{oid}", self._blob),
        ):
            app.router.add_route(method, path, handler)
        runner = web.AppRunner(app, handle_signals=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    @web.middleware
    async def _checked(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        for part in self.fails:
            if part in request.path:
                status = self.fails.pop(part)
                return web.json_response({"Message": "out of order"}, status=status)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"Message": "invalid token", "Success": False}, status=401)
        answer: web.StreamResponse = await handler(request)
        return answer

    def _repo(self, request: web.Request) -> Repo:
        found = request.match_info
        repo = self.repos.get((found["kind"][:-1], f"{found['owner']}/{found['name']}"))
        if repo is None:
            raise web.HTTPNotFound(
                text=json.dumps({"Message": "not found"}), content_type="application/json"
            )
        return repo

    async def _me(self, request: web.Request) -> web.Response:
        return web.json_response({"success": True, "data": {"username": "lab"}})

    async def _info(self, request: web.Request) -> web.Response:
        repo, name = self._repo(request), request.match_info
        gate = {"gated": repo.is_gated} if self.tells_gate else {}
        told = {"id": f"{name['owner']}/{name['name']}", "private": repo.is_private, **gate}
        return web.json_response({"success": True, "data": told})

    async def _legacy_info(self, request: web.Request) -> web.Response:
        return _data({"Visibility": 1 if self._repo(request).is_private else 5})

    async def _create(self, request: web.Request) -> web.Response:
        kind = request.match_info["kind"][:-1]
        form: Any = await (request.post() if kind == "dataset" else request.json())
        key = kind, f"{form['Owner' if kind == 'dataset' else 'Path']}/{form['Name']}"
        if key in self.repos:
            taken = {"Code": 10010101001, "Message": "name exists", "Success": False}
            return web.json_response(taken, status=400)
        private, gated = int(form["Visibility"]) == 1, int(form["ProtectedMode"]) == 1
        first = {"README.md": b"---\nlicense: other\n---\n", ".gitattributes": b"*.bin lfs\n"}
        self.repos[key] = Repo(private, gated, first)
        return _data({})

    async def _list(self, request: web.Request) -> web.Response:
        repo = self._repo(request)
        files = repo.at(request.query["Revision"])
        if files is None:
            return web.json_response({"Message": "no such revision"}, status=404)
        page, size = (
            int(request.query.get(n, d)) for n, d in (("PageNumber", 1), ("PageSize", 9**9))
        )
        folders = {path.rpartition("/")[0] for path in files} - {""}
        rows = [{"Path": one, "Type": "tree", "Size": 0} for one in sorted(folders)]
        for path, data in sorted(files.items()):
            sha256 = hashlib.sha256(data).hexdigest() if path in repo.large else ""
            rows.append({"Path": path, "Type": "blob", "Size": len(data), "Sha256": sha256})
        return _data({"Files": rows[(page - 1) * size : page * size]})

    async def _revisions(self, request: web.Request) -> web.Response:
        tags = [{"Revision": tag, "CreatedAt": 1} for tag in self._repo(request).tags]
        return _data({"RevisionMap": {"Branches": [{"Revision": "master"}], "Tags": tags}})

    async def _tag(self, request: web.Request) -> web.Response:
        repo, body = self._repo(request), await request.json()
        repo.tags[body["TagName"]] = dict(repo.at(body["Ref"]) or {})
        return _data({})

    async def _read(self, request: web.Request) -> web.Response:
        files = self._repo(request).at(request.query.get("Revision", "master")) or {}
        data = files.get(request.query["FilePath"])
        return web.Response(body=data) if data is not None else web.Response(status=404)

    async def _batch(self, request: web.Request) -> web.Response:
        self._repo(request)
        rows = []
        for one in (await request.json())["objects"]:
            place = {"upload": {"href": f"{self.url}/blobs/{one['oid']}"}}
            rows.append({**one, "actions": {} if one["oid"] in self.blobs else place})
        return _data({"objects": rows})

    async def _blob(self, request: web.Request) -> web.Response:
        data = await request.read()
        assert hashlib.sha256(data).hexdigest() == request.match_info["oid"]
        self.blobs[request.match_info["oid"]] = data
        return web.json_response({"Code": 200})

    async def _commit(self, request: web.Request) -> web.Response:
        repo, body = self._repo(request), await request.json()
        repo.messages.append(body["commit_message"])
        for one in body["actions"]:
            path = one["path"]
            if one["action"] == "delete":
                del repo.files[path]
            elif one["type"] == "lfs":
                repo.files[path] = self.blobs[one["sha256"]]
                repo.large.add(path)
            else:
                data = base64.b64decode(one["content"])
                repo.files[path] = data + b" " if self.spoils and path == "README.md" else data
        return _data({})


def _data(value: Any) -> web.Response:
    return web.json_response({"Code": 200, "Success": True, "Data": value})
