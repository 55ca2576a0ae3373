"""Writes random bytes at random places of an NBD export, at a bounded rate, and counts them.

It shares no code with Tidemark. When the server goes away it dials again until it is told to stop
(SIGTERM or SIGINT), so that a load goes on across kills and restarts. What was sent counts as
written, answered or not: the server may have done it. The bytes don't compress.

    steady_writer.py --socket PATH --export NAME --mib-per-second N --figures FILE [--seed N]

FILE is replaced after every batch: one JSON object with writes, bytes, acknowledged_bytes,
connections, refused (answers that said that the server is stopping). Exit status 1 when a write was
answered with any other error.
"""

import argparse
import json
import os
import random
import signal
import socket
import struct
import sys
import time

BLOCK_BYTES = 4096
WRITE_BYTES_MAX = 64 * 1024
BATCH = 8
DIAL_EVERY_SECONDS = 0.05
MAGIC_SERVER = 0x4E42444D41474943
MAGIC_OPTION = 0x49484156454F5054
MAGIC_REPLY_OPTION = 0x0003E889045565A9
MAGIC_REQUEST = 0x25609513
MAGIC_REPLY = 0x67446698
OPTION_GO = 7
REPLY_ACK, REPLY_INFO = 1, 3
COMMAND_READ, COMMAND_WRITE, COMMAND_DISCONNECT = 0, 1, 2
ERROR_SHUTDOWN = 108


class Gone(Exception):
    """The connection ended."""


class Disk:
    """One connection, with simple replies."""

    def __init__(self, path, export):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)
        magic, option, flags = struct.unpack(">QQH", self.receive(18))
        if (magic, option) != (MAGIC_SERVER, MAGIC_OPTION):
            sys.exit("this is not an NBD server")
        name = export.encode()
        body = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self.send(struct.pack(">IQII", flags & 3, MAGIC_OPTION, OPTION_GO, len(body)) + body)
        self.size_bytes = self.negotiated(export)

    def negotiated(self, export):
        size_bytes = None
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self.receive(20))
            data = self.receive(length)
            if magic != MAGIC_REPLY_OPTION:
                sys.exit("this is not an NBD server")
            if kind == REPLY_INFO and data[:2] == b"\0\0":
                size_bytes = struct.unpack(">Q", data[2:10])[0]
            elif kind == REPLY_ACK:
                return size_bytes
            elif kind & 1 << 31:
                # Refused: the server may be about to stop, or has not opened the disk yet.
                raise Gone(f"no export {export}: {data.decode(errors='replace')}")

    def receive(self, length):
        parts = bytearray()
        while len(parts) < length:
            part = self.socket.recv(length - len(parts))
            if not part:
                raise Gone("closed")
            parts += part
        return bytes(parts)

    def send(self, data):
        self.socket.sendall(data)

    def write(self, cookie, offset, data):
        self.send(struct.pack(">IHHQQI", MAGIC_REQUEST, 0, COMMAND_WRITE, cookie, offset, len(data))
                  + data)

    def read(self, offset, length):
        self.send(struct.pack(">IHHQQI", MAGIC_REQUEST, 0, COMMAND_READ, 0, offset, length))
        _, error = self.answer()
        if error:
            raise Gone(f"a read was answered with error {error}")
        return self.receive(length)

    def answer(self):
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        if magic != MAGIC_REPLY:
            sys.exit("an answer that is not a simple reply")
        return cookie, error

    def close(self):
        try:
            self.send(struct.pack(">IHHQQI", MAGIC_REQUEST, 0, COMMAND_DISCONNECT, 0, 0, 0))
        except OSError:
            pass
        self.socket.close()


class Writer:
    """The load and its figures."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.random = random.Random(arguments.seed)
        self.stopped = False
        self.figures = {"writes": 0, "bytes": 0, "acknowledged_bytes": 0, "connections": 0,
                        "refused": 0}

    def stop(self, *_):
        self.stopped = True

    def run(self):
        while not self.stopped:
            try:
                disk = Disk(self.arguments.socket, self.arguments.export)
            except (OSError, Gone):
                time.sleep(DIAL_EVERY_SECONDS)
                continue
            self.figures["connections"] += 1
            try:
                self.write(disk)
                disk.close()
            except (OSError, Gone):
                self.keep_figures()
                time.sleep(DIAL_EVERY_SECONDS)

    def write(self, disk):
        bytes_per_second = self.arguments.mib_per_second * (1 << 20)
        began, sent_bytes = time.monotonic(), 0
        while not self.stopped:
            ahead_seconds = sent_bytes / bytes_per_second - (time.monotonic() - began)
            if ahead_seconds > 0:
                time.sleep(min(ahead_seconds, 0.1))
                continue
            sent_bytes += self.batch(disk)
            self.keep_figures()

    def batch(self, disk):
        lengths = {}
        for cookie in range(BATCH):
            length = self.random.randrange(BLOCK_BYTES, WRITE_BYTES_MAX + 1, BLOCK_BYTES)
            offset = self.random.randrange(0, disk.size_bytes - length + 1, BLOCK_BYTES)
            # Counted before it is sent: nobody knows how much of a broken request arrived.
            self.figures["writes"] += 1
            self.figures["bytes"] += length
            lengths[cookie] = length
            disk.write(cookie, offset, os.urandom(length))
        for _ in range(BATCH):
            cookie, error = disk.answer()
            if error == ERROR_SHUTDOWN:
                self.figures["refused"] += 1
                continue
            if error:
                sys.exit(f"a write was answered with error {error}")
            self.figures["acknowledged_bytes"] += lengths[cookie]
        return sum(lengths.values())

    def keep_figures(self):
        path = self.arguments.figures
        with open(path + ".new", "w", encoding="ascii") as file:
            json.dump(self.figures, file)
        os.replace(path + ".new", path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--export", required=True)
    parser.add_argument("--mib-per-second", type=float, required=True)
    parser.add_argument("--figures", required=True)
    parser.add_argument("--seed", type=int, default=1)
    writer = Writer(parser.parse_args())
    signal.signal(signal.SIGTERM, writer.stop)
    signal.signal(signal.SIGINT, writer.stop)
    writer.keep_figures()
    writer.run()
    writer.keep_figures()
    return 0


if __name__ == "__main__":
    sys.exit(main())
