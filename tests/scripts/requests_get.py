"""requests, through the proxy in argv[1]: one session, bodies both ways."""

import hashlib
import sys

import requests

proxy, url, length, digest = sys.argv[1:]
with requests.Session() as session:
    session.trust_env = False
    session.proxies = {"http": proxy, "https": proxy}
    assert session.get(f"{url}/hello").text == "hello from inside\n"
    body = session.get(f"{url}/bytes/{length}").content
    assert hashlib.sha256(body).hexdigest() == digest
    assert session.post(f"{url}/hash", data=body).text == f"{digest} {length}\n"
    # A generator's length is not known: it goes in chunks.
    chunks = (body[at : at + 10_000] for at in range(0, len(body), 10_000))
    assert session.post(f"{url}/hash", data=chunks).text == f"{digest} {length}\n"
    refused = session.get("http://169.254.169.254/") if proxy.startswith("http") else None
    assert refused is None or refused.status_code == 403
print("ok")
