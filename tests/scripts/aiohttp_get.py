"""aiohttp, through the HTTP proxy in argv[1], logged in by header: fifty requests at once, bodies both ways."""

import asyncio
import hashlib
import sys

import aiohttp

proxy, username, password, url, length, digest = sys.argv[1:]


async def main():
    login = aiohttp.BasicAuth(username, password, "utf-8")
    how = {"proxy": proxy, "proxy_auth": login}
    async with aiohttp.ClientSession() as session:

        async def text():
            async with session.get(f"{url}/hello", **how) as answer:
                return await answer.text()

        assert set(await asyncio.gather(*(text() for _ in range(50)))) == {"hello from inside\n"}
        async with session.get(f"{url}/bytes/{length}", **how) as answer:
            body = await answer.read()
        assert hashlib.sha256(body).hexdigest() == digest
        async with session.post(f"{url}/hash", data=body, **how) as answer:
            assert await answer.text() == f"{digest} {length}\n"
        async with session.get(f"{url}/hello", proxy=proxy) as answer:
            assert answer.status == 407


asyncio.run(main())
print("ok")
