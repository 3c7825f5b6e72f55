"""A DNS server inside, and outside a UDP port whose datagrams reach it through an association of PySocks: argv is the
SOCKS5 front's host and port and the login. For programs that speak no SOCKS5, such as dig."""

import socket
import sys

import dnslib
import dnslib.server
import socks

host, port, username, password = sys.argv[1:]


class Resolver(dnslib.server.BaseResolver):
    def resolve(self, request, handler):
        reply = request.reply()
        for number in range(40):
            reply.add_answer(*dnslib.RR.fromZone(f'{request.q.qname} 60 TXT "record {number:02}"'))
        return reply


quiet = dnslib.server.DNSLogger("-request,-reply,-truncated")
server = dnslib.server.DNSServer(Resolver(), address="127.0.0.1", port=0, logger=quiet)
server.start_thread()

inside = socks.socksocket(type=socket.SOCK_DGRAM)
inside.set_proxy(socks.SOCKS5, host, int(port), username=username, password=password)
outside = socket.socket(type=socket.SOCK_DGRAM)
outside.bind(("127.0.0.1", 0))
print("port", outside.getsockname()[1])
while True:
    question, source = outside.recvfrom(65536)
    inside.sendto(question, server.server.server_address)
    outside.sendto(inside.recvfrom(65536)[0], source)
