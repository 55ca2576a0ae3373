"""Listens as systemd does (sd_notify(3)), and tries the daemon in the moment it says READY=1.

    notify_listener.py --socket PATH --log FILE
        [--nbd SOCKET EXPORT]... [--http SOCKET PATH] [--line SOCKET TEXT] [--connect SOCKET]...
        [--file PATH]...

Every message becomes a line of FILE. When READY=1 arrives, everything that was named is tried at
once and a single time: --nbd opens the export and reads its first block, --http gets a page from a
unix socket and wants status 200, --line sends a line of text and wants one back, --connect connects,
--file reads the first byte. Then a line "served" follows, or "not served: " and why.
"""

import argparse
import os
import signal
import socket
import sys

from steady_writer import Disk, Gone

SECONDS_MAX = 10


def connected(path):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(SECONDS_MAX)
    client.connect(path)
    return client


def try_nbd(path, export):
    disk = Disk(path, export)
    disk.read(0, 4096)
    disk.close()


def try_http(path, page):
    with connected(path) as client:
        client.sendall(f"GET {page} HTTP/1.1\r\nHost: local\r\nConnection: close\r\n\r\n".encode())
        answer = client.recv(4096)
    if b" 200 " not in answer.split(b"\r\n", 1)[0]:
        raise Gone(f"{page}: {answer[:80]!r}")


def try_line(path, text):
    with connected(path) as client, client.makefile("rwb") as stream:
        stream.write(text.encode() + b"\n")
        stream.flush()
        if not stream.readline().endswith(b"\n"):
            raise Gone(f"{path}: no answer to {text}")


def try_connect(path):
    connected(path).close()


def try_file(path):
    with open(path, "rb") as file:
        file.read(1)


def try_all(arguments):
    """What is wrong, or None."""
    kinds = ((try_nbd, arguments.nbd), (try_http, arguments.http), (try_line, arguments.line),
             (try_connect, arguments.connect), (try_file, arguments.file))
    for attempt, all_of_it in kinds:
        for one in all_of_it:
            try:
                attempt(*(one if isinstance(one, list) else [one]))
            except (OSError, Gone) as error:
                return f"{attempt.__name__[4:]} {one}: {error}"
    return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--log", required=True)
    for name in ("--nbd", "--http", "--line"):
        parser.add_argument(name, nargs=2, action="append", default=[])
    for name in ("--connect", "--file"):
        parser.add_argument(name, action="append", default=[])
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with open(arguments.log, "a", buffering=1, encoding="utf-8") as log:
        listener.bind(arguments.socket)
        try:
            while True:
                for message in listener.recv(4096).decode(errors="replace").splitlines():
                    # Tried before the log says so: whoever waits for the line finds both.
                    problem = try_all(arguments) if message == "READY=1" else None
                    log.write(message + "\n")
                    if message == "READY=1":
                        log.write(f"not served: {problem}\n" if problem else "served\n")
        finally:
            os.unlink(arguments.socket)


if __name__ == "__main__":
    sys.exit(main())
