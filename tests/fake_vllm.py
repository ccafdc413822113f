"""`vllm serve`, as far as the backend speaks to it: an HTTP server that says what it is told to, and writes down what it
was asked. A real program in a process of its own, started by tests in vLLM's place.

    FAKE_VLLM_LOG    file that gets a JSON line for each start and request
    FAKE_VLLM_MODE   fail: end with an error; hang: never serve; stubborn: ignore SIGTERM; pooling: make vectors
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODE = os.environ.get("FAKE_VLLM_MODE", "")
_writing = threading.Lock()


def note(**what: Any) -> None:
    """Write down what happened."""
    with _writing, Path(os.environ["FAKE_VLLM_LOG"]).open("a") as file:
        file.write(json.dumps(what) + "\n")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    arguments: argparse.Namespace
    adapters: dict[str, str] = {}

    def do_GET(self) -> None:
        """Health, models, paths and metrics."""
        paths = ["/v1/completions", "/v1/chat/completions", "/v1/load_lora_adapter"]
        if MODE == "pooling":
            paths = ["/v1/embeddings"]
        answers: dict[str, Any] = {
            "/health": {},
            "/v1/models": {
                "data": [
                    {
                        "id": self.arguments.served_model_name,
                        "owned_by": "vllm",
                        "max_model_len": self.arguments.max_model_len,
                    }
                ]
            },
            "/openapi.json": {"paths": {path: {} for path in paths}},
            "/metrics": "vllm:num_requests_running 0.0\n",
        }
        self._answer(answers[self.path])

    def do_POST(self) -> None:
        """Everything else."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        note(path=self.path, body=body, key=self.headers.get("authorization"))
        if self.path.startswith("/v1/") and self.headers.get("authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            self._answer({"error": {"message": "Unauthorized"}}, 401)
        elif self.path == "/v1/load_lora_adapter":
            if "bad" in body["lora_name"]:
                self._answer({"error": {"message": "rank 512 is greater than max_lora_rank"}}, 400)
            else:
                self.adapters[body["lora_name"]] = body["lora_path"]
                self._answer("Success")
        elif self.path == "/v1/unload_lora_adapter":
            self._answer("Success" if self.adapters.pop(body["lora_name"], None) else {}, 200)
        elif self.path == "/tokenize":
            self._answer({"tokens": [ord(character) for character in body["prompt"]]})
        elif self.path == "/v1/embeddings":
            data = [{"index": at, "embedding": [0.0, 2.0]} for at, _ in enumerate(body["input"])]
            self._answer({"data": data, "usage": {"prompt_tokens": 3}})
        elif self.path == "/v1/completions" and "prompt_logprobs" in body:
            tokens = body["prompt"]
            judged = [None, *({str(token): {"logprob": -token / 100}} for token in tokens[1:])]
            self._answer({"choices": [{"prompt_logprobs": judged}]})
        elif self.path in ("/v1/completions", "/v1/chat/completions"):
            self._stream(body)
        else:
            self._answer({})

    def _stream(self, body: dict[str, Any]) -> None:
        prompt = str(body.get("prompt") or body["messages"][-1]["content"])
        if prompt == "die":
            os._exit(3)
        events = [
            {"choices": [{"text": f"{body['model']}:", "token_ids": [1]}]},
            {"choices": [{"text": prompt, "token_ids": [2, 0], "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}},
        ]
        if "messages" in body:
            for event in events[:2]:
                event["choices"][0]["delta"] = {"content": event["choices"][0].pop("text")}
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self._answer(text, kind="text/event-stream")

    def _answer(self, body: Any, status: int = 200, kind: str = "application/json") -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing about requests."""


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    for name in ("host", "served-model-name"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("port", "max-model-len", "max-num-seqs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments, more = parser.parse_known_args()
    # A process of its own, like vLLM's core: it does not notice when only the first one is killed.
    core = subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
    )
    names = ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_SERVER_DEV_MODE", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE")
    environment = {name: os.environ.get(name) for name in names}
    note(started=vars(arguments), more=more, pid=os.getpid(), core=core.pid, environment=environment)
    print("INFO 01-01 starting", flush=True)
    print("WARNING 01-01 " + "w" * 5_000, flush=True)
    if MODE == "fail":
        print("Traceback (most recent call last):\nValueError: no such quantisation", file=sys.stderr, flush=True)
        sys.exit(1)
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if MODE == "hang":
        signal.pause()
    Handler.arguments = arguments
    ThreadingHTTPServer((arguments.host, arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
