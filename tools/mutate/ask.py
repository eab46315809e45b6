"""The test command of a mutation run: asks the server of ``forks``, and ends with 1 where a test failed.

python -S tools/mutate/ask.py SOCKET

Where the server is gone no test has failed: what would be written down as killed is not, since the run ends.
"""

import os
import signal
import socket
import sys

with socket.socket(socket.AF_UNIX) as connection:
    try:
        connection.connect(sys.argv[1])
        answer = connection.recv(1)
    except OSError:
        answer = b""
    if not answer:
        os.kill(os.getppid(), signal.SIGTERM)
    sys.exit(answer != b"\x01")
