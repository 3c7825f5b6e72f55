"""hyper-h2, to an echo at argv[4] by many CONNECTs in one HTTP/2 connection: argv is the front's host and port, its
certificate, the echo's address and the login."""

import base64
import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.events

host, port, certificate, target, login = sys.argv[1:]
STREAMS = 20
HELLO = b"hello from a stream "

context = ssl.create_default_context(cafile=certificate)
context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
context.set_alpn_protocols(["h2"])
stream = context.wrap_socket(socket.create_connection((host, int(port)), timeout=30), server_hostname=host)
assert stream.selected_alpn_protocol() == "h2"

connection = h2.connection.H2Connection(config=h2.config.H2Configuration(header_encoding="utf-8"))
connection.initiate_connection()
basic = "Basic " + base64.b64encode(login.encode()).decode()


def ask(*extra):
    number = connection.get_next_available_stream_id()
    connection.send_headers(number, [(":method", "CONNECT"), (":authority", target), *extra])
    return number


tunnels = [ask(("proxy-authorization", basic)) for _ in range(STREAMS)]
stranger = ask()
codes, found, ended = {}, {number: b"" for number in tunnels}, set()
while ended != {*tunnels, stranger}:
    stream.sendall(connection.data_to_send())
    for event in connection.receive_data(stream.recv(65536)):
        match event:
            case h2.events.ResponseReceived():
                codes[event.stream_id] = dict(event.headers)[":status"]
                if codes[event.stream_id] == "200":
                    connection.send_data(event.stream_id, HELLO + str(event.stream_id).encode(), end_stream=True)
            case h2.events.DataReceived():
                if event.stream_id in found:
                    found[event.stream_id] += event.data
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                ended.add(event.stream_id)
            case h2.events.StreamReset():
                assert event.stream_id == stranger, event
                ended.add(event.stream_id)
            case h2.events.ConnectionTerminated():
                raise AssertionError(event)
assert codes.pop(stranger) == "407"
assert set(codes.values()) == {"200"}, codes
assert all(found[number] == HELLO + str(number).encode() for number in tunnels), found
print("ok")
