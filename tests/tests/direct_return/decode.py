"""Prints a line of JSON for each TCP or UDP packet of a capture between the two nodes: in which form it
is, from where to where it goes, what it says was addressed or chosen, and whether all checksums are right.
An independent view: nothing of it is xskiff's code."""

import json
import struct
import sys

from scapy.all import IP, TCP, UDP, Ether, IPv6, IPv6ExtHdrDestOpt, PcapReader
from socket import AF_INET, AF_INET6, inet_ntop


def l4_of(packet):
    for layer in (TCP, UDP):
        if layer in packet:
            return packet[layer]
    return None


def are_right(packet):
    """Whether every checksum is what scapy computes."""
    again = packet.copy()
    for layer in (IP, TCP, UDP):
        if layer in again and again[layer].chksum is not None:
            del again[layer].chksum
    return bytes(again) == bytes(packet)


def ends(packet):
    ip = packet[IP] if IP in packet else packet[IPv6]
    l4 = l4_of(packet)
    return [ip.src, l4.sport, ip.dst, l4.dport]


def geneve(raw):
    """Packet within, and the backend that the option names."""
    words, protocol = raw[0] & 0x3F, struct.unpack("!H", raw[2:4])[0]
    option = raw[8 : 8 + words * 4]
    group, kind, length = struct.unpack("!HBB", option[:4])
    assert (raw[0] >> 6, group, kind) == (0, 0xFFF0, 0x81) and length & 0x1F == words - 1
    port = struct.unpack("!H", option[4:6])[0]
    family, size = (AF_INET, 4) if protocol == 0x0800 else (AF_INET6, 16)
    inner = (IP if family == AF_INET else IPv6)(raw[8 + words * 4 :])
    return inner, [inet_ntop(family, option[8 : 8 + size]), port]


def named(packet):
    """The frontend in the packet's own header."""
    if IP in packet:
        for option in packet[IP].options:
            if (option.copy_flag, option.optclass, option.option) == (1, 0, 30):
                value = bytes(option.value)
                return [inet_ntop(AF_INET, value[2:6]), struct.unpack("!H", value[:2])[0]]
    elif IPv6ExtHdrDestOpt in packet:
        for option in packet[IPv6ExtHdrDestOpt].options:
            if option.otype == 0x1E:
                value = bytes(option.optdata)
                return [inet_ntop(AF_INET6, value[:16]), struct.unpack("!H", value[16:18])[0]]
    return None


for frame in PcapReader(sys.argv[1]):
    if IP not in frame and IPv6 not in frame:
        continue
    ip = frame[IP] if IP in frame else frame[IPv6]
    told = {"mac": frame[Ether].src, "form": "plain", "outer": [ip.src, ip.dst], "says": None}
    inner = ip
    if ip.payload.name in ("IP", "IPv6"):
        told["form"], inner = "ipip", ip.payload
    elif UDP in ip and ip[UDP].dport == 6081:
        told["form"] = "geneve"
        inner, told["says"] = geneve(bytes(ip[UDP].payload))
    else:
        told["says"] = named(ip)
        if told["says"]:
            told["form"] = "option"
    if l4_of(inner) is None:
        continue
    told["ends"] = ends(inner)
    told["tcp"] = TCP in inner
    told["right"] = are_right(inner)
    told["length"] = len(ip)
    print(json.dumps(told))
