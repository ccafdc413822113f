"""PUB, msgpack, with headers: `source` and `id` reach the subscribers of the sequenced port."""

import sys
import time

import msgpack
import zmq

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 7001

with zmq.Context() as context, context.socket(zmq.PUB) as socket:
    socket.connect(f"tcp://127.0.0.1:{PORT}")
    time.sleep(0.5)  # a PUB socket drops what it sends before the connection stands
    headers = msgpack.packb({"source": "kitchen", "id": "reading-1"})
    socket.send_multipart([b"demo.reading", msgpack.packb({"celsius": 21.5}), headers])
