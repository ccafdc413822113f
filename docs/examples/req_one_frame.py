"""REQ, one frame: send_json and recv_json are all it takes."""

import sys

import zmq

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 7000

with zmq.Context() as context, context.socket(zmq.REQ) as socket:
    socket.connect(f"tcp://127.0.0.1:{PORT}")
    socket.send_json({"subject": "memory.kv.set", "body": {"key": "colour", "value": ["blue", 7]}})
    reply = socket.recv_json()
    print(reply["status"], reply["body"]["key"])
