"""REQ, JSON: write a fact and read the reply."""

import json
import sys

import zmq

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 7000

with zmq.Context() as context, context.socket(zmq.REQ) as socket:
    socket.connect(f"tcp://127.0.0.1:{PORT}")
    socket.send_multipart([b"memory.remember", json.dumps({"key": "city", "value": "Oslo"}).encode()])
    status, body = socket.recv_multipart()
    print(status.decode(), json.loads(body)["value"])
