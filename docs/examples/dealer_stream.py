"""DEALER, streamed: the answer of a model piece by piece."""

import json
import sys

import zmq

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 7000

with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
    socket.connect(f"tcp://127.0.0.1:{PORT}")
    chat = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
    socket.send_multipart([b"model.chat", json.dumps(chat).encode(), b'{"stream": true}'])
    status = b"partial"
    while status == b"partial":
        status, body = socket.recv_multipart()
        print(status.decode(), json.loads(body).get("text"))
