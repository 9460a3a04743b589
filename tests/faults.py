"""What can go wrong between a client and the server, put around the application: no fault is in the server itself.

`PUT /-/faults` with a JSON object says what goes wrong from then on; `GET /-/faults` gives the requests that came in.

    fail: [n, text]    the next n requests whose path holds the text get 503; a third value is another status
    cut: n             the next body of more than n bytes ends after n, and its connection; [n, times] several
    corrupt: true      the first byte of every body from the CDN is another one; [n, text] the next n of such a path
    slow: seconds      before each piece of a body from the CDN

Two are given when the server is started, because they are the process's and not the connection's:

    kill: n            SIGKILL at the n-th step: a file opened to write, renamed, removed; a folder made; an answer
    full: n            no file may grow beyond n bytes
"""

import asyncio
import json
import os
import resource
import signal
import sys
from itertools import count
from urllib.parse import urlsplit

FILES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "tempfile.mkstemp"}
RELATIVE = {"os.remove", "os.rmdir"}  # as rmtree does within a folder that it holds open


def around(application, faults, folder, cdn):
    """The application with faults around it."""
    now, requests, steps = {}, [], count(1)

    def step():
        if next(steps) == faults["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event, arguments):
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event not in FILES and not written:
            return
        if str(arguments[0]).startswith(str(folder)) or (event in RELATIVE and arguments[1] >= 0):
            step()

    if "kill" in faults:
        sys.addaudithook(audit)
    if "full" in faults:
        resource.setrlimit(resource.RLIMIT_FSIZE, (faults["full"], faults["full"]))

    async def faulty(scope, receive, send):
        path, from_cdn = scope["path"], scope["server"][1] == urlsplit(cdn).port
        if path == "/-/faults":
            await answer(scope, receive, send)
            return
        authorized = any(key == b"authorization" for key, _ in scope["headers"])
        requests.append([scope["method"], path, "cdn" if from_cdn else "api", authorized])
        if now.get("fail", [0])[0] > 0 and now["fail"][1] in path:
            now["fail"][0] -= 1
            await send({"type": "http.response.start", "status": [*now["fail"], 503][2], "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        sent = 0

        def corrupted():
            which = now.get("corrupt")
            if not isinstance(which, list):
                return which and from_cdn
            hit = which[0] > 0 and which[1] in path
            which[0] -= hit
            return hit

        async def passed(message):
            nonlocal sent
            if message["type"] == "http.response.start" and "kill" in faults:
                step()
            body = message.get("body")
            if body and from_cdn:
                await asyncio.sleep(now.get("slow", 0))
            if body and not sent and corrupted():
                message = {**message, "body": bytes([body[0] ^ 1]) + body[1:]}
            after, times = now.get("cut", [0, 0])
            if body and times and sent + len(body) > after:
                now["cut"] = [after, times - 1]
                await send({**message, "body": body[: after - sent], "more_body": True})
                raise ConnectionAbortedError("cut")
            sent += len(body or b"")
            await send(message)

        await application(scope, receive, passed)

    async def answer(scope, receive, send):
        if scope["method"] == "PUT":
            now.clear()
            now.update(json.loads((await receive())["body"]))
            if isinstance(now.get("cut"), int):
                now["cut"] = [now["cut"], 1]
            requests.clear()
        body = json.dumps(requests).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return faulty
