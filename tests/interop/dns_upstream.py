"""A forward server for the live DNS tests: ``python dns_upstream.py ADDRESS PORT``, over UDP and TCP.

Names that begin with ``nx.``, ``refused.``, ``empty.`` get NXDOMAIN, REFUSED, nothing; those with ``big.`` an answer
that is cut over UDP; every other one an address of documentation.
"""

from __future__ import annotations

import socket
import sys
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

__all__ = ["answer", "main"]


def answer(data: bytes, *, udp: bool) -> bytes:
    """What is said to a question."""
    query = dns.message.from_wire(data)
    reply = dns.message.make_response(query, recursion_available=True)
    question = query.question[0]
    kind = question.name.to_text().lower().partition(".")[0]
    match kind:
        case "nx":
            reply.set_rcode(dns.rcode.NXDOMAIN)
            soa = "ns.example. admin.example. 1 2 3 4 60"
            reply.authority.append(dns.rrset.from_text("example.", 60, "IN", "SOA", soa))
        case "refused":
            reply.set_rcode(dns.rcode.REFUSED)
        case "empty":
            pass
        case "big" if udp:
            reply.flags |= dns.flags.TC
        case "big":
            texts = [f'"{number:0100}"' for number in range(20)]
            reply.answer.append(dns.rrset.from_text_list(question.name, 60, "IN", "TXT", texts))
        case _ if question.rdtype == dns.rdatatype.A:
            reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", "CNAME", "real.example."))
            reply.answer.append(dns.rrset.from_text("real.example.", 60, "IN", "A", "192.0.2.1"))
        case _ if question.rdtype == dns.rdatatype.AAAA:
            reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", "AAAA", "2001:db8::1"))
        case _ if question.rdtype == dns.rdatatype.TXT:
            reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", "TXT", '"from outside"'))
    return reply.to_wire()


def _serve_tcp(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            length = int.from_bytes(connection.recv(2, socket.MSG_WAITALL), "big")
            said = answer(connection.recv(length, socket.MSG_WAITALL), udp=False)
            connection.sendall(len(said).to_bytes(2, "big") + said)


def main(address: str, port: int) -> None:
    """Serve for ever; says ``ready`` once it listens."""
    listener = socket.create_server((address, port))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        threading.Thread(target=_serve_tcp, args=(listener,), daemon=True).start()
        print("ready", flush=True)
        while True:
            data, client = sock.recvfrom(4096)
            sock.sendto(answer(data, udp=True), client)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
