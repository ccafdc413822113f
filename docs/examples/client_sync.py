"""The synchronous client, for scripts."""

from bus.settings import load_settings
from bus.sync import SyncClient

with SyncClient(load_settings()) as client:
    with client.subscribe("memory.changed.>", timeout_s=2) as events:
        print(client.request("memory.kv.set", {"key": "colour", "value": "blue"}).key)
        print(next(events).subject)

    chat = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
    parts = client.stream("model.chat", chat)
    print("".join(part.text for part in parts))
    print(parts.final.usage.completion_tokens > 0)
    client.publish("demo.done", {"by": "script"})
