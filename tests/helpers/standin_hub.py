"""A local hub for tests: the part of the protocol that huggingface_hub needs to download and to commit."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_standin"
MODEL = re.compile(r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree|preupload|commit)/([^/]+))?")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    """Commit message and all files of each commit, oldest first."""

    @property
    def files(self):
        return self.commits[-1][1] if self.commits else {}

    def commit(self, message, files):
        self.commits.append((message, files))

    def revisions(self):
        """Commits by hash and as `main`, and the hash of the newest."""
        hashes = {hashlib.sha1(repr(commit).encode()).hexdigest(): commit for commit in self.commits or [("", {})]}
        return {**hashes, "main": list(hashes.values())[-1]}, list(hashes)[-1]


class Hub:
    """A running server with its repositories, by name, and a log of all requests."""

    def __init__(self):
        self.repositories = {}
        self.blobs = {}
        self.requests = []
        self.refusal = None
        """Message with which every POST is refused; None accepts them."""
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path))
        has_login = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/validate-yaml":
            return self.respond({"errors": [], "warnings": []})
        if self.command == "PUT":
            self.hub.blobs[path.rsplit("/", 1)[1]] = self.body
            return self.respond({})
        if self.command == "POST" and not has_login:
            return self.refuse(401, message="Invalid username or password.")
        if self.command == "POST" and self.hub.refusal:
            return self.refuse(403, message=self.hub.refusal)
        if path == "/api/repos/create":
            return self.create(json.loads(self.body))
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.hub.url}/blobs/{item['oid']}"}}}
                for item in json.loads(self.body)["objects"]
            ]
            return self.respond({"transfer": "basic", "objects": objects})
        match = MODEL.fullmatch(path) or RESOLVE.fullmatch(path)
        repository = self.hub.repositories.get(match[1]) if match else None
        if repository is None or (repository.private and not has_login):
            return self.refuse(404 if has_login else 401, "RepoNotFound")
        if repository.gated and not has_login:
            return self.refuse(403, "GatedRepo")
        revisions, newest = repository.revisions()
        if match.re is RESOLVE:
            return self.file(revisions.get(match[2]), newest if match[2] == "main" else match[2], match[3])
        method = match[2] or "revision"
        revision = match[3] or "main"
        if revision not in revisions:
            return self.refuse(404, "RevisionNotFound")
        return getattr(self, method)(
            match[1], repository, revisions[revision][1], newest if revision == "main" else revision
        )

    def create(self, request):
        name = f"{request['organization']}/{request['name']}"
        if name in self.hub.repositories:
            return self.refuse(409, message="You already created this model repo", url=f"{self.hub.url}/{name}")
        private = request.get("visibility") == "private" or bool(request.get("private"))
        self.hub.repositories[name] = Repository(private)
        return self.respond({"url": f"{self.hub.url}/{name}"})

    def revision(self, name, repository, files, commit):
        siblings = [{"rfilename": file} for file in files]
        self.respond({"id": name, "sha": commit, "private": repository.private, "siblings": siblings, "tags": []})

    def tree(self, name, repository, files, commit):
        self.respond(
            [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()
            ]
        )

    def preupload(self, name, repository, files, commit):
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith((".safetensors", ".model")) else "regular" for path in paths}
        self.respond(
            {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}
        )

    def commit(self, name, repository, files, commit):
        files, message = dict(files), ""
        for line in map(json.loads, self.body.splitlines()):
            kind, value = line["key"], line["value"]
            if kind == "header":
                message = value["summary"]
            elif kind == "deletedFile":
                del files[value["path"]]
            else:
                content = base64.b64decode(value["content"]) if kind == "file" else self.hub.blobs[value["oid"]]
                files[value["path"]] = content
        repository.commit(message, files)
        self.respond({"commitUrl": f"{self.hub.url}/{name}/commit/x", "commitOid": repository.revisions()[1]})

    def file(self, commit, name, path):
        if commit is None or path not in commit[1]:
            return self.refuse(404, "EntryNotFound")
        content = commit[1][path]
        etag = hashlib.sha1(content).hexdigest()
        return self.send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": name})

    def refuse(self, status, code="", message="", **more):
        headers = {name: value for name, value in (("X-Error-Code", code), ("X-Error-Message", message)) if value}
        self.send(status, json.dumps({"error": message or code, **more}).encode(), headers)

    def respond(self, values):
        self.send(200, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def send(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def put_into_repository(standin, folder, name="me/hearts", **options):
    """Put a folder's files into a repository without the library."""
    repository = standin.repositories[name] = Repository(**options)
    repository.commit("first", {path.name: path.read_bytes() for path in folder.iterdir()})
    return repository
