"""A hub on this machine, for a real client."""

import http.server
import json
import threading
import urllib.parse
from collections.abc import Callable

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """The parts of the hub's interface that a download of a model uses, one repository."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.gated = False
        # Its names.
        self.repos = {"owner/name"}
        self.requested: list[str] = []
        # Called with each file that is asked for, before it is sent.
        self.on_request: Callable[[str], object] = lambda name: None
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request):
        parts = urllib.parse.unquote(request.path).split("?")[0].strip("/").split("/")
        is_listing = parts[:2] == ["api", "models"]
        repo, kind, revision, *file = ["/".join(parts[:2]), *parts[2:]] if not is_listing else [
            "/".join(parts[2:4]), *parts[4:], *["revision", "main"][: 6 - len(parts)]
        ]  # fmt: skip
        if repo not in self.repos:
            return self.reply(request, 401, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self.reply(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        if is_listing:
            assert kind == "revision"
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
            return self.reply(request, 200, json.dumps(info).encode())
        name = "/".join(file)
        if self.gated:
            return self.reply(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        if name not in self.files:
            return self.reply(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
        if request.command == "GET":
            self.requested.append(name)
            self.on_request(name)
        etag = f'"{abs(hash(self.files[name]))}"'
        headers = {"X-Repo-Commit": COMMIT, "ETag": etag, "Content-Type": "binary/octet-stream"}
        self.reply(request, 200, self.files[name], headers)

    @staticmethod
    def reply(request, status, body, headers=None):
        request.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)
