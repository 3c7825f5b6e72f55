"""aioquic, client and server, joined by an association of the SOCKS5 front: argv is its host and port, the login, and a
certificate with its key, for localhost."""

import asyncio
import hashlib
import os
import ssl
import struct
import sys

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

host, port, username, password, certificate, key = sys.argv[1:]
LENGTH = 2_000_000


async def hashing(reader, writer):
    writer.write(hashlib.sha256(await reader.read()).hexdigest().encode())
    writer.write_eof()


class Association(asyncio.DatagramProtocol, asyncio.DatagramTransport):
    """A transport whose datagrams wear the header of RFC 1928 section 7 on their way to the front."""

    def __init__(self, inner, target):
        super().__init__()
        self.inner, self.target = inner, target
        self.header = b"\0\0\0\1\x7f\0\0\1" + struct.pack("!H", target[1])

    def connection_made(self, transport):
        self.outer = transport
        self.inner.connection_made(self)

    def sendto(self, data, addr=None):
        self.outer.sendto(self.header + data)

    def datagram_received(self, data, _):
        assert data.startswith(self.header), data[:10]
        self.inner.datagram_received(data[len(self.header) :], self.target)

    def close(self):
        self.outer.close()


async def associate(inner, target):
    reader, writer = await asyncio.open_connection(host, int(port))
    login = b"".join(bytes([len(part)]) + part.encode() for part in [username, password])
    writer.write(b"\5\1\2" + b"\1" + login + b"\5\3\0\1\0\0\0\0\0\0")
    assert await reader.readexactly(4) == b"\5\2\1\0"
    reply = await reader.readexactly(10)
    assert reply[:4] == b"\5\0\0\1", reply
    relay = ".".join(map(str, reply[4:8])), struct.unpack("!H", reply[8:])[0]
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: Association(inner, target), remote_addr=relay)
    return writer


async def main():
    configuration = QuicConfiguration(is_client=False)
    configuration.load_cert_chain(certificate, key)
    tasks = set()

    def accept(reader, writer):
        tasks.add(asyncio.ensure_future(hashing(reader, writer)))

    server = await serve("127.0.0.1", 0, configuration=configuration, stream_handler=accept)
    target = server._transport.get_extra_info("sockname")

    configuration = QuicConfiguration(is_client=True, server_name="localhost", verify_mode=ssl.CERT_NONE)
    client = QuicConnectionProtocol(QuicConnection(configuration=configuration))
    association = await associate(client, target)
    client.connect(target)
    await asyncio.wait_for(client.wait_connected(), 30)
    body = os.urandom(LENGTH)
    reader, writer = await client.create_stream()
    writer.write(body)
    writer.write_eof()
    digest = await asyncio.wait_for(reader.read(), 60)
    assert digest.decode() == hashlib.sha256(body).hexdigest(), digest
    client.close()
    await client.wait_closed()
    association.close()
    server.close()


asyncio.run(main())
print("ok")
