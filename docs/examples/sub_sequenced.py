"""SUB on the sequenced port: the same events with sequence number, time, source and id."""

import sys

import msgpack
import zmq

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 7003

with zmq.Context() as context, context.socket(zmq.SUB) as socket:
    socket.connect(f"tcp://127.0.0.1:{PORT}")
    socket.subscribe("demo.")
    while True:
        subject, meta, body = socket.recv_multipart()
        meta = msgpack.unpackb(meta)
        print(meta["seq"] > 0, meta["source"], meta["id"], subject.decode(), len(body), flush=True)
