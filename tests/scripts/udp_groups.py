"""One association of PySocks to echoes at two addresses, which routes send to two clients: argv is the SOCKS5 front's host
and port and the login. Says where the echoes were and the ports that each was asked from."""

import socket
import sys

import socks

host, port, username, password = sys.argv[1:]

datagrams = socks.socksocket(type=socket.SOCK_DGRAM)
datagrams.set_proxy(socks.SOCKS5, host, int(port), username=username, password=password)
datagrams.settimeout(30)
echoes = []
for address in ["127.0.0.1", "127.0.0.9"] * 2:
    echo = socket.socket(type=socket.SOCK_DGRAM)
    echo.bind((address, 0))
    echo.settimeout(30)
    echoes.append((echo, set()))
# In turns, so that both clients have a part of the association at once.
for _ in range(3):
    for echo, sources in echoes:
        datagrams.sendto(b"which way", echo.getsockname())
        datagram, source = echo.recvfrom(4096)
        sources.add(source)
        echo.sendto(datagram, source)
        assert datagrams.recvfrom(4096) == (b"which way", echo.getsockname())
one, nine, one_too, nine_too = (sources for _, sources in echoes)
assert one == one_too and nine == nine_too, "a client's part leaves from one port"
assert len(one) == len(nine) == 1 and one != nine, echoes
print(*(f"{address}:{port}" for address, port in (echo.getsockname() for echo, _ in echoes)))
