"""`qvec-deploy` in processes of their own that begin with everything imported: forked from a server.

For tests of what processes do to each other, or of scripts that call the command. What is killed, or must show what a
start imports, is started as users start it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

from shared import FOLDER

CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [request], [0, 1, 2])
sys.exit(int(server.recv(16)))
"""
"""An executable that stands for `qvec-deploy`."""


def serve(address: str) -> None:
    """Run commands until this process is ended."""
    import shared_builds  # noqa: F401
    import timm  # noqa: F401

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> None:
    request, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    arguments, folder, environment = json.loads(request)
    child = os.fork()
    if child == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(3, max(files) + 1)
        os.chdir(folder)
        shared = os.environ[FOLDER]
        os.environ.clear()
        os.environ.update(environment | {FOLDER: shared})
        sys.argv = ["qvec-deploy", *arguments]
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 - the process's own
        from qvec_deploy.cli import program

        program()
    for file in files:
        os.close(file)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.send(str(code).encode())
    os._exit(0)


def write_client(path: Path, address: str) -> Path:
    """Write the executable."""
    path.write_text(CLIENT.format(python=sys.executable, address=address))
    path.chmod(0o755)
    return path


if __name__ == "__main__":
    serve(sys.argv[1])
