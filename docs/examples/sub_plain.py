"""SUB on the plain port: every event below `demo.`, as [subject, body]."""

import json
import sys

import msgpack
import zmq

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 7002

with zmq.Context() as context, context.socket(zmq.SUB) as socket:
    socket.connect(f"tcp://127.0.0.1:{PORT}")
    socket.subscribe("demo.")
    while True:
        subject, body = socket.recv_multipart()
        print(subject.decode(), json.loads(body) if body[:1] in b'{["' else msgpack.unpackb(body), flush=True)
