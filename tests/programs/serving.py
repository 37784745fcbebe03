"""A running `dydit serve` for tests: started on a free port, asked over HTTP, ended by a signal."""

import base64
import http.client
import json
import re
import signal
import socket
import subprocess
import threading
import time

from support import PROGRAM, environment

START_SECONDS = 90


class Server:
    """`with Server(work, "--model", ...) as server:`; stderr's lines are in `lines`."""

    def __init__(self, work, *args, port=0, env=None):
        self.process = subprocess.Popen([PROGRAM, "serve", "--port", str(port), *map(str, args)], cwd=work, env=environment(env),
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines, self.port = [], None
        self.ready = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        if "--quiet" in args:
            self.port = port
        elif not self.ready.wait(START_SECONDS):
            self.process.kill()
            raise AssertionError("the server did not start: " + "".join(self.lines))

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.match(r"serving  http://\S+:(\d+)$", line):
                self.port = int(found[1])
                self.ready.set()
        self.ready.set()  # the end of the program: nobody waits for it

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.reader.join()
        self.process.stderr.close()

    def end(self, number=signal.SIGTERM, timeout=60):
        """Signals it and waits: (exit status, stdout)."""
        self.process.send_signal(number)
        stdout = self.process.stdout.read()
        return self.process.wait(timeout), stdout

    def connection(self, timeout=60):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method, path, body=None, headers=None, timeout=60):
        """(status, headers, bytes) of a request on a connection of its own."""
        connection = self.connection(timeout)
        try:
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
            kind = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, body, {**kind, **(headers or {})})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def json(self, method, path, body=None, headers=None, status=200):
        """The body of an answer of that status."""
        got, _, text = self.ask(method, path, body, headers)
        if got != status:
            raise AssertionError(f"{method} {path} {body}: {got} {text[:500]}")
        return json.loads(text)

    def health(self):
        """Its status; 0: nobody listens."""
        try:
            return self.ask("GET", "/health")[0]
        except OSError:
            return 0

    def images(self, **order):
        return self.json("POST", "/v1/images/generations", order)["data"]

    def error(self, body, status=400, path="/v1/images/generations", headers=None):
        return self.json("POST", path, body, headers, status=status)["error"]

    def metrics(self):
        text = self.ask("GET", "/metrics")[2].decode()
        return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))

    def number(self, name):
        return float(self.metrics()["dydit_" + name])

    def socket(self, timeout=30):
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def until(self, met, seconds=30):
        """Waits until met() is true."""
        end = time.monotonic() + seconds
        while not met():
            if time.monotonic() > end:
                raise AssertionError("not within " + str(seconds) + " s")
            time.sleep(0.02)


def events(body):
    """[(name, data)] of a stream of server-sent events."""
    found = []
    for part in body.split("\n\n"):
        lines = [line for line in part.split("\n") if line and not line.startswith(":")]
        if lines:
            fields = dict(line.split(": ", 1) for line in lines)
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def picture(answer, key="b64_json"):
    return base64.b64decode(answer[key])
