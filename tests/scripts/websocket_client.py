"""websockets, to an echo at port argv[3]: by the proxy URLs argv[1] (HTTP) and argv[2] (SOCKS5), and by an `Upgrade` in
absolute-form, for which the bytes are its own and the request line is ours."""

import asyncio
import base64
import socket
import sys
from urllib.parse import unquote, urlsplit

from websockets.asyncio.client import connect
from websockets.client import ClientProtocol
from websockets.frames import Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

# This library takes a login as it stands in the URL.
http, socks5, port = map(unquote, sys.argv[1:])
url = f"ws://127.0.0.1:{port}/"


async def through(proxy):
    async with connect(url, proxy=proxy, max_size=2**24) as connection:
        for message in ["text", b"\0bytes", b"x" * 3_000_000]:
            await connection.send(message)
            assert await connection.recv() == message


def absolute_form():
    front = urlsplit(http)
    stream = socket.create_connection((front.hostname, front.port), timeout=30)
    protocol = ClientProtocol(parse_uri(url))
    request = protocol.connect()
    login = f"{front.username}:{front.password}"
    request.path = f"http://127.0.0.1:{port}/"
    request.headers["Proxy-Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    protocol.send_request(request)

    def events():
        while True:
            yield from protocol.events_received()
            for data in protocol.data_to_send():
                stream.sendall(data) if data else stream.shutdown(socket.SHUT_WR)
            data = stream.recv(65536)
            protocol.receive_data(data) if data else protocol.receive_eof()
            if not data:
                return

    arriving = events()
    response = next(arriving)
    assert response.status_code == 101 and protocol.state is State.OPEN, response
    protocol.send_text(b"upgraded")
    frame = next(arriving)
    assert (frame.opcode, frame.data) == (Opcode.TEXT, b"upgraded"), frame
    protocol.send_close(1000)
    assert next(arriving).opcode is Opcode.CLOSE
    assert list(arriving) == [] and protocol.close_rcvd.code == 1000


for proxy in [http, socks5]:
    asyncio.run(through(proxy))
absolute_form()
print("ok")
