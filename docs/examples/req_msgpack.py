"""REQ, msgpack, with headers: a request that fails, and how its error looks."""

import sys

import msgpack
import zmq

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 7000

with zmq.Context() as context, context.socket(zmq.REQ) as socket:
    socket.connect(f"tcp://127.0.0.1:{PORT}")
    socket.send_multipart([b"memory.recall", msgpack.packb({"key": "nothing"}), msgpack.packb({"timeout_s": 5})])
    status, body = socket.recv_multipart()
    print(status.decode(), msgpack.unpackb(body)["code"])
