#!/usr/bin/env python3
"""One stream over a long line that loses packets, beside one bare TLS connection over the same line.

    sudo crates/bench/line.py [--rtt 100] [--loss 0.001] [--mbit 80] [--seconds 8] [--rounds 3] [--up] [--anyproxy FILE]

Two network namespaces of its own are joined by a packet link: each packet waits for the line (a rate, and a queue of one
bandwidth x delay before it), takes half the round trip, and is lost now and then. The gateway and the user are in one,
the client and the target in the other. What is counted begins three seconds after the first byte, when windows are tuned.

Needs root, /dev/net/tun, `ip`, and target/release/anyproxy or another program of that kind. The link is one process of
Python: beyond some 100 Mbit/s on two cores it is the machine that is measured.
"""
import argparse, collections, ctypes, fcntl, os, random, select, signal, socket, ssl, statistics, struct
import subprocess, sys, tempfile, threading, time

ANYPROXY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../target/release/anyproxy")
USER, TARGET = "anyproxy-line-user", "anyproxy-line-target"
GATEWAY_ADDR, TARGET_ADDR = "10.77.0.1", "10.77.0.2"
TUNED = 3.0
PIECE = 256 * 1024

CONFIG = """
log: {{ level: error }}
proxy:
  socks5: {{ listen_addr: "127.0.0.1:9003", auth_username: user, auth_password: password }}
gateway: {{ listen_addr: "{gateway}:9004", tls_cert: {dir}/server.crt, tls_key: {dir}/server.key,
  auth_username: tunnel, auth_password: password }}
client: {{ gateway_addr: "{gateway}:9004", gateway_tls_cert: {dir}/server.crt, client_id: line,
  auth_username: tunnel, auth_password: password }}
"""


def device(namespace, address):
    """A tun device in a new namespace. The one of this process is the first again afterwards."""
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    home, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/var/run/netns/{namespace}", os.O_RDONLY)
    enter(there)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", b"line", IFF_TUN | IFF_NO_PI))
    for command in f"ip addr add {address}/24 dev line", "ip link set line up txqueuelen 10000", "ip link set lo up":
        subprocess.run(command.split(), check=True)
    enter(home)
    return tun


def enter(namespace):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, 0) != 0:
        sys.exit(f"setns: {os.strerror(ctypes.get_errno())}")


def link(ends, rtt, loss, rate):
    """Carries packets between two devices, for ever."""
    under_way = [collections.deque(), collections.deque()]
    free, queue = [0.0, 0.0], max(rate * rtt, 256 * 1024)
    events = select.epoll()
    for end in ends:
        events.register(end, select.EPOLLIN)
    while True:
        due = min((way[0][0] for way in under_way if way), default=time.monotonic() + 1)
        events.poll(max(0.0, due - time.monotonic()))
        now = time.monotonic()
        for way, end in enumerate(ends):
            for _ in range(64):
                try:
                    packet = os.read(end, 2048)
                except BlockingIOError:
                    break
                start = max(free[way], now)
                if random.random() < loss or (start - now) * rate > queue:
                    continue
                free[way] = start + len(packet) / rate
                under_way[way].append((free[way] + rtt / 2, packet))
        now = time.monotonic()
        for way, packets in enumerate(under_way):
            while packets and packets[0][0] <= now:
                try:
                    os.write(ends[1 - way], packets[0][1])
                except BlockingIOError:
                    break
                packets.popleft()


def pace(receive, seconds):
    """Bytes per second from `receive`, for so long once the window is tuned."""
    first = tuned = None
    total = 0
    while True:
        piece, now = receive(), time.monotonic()
        if not piece:
            sys.exit("the connection ended")
        first = first or now
        if tuned is None:
            if now - first > TUNED:
                tuned = now
            continue
        total += len(piece)
        if now - tuned > seconds:
            return total / (now - tuned)


def target(directory, seconds):
    """Says zeros to who asks D, and tells who asks U how fast it received. Plain on 9000, TLS on 9443."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(f"{directory}/server.crt", f"{directory}/server.key")

    def serve(connection, context):
        try:
            connection = context.wrap_socket(connection, server_side=True) if context else connection
            if connection.recv(1) == b"D":
                while True:
                    connection.sendall(bytes(PIECE))
            connection.sendall(b"%f" % pace(lambda: connection.recv(PIECE), seconds))
            # What still comes is read, or the answer would be lost with it.
            while connection.recv(PIECE):
                pass
        except OSError:
            pass

    def listen(port, context):
        listener = socket.create_server(("0.0.0.0", port))
        while True:
            connection = listener.accept()[0]
            threading.Thread(target=serve, args=(connection, context), daemon=True).start()

    threading.Thread(target=listen, args=(9000, None), daemon=True).start()
    listen(9443, tls)


def user(way, up, seconds):
    """Prints the bytes per second of one connection."""
    if way == "bare":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        stream = context.wrap_socket(socket.create_connection((TARGET_ADDR, 9443)))
    else:
        stream = dialled()
    stream.settimeout(seconds + 60)
    if not up:
        stream.sendall(b"D")
        print(pace(lambda: stream.recv(PIECE), seconds))
        return
    stream.sendall(b"U")
    # Longer than the target counts: it has its figure before the last byte has come.
    until = time.monotonic() + TUNED + seconds + 3
    while time.monotonic() < until:
        stream.sendall(bytes(PIECE))
    print(float(stream.recv(100)))


def dialled():
    """A connection to the target through the gateway, as soon as there is a client."""
    request = b"\5\1\2" + b"\1\4user\x08password" + b"\5\1\0\1\x7f\0\0\1" + (9000).to_bytes(2, "big")
    for _ in range(100):
        stream = socket.create_connection(("127.0.0.1", 9003))
        stream.sendall(request)
        # The method, that the login is right, and what became of the dial.
        answers = b""
        while len(answers) < 14 and (piece := stream.recv(14 - len(answers))):
            answers += piece
        if answers[5:6] == b"\0":
            return stream
        stream.close()
        time.sleep(0.1)
    sys.exit("no client came")


def until_it_listens(namespace, port):
    for _ in range(200):
        listening = subprocess.run(["ip", "netns", "exec", namespace, "cat", "/proc/net/tcp"], capture_output=True, text=True)
        if any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in listening.stdout.splitlines()[1:]):
            return
        time.sleep(0.05)
    sys.exit(f"nothing listens on port {port}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt", type=float, default=100, help="milliseconds")
    parser.add_argument("--loss", type=float, default=0.001)
    parser.add_argument("--mbit", type=float, default=80)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--up", action="store_true", help="upload instead of download")
    parser.add_argument("--anyproxy", default=ANYPROXY, help="the program")
    parser.add_argument("--role", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.role and asked.role[0] == "target":
        return target(asked.role[1], asked.seconds)
    if asked.role:
        return user(asked.role[1], asked.up, asked.seconds)

    # So that what was made is put away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to end"))
    children = []

    def start(namespace, *command):
        child = subprocess.Popen(["ip", "netns", "exec", namespace, *command], start_new_session=True)
        children.append(child.pid)

    if os.path.exists(f"/var/run/netns/{USER}"):
        sys.exit(f"the namespace {USER} is there: another run, or what one left")
    with tempfile.TemporaryDirectory() as directory:
        try:
            ends = [device(USER, GATEWAY_ADDR), device(TARGET, TARGET_ADDR)]
            carrier = os.fork()
            if carrier == 0:
                try:
                    link(ends, asked.rtt / 1000, asked.loss, asked.mbit * 1e6 / 8)
                finally:
                    # The rest of this is the parent's.
                    os._exit(1)
            children.append(carrier)
            subprocess.run([asked.anyproxy, "cert", "--out", f"{directory}/cert", "localhost", GATEWAY_ADDR], check=True, stdout=subprocess.DEVNULL)
            certificate = f"{directory}/cert"
            with open(f"{directory}/config.yaml", "w") as config:
                config.write(CONFIG.format(dir=certificate, gateway=GATEWAY_ADDR))
            again = [sys.executable, os.path.abspath(__file__), "--seconds", str(asked.seconds)]
            start(TARGET, *again, "--role", "target", certificate)
            start(USER, asked.anyproxy, "gateway", "--config", f"{directory}/config.yaml")
            for port in 9003, 9004:
                until_it_listens(USER, port)
            start(TARGET, asked.anyproxy, "client", "--config", f"{directory}/config.yaml")
            until_it_listens(TARGET, 9443)
            seen = {"bare": [], "anyproxy": []}
            for turn in range(asked.rounds):
                for way in ("bare", "anyproxy") if turn % 2 == 0 else ("anyproxy", "bare"):
                    command = ["ip", "netns", "exec", USER, *again, "--role", "user", way] + ["--up"] * asked.up
                    ended = subprocess.run(command, capture_output=True, text=True, check=True)
                    seen[way].append(float(ended.stdout) / 2**20)
                    print(f"{way}: {seen[way][-1]:.1f} MiB/s", flush=True)
            medians = {way: statistics.median(rates) for way, rates in seen.items()}
            print(f"{asked.rtt:.0f} ms, {asked.loss:.2%} lost, {asked.mbit:.0f} Mbit/s: anyproxy {medians['anyproxy']:.1f} MiB/s,"
                  f" bare TLS {medians['bare']:.1f} MiB/s, ratio {medians['anyproxy'] / medians['bare']:.2f}")
        finally:
            for child in children:
                try:
                    os.kill(child, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            for namespace in USER, TARGET:
                subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
