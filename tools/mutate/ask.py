"""The test command of a mutation run: asks the server of ``forks``, and ends with 1 where a test failed.

python -S tools/mutate/ask.py SOCKET
"""

import socket
import sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    sys.exit(connection.recv(1) != b"\x01")
