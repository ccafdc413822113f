"""DEALER, several requests in flight; replies come as they are ready, so each must tell what it belongs to."""

import json
import sys

import zmq

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 7000

with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
    socket.connect(f"tcp://127.0.0.1:{PORT}")
    for number in range(5):
        socket.send_multipart([b"bus.ping", json.dumps({"payload": number}).encode()])
    replies = [socket.recv_multipart() for _ in range(5)]
    print(sorted(json.loads(body)["payload"] for _, body in replies))
