"""HTTP itself: framing, limits, deadlines, pipelining, methods, CORS. Raw sockets, because clients hide all of this."""
import json
import socket

import pytest

HEAD = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"prompt": "Hi", "max_tokens": 1})


def read_all(sock):
    data = b""
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            return data
        if not piece:
            return data
        data += piece


def exchange(server, data, close_write=False):
    """Sends bytes, reads until the server closes."""
    with server.connect() as sock:
        sock.sendall(data if isinstance(data, bytes) else data.encode())
        if close_write:
            sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def status_of(answer):
    return int(answer.split(b" ", 2)[1]) if answer else None


def error_of(answer):
    return json.loads(answer[answer.index(b"\r\n\r\n") + 4:])["error"]


@pytest.mark.parametrize("head, status, code", [
    ("GET /health\r\n\r\n", 400, "invalid_http"),
    ("GET /health HTTP/2.0\r\nHost: a\r\n\r\n", 400, "invalid_http"),
    ("GET health HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_http"),
    ("GET http://a/health HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_http"),
    ("GET  /health HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_http"),
    ("G@T /health HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_http"),
    ("GET /he%zzlth HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_http"),
    ("GET /he%00lth HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_http"),
    ("GET /health HTTP/1.1\nHost: a\n\n", 400, "invalid_http"),
    ("GET /health HTTP/1.1\r\n\r\n", 400, "invalid_http"),
    ("GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "invalid_http"),
    ("GET /health HTTP/1.1\r\nHost : a\r\n\r\n", 400, "invalid_http"),
    ("GET /health HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", 400, "invalid_http"),
    ("GET /health HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n", 400, "invalid_http"),
    ("GET /health HTTP/1.1\r\nHost: a\r\nnocolon\r\n\r\n", 400, "invalid_http"),
    (HEAD + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde", 400, "invalid_http"),
    (HEAD + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "invalid_http"),
    (HEAD + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400, "invalid_http"),
    (HEAD + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "invalid_http"),
    (HEAD + "Content-Length: -1\r\n\r\n", 400, "invalid_http"),
    (HEAD + "Content-Length: +5\r\n\r\nabcde", 400, "invalid_http"),
    (HEAD + "Content-Length: 0x5\r\n\r\nabcde", 400, "invalid_http"),
    (HEAD + "Content-Length: 99999999999999999999\r\n\r\n", 413, "body_too_large"),
    (HEAD + "Content-Length: 16777217\r\n\r\n", 413, "body_too_large"),
    (HEAD + "Transfer-Encoding: chunked\r\n\r\n1000001\r\n", 413, "body_too_large"),
    (HEAD + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n", 413, "body_too_large"),
    (HEAD + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n", 400, "invalid_http"),
    (HEAD + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "invalid_http"),
    (HEAD + "Transfer-Encoding: chunked\r\n\r\n1\nA\r\n", 400, "invalid_http"),
    (HEAD + "Transfer-Encoding: chunked\r\n\r\n1\r\nAB\r\n", 400, "invalid_http"),
    (HEAD + "Transfer-Encoding: chunked\r\n\r\n1;" + "x" * 400 + "\r\n", 400, "invalid_http"),
    (HEAD + "Expect: magic\r\n\r\n", 400, "invalid_http"),
    ("GET /" + "a" * 8200 + " HTTP/1.1\r\nHost: a\r\n\r\n", 431, "headers_too_large"),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: " + "a" * 33000 + "\r\n\r\n", 431, "headers_too_large"),
    ("GET / HTTP/1.1\r\nHost: a\r\n" + "X: 1\r\n" * 100 + "\r\n", 431, "headers_too_large"),
])
def test_bad_framing_is_refused_and_the_connection_closed(server, head, status, code):
    answer = exchange(server, head)
    assert status_of(answer) == status, answer
    assert error_of(answer)["code"] == code
    assert b"Connection: close" in answer


def test_a_chunked_body_of_single_bytes(server):
    text = json.dumps({"prompt": "Hi", "max_tokens": 1, "user": "x" * 100000})
    chunks = "".join(f"1;a=b\r\n{c}\r\n" for c in text) + "0\r\nTrailer: x\r\n\r\n"
    answer = exchange(server, HEAD + "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    assert status_of(answer) == 200, answer[:300]


def test_requests_cut_anywhere_are_put_together(server):
    request = (HEAD + f"Connection: close\r\nContent-Length: {len(BODY)}\r\n\r\n" + BODY).encode()
    for at in range(1, len(request), 17):
        with server.connect() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(request[:at])
            sock.sendall(request[at:])
            assert status_of(read_all(sock)) == 200


def test_pipelined_requests_are_answered_in_order(server):
    requests = ""
    for i in range(16):
        body = json.dumps({"prompt": "Hi", "max_tokens": 1 + (16 - i) % 3, "request_id": f"r{i}", "stream": i % 5 == 4})
        requests += HEAD + f"x-request-id: id-{i}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        requests += f"GET /health HTTP/1.1\r\nHost: a\r\nx-request-id: h-{i}\r\n\r\n"
    requests += "GET /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer = exchange(server, requests)
    order = [line.split(b": ")[1].decode() for line in answer.split(b"\r\n") if line.startswith(b"x-request-id")]
    assert order[:-1] == [f"{kind}-{i}" for i in range(16) for kind in ("id", "h")]
    assert answer.count(b"HTTP/1.1 200 OK") == 33


def test_kept_connections_and_http_1_0(server):
    request = "GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    assert exchange(server, request * 3 + request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).count(b"200 OK") == 4
    answer = exchange(server, "GET /health HTTP/1.0\r\n\r\n")
    assert status_of(answer) == 200 and b"Connection: close" in answer
    body = json.dumps({"prompt": "Hi", "max_tokens": 3, "stream": True})
    answer = exchange(server, "POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
                      f"Content-Length: {len(body)}\r\n\r\n{body}")
    assert b"Transfer-Encoding" not in answer and answer.endswith(b"data: [DONE]\n\n")


def test_a_client_that_expects_100_gets_it(server):
    with server.connect() as sock:
        sock.sendall((HEAD + f"Connection: close\r\nExpect: 100-continue\r\nContent-Length: {len(BODY)}\r\n\r\n").encode())
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(BODY.encode())
        assert status_of(read_all(sock)) == 200


def test_slow_heads_and_silent_bodies_get_408(make_server):
    server = make_server("--header-timeout", "0.3", "--body-timeout", "0.3")
    with server.connect() as silent, server.connect() as head, server.connect() as body:
        head.sendall(b"GET /health HTTP/1.1\r\nHost")
        body.sendall((HEAD + "Content-Length: 100\r\n\r\n{").encode())
        for sock, words in ((head, "head took longer than 300 ms"), (body, "body arrived for 300 ms")):
            answer = read_all(sock)
            assert status_of(answer) == 408 and error_of(answer)["code"] == "request_timeout"
            assert words in error_of(answer)["message"] and b"Connection: close" in answer
        silent.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")  # an idle one is not a slow one
        assert status_of(read_all(silent)) == 200
    assert server.metrics()['request_failure_total{code="request_timeout"}'] == 2


def test_idle_connections_are_closed(make_server):
    server = make_server("--timeout-keep-alive", "0.3")
    with server.connect() as fresh, server.connect() as used:
        used.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_all(used).endswith(b'{"status":"ok"}') and read_all(fresh) == b""


def test_paths_and_methods(server):
    assert (server.get("/nowhere").status, server.get("/nowhere").error["code"]) == (404, "not_found")
    for method, path, allow in [("GET", "/v1/completions", "POST, OPTIONS"), ("PUT", "/v1/models", "GET, HEAD, OPTIONS"),
                                ("DELETE", "/v1/models/tiny", "GET, HEAD, OPTIONS"), ("POST", "/health", "GET, HEAD, OPTIONS")]:
        reply = server.request(method, path)
        assert (reply.status, reply.error["code"], reply.fields["allow"]) == (405, "method_not_allowed", allow)
    head = server.request("HEAD", "/health")
    assert head.status == 200 and head.body == b"" and head.fields["content-length"] == "15"
    assert server.get("/health?x=1").status == 200 and server.get("/heal%74h").status == 200
    for path in ("/health", "/ping", "/ready"):
        assert server.get(path).json() == {"status": "ok"}
    assert "version" in server.get("/version").json() and server.get("/load").json() == {"server_load": 0}


def test_only_plain_json_is_read(server):
    for fields in ({"Content-Type": "text/plain"}, {"Content-Type": "application/jsonx"}, {},
                   {"Content-Type": "application/json", "Content-Encoding": "gzip"}):
        reply = server.request("POST", "/v1/completions", BODY, fields)
        assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")
    assert server.post("/v1/completions", BODY, {"Content-Type": "application/json; charset=utf-8"}).status == 200


def test_request_ids(server):
    assert server.get("/health", {"x-request-id": "My-id_1.2:3"}).fields["x-request-id"] == "My-id_1.2:3"
    made = {server.get("/health", {"x-request-id": bad}).fields["x-request-id"] for bad in ("", "a b", "x" * 129, "a\tb")}
    assert len(made) == 4 and all(one.startswith("req-") for one in made)
    assert server.complete("Hi", max_tokens=1, request_id="abc")["id"] == "cmpl-abc"


def test_origins_are_refused_unless_allowed(server, make_server):
    assert "access-control-allow-origin" not in server.get("/v1/models", {"Origin": "http://a.example"}).fields
    other = make_server("--allowed-origins", "http://a.example")
    assert other.get("/v1/models", {"Origin": "http://a.example"}).fields["access-control-allow-origin"] == "http://a.example"
    assert "access-control-allow-origin" not in other.get("/v1/models", {"Origin": "http://b.example"}).fields
    reply = other.request("OPTIONS", "/v1/chat/completions", fields={"Origin": "http://a.example",
                                                                     "Access-Control-Request-Method": "POST"})
    assert reply.status == 204 and "POST" in reply.fields["access-control-allow-methods"]


def test_garbage_does_not_hurt(server):
    for garbage in (b"\x00" * 5000, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 500, b"\r\n" * 5000, b"A" * 40000,
                    bytes(range(256)) * 20):
        exchange(server, garbage, close_write=True)
    assert server.get("/health").status == 200
