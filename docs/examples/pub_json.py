"""PUB, JSON: publish one event."""

import json
import sys
import time

import zmq

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 7001

with zmq.Context() as context, context.socket(zmq.PUB) as socket:
    socket.connect(f"tcp://127.0.0.1:{PORT}")
    time.sleep(0.5)  # a PUB socket drops what it sends before the connection stands
    socket.send_multipart([b"demo.greeting", json.dumps({"text": "hello"}).encode()])
