"""The asyncio client: request, stream, publish and subscribe."""

import asyncio

from bus.client import Client
from bus.settings import load_settings
from schemas.bodies.memory import Remember
from schemas.bodies.model import Chat, ChatMessage
from schemas.errors import NotFound


async def main() -> None:
    async with Client(load_settings(), name="example") as client:
        async with client.subscribe("memory.changed.*") as events:
            fact = await client.request("memory.remember", Remember(key="city", value="Oslo"), timeout_s=5)
            print(fact.key, fact.value)
            event = await anext(aiter(events))
            print(event.subject, event.body["action"], event.seq > 0)

        question = Chat(messages=[ChatMessage(role="user", content="Hello")], temperature=0)
        async with client.stream("model.chat", question, timeout_s=60) as parts:
            async for part in parts:
                print(part.text, end="")
        print("\n" + parts.final.finish_reason)

        try:
            await client.request("memory.recall", {"key": "nothing"})
        except NotFound as error:
            print(error.code)
        await client.publish("demo.done", {"by": "example"})


asyncio.run(main())
