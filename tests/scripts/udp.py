"""Datagrams through the SOCKS5 front: argv is its host and port and the login.

PySocks asks an echo over IPv4, IPv6 and by name, and a DNS server; fifty associations live at once.
"""

import os
import socket
import sys
import threading

import dnslib
import dnslib.server
import socks

host, port, username, password = sys.argv[1:]


def echo(family, address):
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind((address, 0))

    def serve():
        while True:
            datagram, source = server.recvfrom(65536)
            server.sendto(datagram, source)

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1]


class Resolver(dnslib.server.BaseResolver):
    def resolve(self, request, handler):
        reply = request.reply()
        reply.add_answer(*dnslib.RR.fromZone(f"{request.q.qname} 60 A 10.1.2.3"))
        return reply


def associate():
    datagrams = socks.socksocket(type=socket.SOCK_DGRAM)
    datagrams.set_proxy(socks.SOCKS5, host, int(port), rdns=True, username=username, password=password)
    datagrams.settimeout(30)
    return datagrams


four, six = echo(socket.AF_INET, "127.0.0.1"), echo(socket.AF_INET6, "::1")
datagrams = associate()
for target in [("127.0.0.1", four), ("localhost", four), ("::1", six)]:
    for size in [1, 1200, 1472, 9000]:
        datagram = os.urandom(size)
        datagrams.sendto(datagram, target)
        found, source = datagrams.recvfrom(65536)
        assert found == datagram, (target, size)
        assert source[1] == target[1], source

quiet = dnslib.server.DNSLogger("-request,-reply")
server = dnslib.server.DNSServer(Resolver(), address="127.0.0.1", port=0, logger=quiet)
server.start_thread()
question = dnslib.DNSRecord.question("wiki.office.example")
datagrams.sendto(question.pack(), ("127.0.0.1", server.server.server_address[1]))
answer = dnslib.DNSRecord.parse(datagrams.recv(4096))
assert answer.header.id == question.header.id and str(answer.a.rdata) == "10.1.2.3", answer

# Many associations at once, each hears its own.
many = [associate() for _ in range(50)]
for number, one in enumerate(many):
    one.sendto(b"number %d" % number, ("127.0.0.1", four))
for number, one in enumerate(many):
    assert one.recvfrom(4096)[0] == b"number %d" % number
    one.close()

# What is denied is dropped without a word, and nothing else is disturbed.
datagrams.sendto(b"nobody", ("169.254.169.254", 53))
datagrams.sendto(b"somebody", ("127.0.0.1", four))
assert datagrams.recvfrom(4096)[0] == b"somebody"
print("ok")
