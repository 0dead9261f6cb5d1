"""DNS record types as EdgeVPN's DNS library names them (spec/edgevpn.md 8.6, 11.2).

The ledger holds numbers, the API names. An unknown name becomes type 0, which prints as ``None``; an unknown number
has the empty name. No DNS library is loaded for this.
"""

from __future__ import annotations

__all__ = ["NAMES", "NUMBERS"]

_RUNS = (
    (0, "None A NS MD MF CNAME SOA MB MG MR NULL"),
    (12, "PTR HINFO MINFO MX TXT RP AFSDB X25 ISDN RT"),
    (23, "NSAP-PTR SIG KEY PX GPOS AAAA LOC NXT EID NIMLOC SRV ATMA NAPTR KX CERT"),
    (39, "DNAME"),
    (41, "OPT APL DS SSHFP IPSECKEY RRSIG NSEC DNSKEY DHCID NSEC3 NSEC3PARAM TLSA SMIMEA"),
    (55, "HIP NINFO RKEY TALINK CDS CDNSKEY OPENPGPKEY CSYNC ZONEMD SVCB HTTPS"),
    (99, "SPF UINFO UID GID UNSPEC NID L32 L64 LP EUI48 EUI64"),
    (128, "NXNAME"),
    (249, "TKEY TSIG IXFR AXFR MAILB MAILA ANY URI CAA AVC"),
    (260, "AMTRELAY"),
    (32768, "TA DLV"),
    (65535, "Reserved"),
)

NAMES: dict[int, str] = {first + n: name for first, names in _RUNS for n, name in enumerate(names.split())}
"""Number to name."""

NUMBERS: dict[str, int] = {name: number for number, name in NAMES.items()}
"""Name to number."""
