"""Real servers that stand for Slack, PagerDuty and a mail server: they keep what they get, and misbehave when told."""

from __future__ import annotations

import email
import email.policy
import json
import socket
import socketserver
import ssl
import struct
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

HANG, RESET, ECHO = "hang", "reset", "echo"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of an HTTP server."""

    status: int
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """One request that was read whole."""

    path: str
    document: Any


class HttpReceiver:
    """An HTTP server on a free port. `answers` are used up one by one, then `default` is the answer.

    HANG answers nothing until the server is closed, RESET breaks the connection, ECHO refuses and repeats all it got.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answers: deque[Answer | str] = deque()
        self.default: Answer | str = Answer(200, "ok")
        self.closed = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.requests.append(Request(self.path, json.loads(body)))
                answer = receiver.answers.popleft() if receiver.answers else receiver.default
                if answer == HANG:
                    receiver.closed.wait(60)
                    self.close_connection = True
                elif answer == RESET:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                else:
                    if isinstance(answer, str):
                        answer = Answer(400, f"{self.path} {body.decode()}")
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    data = answer.body.encode()
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that went away

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def documents(self) -> list[Any]:
        """What was posted so far."""
        return [request.document for request in list(self.requests)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.closed.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@dataclass(frozen=True, slots=True)
class Mail:
    """One message as it was taken."""

    sender: str
    recipients: tuple[str, ...]
    message: EmailMessage
    secured: bool
    login: bytes | None


class SmtpReceiver:
    """A mail server on a free port. `codes` overrides the reply to a command by its verb; `context` offers STARTTLS;
    `login` demands AUTH PLAIN."""

    def __init__(self, *, context: ssl.SSLContext | None = None, login: bool = False) -> None:
        self.mails: list[Mail] = []
        self.codes: dict[str, str] = {}
        self.connections = 0
        receiver = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                receiver.connections += 1
                _Session(receiver, self.request, context, login).run()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that went away

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Session:
    """One connection of a client."""

    def __init__(
        self, receiver: SmtpReceiver, connection: socket.socket, context: ssl.SSLContext | None, login: bool
    ) -> None:
        self._receiver = receiver
        self._connection = connection
        self._context = context
        self._login_wanted = login
        self._file = connection.makefile("rb")
        self._secured = False
        self._login: bytes | None = None
        self._sender = ""
        self._recipients: list[str] = []

    def run(self) -> None:
        try:
            self._talk()
        finally:
            self._file.close()
            self._connection.close()

    def _talk(self) -> None:
        self._say("220 receiver")
        while True:
            line = self._file.readline().rstrip(b"\r\n")
            if not line:
                return
            verb = line.split(b" ")[0].decode().upper()
            if verb in self._receiver.codes:
                self._say(self._receiver.codes[verb])
            elif verb == "QUIT":
                self._say("221 bye")
                return
            else:
                self._answer(verb, line)

    def _answer(self, verb: str, line: bytes) -> None:
        argument = line.decode().partition(":")[2].strip().split(" ")[0].strip("<>")
        if verb == "EHLO":
            offers = ["receiver"]
            offers += ["STARTTLS"] if self._context is not None and not self._secured else []
            offers += ["AUTH PLAIN"] if self._login_wanted else []
            for offer in offers[:-1]:
                self._say(f"250-{offer}")
            self._say(f"250 {offers[-1]}")
        elif verb == "STARTTLS" and self._context is not None:
            self._say("220 go ahead")
            self._file.close()
            self._connection = self._context.wrap_socket(self._connection, server_side=True)
            self._file = self._connection.makefile("rb")
            self._secured = True
        elif verb == "AUTH":
            self._login = line.split(b" ")[-1]
            self._say("235 welcome")
        elif verb == "MAIL":
            self._sender, self._recipients = argument, []
            self._say("250 ok")
        elif verb == "RCPT":
            self._recipients.append(argument)
            self._say("250 ok")
        elif verb == "DATA":
            self._say("354 go on")
            lines = []
            while (part := self._file.readline()) not in (b".\r\n", b""):
                lines.append(part)
            message = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
            assert isinstance(message, EmailMessage)
            self._receiver.mails.append(
                Mail(self._sender, tuple(self._recipients), message, self._secured, self._login)
            )
            self._say("250 taken")
        else:
            self._say("250 ok")

    def _say(self, line: str) -> None:
        self._connection.sendall(line.encode() + b"\r\n")
