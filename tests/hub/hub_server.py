"""A stand-in of the Hugging Face hub's HTTP API: repositories in memory, files of ordinary commits, no large files."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 39 + "1"


class Hub(BaseHTTPRequestHandler):
    """What huggingface-hub asks for to make a repository, commit to it, and download from it."""

    repositories: dict  # name to {path: bytes}
    asked: list

    def do_HEAD(self):
        self._file(body=False)

    def do_GET(self):
        self._file(body=True)

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.asked.append(f"POST {self.path}")
        if self.headers.get("authorization") != "Bearer right":
            self._json({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(content)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.repositories.setdefault(name, {})
            self._json({"url": f"{self._address()}/{name}"})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(content)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif found := re.fullmatch(r"/api/models/(.*)/commit/main", self.path):
            self._commit(found[1], [json.loads(line) for line in content.splitlines()])
        else:
            self._json({"error": "Not found"}, 404)

    def log_message(self, *_):
        """Says nothing."""

    def _commit(self, name, lines):
        for line in lines:
            if line["key"] == "file":
                self.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self._json({"commitUrl": f"{self._address()}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})

    def _file(self, *, body):
        self.asked.append(f"{self.command} {self.path}")
        found = re.fullmatch(r"/(.*)/resolve/([^/]+)/(.*)", self.path)
        content = self.repositories.get(found[1], {}).get(found[3]) if found else None
        if content is None:
            self._json({"error": "Not found"}, 404)
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _json(self, answer, status=200):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _address(self):
        host, port = self.server.server_address
        return f"http://{host}:{port}"


def start():
    """A hub of its own: its address, its repositories, what it was asked, and what stops it."""

    def stop():
        server.shutdown()
        server.server_close()

    kind = type("OneHub", (Hub,), {"repositories": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}", kind.repositories, kind.asked, stop
