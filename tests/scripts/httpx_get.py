"""httpx, through the proxy in argv[1]: fifty requests at once, bodies both ways."""

import asyncio
import hashlib
import sys

import httpx

proxy, url, length, digest = sys.argv[1:]


async def main():
    async with httpx.AsyncClient(proxy=proxy, trust_env=False, timeout=30) as client:
        answers = await asyncio.gather(*(client.get(f"{url}/hello") for _ in range(50)))
        assert all(answer.text == "hello from inside\n" for answer in answers)
        async with client.stream("GET", f"{url}/bytes/{length}") as answer:
            found = hashlib.sha256()
            async for chunk in answer.aiter_bytes():
                found.update(chunk)
        assert found.hexdigest() == digest
        body = (await client.get(f"{url}/bytes/{length}")).content
        assert (await client.post(f"{url}/hash", content=body)).text == f"{digest} {length}\n"


asyncio.run(main())
print("ok")
