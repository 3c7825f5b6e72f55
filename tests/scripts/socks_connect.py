"""PySocks and python-socks, to an echo: argv is the SOCKS5 front, then the HTTP front, then the echo, all host and port,
then the login."""

import asyncio
import sys

import socks
from python_socks import ProxyError, ProxyType
from python_socks.async_.asyncio import Proxy

socks_host, socks_port, http_host, http_port, host, port, username, password = sys.argv[1:]
socks_port, http_port, port = int(socks_port), int(http_port), int(port)


def pysocks(kind, address, name):
    stream = socks.socksocket()
    stream.set_proxy(kind, *address, rdns=True, username=username, password=password)
    stream.settimeout(30)
    stream.connect((name, port))
    stream.sendall(b"hello" * 1000)
    found = b""
    while len(found) < 5000:
        found += stream.recv(65536)
    assert found == b"hello" * 1000
    stream.close()


for name in [host, "localhost"]:
    pysocks(socks.SOCKS5, (socks_host, socks_port), name)
    pysocks(socks.HTTP, (http_host, http_port), name)


async def python_socks(kind, proxy_host, proxy_port, login):
    proxy = Proxy(kind, proxy_host, proxy_port, *login, rdns=True)
    stream = await proxy.connect("localhost", port, timeout=30)
    reader, writer = await asyncio.open_connection(sock=stream)
    writer.write(b"hello")
    writer.write_eof()
    assert await reader.read() == b"hello"
    writer.close()


async def main():
    for front in [(ProxyType.SOCKS5, socks_host, socks_port), (ProxyType.HTTP, http_host, http_port)]:
        await python_socks(*front, (username, password))
        try:
            await python_socks(*front, (username, "wrong"))
            raise AssertionError("let in with a wrong login")
        except ProxyError:
            pass


asyncio.run(main())
print("ok")
